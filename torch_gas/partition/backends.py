"""Partitioners: each gives the part of every node."""

from __future__ import annotations

import os
import tempfile
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from torch_gas import _core
from torch_gas.graph.formats import format_of

# Partitioners also come as 32-bit builds, which must be able to sum the weights.
MAX_TOTAL_WEIGHT = 2**31 - 1
TOO_WIDE = 2**31  # for int32
ITEMS_AT_ONCE = 1 << 20  # of what is converted on its way to a file


class Task(NamedTuple):
    """What :func:`torch_gas.metis` was asked for, checked.

    Args:
        adj: the adjacency, on the CPU, in any of the four formats.
        num_nodes: N.
        num_parts: from 2 to N - 1.
        recursive: whether METIS uses recursive bisection.
        edge_weight: non-negative, in the order in which ``adj`` stores its edges, [E] or None.
        node_weight: non-negative integers, [N] or None.
        seed: from 0, or None.
        log: whether to say what is being done.
    """

    adj: Any
    num_nodes: int
    num_parts: int
    recursive: bool
    edge_weight: Tensor | None
    node_weight: Tensor | None
    seed: int | None
    log: bool

    def say(self, what: str, end: str = " ") -> None:
        if self.log:
            print(f"{what}...", end=end, flush=True)

    def say_partitioning(self, by: str, end: str = " ") -> None:
        self.say(f"Computing {by} partitioning with {self.num_parts} parts", end)


class SimpleGraph(NamedTuple):
    """A symmetric graph without self-loops and duplicates, as CSR; all tensors are int32, or all int64.

    Args:
        rowptr: where each node's neighbours start, [N + 1].
        col: neighbours, ascending for each node, [E].
        edge_weight: positive integers, equal in both directions, [E] or None.
        node_weight: non-negative integers, [N] or None.
    """

    rowptr: Tensor
    col: Tensor
    edge_weight: Tensor | None
    node_weight: Tensor | None


def simple_graph(task: Task, dtype: torch.dtype | None = None) -> SimpleGraph:
    """The graph in the form that multilevel partitioners need, without the edges of weight 0.

    Beside it and the user's graph, memory holds at most one id an edge meanwhile, and with weights three numbers an edge.

    Args:
        task: names the graph and its weights.
        dtype: int32 or int64; by default int32 where it is wide enough.
    """
    task.say("Building the graph")
    rowptr, dst, src = format_of(task.adj).stored_edges(task.adj)
    weight = None if task.edge_weight is None else task.edge_weight.to(torch.float64)
    ids = dtype or (torch.int32 if task.num_nodes < TOO_WIDE else torch.int64)
    pairs, col, weight = _core.adjacent_pairs(src, dst, rowptr, task.num_nodes, weight, ids)
    if dtype is None and 2 * col.numel() >= TOO_WIDE:
        col = col.to(torch.int64)
    edge_weight = None if weight is None else integer_weights(weight)
    del weight
    rowptr, col, edge_weight = _core.symmetric(pairs, col, edge_weight)
    node_weight = None if task.node_weight is None else integer_weights(task.node_weight.to(torch.float64))
    return SimpleGraph(rowptr, col, edge_weight, None if node_weight is None else node_weight.to(col.dtype))


def integer_weights(weight: Tensor) -> Tensor:
    """Weights as integers: whole numbers of a moderate total stay, others are scaled.

    Scaling maps the largest weight to 1000, or less where the total would overflow; what is
    positive stays positive.
    """
    # Twice, because an edge counts in both directions.
    whole = bool((weight == weight.round()).all())
    if whole and 2 * float(weight.sum()) <= MAX_TOTAL_WEIGHT:
        return weight.to(torch.int64)
    share = weight / weight.max()
    scaled = share * min(1000.0, MAX_TOTAL_WEIGHT / (4 * float(share.sum())))
    return torch.where(weight > 0, scaled.round().clamp(min=1), scaled).to(torch.int64)


def _import(package: str, backend: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        needs = f"needs the package {package}: `pip install {package}`"
        raise ImportError(f"metis(): backend {backend!r} {needs}") from error


def metis_parts(task: Task) -> Tensor:
    """METIS, multilevel k-way or recursive bisection."""
    pymetis = _import("pymetis", "metis")
    # Arrays of this type are not copied.
    dtype = torch.from_numpy(np.empty(0, dtype=pymetis.zero_copy_dtype())).dtype
    arrays: list[Any] = [None if tensor is None else tensor.numpy() for tensor in simple_graph(task, dtype)]
    rowptr, col, edge_weight, node_weight = arrays
    task.say_partitioning("METIS")
    graph, weights = pymetis.CSRAdjacency(rowptr, col), {"vweights": node_weight, "eweights": edge_weight}
    options = pymetis.Options() if task.seed is None else pymetis.Options(seed=task.seed)
    _, parts = pymetis.part_graph(task.num_parts, graph, **weights, recursive=task.recursive, options=options)
    return torch.from_numpy(np.asarray(parts, dtype=np.int64))


def kaminpar_parts(task: Task) -> Tensor:
    """KaMinPar in its default configuration, multi-threaded unless a seed asks for one result."""
    kaminpar = _import("kaminpar", "kaminpar")
    with tempfile.TemporaryDirectory(prefix="torch_gas_") as folder:
        path = os.path.join(folder, "graph.parhip")
        # By way of a file, which is when our graph is gone and KaMinPar's does not exist yet.
        write_parhip(path, simple_graph(task), wide=vars(kaminpar)["__64bit__"])
        graph = kaminpar.load_graph(path, kaminpar.GraphFileFormat.PARHIP)
    task.say_partitioning("KaMinPar")
    # Its generator is global and shared: always seeded, so that no earlier call decides the result.
    kaminpar.reseed(task.seed or 0)
    num_threads = torch.get_num_threads() if task.seed is None else 1  # one result for one seed
    partitioner = kaminpar.KaMinPar(num_threads, kaminpar.default_context())
    parts = partitioner.compute_partition(graph, k=task.num_parts, eps=0.03)  # a list: the binding has no arrays
    return torch.from_numpy(np.fromiter(parts, dtype=np.int64, count=task.num_nodes))


def write_parhip(path: str, graph: SimpleGraph, wide: bool) -> None:
    """Writes KaMinPar's binary graph format.

    Three 64-bit words (flags, nodes, edges), then per node the byte at which its neighbours start,
    neighbours, node weights, edge weights. A set flag bit says what is *not* there: edge weights,
    node weights, then 64-bit edge ids, node ids, node weights and edge weights.
    """
    width = 8 if wide else 4
    num_nodes, num_edges = graph.rowptr.numel() - 1, graph.col.numel()
    start = 24 + width * (num_nodes + 1)
    if not wide and start + width * num_edges >= 2**32:
        advice = "use backend='metis' or a 64-bit build of kaminpar"
        raise ValueError(f"metis(): this build of kaminpar holds 32-bit ids, too few for {num_edges} edges: {advice}")
    flags = (graph.edge_weight is None) | (graph.node_weight is None) << 1 | (0 if wide else 0b111100)
    with open(path, "wb") as file:
        np.array([flags, num_nodes, num_edges], dtype="<u8").tofile(file)
        for tensor in (graph.rowptr, graph.col, graph.node_weight, graph.edge_weight):
            for piece in () if tensor is None else tensor.split(ITEMS_AT_ONCE):
                items = piece.to(torch.int64) * width + start if tensor is graph.rowptr else piece
                items.numpy().astype(f"<u{width}", copy=False).tofile(file)


def stream_parts(task: Task) -> Tensor:
    """Label propagation over the edges as they are stored, where they are stored node by node."""
    rowptr, col, edge_weight = _node_by_node(task)
    task.say_partitioning("streaming", end="\n")
    edge_weight = None if edge_weight is None else edge_weight.to(torch.float64)
    node_weight = None if task.node_weight is None else task.node_weight.to(torch.int64)
    with tqdm(total=_core.STREAM_PASSES, unit="pass", leave=False, disable=not task.log) as bar:

        def report(share: float) -> None:
            bar.set_postfix_str(f"{share:.1%} of edges between parts", refresh=False)
            bar.update()

        return _core.stream_parts(rowptr, col, task.num_parts, task.seed or 0, report, edge_weight, node_weight)


def _node_by_node(task: Task) -> tuple[Tensor, Tensor, Tensor | None]:
    """Row pointers, neighbours and edge weights: the user's own tensors, unless edges are sorted by neither end."""
    rowptr, dst, src = format_of(task.adj).stored_edges(task.adj)
    if dst is None:
        return rowptr, src, task.edge_weight
    for ends, others in ((dst, src), (src, dst)):
        pointers = _core.row_pointers(ends, task.num_nodes)
        if pointers is not None:
            return pointers, others, task.edge_weight
    rowptr, col, edge_weight, _ = simple_graph(task)
    return rowptr, col, edge_weight


def random_parts(task: Task) -> Tensor:
    """Random parts of equal size (up to one node); without a seed, from torch's generator."""
    task.say_partitioning("random")
    generator = None if task.seed is None else torch.Generator().manual_seed(task.seed)
    return torch.randperm(task.num_nodes, generator=generator, device="cpu") % task.num_parts


BACKENDS = {"metis": metis_parts, "kaminpar": kaminpar_parts, "stream": stream_parts, "random": random_parts}
