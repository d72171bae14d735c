"""How fast do pull and push move rows between host memory and a GPU, beside a plain pinned copy of as many bytes?

Rows lie scattered in a table. The device reads or writes them in place where the table is page-locked: by torch (pinned), or
in place, as histories are (registered), with small pages instead of huge ones, or beginning 64 bytes behind a page, as large
tensors of torch do. Host threads move rows of a pageable table through pinned staging memory, piece by piece (staged). Or
torch gathers all rows on the host into pinned memory and copies them then (or copies, and writes them to the table), as one
would without this library. Halo rows have random ids, ascending; batch rows are sixteen contiguous ranges. Rows arrive as
float32, also from half-precision tables. Calls are made on a stream that is not the default one, as a model's are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from common import NOT_ON_CPU, in_turn, parse_args, save, save_picture, synchronize, table
from matplotlib import pyplot as plt
from predictions import Machine, rows_rate
from torch import Tensor
from workload import spread

from torch_gas import _core

COPY, REGISTERED, SMALL_PAGES, SHIFTED = "copy", "registered", "small pages", "64 bytes behind"
IN_PLACE = ("pinned", REGISTERED, SMALL_PAGES, SHIFTED)
WAYS = (*IN_PLACE, "staged", "torch")
ON_CPU = ("pinned", SHIFTED, "torch")  # what a smoke run tries
LABELS = {
    COPY: ("plain pinned copy", "black"),
    "pinned": ("table pinned by torch", "tab:blue"),
    REGISTERED: ("page-locked in place, as histories", "tab:green"),
    SMALL_PAGES: ("likewise, small pages", "tab:olive"),
    SHIFTED: ("likewise, 64 bytes behind a page", "tab:purple"),
    "staged": ("pageable table, staged", "tab:orange"),
    "torch": ("pageable table, torch on the host", "tab:red"),
}

MEANINGS = [f"{name}: {label}" for name, (label, _) in LABELS.items()]


class Bench:
    """Tables in host memory, and the ways to move rows of them."""

    def __init__(self, device: torch.device, table_bytes: int, moved_bytes: int, repeats: int) -> None:
        self.device, self.table_bytes, self.moved_bytes, self.repeats = device, table_bytes, moved_bytes, repeats
        self.is_cuda = device.type == "cuda"
        self.generator = torch.Generator().manual_seed(0)
        self.buffer = self.host_bytes(moved_bytes)
        pageable = torch.empty(table_bytes, dtype=torch.uint8)
        self.tables = {"pinned": self.host_bytes(table_bytes), "staged": pageable, "torch": pageable}
        whole = _core.at_page([table_bytes + 64], torch.uint8)
        _core.advise_huge_pages(whole)
        whole[table_bytes:] = 0
        self.tables |= {REGISTERED: whole[:table_bytes], SHIFTED: whole[64:]}
        self.tables[SMALL_PAGES] = _core.at_page([table_bytes], torch.uint8)
        if self.is_cuda:
            self.held = [_core.register(self.tables[name], device) for name in (REGISTERED, SMALL_PAGES)]
            self.staging = _core.Staging(2**24, device)

    def host_bytes(self, size: int) -> Tensor:
        """Host memory that the device reaches."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=self.is_cuda)

    def fill(self, dtype: torch.dtype) -> None:
        """Random numbers in all tables: memory that nobody wrote to may be one page of zeros."""
        numbers = self.tables["torch"].view(dtype)
        for piece in numbers.split(2**26):
            piece.copy_(torch.rand(piece.numel(), device=self.device).to(dtype))
        for name in ("pinned", REGISTERED, SMALL_PAGES):
            self.tables[name].copy_(self.tables["torch"])

    def measure(self, dtype: torch.dtype, row_bytes: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Rows of the tables of pulls and pushes."""
        width, num_rows = row_bytes // dtype.itemsize, self.moved_bytes // row_bytes
        ways = WAYS if self.is_cuda else ON_CPU
        tables = {name: self.tables[name].view(dtype).view(-1, width) for name in ways}
        pageable, length = tables["torch"], self.table_bytes // row_bytes
        buffer = self.buffer.view(dtype).view(-1, width)
        there = torch.empty(num_rows, width, dtype=dtype, device=self.device)
        rows = torch.empty(num_rows, width, device=self.device)
        index = spread(num_rows, length, self.generator)
        device_index = index.to(self.device)
        offset = torch.arange(16) * (length // 16)
        count = torch.full((16,), num_rows // 16)
        ranges = [slice(o, o + c) for o, c in zip(offset.tolist(), count.tolist(), strict=True)]
        pushed = torch.rand(num_rows // 16 * 16, width, device=self.device)

        def gather_then_copy() -> None:
            torch.index_select(pageable, 0, index, out=buffer)
            there.copy_(buffer, non_blocking=True)
            rows.copy_(there)

        def copy_then_scatter() -> None:
            there[: len(pushed)].copy_(pushed)
            buffer.copy_(there, non_blocking=True)
            if self.is_cuda:
                torch.cuda.current_stream(self.device).synchronize()
            for where, piece in zip(ranges, buffer[: len(pushed)].chunk(16), strict=True):
                pageable[where] = piece

        def pull(table: Tensor) -> None:
            _core.gather_rows(table, device_index, out=rows)

        def push(table: Tensor, staging: _core.Staging | None = None) -> None:
            sent = _core.stored_copy(table, pushed)  # as a model makes it
            _core.write_chunks(table, offset, count, sent, staging=staging)

        pulls: dict[str, Callable[[], object]] = {COPY: lambda: there.copy_(buffer, non_blocking=True)}
        pushes: dict[str, Callable[[], object]] = {COPY: lambda: buffer.copy_(there, non_blocking=True)}
        pulls |= {name: partial(pull, tables[name]) for name in IN_PLACE if name in tables}
        pushes |= {name: partial(push, tables[name]) for name in IN_PLACE if name in tables}
        if self.is_cuda:
            pulls["staged"] = partial(_core.gather_rows, pageable, index, out=rows, staging=self.staging)
            pushes["staged"] = partial(push, pageable, self.staging)
        pulls["torch"], pushes["torch"] = gather_then_copy, copy_then_scatter

        # A figure counts only if the rows arrive, and arrive anew.
        for name in pulls.keys() - {COPY}:
            rows.fill_(torch.nan)
            pulls[name]()
            assert torch.equal(rows.cpu(), tables[name][index].float()), f"{name} pulled wrong rows"
        expected = pushed.to(dtype).cpu()
        for name in pushes.keys() - {COPY}:
            for where in ranges:
                tables[name][where] = torch.nan
            pushes[name]()
            synchronize(self.device)
            assert torch.equal(torch.cat([tables[name][where] for where in ranges]), expected), (
                f"{name} pushed wrong rows"
            )

        first = {"bytes a row": row_bytes, "table": str(dtype).removeprefix("torch.")}
        pulled, pushed_ = (in_turn(steps, self.repeats, self.device) for steps in (pulls, pushes))
        return first | self.rates(pulled, row_bytes, True), first | self.rates(pushed_, row_bytes, False)

    def rates(self, median: dict[str, float], row_bytes: int, pull: bool) -> dict[str, Any]:
        """Bandwidths in GB/s of bytes in the table, as predicted and as measured, and what share of the copy's each is."""

        def predicted(name: str) -> dict[str, float]:
            rate = rows_rate(name, row_bytes, pull, self.moved_bytes, Machine())
            return {f"{name}, predicted GB/s": rate / 1e9}

        row: dict[str, Any] = {f"{COPY}, GB/s": self.moved_bytes / median[COPY] / 1e9} | predicted(COPY)
        for name in WAYS:
            measured = name in median
            row |= predicted(name)
            row[f"{name}, GB/s"] = self.moved_bytes / median[name] / 1e9 if measured else NOT_ON_CPU
            row[f"{name} / {COPY}"] = median[COPY] / median[name] if measured else NOT_ON_CPU
        return row


def draw(pulls: list[dict[str, Any]], pushes: list[dict[str, Any]], device_name: str) -> Any:
    """Bandwidth over bytes a row, pulls beside pushes, a line of panels for each type of table."""
    types = list(dict.fromkeys(row["table"] for row in pulls))
    figure, panels = plt.subplots(len(types), 2, figsize=(11, 3.6 * len(types)), layout="constrained", squeeze=False)
    sides = (("pull: table → GPU", pulls), ("push: GPU → table", pushes))
    for dtype, line in zip(types, panels, strict=True):
        for axes, (title, rows) in zip(line, sides, strict=True):
            shown = [row for row in rows if row["table"] == dtype]
            for name, (label, color) in LABELS.items():
                rates = [row[f"{name}, GB/s"] for row in shown]
                if NOT_ON_CPU not in rates:
                    style = {"linestyle": "--"} if name == COPY else {"marker": "o"}
                    axes.plot([row["bytes a row"] for row in shown], rates, color=color, label=label, **style)
            axes.set_xscale("log", base=2)
            axes.set_xticks([row["bytes a row"] for row in shown], [str(row["bytes a row"]) for row in shown])
            axes.set(title=f"{title}, {dtype} table", xlabel="bytes of a row in the table", ylabel="GB/s")
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"Rows between host memory and {device_name}")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def main() -> None:
    args = parse_args(__doc__)
    if args.quick:
        bench, sizes = Bench(args.device, table_bytes=2**20, moved_bytes=2**17, repeats=2), (64, 4096)
    else:
        bench = Bench(args.device, table_bytes=2**31, moved_bytes=2**27, repeats=6)
        sizes = (64, 128, 256, 512, 1024, 4096)
    note = (
        f"{bench.moved_bytes:,} bytes moved, of a table of {bench.table_bytes:,} bytes. {'; '.join(MEANINGS)}. GB/s counts "
        "bytes as the table holds them."
    )
    pulls: list[dict[str, Any]] = []
    pushes: list[dict[str, Any]] = []

    def keep(last: bool = False) -> None:
        tables = [
            table("Pulls: scattered rows to the device", pulls, note),
            table("Pushes: ranges of rows to the host", pushes, note),
        ]
        save(args.out, "rows", __doc__, args.device, args.quick, tables, shows=last)

    side = torch.cuda.Stream(args.device) if bench.is_cuda else None
    with torch.cuda.stream(side):
        for dtype in (torch.float32, torch.float16):
            bench.fill(dtype)
            for row_bytes in sizes:
                for rows, row in zip((pulls, pushes), bench.measure(dtype, row_bytes), strict=True):
                    rows.append(row)
                keep()
    name = torch.cuda.get_device_name(args.device) if bench.is_cuda else "itself (CPU smoke run)"
    save_picture(draw(pulls, pushes, name), args.out, "rows")
    keep(last=True)


if __name__ == "__main__":
    main()
