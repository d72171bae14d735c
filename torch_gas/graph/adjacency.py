"""The adjacency of a graph, which may state its edges twice: as ``edge_index`` and as ``adj_t``."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch_geometric.data import Data

from torch_gas.graph.checks import count_nodes
from torch_gas.graph.edges import coo
from torch_gas.graph.formats import ADJACENCIES, check_adjacency
from torch_gas.graph.key import graph_key
from torch_gas.graph.levels import edge_attrs


def find_adjacency(data: Data) -> tuple[str, Any]:
    """The name and value of the adjacency that ``data`` holds: ``adj_t`` where ``edge_index`` states the same edges.

    Raises:
        ValueError: if ``data`` has neither, or has both and these are two graphs, or attributes of edges that go by one of them.
        TypeError: if the adjacency is in no known format.
    """
    keys = [key for key in ADJACENCIES if data.get(key) is not None]
    if not keys:
        raise ValueError("data has no adjacency: set data.edge_index or data.adj_t")
    for key in keys:
        check_adjacency(data[key], f"data.{key}")
    if len(keys) == 2:
        _check_both(data)
    return keys[-1], data[keys[-1]]


def _check_both(data: Data) -> None:
    """Raises ValueError unless ``adj_t`` may stand for ``edge_index``."""
    num_nodes, advice = count_nodes(data, "data"), "keep one: `del data.edge_index` or `del data.adj_t`"
    if graph_key(data.edge_index, num_nodes) != graph_key(data.adj_t, num_nodes):
        raise ValueError(f"data has both edge_index and adj_t, which state different edges; {advice}")
    pairs = zip(coo(data.edge_index)[:2], coo(data.adj_t)[:2], strict=True)
    attributes = [name for name in edge_attrs(data) if name != "edge_perm"]
    if attributes and not all(torch.equal(left.long(), right.long()) for left, right in pairs):
        raise ValueError(
            f"data has both edge_index and adj_t, in which edges are in two orders, and {', '.join(attributes)} go by that of "
            f"edge_index; {advice}"
        )


def one_adjacency(data: Data) -> Data:
    """``data``, or a shallow copy that holds its edges once, where it has both ``edge_index`` and ``adj_t``."""
    chosen, _ = find_adjacency(data)
    others = [key for key in ADJACENCIES if key != chosen and key in data]
    if others:
        data = copy.copy(data)
        for key in others:
            del data[key]
    return data
