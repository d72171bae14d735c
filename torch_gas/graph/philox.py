"""Philox4x32-10 (https://doi.org/10.1145/2063384.2063405) in plain torch, on any device: the bits of the kernel, more slowly."""

from __future__ import annotations

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF


def words(key: int, ids: Tensor, blocks: Tensor) -> Tensor:
    """The four words for each counter (id, block), in [0, 2**32).

    Args:
        key: number of 64 bits.
        ids: the lower 64 bits of counters, int64.
        blocks: the word above, int64; of a shape that broadcasts with ``ids``.

    Returns:
        int64 of the common shape, with one more dimension of 4.
    """
    key0, key1 = key & _LOW, key >> 32
    c0, c1, c2 = torch.broadcast_tensors(ids & _LOW, (ids >> 32) & _LOW, blocks)
    c3 = torch.zeros_like(c0)
    for _ in range(10):
        product0, product1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # 64 bits, whose sign the mask takes away
        c0, c1 = ((product1 >> 32) & _LOW) ^ c1 ^ key0, product1 & _LOW
        c2, c3 = ((product0 >> 32) & _LOW) ^ c3 ^ key1, product0 & _LOW
        key0, key1 = (key0 + 0x9E3779B9) & _LOW, (key1 + 0xBB67AE85) & _LOW
    return torch.stack([c0, c1, c2, c3], dim=-1)


def row_words(key: int, ids: Tensor, width: int) -> Tensor:
    """The word of each channel of rows with these ids, [R, width]: word c % 4 of block c // 4."""
    blocks = torch.arange((width + 3) // 4, device=ids.device)
    return words(key, ids[:, None], blocks).flatten(1)[:, :width]


def entry_words(key: int, ids: Tensor, channels: Tensor) -> Tensor:
    """The word of single entries, each by the id of its row and its channel, [n]."""
    return words(key, ids, channels // 4).gather(1, (channels % 4)[:, None])[:, 0]


def mix(ids: Tensor) -> Tensor:
    """int64 that look random, one for each of ``ids``: the finaliser of splitmix64 (https://doi.org/10.1145/2660193.2660195)."""
    ids = ids - 0x61C8864680B583EB  # + 0x9E3779B97F4A7C15, as a number with a sign
    ids = (ids ^ _shifted(ids, 30)) * -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
    ids = (ids ^ _shifted(ids, 27)) * -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
    return ids ^ _shifted(ids, 31)


def _shifted(ids: Tensor, bits: int) -> Tensor:
    """A shift to the right that brings in zeros."""
    return (ids >> bits) & ((1 << (64 - bits)) - 1)
