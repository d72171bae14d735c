"""Partitioners: each maps a simple symmetric graph to the part of every node."""

from __future__ import annotations

import os
import tempfile
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# Partitioners also come as 32-bit builds, which must be able to sum the weights.
MAX_TOTAL_WEIGHT = 2**31 - 1


class SimpleGraph(NamedTuple):
    """A symmetric graph without self-loops and duplicates, as CSR in int64.

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


def simple_graph(
    src: Tensor,
    dst: Tensor,
    edge_weight: Tensor | None,
    node_weight: Tensor | None,
    num_nodes: int,
) -> SimpleGraph:
    """The graph in the form that partitioners need, without the edges of weight 0."""
    keep = src != dst
    if edge_weight is not None:
        keep &= edge_weight > 0
        edge_weight = edge_weight[keep].to(torch.float64)
    src, dst = src[keep], dst[keep]
    pair, order = (torch.minimum(src, dst) * num_nodes + torch.maximum(src, dst)).sort()
    if edge_weight is None:
        pair = torch.unique_consecutive(pair)
    else:
        # Summed for each undirected pair, so that both directions get the very same weight.
        pair, group = torch.unique_consecutive(pair, return_inverse=True)
        edge_weight = edge_weight.new_zeros(pair.numel()).index_add_(0, group, edge_weight[order])
        edge_weight = integer_weights(edge_weight).repeat(2)
    low, high = pair // num_nodes, pair % num_nodes
    key, order = torch.cat([pair, high * num_nodes + low]).sort()
    row = key // num_nodes
    return SimpleGraph(
        rowptr=torch.searchsorted(row, torch.arange(num_nodes + 1)),
        col=key - row * num_nodes,
        edge_weight=None if edge_weight is None else edge_weight[order],
        node_weight=None if node_weight is None else integer_weights(node_weight.to(torch.float64)),
    )


def integer_weights(weight: Tensor) -> Tensor:
    """Weights as integers: whole numbers of a moderate total stay, others are scaled.

    Scaling maps the largest weight to 1000, or less where the total would overflow; what is
    positive stays positive.
    """
    if weight.numel() == 0:
        return weight.to(torch.int64)
    # Twice, because an edge counts in both directions.
    whole = bool((weight == weight.round()).all())
    if whole and 2 * float(weight.sum()) <= MAX_TOTAL_WEIGHT:
        return weight.to(torch.int64)
    share = weight / weight.max()
    scaled = share * min(1000.0, MAX_TOTAL_WEIGHT / (4 * float(share.sum())))
    return torch.where(weight > 0, scaled.round().clamp(min=1), scaled).to(torch.int64)


def metis_parts(graph: SimpleGraph, num_parts: int, recursive: bool, seed: int | None) -> Tensor:
    """METIS, multilevel k-way or recursive bisection."""
    try:
        import pymetis
    except ImportError as error:
        raise ImportError("metis(): backend 'metis' needs the package pymetis: `pip install pymetis`") from error
    dtype = pymetis.zero_copy_dtype()

    def array(tensor: Tensor | None) -> Any:
        return None if tensor is None else tensor.numpy().astype(dtype, copy=False)

    _, parts = pymetis.part_graph(
        num_parts,
        pymetis.CSRAdjacency(array(graph.rowptr), array(graph.col)),
        vweights=array(graph.node_weight),
        eweights=array(graph.edge_weight),
        recursive=recursive,
        options=pymetis.Options() if seed is None else pymetis.Options(seed=seed),
    )
    return torch.from_numpy(np.asarray(parts, dtype=np.int64))


def kaminpar_parts(graph: SimpleGraph, num_parts: int, seed: int | None) -> Tensor:
    """KaMinPar in its default configuration, multi-threaded unless a seed asks for one result."""
    try:
        import kaminpar
    except ImportError as error:
        raise ImportError("metis(): backend 'kaminpar' needs the package kaminpar: `pip install kaminpar`") from error
    with tempfile.TemporaryDirectory(prefix="torch_gas_") as folder:
        path = os.path.join(folder, "graph.parhip")
        write_parhip(path, graph, wide=vars(kaminpar)["__64bit__"])
        loaded = kaminpar.load_graph(path, kaminpar.GraphFileFormat.PARHIP)
    # Its generator is global and shared: always seeded, so that no earlier call decides the result.
    kaminpar.reseed(0 if seed is None else seed)
    num_threads = torch.get_num_threads() if seed is None else 1
    partitioner = kaminpar.KaMinPar(num_threads, kaminpar.default_context())
    parts = partitioner.compute_partition(loaded, k=num_parts, eps=0.03)
    return torch.tensor(parts, dtype=torch.int64)


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
        raise ValueError(
            f"metis(): this build of kaminpar holds 32-bit ids, too few for {num_edges} edges; use"
            " backend='metis' or a 64-bit build of kaminpar"
        )
    flags = (graph.edge_weight is None) | (graph.node_weight is None) << 1 | (0 if wide else 0b111100)
    body = [graph.rowptr * width + start, graph.col, graph.node_weight, graph.edge_weight]
    with open(path, "wb") as file:
        np.array([flags, num_nodes, num_edges], dtype="<u8").tofile(file)
        for tensor in body:
            if tensor is not None:
                tensor.numpy().astype(f"<u{width}", copy=False).tofile(file)


def random_parts(num_nodes: int, num_parts: int, seed: int | None) -> Tensor:
    """Random parts of equal size (up to one node); without a seed, from torch's generator."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return torch.randperm(num_nodes, generator=generator) % num_parts
