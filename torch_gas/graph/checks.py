"""Checks of node ids and of the number of nodes."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch_geometric.data import Data

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_ids(ids: Tensor, num_nodes: int, where: str) -> None:
    """Raises IndexError, with the value, where an id is none of the graph's."""
    if ids.numel() == 0:
        return
    low, high = ids.aminmax()
    if int(low) < 0 or int(high) >= num_nodes:
        bad = int(ids[(ids < 0) | (ids >= num_nodes)][0])
        raise IndexError(f"{where} holds the node id {bad}, but ids must lie in 0 .. {num_nodes - 1}: check num_nodes")


def count_nodes(data: Data, where: str) -> int:
    """N as ``data`` states it; a guess from the largest id would lose isolated nodes."""
    with warnings.catch_warnings(record=True) as guesses:  # PyG warns when it guesses
        warnings.simplefilter("always")
        num_nodes = data.num_nodes
    if num_nodes is None or guesses:
        raise ValueError(f"{where}: the number of nodes of data is unknown: set data.num_nodes")
    return int(num_nodes)
