"""A small model for tests of everything around models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from graphs import adjacency
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.nn import SAGEConv

from torch_gas import ScalableGNN, SubData


class Net(ScalableGNN):
    """``num_layers`` convolutions with a history, of ``widths``, between each two."""

    def __init__(
        self,
        num_nodes: int,
        widths: int | list[int] = 16,
        num_layers: int = 3,
        conv: Callable[[int, int], torch.nn.Module] = SAGEConv,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_nodes, widths, num_layers, **kwargs)
        hidden = [widths] * (num_layers - 1) if isinstance(widths, int) else widths
        sizes = [8, *hidden, 3]
        self.convs = torch.nn.ModuleList(map(conv, sizes[:-1], sizes[1:]))
        self.dropout = dropout

    def forward(self, x: Tensor, adj: Any, *args: Any) -> Tensor:
        for conv, history in zip(self.convs, self.histories, strict=False):
            x = F.dropout(conv(x, adj).relu(), self.dropout, self.training)
            x = self.push_and_pull(history, x, *args)
        return self.convs[-1](x, adj)


def full_batch(model: ScalableGNN, data: Data) -> Tensor:
    """The model's output on the whole graph; histories stay as they are."""
    tables = {key: value.clone() for key, value in model.histories.state_dict().items()}
    with torch.no_grad():
        out = model(data.x, adjacency(data))
    model.histories.load_state_dict(tables)
    return out


def refresh(model: ScalableGNN, data: Data) -> Tensor:
    """The model's output on the whole graph; histories are exact afterwards."""
    with torch.no_grad():
        return model(data.x, adjacency(data))


def batch_rows(batch: SubData) -> Tensor:
    """Global ids of the batch's own rows, [B]."""
    return batch.n_id[: batch.batch_size]


def tables(model: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of all that the model holds, histories included."""
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    """Both hold the same bits."""
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert torch.equal(value, right[key]), key
