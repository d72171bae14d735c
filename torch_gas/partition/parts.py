"""metis(): parts of a graph, and files that keep them."""

from __future__ import annotations

import io
import os
import time
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from torch_gas._util.arguments import checked
from torch_gas._util.fitting import fitting
from torch_gas._util.replace import existing, replacing
from torch_gas._util.units import format_bytes
from torch_gas.graph.adjacency import find_adjacency
from torch_gas.graph.checks import count_nodes
from torch_gas.graph.edges import check_edges, edge_pieces
from torch_gas.graph.formats import ADJACENCIES, check_adjacency, format_of
from torch_gas.graph.key import edges_of_key, graph_key
from torch_gas.partition.backends import BACKENDS, Task
from torch_gas.partition.memory import held_memory, peak_memory
from torch_gas.partition.record import Partition, make_partition

_MOST_PARTS = 2**31 - 1  # which METIS numbers with 32 bits


@checked
def metis(
    adj: Any,
    num_parts: int,
    recursive: bool = False,
    log: bool = True,
    *,
    backend: str = "metis",
    edge_weight: Tensor | None = None,
    node_weight: Tensor | None = None,
    seed: int | None = None,
    num_nodes: int | None = None,
) -> Partition:
    """Divides a graph into parts of similar size with few edges between them (paper, Section 4).

    The graph may be directed, disconnected, and have self-loops, duplicate edges and isolated
    nodes: a simple symmetric copy is what gets partitioned. Within a part, nodes stay in ascending
    order. Parts may be empty.

    The backend ``"stream"`` makes no copy of edges that are sorted by either end, as those of a
    sparse matrix are: it reads them up to 25 times, and takes about 100 bytes a node. So of a
    directed graph it sees one direction only, and cuts more edges. No part is larger than 1.05
    times the average, rounded up; with node weights, the heaviest node may come on top of the
    average.

    Args:
        adj: a ``Data`` or its adjacency in any of the four formats. Values of a sparse matrix are
            not used; pass them as ``edge_weight`` if they should be.
        num_parts: number of parts.
        recursive: whether METIS uses recursive bisection instead of multilevel k-way partitioning.
        log: whether to print what is done, the time, the share of edges between parts and the
            memory that the call took (at most: a peak of the process before it hides a lower one).
        backend: ``"metis"``; ``"kaminpar"``, multi-threaded and faster on large graphs
            (``pip install kaminpar``); ``"stream"``, label propagation, for graphs that do not
            fit in memory more than once; or ``"random"``, parts of equal size that ignore the edges.
        edge_weight: how much each edge should stay inside a part, in the order in which ``adj``
            stores its edges, [E]; non-negative. Duplicates are summed; fractions are scaled to
            integers, except by ``"stream"``.
        node_weight: what the parts should balance, non-negative integers, [N]; nodes count 1
            without it.
        seed: the same seed gives the same parts. METIS and label propagation are deterministic without it as well.
            KaMinPar on several threads is not: with a seed, it runs on one thread.
        num_nodes: N, needed for a plain ``edge_index`` only.

    Returns:
        The partition, which unpacks as ``perm, ptr``.

    Raises:
        ValueError: if an argument is out of its range or the number of nodes is unknown.
        IndexError: if the graph holds node ids outside 0 .. N-1.
        ImportError: if the package of the backend is missing.

    Example:
        >>> edge_index = torch.tensor([[0, 2, 1, 3, 2, 1], [2, 0, 3, 1, 1, 2]])
        >>> perm, ptr = metis(edge_index, num_parts=2, num_nodes=4, log=False)
        >>> ptr
        tensor([0, 2, 4])
    """
    if not 1 <= num_parts <= _MOST_PARTS:
        rule = "at least 1" if num_parts < 1 else f"at most {_MOST_PARTS}"
        raise ValueError(f"metis(): num_parts must be {rule}, but is {num_parts}")
    if backend not in BACKENDS:
        raise ValueError(f"metis(): backend must be one of {tuple(BACKENDS)}, but is {backend!r}")
    if seed is not None and not 0 <= seed < 2**31:
        raise ValueError(f"metis(): seed must lie in 0 .. 2**31 - 1, but is {seed}")
    if recursive and backend != "metis":
        raise ValueError(f"metis(): recursive bisection is METIS's; backend is {backend!r}: drop recursive=True")
    if backend == "random" and (edge_weight is not None or node_weight is not None):
        raise ValueError("metis(): backend 'random' ignores weights: drop edge_weight and node_weight")

    if edge_weight is not None and isinstance(adj, Data) and None not in map(adj.get, ADJACENCIES):
        raise ValueError(
            "metis(): edge_weight goes by one of data.edge_index and data.adj_t: pass that instead of data"
        )
    adj, num_nodes = _checked(adj, num_nodes, "metis()")
    edge_weight = _check_weight("edge_weight", edge_weight, format_of(adj).num_edges(adj), "edge")
    node_weight = _check_weight("node_weight", node_weight, num_nodes, "node")

    start, held = time.perf_counter(), held_memory()
    if num_parts > num_nodes:
        rule = f"num_parts is {num_parts}, but the graph has only {num_nodes} nodes"
        warnings.warn(f"metis(): {rule}: the other {num_parts - num_nodes} parts are empty", stacklevel=2)
    task = Task(adj, num_nodes, num_parts, recursive, edge_weight, node_weight, seed, log)
    with fitting(f"metis(): num_nodes={num_nodes} in num_parts={num_parts}"):
        if num_parts == 1 or num_parts >= num_nodes:
            task.say_partitioning("trivial")
            one = torch.zeros(num_nodes, dtype=torch.int64, device="cpu")
            part = one if num_parts == 1 else torch.arange(num_nodes, device="cpu")
        else:
            part = BACKENDS[backend](task)
        part_of_position, perm = part.sort(stable=True)
        ptr = torch.searchsorted(part_of_position, torch.arange(num_parts + 1, device="cpu"))
    partition = make_partition(perm, ptr, "metis()", edges_of_key(graph_key(adj, num_nodes)))
    if log:
        seconds, cut = time.perf_counter() - start, _cut(adj, part)
        more = format_bytes(max(0, peak_memory() - held))
        random = 1 - 1 / num_parts
        print(f"Done! [{seconds:.2f}s, {cut:.1%} of edges between parts (random parts: {random:.0%}), peak +{more}]")
    return partition


@checked
def edge_cut(adj: Any, partition: Partition, num_nodes: int | None = None) -> float:
    """The share of edges whose two ends lie in different parts; 0 for a graph without edges.

    Args:
        adj: a ``Data`` or its adjacency, in the original node order.
        partition: what :func:`metis` returned for it.
        num_nodes: N, needed for a plain ``edge_index`` only.

    Raises:
        ValueError: if the partition is of a graph with another number of nodes.

    Example:
        >>> edge_index = torch.tensor([[0, 1, 2], [1, 2, 3]])
        >>> edge_cut(edge_index, metis(edge_index, 4, log=False, num_nodes=4), num_nodes=4)
        1.0
    """
    adj, num_nodes = _checked(adj, num_nodes, "edge_cut()")
    perm, ptr = partition
    if perm.numel() != num_nodes:
        raise ValueError(f"edge_cut(): partition has {perm.numel()} nodes, but the graph has {num_nodes}: run metis()")
    part = torch.empty_like(perm)
    part[perm] = torch.repeat_interleave(ptr.diff())
    return _cut(adj, part)


@checked
def save_partition(path: str | os.PathLike[str], partition: Partition) -> None:
    """Writes a partition to ``path``, a NumPy ``.npz`` archive, replaced at once or not at all.

    Raises:
        ValueError: if ``partition`` is not one.
    """
    perm, ptr = make_partition(*partition, where="save_partition()")
    with replacing(path) as file:
        np.savez(file, perm=perm.numpy(), ptr=ptr.numpy())


@checked
def load_partition(path: str | os.PathLike[str], num_nodes: int | None = None) -> Partition:
    """Reads what :func:`save_partition` wrote, and checks it.

    Args:
        path: the file.
        num_nodes: N of the graph it is meant for; checked if given.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file holds no valid partition, is damaged, or is of another number of nodes.
    """
    where = f"load_partition({os.fspath(path)!r})"
    with existing(path) as file:
        content = io.BytesIO(file.read())  # so that whatever is raised from here on is due to what is in it
    try:
        with warnings.catch_warnings(), np.load(content, allow_pickle=False) as archive:
            warnings.simplefilter("ignore")  # of headers that are odd
            if damaged := archive.zip.testzip():
                raise ValueError(f"the checksum of {damaged} is another one")
            perm, ptr = (torch.from_numpy(archive[name].astype(np.int64, casting="safe")) for name in ("perm", "ptr"))
    except Exception as error:  # of any type: zipfile, zlib and NumPy each have their own
        raise ValueError(
            f"{where}: the file holds no partition or is damaged ({error}); write one with save_partition()"
        ) from error
    partition = make_partition(perm, ptr, where)
    if num_nodes not in (None, perm.numel()):
        raise ValueError(f"{where}: it is for {perm.numel()} nodes, but num_nodes is {num_nodes}: run metis() again")
    return partition


def _checked(adj: Any, num_nodes: int | None, call: str) -> tuple[Any, int]:
    """The adjacency on the CPU, its ids checked, and N."""
    if isinstance(adj, Data):
        stated: int | None = count_nodes(adj, call)
        _, adj = find_adjacency(adj)
    else:
        check_adjacency(adj, f"{call}: adj")
        stated = format_of(adj).num_nodes(adj)
    if stated is not None and num_nodes is not None and num_nodes != stated:
        raise ValueError(f"{call}: num_nodes is {num_nodes}, but adj has {stated} nodes: drop num_nodes")
    num_nodes = num_nodes if stated is None else stated
    if num_nodes is None:
        raise ValueError(f"{call}: num_nodes is unknown: pass num_nodes=... beside an edge_index, or the Data")
    if num_nodes < 1:
        raise ValueError(f"{call}: the graph must have at least one node, but num_nodes is {num_nodes}")
    adj = adj.cpu()
    check_edges(adj, num_nodes, f"{call}: adj")
    return adj, num_nodes


def _check_weight(name: str, weight: Tensor | None, size: int, of: str) -> Tensor | None:
    if weight is None:
        return None
    kind = "integers" if of == "node" else "real numbers"
    if weight.is_complex() or (of == "node" and weight.is_floating_point()):
        raise TypeError(f"metis(): {name} must be {kind}, but is {weight.dtype}")
    if weight.dim() != 1 or weight.numel() != size:
        raise ValueError(f"metis(): {name} must hold one number per {of}, [{size}], but has shape {list(weight.shape)}")
    weight = weight.detach().cpu()
    if not bool(weight.sum(dtype=torch.float64).isfinite()) or bool((weight < 0).any()):
        rule = "must be finite and not negative, and so must their sum"
        raise ValueError(f"metis(): {name} {rule}: clamp or drop the values that are not, or divide all of them")
    if of == "node" and not bool((weight > 0).any()):
        raise ValueError(f"metis(): {name} is 0 for every node, which leaves nothing to balance: drop it")
    return weight


def _cut(adj: Any, part: Tensor) -> float:
    between = sum(int((part[src] != part[dst]).sum()) for _, src, dst in edge_pieces(adj))
    return between / max(1, format_of(adj).num_edges(adj))
