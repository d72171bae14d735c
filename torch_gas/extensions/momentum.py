"""Momentum: halo rows move towards what the batch itself can compute of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_gas._util.arguments import checked
from torch_gas.extensions.age import AgeWeights
from torch_gas.graph.formats import format_of
from torch_gas.history import History
from torch_gas.session.call import Call
from torch_gas.session.extension import Extension
from torch_gas.session.model import HistoryModel
from torch_gas.wiring.compiled import is_called_compiled, is_compiled


class Momentum(Extension):
    r"""In training, rows of the halo move towards what the batch can compute of them (GraphFM-OB,
    https://arxiv.org/abs/2206.07161, ICML 2022).

    .. math::
        \bar{h}_w^{(l)} \leftarrow (1 - \beta) \, \bar{h}_w^{(l)} + \beta \, f^{(l)}\big(h_w^{(l-1)},
        \{ h_u^{(l-1)} : u \in N(w) \cap B \}\big) \qquad \text{for } w \in N(B) \setminus B

    The new rows are what the batch goes on with, and what the history holds from then on. They are computed from a part of the
    neighbours, those in the batch, and of the parameters as they are; the rows before from all neighbours, and of older
    parameters. A sum over neighbours is too small in the new rows, a mean is only noisy. Halo nodes into which no edge of the
    batch leads keep their rows. Gradients stop at halo rows as before. The age of a row stays that of its own batch.

    The published code computes new rows of messages from the batch alone. Here the layer itself runs on the halo's nodes, so that
    it may read their own rows too, as the formula has it: self-loops, residual weights and attention work in any model.

    Batches must hold the edges out of their nodes as well: ``SubgraphLoader(..., neighbors="both")``. Layers then compute
    B + S rows, of which training without momentum drops S. A :class:`~torch_gas.ScalableGNN` gets them between its
    convolutions and must leave them there: a residual connection is ``h + x[: h.size(0)]``.

    Args:
        beta: weight of the new rows, from 0 (training without momentum, to the bit) to 1. It may be changed during training. A
            row moves once for each batch that reads it, until its own batch computes it whole: of the whole row, n others leave
            :math:`(1 - \beta)^n`.

    Raises:
        ValueError: if ``beta`` is not in [0, 1]; in training, if a batch lacks the edges out of its nodes, or ``forward`` cuts
            halo rows off before it calls ``push_and_pull``.
        RuntimeError: in training, if the model is compiled.

    Example:
        >>> from torch_geometric.nn import GraphSAGE
        >>> from torch_gas import SubgraphLoader, metis, permute, scale
        >>> from torch_gas.datasets import synthetic
        >>> from torch_gas.extensions import Momentum
        >>> data = synthetic(1000)
        >>> perm, ptr = metis(data, num_parts=8, log=False)
        >>> data = permute(data, perm, log=False)
        >>> model = scale(GraphSAGE(data.num_features, 16, num_layers=3, out_channels=10), data)
        >>> model.add_extension(Momentum(beta=0.1))
        >>> for batch in SubgraphLoader(data, ptr, batch_size=4, neighbors="both"):
        ...     model(batch).square().mean().backward()
    """

    takes_part = True

    @checked
    def __init__(self, beta: float = 0.1) -> None:
        if not 0 <= beta <= 1:
            raise ValueError(f"Momentum: beta must be from 0 to 1, but is {beta}")
        self.beta = beta
        self._reached: Tensor | None = None  # positions in the halo of the rows that move, in the call under way

    def added(self, model: HistoryModel) -> None:
        for other in model.extensions:
            if isinstance(other, Momentum):
                raise ValueError("add_extension: the model has a Momentum already; remove it first, or change its beta")
            if isinstance(other, AgeWeights):  # whose weights would go into the history, once more in each step
                raise ValueError(
                    "add_extension: add Momentum before AgeWeights, which changes the rows that were pulled"
                )

    def begin(self, call: Call) -> None:
        """Asks for the halo's rows, and finds the nodes that get messages from the batch."""
        self._reached = None
        if not call.is_step or self.beta == 0 or call.n_id is None or call.n_id.numel() == call.batch_size:
            return
        name = call.model._name
        if call.neighbors != "both":
            raise ValueError(
                f"{name}: Momentum needs the edges from a batch into its halo, and this batch holds none; make the loader with "
                'SubgraphLoader(..., neighbors="both")'
            )
        if is_called_compiled() or any(map(is_compiled, call.model.modules())):
            raise RuntimeError(
                f"{name}: Momentum needs rows that compiled code cuts off; do not compile the model, or remove Momentum"
            )
        if call.adj is None:
            raise ValueError(f"{name}: Momentum needs the edges of the batch; pass them as the second argument")
        call.asks_for_halo = True
        self._reached = _reached(call)

    def exchange(self, call: Call, history: History, rows: Tensor, pulled: Tensor) -> None:
        reached = self._reached
        if reached is None or reached.numel() == 0:
            return
        if call.of_halo is None:
            raise ValueError(
                f"{call.model._name}: Momentum needs what layers compute for the halo, but forward gives push_and_pull the "
                f"{len(rows)} rows of the batch only; leave the other {len(pulled)} rows of a layer's result there"
            )
        assert call.n_id is not None
        moved = pulled[reached].lerp(call.of_halo[reached], self.beta)
        call.session._check_finite(history, moved)
        ids = call.n_id[len(rows) :][reached.to(call.n_id.device)]
        times = ids.to(history.pushed_at.device)
        pushed_at = history.pushed_at[times]
        history.write(moved, ids, None, None)
        history.pushed_at[times] = pushed_at
        pulled[reached] = moved

    def end(self, call: Call) -> None:
        self._reached = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy belongs to no call.
        return {**vars(self), "_reached": None}


def _reached(call: Call) -> Tensor:
    """Positions in the halo of the nodes into which an edge of the batch leads."""
    assert call.batch_size is not None and call.n_id is not None
    size = call.n_id.numel() - call.batch_size
    edges = format_of(call.adj).stored_edges(call.adj)
    if call.model._neighbors == "both":  # messages go against edges as well, and each halo node has one
        return torch.arange(size, device=edges.src.device)
    if edges.dst is None:
        counts = edges.rowptr.diff()[call.batch_size :]
    else:
        counts = edges.dst.bincount(minlength=call.n_id.numel())[call.batch_size :]
    return (counts > 0).nonzero().view(-1)
