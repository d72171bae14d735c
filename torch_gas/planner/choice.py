"""plan(): chooses parts and batches by a few measured steps and the batches of a few partitions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Module
from torch_geometric.data import Data

from torch_gas._util.arguments import checked
from torch_gas._util.units import format_bytes, parse_bytes
from torch_gas.batch.loader import SubgraphLoader
from torch_gas.graph.checks import count_nodes
from torch_gas.partition import metis
from torch_gas.planner.batches import sample
from torch_gas.planner.memory import StepMemory, free_memory
from torch_gas.planner.probe import Loss, measure
from torch_gas.planner.record import Plan, Prediction
from torch_gas.planner.tiers import storages
from torch_gas.session.model import HistoryModel

PARTS_A_BATCH = 8
LEAST_NODES = 16  # in a part, on average


@checked
def plan(
    data: Data,
    model: Module,
    *,
    device_memory: int | str | None = None,
    host_memory: int | str | None = None,
    ptr: Tensor | None = None,
    backend: str | None = None,
    parts_a_batch: int | None = None,
    loss: Loss | None = None,
    optimizer_states: int = 2,
    prefetch: int | None = None,
    neighbors: str | None = None,
    margin: float = 0.1,
) -> Plan:
    """Chooses the number of parts and the parts in a batch, and predicts what training will take.

    Memory is not computed from a formula for each layer: the model makes a few training steps on small batches, whose memory
    is a linear function of rows and edges, and is left as it was. Batches are then counted in partitions of the graph, with
    more steps an epoch each time, until they fit; each takes as long as :func:`torch_gas.metis` does.

    Device memory is what tensors take at the peak of a step: parameters, the optimiser's state, gradients, activations, the
    batch and those made ahead, and on a GPU histories that live there and the buffers of transfers. On the CPU, the graph and
    the histories are not part of it. Call it with the model on the device that is to train it: layers take other memory on
    another. Sums of PyTorch's allocators are predicted; a CUDA context comes on top of them.

    Histories belong in the fastest tier that has room for them: the GPU beside the peak of a step, host memory, a file. The plan
    says which, and what narrower storage types would change. While it is made they may lie in any of them, in files for example.
    The gradient tables of :class:`~torch_gas.ExactGradient`, and tables of other extensions, count where the model has them.

    Args:
        data: the graph, in any order of nodes.
        model: a model with histories for this graph; any :class:`~torch_gas.ScalableGNN`, as :func:`torch_gas.scale` makes.
        device_memory: what training may take, in bytes or as in ``"8 GiB"`` and ``"500 MB"``; by default what is free.
        host_memory: what histories may take in host memory, in the same ways; by default what is free there, on the CPU beside
            the peak of a step.
        ptr: start of each part, from :func:`torch_gas.metis`, where ``data`` was partitioned and permuted already. Only the
            parts in a batch are then chosen, and any number of them is counted at no cost.
        backend: what :func:`torch_gas.metis` will partition by; ``"metis"`` by default.
        parts_a_batch: parts in a batch, fewer where they would have less than 16 nodes; 8 by default. More of them mix better and
            have larger halos.
        loss: the training loss of ``(out, batch)``, from what the model returns and a :class:`~torch_gas.SubData`; by default the
            cross entropy with class ids in ``data.y`` or, without them, a sum of squares, and the model's regularisation.
        optimizer_states: tensors as large as the parameters that the optimiser keeps: 2 for Adam, 0 for plain SGD.
        prefetch: batches made ahead, as in :class:`~torch_gas.SubgraphLoader`.
        neighbors: ``"in"`` or ``"both"``, as in :class:`~torch_gas.SubgraphLoader`; by default what a scaled model needs.
        margin: the share of device and of host memory to leave free, for what is not counted and for batches that are larger than
            those looked at.

    Returns:
        The plan, whose ``num_parts`` and ``batch_size`` are for :func:`torch_gas.metis` and
        :class:`~torch_gas.SubgraphLoader`. Where the whole graph fits, it is one batch.

    Raises:
        TypeError: if ``model`` has no histories, or an argument is of another type than its annotation says.
        ValueError: if an argument is out of its range, the model is for another graph, or not even the smallest batches fit.

    Example:
        >>> from torch_gas import gcn_norm, plan
        >>> from torch_gas.datasets import synthetic
        >>> from torch_gas.models import GCN
        >>> data = gcn_norm(synthetic(2000))
        >>> model = GCN(2000, data.num_features, 64, out_channels=10, num_layers=3)
        >>> chosen = plan(data, model, device_memory="2 MiB")
        >>> chosen.num_parts == 8 * chosen.steps, chosen.batch_size, chosen.peak_memory < 2**21
        (True, 8, True)
        >>> plan(data, model, device_memory="1 GiB").is_full_batch
        True
    """
    model = _check_model(model, data)
    if ptr is not None and (backend is not None or parts_a_batch is not None):
        raise ValueError(
            "plan(): ptr is a partition, and backend and parts_a_batch are for making one; drop one or the other"
        )
    for name, value, least in (("parts_a_batch", parts_a_batch, 1), ("optimizer_states", optimizer_states, 0)):
        if value is not None and value < least:
            raise ValueError(f"plan(): {name} must be a whole number, at least {least}, but is {value}")
    if not 0 <= margin < 1:
        raise ValueError(f"plan(): margin must be a share in 0 .. 1, less than 1, but is {margin}")
    resident, states = _resident(model), optimizer_states * _bytes(p for p in model.parameters() if p.requires_grad)
    if device_memory is None:
        memory = free_memory(model.device) + resident
    else:
        memory = parse_bytes(device_memory, "plan(): device_memory")
    host = None if host_memory is None else parse_bytes(host_memory, "plan(): host_memory")
    neighbors = model._neighbors if neighbors is None else neighbors
    parts = torch.tensor([0, model.num_nodes], device="cpu") if ptr is None else ptr
    loader = SubgraphLoader(data, parts, neighbors=neighbors, prefetch=prefetch, device=model.device)

    step_memory = measure(model, loader, loss)
    step_memory = step_memory._replace(constant=step_memory.constant + resident + states)
    limit = (1 - margin) * memory
    too_much = (
        f"more than {format_bytes(limit)} ({format_bytes(memory)} of device memory less a margin of {margin:.0%})"
    )
    if step_memory.constant >= limit:
        raise ValueError(
            f"plan(): parameters, their gradients and the optimiser (optimizer_states is {optimizer_states}) "
            f"take {format_bytes(step_memory.constant)} whatever the batch is, {too_much}; give more device_memory, or make the "
            "model narrower"
        )
    search = _Search(model, loader, step_memory, limit)
    if ptr is None:
        candidates = search.over_partitions(backend or "metis", parts_a_batch or PARTS_A_BATCH)
    else:
        candidates = search.over_batches(loader.ptr)
    last = candidates[-1]
    if not last.fits:
        raise ValueError(
            f"plan(): even batches of {last.batch_nodes:.0f} nodes with {last.batch_nodes * last.halo_ratio:.0f} halo nodes "
            f"(one of {last.num_parts} parts) take {format_bytes(last.peak_memory)}, {too_much}; "
            f"{'' if ptr is None else 'partition into more parts, '}give more device_memory, keep histories in host memory, "
            "or make the model narrower or of half precision (model.bfloat16())"
        )
    rooms = _rooms(model, memory, host, margin, last.peak_memory)
    return Plan(
        **asdict(last),
        device_memory=memory,
        margin=margin,
        rooms=rooms,
        storages=storages(model, rooms),
        step_memory=step_memory,
        candidates=tuple(candidates),
    )


class _Search(NamedTuple):
    """Predictions with more steps an epoch each time, until one fits."""

    model: HistoryModel
    loader: SubgraphLoader
    step_memory: StepMemory
    limit: float  # of the peak, in bytes

    def over_partitions(self, backend: str, parts_a_batch: int) -> list[Prediction]:
        """Over partitions with as many parts as the batches need."""
        num_nodes = self.loader.num_nodes
        steps, most = 1, max(1, num_nodes // LEAST_NODES)
        found: list[Prediction] = []
        while True:
            batch_size = 1 if steps == 1 else max(1, min(parts_a_batch, num_nodes // (LEAST_NODES * steps)))
            perm, ptr = metis(self.loader.data, steps * batch_size, log=False, backend=backend, seed=0)
            found.append(self._predict(batch_size, ptr, perm))
            if found[-1].fits or steps == most:
                return found
            steps = min(max(math.ceil(steps / self._share(found[-1])), steps + 1, steps * 9 // 8), most)

    def over_batches(self, ptr: Tensor) -> list[Prediction]:
        """Over batches of the parts that there are."""
        found = [self._predict(int((ptr.diff() > 0).sum()), ptr)]
        while not found[-1].fits and (size := found[-1].batch_size) > 1:
            found.append(self._predict(max(1, min(int(size * self._share(found[-1])), size - 1)), ptr))
        return found

    def _share(self, last: Prediction) -> float:
        """By how much smaller batches would fit if halos shrank with them; they shrink less, so this is never too small."""
        constant = self.step_memory.constant
        return (self.limit - constant) / (last.peak_memory - constant)

    def _predict(self, batch_size: int, ptr: Tensor, perm: Tensor | None = None) -> Prediction:
        sizes = sample(self.loader, batch_size, ptr, perm)
        rows, halo = (sum(numbers) / len(sizes) for numbers in list(zip(*sizes, strict=True))[:2])
        row_bytes = sum(history.table.row_bytes for history in self.model.histories)
        peak = max(self.step_memory(size) for size in sizes)
        return Prediction(
            num_parts=ptr.numel() - 1,
            batch_size=batch_size,
            steps=math.ceil(int((ptr.diff() > 0).sum()) / batch_size),
            batch_nodes=rows,
            halo_ratio=halo / rows,
            peak_memory=peak,
            pushed_bytes=rows * row_bytes,
            pulled_bytes=halo * row_bytes,
            fits=peak <= self.limit,
        )


def _resident(model: HistoryModel) -> int:
    """Bytes that the model holds on its device between steps."""
    stores = {id(tensor) for store in model._stores for tensor in store.buffers()}
    own = [*model.parameters(), *(buffer for buffer in model.buffers() if id(buffer) not in stores)]
    return _bytes(own) + _stored(model, "cuda") + sum(history.table.hot_bytes for history in model.histories)


def _stored(model: HistoryModel, kind: str) -> int:
    """Bytes that histories and tables take now in the memory of devices of this kind."""
    return _bytes(tensor for store in model._stores for tensor in store.buffers() if tensor.device.type == kind)


def _rooms(model: HistoryModel, memory: int, host: int | None, margin: float, peak: int) -> dict[str, int]:
    """Bytes that histories may take in each tier, the fastest first, beside steps that take ``peak``."""
    on_gpu = model.device.type == "cuda"
    if host is None:
        host = free_memory(torch.device("cpu")) + _stored(model, "cpu") - (0 if on_gpu else peak)
    rooms = {"device": (1 - margin) * memory - peak + _stored(model, "cuda")} if on_gpu else {}
    rooms["pinned" if on_gpu else "host"] = (1 - margin) * host
    return {tier: max(int(room), 0) for tier, room in rooms.items()}


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _check_model(model: Module, data: Data) -> HistoryModel:
    """``model``, if steps of it on ``data`` can be measured."""
    if not isinstance(model, HistoryModel):
        raise TypeError(
            f"plan(): model must be a ScalableGNN, but is {type(model).__name__}; wire it with scale(model, data), and pass the "
            "model itself in place of what torch.compile(model) returned"
        )
    try:
        model._check_ready()
    except RuntimeError as error:
        raise ValueError(
            "plan(): the scaled model has not been tried out yet; give scale() the graph: scale(model, data)"
        ) from error
    model._check_size(count_nodes(data, "plan()"), "plan(): data")
    if model.device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"plan(): memory is counted on the CPU and on CUDA devices, but the model is on {model.device}"
        )
    return model
