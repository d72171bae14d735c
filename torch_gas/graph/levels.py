"""What a graph holds one entry of for each node or for each edge, and which attributes hold node ids."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.typing import TensorFrame

from torch_gas.graph.checks import INTEGERS, count_nodes
from torch_gas.graph.formats import find_format, format_of, is_matrix
from torch_gas.table import StoredFeatures


def is_node_attr(data: Data, key: str) -> bool:
    """Whether ``data`` holds something for each node under this name."""
    value = data[key]
    if is_matrix(value) and not isinstance(value, Tensor):  # which PyG does not know as features
        return bool(value.size(0) == data.num_nodes)
    return isinstance(value, StoredFeatures) or bool(data.is_node_attr(key))


def edge_attrs(data: Data) -> list[str]:
    """Names of what ``data`` holds per edge, its adjacency aside."""
    num_nodes, num_edges = count_nodes(data, "edge_attrs()"), count_edges(data)
    others = {key: value for key, value in data.to_dict().items() if not holds_edges(data, key, value)}
    return [key for key, value in others.items() if level_of(data, key, value, num_nodes, num_edges) == "edge"]


def primary_key(data: Data) -> str | None:
    """The adjacency whose order edge attributes follow: PyG looks at ``edge_index`` first."""
    return next((key for key in ("edge_index", "adj_t") if data.get(key) is not None), None)


def count_edges(data: Data) -> int:
    # Not data.num_edges: beside a sparse matrix, it counts any attribute with "edge" in its name.
    key = primary_key(data)
    return 0 if key is None else format_of(data[key]).num_edges(data[key])


def holds_edges(data: Data, key: str, value: Any) -> bool:
    known = find_format(value)
    named = (key in ("edge_index", "adj_t") and value is not None) or (known is not None and known.holds_only_edges)
    return named or isinstance(data.__cat_dim__(key, value), tuple)


def level_of(data: Data, key: str, value: Any, num_nodes: int, num_edges: int) -> Literal["node", "edge"] | None:
    """What ``value`` holds one entry of per node or per edge; None where it is neither."""
    stem = key.removesuffix("_index")
    # A list of ids (edge_label_index) keeps its order, and so does what describes its entries
    # (edge_label).
    if (stem != key and stem in data) or (key != "edge" and f"{key}_index" in data):
        return None
    if data.__cat_dim__(key, value) is None:  # PyG's way to say that it is of the graph
        return None
    ids = holds_ids(data, key, value, num_nodes)
    if isinstance(value, (Tensor, np.ndarray)):
        if value.ndim == 0 or (ids and value.ndim > 1):
            return None
        length = value.shape[data.__cat_dim__(key, value)]
    elif is_matrix(value):
        length = value.size(0)
    elif isinstance(value, (list, tuple, TensorFrame)):
        length = len(value)
    else:
        return None
    # PyG's rule for graphs with as many edges as nodes, which it does not apply to lists.
    named, tie = "edge" in key, num_nodes == num_edges
    if is_node_attr(data, key) and not (tie and named):
        return "node"
    return "edge" if length == num_edges and (named or not (tie or ids)) else None


def holds_ids(data: Data, key: str, value: Any, num_nodes: int) -> bool:
    if "batch" in key:  # Counts graphs, not nodes.
        return False
    inc = data.__inc__(key, value) if holds_integers(value) else None
    return isinstance(inc, int) and inc == num_nodes


def holds_integers(value: Any) -> bool:
    """Whether all entries of a tensor, array or list, or of a dictionary of such, are integers."""
    if isinstance(value, dict):
        return len(value) > 0 and all(holds_integers(each) for each in value.values())
    if isinstance(value, Tensor):
        return value.dtype in INTEGERS
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "iu"
    return isinstance(value, (list, tuple)) and all(type(item) is int for item in value)
