"""How much faster are scattered rows of a large table found when it lies in huge pages?

Gathers random rows of two tables on the CPU, in turn: one made with the advice that histories give by default, one without.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from torch_gas import _core


def make_table(num_bytes: int, row_bytes: int, huge: bool) -> torch.Tensor:
    table = torch.empty(num_bytes // row_bytes, row_bytes // 4)
    if huge and not _core.advise_huge_pages(table):
        raise SystemExit("this system has no huge pages to give")
    return table.uniform_()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of a table (default: 2)")
    parser.add_argument("--rows", type=int, default=200_000, help="rows gathered in a call (default: 200,000)")
    parser.add_argument("--repeats", type=int, default=15, help="calls of each side (default: 15)")
    args = parser.parse_args()
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, tables of {args.gigabytes} GB, medians of {args.repeats}"
    )
    for row_bytes in (64, 128, 256, 512, 1024):
        tables = {huge: make_table(int(args.gigabytes * 1e9), row_bytes, huge) for huge in (False, True)}
        index = torch.randint(tables[True].size(0), (args.rows,))
        out = torch.empty(args.rows, row_bytes // 4)
        times: dict[bool, list[float]] = {False: [], True: []}
        for repeat in range(args.repeats + 1):
            for huge, table in tables.items():
                start = time.perf_counter()
                _core.gather_rows(table, index, out=out)
                if repeat > 0:
                    times[huge].append(time.perf_counter() - start)
        plain, huge_pages = (statistics.median(times[huge]) for huge in (False, True))
        rate = args.rows * row_bytes / huge_pages / 1e9
        print(
            f"rows of {row_bytes:5} B: {plain / huge_pages:.2f} times as fast in huge pages ({rate:.2f} GB/s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
