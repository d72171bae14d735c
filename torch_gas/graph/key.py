"""Keys: numbers that tell graphs, and vectors of ids, apart by what they hold, whatever tensors hold it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from torch_gas import _core
from torch_gas._util.version import version
from torch_gas.graph.edges import EDGES_AT_ONCE, edge_pieces
from torch_gas.graph.formats import format_of, memory_of, tensors_of
from torch_gas.graph.product import forget_edges

# Odd numbers of 64 bits, as int64 has them: those of splitmix64 and of MurmurHash3.
_GOLDEN, _MIX_1, _MIX_2, _SALT = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15, -0x3C5A37A36834CED9
_AT_ONCE = 1 << 13  # numbers, which stay in the fastest caches

_known: Any = WeakIdKeyDictionary()  # by adjacency or perm: versions of its tensors and their content, and its digest


def graph_key(adj: Any, num_nodes: int, perm: Tensor | None = None) -> str:
    """The key of a graph whose nodes are in a certain order: equal graphs have equal keys, in any process.

    It goes by the edges, in whatever adjacency format and order they are stored, by N, and by the order of the nodes. It does
    not go by ``ptr``, because rows of histories are those of the same nodes for all loaders over parts of one order (those of
    training and of evaluation, say), nor by the weights of edges. It takes a pass over the edges, a piece at a time, and is
    remembered for as long as the tensors live and hold the same, which is found out by a faster one.

    Args:
        adj: the adjacency [N, N] or [2, E], in any of the four formats.
        num_nodes: N.
        perm: original id of each node, ``data.perm`` [N]; None for a graph that has not been permuted.

    Returns:
        ``"edges-order"``, two numbers of 64 bits; ``order`` is empty without ``perm``.

    Example:
        >>> edge_index = torch.tensor([[0, 1, 2], [1, 2, 0]])
        >>> graph_key(edge_index, 3) == graph_key(edge_index[:, [2, 0, 1]], 3)
        True
        >>> graph_key(edge_index, 3) == graph_key(edge_index, 4)
        False
    """
    holder = adj if isinstance(adj, Tensor) else format_of(adj).stored_edges(adj).src
    edges = _remembered(holder, adj, lambda: _edges(adj))
    return f"{_hex(edges + num_nodes * _GOLDEN)}-{order_key(perm)}"


def edges_of_key(key: str) -> str:
    """The part of a key that goes by N and the edges."""
    return key.partition("-")[0]


def order_of_key(key: str) -> str:
    """The part of a key that goes by the order of the nodes; empty where that is not known."""
    return key.partition("-")[2]


def order_key(perm: Tensor | None) -> str:
    """The same of ``data.perm``."""
    return "" if perm is None else _hex(_remembered(perm, perm, lambda: _pairs(_positions(perm))))


def digest(ids: Tensor) -> int:
    """A number that tells vectors of ids [M] apart, by their values and places. It is cheap: one product with fixed weights."""
    ids = ids.detach().to("cpu", torch.int64)
    number = ids.numel()
    return int(ids.dot(_weights(number.bit_length())[:number])) + number


@functools.cache
def _weights(bits: int) -> Tensor:
    return _mix(torch.arange(1, 2**bits + 1, device="cpu"))


def _mix(x: Tensor) -> Tensor:
    """Spreads each number over all 64 bits."""
    x = x * _MIX_1
    x ^= x >> 32
    x *= _MIX_2
    x ^= x >> 29
    return x


def _pairs(pieces: Iterable[tuple[Tensor, Tensor]]) -> int:
    """A sum over pairs, so that their order does not count."""
    number = total = 0
    for piece in pieces:
        at_once = (
            _AT_ONCE if piece[0].device.type == "cpu" else EDGES_AT_ONCE
        )  # elsewhere, each sum makes the host wait
        for left, right in zip(*(ids.split(at_once) for ids in piece), strict=True):
            total += int(_mix(left * _GOLDEN + right * _SALT).sum())
            number += left.numel()
    return total + number * _MIX_2  # as a pair of zeros adds nothing


def _positions(perm: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    for begin in range(0, perm.numel(), EDGES_AT_ONCE):
        ids = perm[begin : begin + EDGES_AT_ONCE].to(torch.int64)
        yield torch.arange(begin, begin + ids.numel(), device=ids.device), ids


def _edges(adj: Any) -> int:
    """As it is looked at for the first time, or holds other edges than before, which no version may tell."""
    forget_edges(adj)
    return _pairs((src, dst) for _, src, dst in edge_pieces(adj))


def _remembered(holder: Tensor, value: Any, compute: Callable[[], int]) -> int:
    """What was computed of ``value`` when it held what it holds now."""
    if holder.is_inference() and holder.device.type != "cpu":  # where its content is not looked at
        return compute()
    facts = [version(tensor) for tensor in tensors_of(value)], _core.fingerprint(memory_of(value))
    known = _known.get(holder)
    if known is None or known[0] != facts:
        known = _known[holder] = (facts, compute())
    return int(known[1])


def _hex(number: int) -> str:
    return f"{number % 2**64:016x}"
