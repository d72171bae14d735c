"""Origin: of which graph the rows of a history are, and where they came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch_geometric.data import Data

from torch_gas.graph.adjacency import find_adjacency
from torch_gas.graph.formats import check_adjacency
from torch_gas.graph.key import edges_of_key, graph_key, order_of_key
from torch_gas.graph.sample import Samples
from torch_gas.table import FileTable

_FORGET = "`for history in model.histories: history.reset_parameters()`"


@dataclass
class Origin:
    """What is known of the graph that rows are of.

    Args:
        key: of the graph, which batches bring with them; empty where it is not known.
        source: the file that the rows came from; empty where they were pushed in this process.
        features: samples of those of the graph and of the weights of its edges, by name. Files do not keep them.
        as_given: whether features, edges and edge attributes of batches were those that the loader gave, by name; None before
            the first.
        names: of attributes of the graph, by the names of the arguments that took them.
        is_loaded: whether rows came from a ``state_dict``, which may not tell their graph.
        is_tentative: whether the rows are those of a graph that the model was evaluated on before it saw a batch.
    """

    key: str = ""
    source: str = ""
    features: Samples = field(default_factory=dict, compare=False, repr=False)
    as_given: dict[str, bool] | None = field(default=None, compare=False)
    names: dict[str, str] = field(default_factory=dict, compare=False, repr=False)
    is_loaded: bool = field(default=False, compare=False)
    is_tentative: bool = field(default=False, compare=False)

    def take(self, key: str, has_rows: Callable[[], bool]) -> None:
        """Notes that rows of the graph ``key`` are exchanged from now on; ``has_rows`` tells whether there are any yet.

        Raises:
            ValueError: if there are rows of another graph, or of one that their file does not tell.
        """
        differ = difference(self.key, key)
        if self.key and not differ:
            self.key = key if order_of_key(key) else self.key
        elif not (self.key or self.source) or not has_rows():
            self.key, self.source = key, ""
        elif self.key:
            raise ValueError(
                f"the histories hold embeddings of another graph, from {self.source or 'earlier calls of the model'}, than that "
                f"of the loader's data: they differ in {differ}. Make the loader of the data that they are of, or begin anew: "
                f"{_FORGET}, or another file"
            )
        else:
            raise ValueError(
                f"{self.source} does not tell of which graph its embeddings are: release 0.1 wrote it, or pushes by hand. Say it "
                "once, by graph=data: FileTier(path, reuse=True, graph=data) for histories in files, "
                "model.load_histories(path, graph=data), or checkpoint.load(path, model=model, graph=data, ...). Or begin anew: "
                f"{_FORGET}"
            )

    def loaded(self, metadata: dict[str, Any]) -> Origin:
        """That of rows from a ``state_dict``, whose ``metadata`` tells their graph unless the dictionary was built anew."""
        return Origin(metadata.get("graph", self.key), is_loaded=True)


def key_of(graph: Any, num_nodes: int) -> str:
    """The key of ``graph``, a ``Data`` or an adjacency of ``num_nodes`` nodes; empty for None."""
    if graph is None:
        return ""
    perm = None
    if isinstance(graph, Data):
        if graph.num_nodes != num_nodes:
            raise ValueError(f"graph has {graph.num_nodes} nodes, but the histories are of {num_nodes}")
        perm, graph = graph.get("perm"), find_adjacency(graph)[1]
    check_adjacency(graph, "graph")
    return graph_key(graph, num_nodes, perm)


def known_key(source: str, key: str, given: str) -> str:
    """The key of rows in ``source``, which tells ``key``, where ``given`` is that of the graph that its reader names.

    Raises:
        ValueError: if these are two graphs.
    """
    if differ := difference(key, given):
        raise ValueError(
            f"{source} holds embeddings of another graph than the one that was given as graph: they differ in {differ}; give the "
            "data that it was written for, or choose another file"
        )
    return key or given


def origin_of(file: FileTable, given: str) -> Origin:
    """Where the rows of a file are from; it learns their graph where it does not know it."""
    if file.pushed_at is None:  # a new file, or one whose rows are forgotten
        return Origin(given)
    key = known_key(file.path, file.header.key, given)
    if key != file.header.key:
        file.name_graph(key)
    return Origin(key, file.path)


def difference(key: str, other: str) -> str:
    """What tells the graphs of two keys apart, in words; nothing where a key is empty, or does not say it."""
    orders = {order_of_key(key), order_of_key(other)} - {""}
    if key and other and len(orders) > 1:
        return "the order of their nodes (data.perm)"
    return "edges" if key and other and edges_of_key(key) != edges_of_key(other) else ""
