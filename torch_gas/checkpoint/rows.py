"""Rows of a table as bytes in host memory, wherever the table lives; no other file here touches a table."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_gas import _core


def read_rows(table: _core.Table, start: int, stop: int) -> Tensor:
    """The bytes of rows ``start .. stop`` of ``table``, [rows, bytes of a row]; a scalar is one row.

    They may be those of the table itself.
    """
    if isinstance(table, _core.FileRows):
        return _core.read_chunks(
            table, torch.tensor([start], device="cpu"), torch.tensor([stop - start], device="cpu")
        ).view(torch.uint8)
    rows = table.detach().reshape(1) if table.dim() == 0 else table.detach()[start:stop]
    return rows.cpu().contiguous().view(stop - start, -1).view(torch.uint8)


@torch.no_grad()
def write_rows(table: _core.Table, start: int, rows: Tensor) -> None:
    """Replaces rows of ``table`` from ``start`` on by ``rows``, as :func:`read_rows` gave them."""
    if isinstance(table, _core.FileRows):
        values = rows.view(table.dtype)
        _core.write_chunks(
            table, torch.tensor([start], device="cpu"), torch.tensor([rows.size(0)], device="cpu"), values
        )
        return
    into = table if table.dim() == 0 else table[start : start + rows.size(0)]
    into.copy_(rows.view(table.dtype).view(into.shape))
