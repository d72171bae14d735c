"""What a pool keeps of tables, of its buffers and of each pull."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torch_gas import _core
from torch_gas._util.version import version
from torch_gas.transfer.lanes import Event


@dataclass
class TableState:
    """What is known of a table: it is kept until its last transfer is done."""

    rows: _core.Table
    staged: bool  # whether its memory is out of reach of the device
    pushed: Event | None = None  # its last push
    pulled: Event | None = None  # its last pull
    visits: int = 0  # of the host, which may write in ways that no version tells

    @property
    def state(self) -> tuple[int, int]:
        """Changes whenever the rows may have changed."""
        return version(self.rows), self.visits

    def settle(self) -> None:
        """Blocks the host until no transfer is under way."""
        for event in (self.pulled, self.pushed):
            if event is not None:
                event.synchronize()
        self.pulled = self.pushed = None


@dataclass(eq=False)
class Buffer:
    """Device memory for one pull in flight."""

    data: Tensor
    read: Event | None = None  # the consumer has read the last rows that were here


class Pull:
    """One pull, from the call that asks for it to the one that frees it.

    Attributes:
        ranges: Starts and lengths of ranges of rows, [P] each.
        index: Ids of the rows after those, [S].
        dtype: Type of the rows that arrive.
        num_chunked: Rows of ranges.
        num_rows: Rows of ranges and ids, R.
        width: Elements of a row when it has arrived, C.
        row_bytes: Bytes of such a row.
        nbytes: Bytes of all rows when they have arrived.
        buffer: Where they arrive; None as long as the pull waits.
        rows: The rows [R, C] in the buffer.
        done: The rows have arrived.
        state: Of the table when it was read.
        taken: Whether somebody uses the rows.
    """

    def __init__(
        self, table: TableState, ranges: tuple[Tensor, Tensor] | None, index: Tensor | None, dtype: torch.dtype
    ) -> None:
        self.table, self.ranges, self.index, self.dtype = table, ranges, index, dtype
        self.num_chunked = 0 if ranges is None else int(ranges[1].sum())
        self.num_rows = self.num_chunked + (0 if index is None else index.numel())
        self.width = _core.row_shape(table.rows, dtype).numel()
        self.row_bytes = self.width * dtype.itemsize
        self.nbytes = self.num_rows * self.row_bytes
        self.buffer: Buffer | None = None
        self.done: Event | None = None
        self.state = (0, 0)
        self.taken = False
        self.rows: Tensor

    def rows_in(self, buffer: Buffer) -> Tensor:
        """The rows [R, C] in ``buffer``."""
        return buffer.data[: self.nbytes].view(self.dtype).view(self.num_rows, self.width)
