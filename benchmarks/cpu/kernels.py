"""How near are the kernels of the core to what memory allows?

Rows between a table and a batch, rows that are added to those of a table, and dropout, beside torch's copy of as many bytes;
rows of tables of each storage type beside those of float32; the subgraph of a batch and its transpose in nanoseconds an edge,
beside relabelling by a hash map (where there is a C++ compiler).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from bench import arguments, machine, parse, save
from matplotlib import pyplot as plt
from shared import save_picture, table
from sides import Setting, make_graphs
from torch import Tensor

from torch_gas import _core

COPY = "copy"
PULLS = ("gather_rows", "read_chunks")
PUSHES = ("scatter_rows", "write_chunks")
STORAGE = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.int8}
WIDTHS = (256, 64)
NUM_CHUNKS = 10
PAGES = ("huge", "small")
NO_COMPILER = "not measured: no C++ compiler"


class Sizes(NamedTuple):
    """What is measured."""

    table_bytes: int
    moved_bytes: int
    row_bytes: tuple[int, ...]
    graph: Setting  # of communities
    random_graph: tuple[int, int]  # nodes and edges, with random columns
    repeats: int


FULL_SIZE = Sizes(
    2**30, 2**25, (64, 128, 256, 512, 1024, 2048), Setting(50_000, 21.5, 1, 40, 10), (1_000_000, 20_000_000), 21
)
TINY = Sizes(2**18, 2**14, (64, 256), Setting(600, 8.0, 1, 8, 2), (2000, 20_000), 2)


def in_turn(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each call, all in turn, after a round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(each[1:]) for name, each in seconds.items()}


# -- rows --------------------------------------------------------------------------------------------------------------


def make_table(num_bytes: int, row_bytes: int, dtype: torch.dtype, huge: bool = True) -> Tensor:
    """A table in memory of its own, in huge pages as histories are by default."""
    made = torch.empty(num_bytes // row_bytes, row_bytes // dtype.itemsize, dtype=dtype)
    if huge:
        _core.advise_huge_pages(made)
    return made.uniform_()


def move_rows(sizes: Sizes, dtype: torch.dtype, row_bytes: int) -> dict[str, Any]:
    """Pulls and pushes of float32 rows. Random ids ascend, as those of a halo do."""
    held = make_table(sizes.table_bytes, row_bytes, dtype)
    num_rows = sizes.moved_bytes // row_bytes
    rows = torch.rand(num_rows, held.size(1))
    num_bytes = (rows.nbytes + num_rows * row_bytes) // 2  # a copy reads as many bytes as it writes
    source, target = torch.zeros(2, num_bytes, dtype=torch.uint8)
    calls = {COPY: lambda: target.copy_(source), **moves(held, rows, *places(held.size(0), num_rows))}
    seconds = in_turn(calls, sizes.repeats)
    row: dict[str, Any] = {"table": str(dtype).removeprefix("torch."), "bytes a row": row_bytes}
    row |= {f"{name}, GB/s": num_bytes / each / 1e9 for name, each in seconds.items()}
    return row | {f"{name} / copy": seconds[COPY] / each for name, each in seconds.items() if name != COPY}


def places(table_size: int, num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random ids that ascend, and ranges of as many rows."""
    index = torch.randperm(table_size)[:num_rows].sort().values
    offset = torch.arange(NUM_CHUNKS) * (table_size // NUM_CHUNKS)
    count = torch.full((NUM_CHUNKS,), num_rows // NUM_CHUNKS)
    count[-1] += num_rows - int(count.sum())
    return index, offset, count


def moves(held: Tensor, rows: Tensor, index: Tensor, offset: Tensor, count: Tensor) -> dict[str, Callable[[], Any]]:
    """The four calls that move rows."""
    return {
        "gather_rows": lambda: _core.gather_rows(held, index, out=rows),
        "read_chunks": lambda: _core.read_chunks(held, offset, count, out=rows),
        "scatter_rows": lambda: _core.scatter_rows(held, index, rows),
        "write_chunks": lambda: _core.write_chunks(held, offset, count, rows),
    }


def compare_types(sizes: Sizes, num_cols: int, mixed: bool) -> list[dict[str, Any]]:
    """Pulls and pushes of tables of each storage type, all in turn.

    Args:
        mixed: whether rows have the type of the table, as with autocast, and bfloat16 where that is int8; float32 otherwise.
    """
    size, num_rows = (num_bytes // (4 * num_cols) for num_bytes in (sizes.table_bytes // 2, sizes.moved_bytes))
    where = places(size, num_rows)
    kinds, calls = {}, {}
    for name, dtype in STORAGE.items():
        held = torch.empty(size, _core.stored_width(num_cols, dtype), dtype=dtype)
        _core.advise_huge_pages(held)
        kind = torch.float32 if not mixed else torch.bfloat16 if dtype == torch.int8 else dtype
        everything = torch.tensor([0]), torch.tensor([size])
        _core.write_chunks(held, *everything, torch.rand(1, num_cols).to(kind).expand(size, -1))
        kinds[name] = str(kind).removeprefix("torch.")
        rows = torch.rand(num_rows, num_cols).to(kind)
        calls |= {f"{name} {call}": move for call, move in moves(held, rows, *where).items()}
    seconds = in_turn(calls, sizes.repeats)
    found = []
    for name, kind in kinds.items():
        row: dict[str, Any] = {"numbers a row": num_cols, "rows": kind, "table": name}
        row |= {f"{call}, M rows/s": num_rows / seconds[f"{name} {call}"] / 1e6 for call in (*PULLS, *PUSHES)}
        row |= {
            f"{call} / float32": seconds[f"float32 {call}"] / seconds[f"{name} {call}"] for call in (*PULLS, *PUSHES)
        }
        found.append(row)
    return found


def compare_pages(sizes: Sizes, row_bytes: int) -> dict[str, Any]:
    """Pulls of rows in any order from a table in huge pages and from one in small pages."""
    num_rows = sizes.moved_bytes // row_bytes
    tables = {name: make_table(sizes.table_bytes, row_bytes, torch.float32, name == "huge") for name in PAGES}
    index = torch.randint(sizes.table_bytes // row_bytes, (num_rows,))
    out = torch.empty(num_rows, row_bytes // torch.float32.itemsize)
    calls = {name: partial(_core.gather_rows, held, index, out=out) for name, held in tables.items()}
    seconds = in_turn(calls, sizes.repeats)
    row: dict[str, Any] = {"bytes a row": row_bytes}
    row |= {f"{name} pages, GB/s": out.nbytes / each / 1e9 for name, each in seconds.items()}
    return row | {"huge / small": seconds["small"] / seconds["huge"]}


def add(sizes: Sizes, row_bytes: int) -> dict[str, Any]:
    """Sums of float32 rows. A row is read, and one of the table read and written: a copy of half as many bytes moves as many."""
    held, num_rows = make_table(sizes.table_bytes, row_bytes, torch.float32), sizes.moved_bytes // row_bytes
    rows = torch.rand(num_rows, held.size(1))
    any_order = torch.randperm(held.size(0))[:num_rows]
    ids = {
        "ascending": any_order.sort().values,
        "any order": any_order,
        "repeated": torch.randint(num_rows // 2, (num_rows,)),
    }
    source, target = torch.zeros(2, 3 * rows.nbytes // 2, dtype=torch.uint8)
    calls: dict[str, Callable[[], Any]] = {COPY: lambda: target.copy_(source)}
    calls |= {name: partial(_core.add_rows, held, index, rows) for name, index in ids.items()}
    seconds = in_turn(calls, sizes.repeats)
    row: dict[str, Any] = {"bytes a row": row_bytes}
    row |= {f"{name}, GB/s": source.nbytes / each / 1e9 for name, each in seconds.items()}
    return row | {f"{name} / copy": seconds[COPY] / seconds[name] for name in ids}


def drop(sizes: Sizes, dtype: torch.dtype) -> dict[str, Any]:
    """Dropout of a matrix."""
    x = torch.rand(sizes.moved_bytes // dtype.itemsize).to(dtype)
    calls = {COPY: x.clone, "dropout": lambda: _core.dropout(x, 0.5, seed=1)}  # both into new memory
    seconds = in_turn(calls, sizes.repeats)
    row: dict[str, Any] = {"type": str(dtype).removeprefix("torch.")}
    row |= {f"{name}, GB/s": x.nbytes / each / 1e9 for name, each in seconds.items()}
    return row | {"dropout / copy": seconds[COPY] / seconds["dropout"]}


# -- graphs ------------------------------------------------------------------------------------------------------------


def community_graph(setting: Setting) -> tuple[Tensor, Tensor, Tensor]:
    """Row pointers and columns of a graph of communities, and its METIS parts."""
    data, ptr = make_graphs(setting)[1:]
    src, dst = data.edge_index
    rowptr = torch.searchsorted(dst, torch.arange(setting.num_nodes + 1))
    return rowptr, src.contiguous(), torch.tensor(ptr.tolist())


def random_graph(num_nodes: int, num_edges: int, num_parts: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same of a graph whose nodes have equally many random sources each; parts are of consecutive nodes."""
    rowptr = torch.arange(num_nodes + 1) * (num_edges // num_nodes)
    col = torch.randint(num_nodes, (int(rowptr[-1]),))
    return rowptr, col, torch.arange(num_parts + 1) * (num_nodes // num_parts)


def extract(name: str, graph: tuple[Tensor, Tensor, Tensor], setting: Setting, repeats: int) -> list[dict[str, Any]]:
    """The subgraph of some parts at random, and its transpose, for ids of both types."""
    rowptr, col, ptr = graph
    parts = torch.randperm(setting.num_parts)[: setting.parts_a_batch]
    start, count = ptr[parts], ptr[parts + 1] - ptr[parts]
    by_hash_map = HashMap.compile()
    rows = []
    for ids in (torch.int64, torch.int32):
        ends = rowptr.to(ids), col.to(ids)
        sub = _core.subgraph(*ends, start, count)
        calls: dict[str, Callable[[], Any]] = {
            "subgraph": partial(_core.subgraph, *ends, start, count),
            "subgraph, columns ascending": partial(_core.subgraph, *ends, start, count, ascending=True),
            "transpose": partial(_core.transpose, sub.rowptr, sub.col, sub.n_id.numel()),
        }
        if by_hash_map is not None and ids == torch.int64:
            check_twin(by_hash_map(rowptr, col, sub), sub)
            calls["hash map"] = partial(by_hash_map, rowptr, col, sub)
        seconds = in_turn(calls, repeats)
        num_edges = sub.col.numel()
        row: dict[str, Any] = {"graph": name, "ids": str(ids).removeprefix("torch."), "edges of the batch": num_edges}
        row |= {f"{call}, ns an edge": 1e9 * seconds[call] / num_edges for call in list(calls)[:3]}
        row["both, ns an edge"] = row["subgraph, ns an edge"] + row["transpose, ns an edge"]
        rows.append(row | hash_map_columns(seconds, row, rows[0] if rows else row, by_hash_map is not None, num_edges))
    return rows


def hash_map_columns(
    seconds: dict[str, float], row: dict[str, Any], first: dict[str, Any], is_there: bool, num_edges: int
) -> dict[str, Any]:
    """Nanoseconds an edge of the hash map, whose ids are int64, and how much longer it takes."""
    if not is_there:
        return {"hash map, ns an edge": NO_COMPILER, "hash map / subgraph": NO_COMPILER}
    took = 1e9 * seconds["hash map"] / num_edges if "hash map" in seconds else first["hash map, ns an edge"]
    return {"hash map, ns an edge": took, "hash map / subgraph": took / row["subgraph, ns an edge"]}


class HashMap:
    """``hash_map.cpp``, compiled by the system's compiler."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._run = library.subgraph
        self._run.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] + [ctypes.c_void_p] * 4
        self._run.restype = ctypes.c_int64

    @classmethod
    def compile(cls) -> HashMap | None:
        """None where there is no compiler."""
        compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None)
        if compiler is None:
            print(NO_COMPILER, flush=True)
            return None
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder, "hash_map.so")
            source = Path(__file__).with_name("hash_map.cpp")
            subprocess.run([compiler, "-std=c++17", "-O3", "-shared", "-fPIC", source, "-o", library], check=True)
            return cls(ctypes.CDLL(str(library)))

    def __call__(self, rowptr: Tensor, col: Tensor, sub: _core.Subgraph) -> tuple[Tensor, Tensor]:
        """Columns and halo of the batch that ``sub`` is of, in memory of their own as those are."""
        batch_size = sub.rowptr.numel() - 1
        nodes = sub.n_id[:batch_size].contiguous()
        sizes = (batch_size + 1, sub.col.numel(), sub.col.numel(), sub.n_id.numel())
        out = [torch.empty(size, dtype=torch.int64) for size in sizes]
        given = (rowptr.data_ptr(), col.data_ptr(), nodes.data_ptr(), batch_size)
        halo_size = self._run(*given, *(each.data_ptr() for each in out))
        return out[1], torch.cat([nodes, out[3][:halo_size]])


def check_twin(made: tuple[Tensor, Tensor], sub: _core.Subgraph) -> None:
    """Both find the same sources, whatever order they number them in."""
    col, n_id = made
    assert torch.equal(n_id[col], sub.n_id[sub.col.long()])


# -- results -----------------------------------------------------------------------------------------------------------


def draw(moved: list[dict[str, Any]], graphs: list[dict[str, Any]]) -> Any:
    """Shares of a copy by the size of a row, and nanoseconds an edge."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.5), layout="constrained")
    for i, call in enumerate((*PULLS, *PUSHES)):
        for dtype, style in (("float32", "-"), ("bfloat16", "--")):
            rows = [row for row in moved if row["table"] == dtype]
            places, heights = [row["bytes a row"] for row in rows], [row[f"{call} / copy"] for row in rows]
            left.plot(places, heights, style, marker="o", color=f"C{i}", label=f"{call}, {dtype}")
    left.axhline(1, color="black", linewidth=1)
    left.axhline(0.8, color="black", linewidth=1, linestyle=":")
    left.set(xscale="log", xlabel="bytes a row of the table", ylabel="share of a plain copy", title="Pulls and pushes")
    left.set_xticks(places, [str(place) for place in places])
    left.set_ylim(bottom=0)

    groups = [f"{row['graph']}\n{row['ids']}" for row in graphs]
    calls = ("subgraph", "subgraph, columns ascending", "transpose", "hash map")
    for i, call in enumerate(calls):
        heights = [row[f"{call}, ns an edge"] for row in graphs]
        heights = [0.0 if isinstance(height, str) else height for height in heights]
        bars = right.bar([j + (i - 1.5) * 0.2 for j in range(len(groups))], heights, 0.2, label=call)
        right.bar_label(bars, fmt="%.2g", fontsize=8, padding=1)
    right.set(yscale="log", ylabel="ns an edge", title="Subgraph of a batch")
    right.set_xticks(range(len(groups)), groups)
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=8, ncols=2)
        axes.grid(alpha=0.3, axis="y")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    args = parse(arguments(__doc__))
    record = machine()
    torch.manual_seed(0)
    sizes = TINY if args.quick else FULL_SIZE
    types = (torch.float32, torch.bfloat16)
    moved = [move_rows(sizes, dtype, row_bytes) for dtype in types for row_bytes in sizes.row_bytes]
    stored = [row for num_cols in WIDTHS for mixed in (False, True) for row in compare_types(sizes, num_cols, mixed)]
    pages = [compare_pages(sizes, row_bytes) for row_bytes in sizes.row_bytes]
    added = [add(sizes, row_bytes) for row_bytes in sizes.row_bytes]
    dropped = [drop(sizes, dtype) for dtype in types]
    num_nodes, num_edges = sizes.random_graph
    graphs = extract("communities", community_graph(sizes.graph), sizes.graph, sizes.repeats)
    graphs += extract("random", random_graph(*sizes.random_graph, sizes.graph.num_parts), sizes.graph, sizes.repeats)
    save_picture(draw(moved, graphs), args.out, "kernels")
    graph, mebibyte = sizes.graph, 2**20
    of_rows = (
        f"Tables of {sizes.table_bytes / mebibyte:,.3g} MiB in huge pages, of which {sizes.moved_bytes / mebibyte:,.3g} MiB are "
        "moved to or from float32 rows. gather_rows and scatter_rows: random ids, ascending as a halo's are; read_chunks and "
        f"write_chunks: {NUM_CHUNKS} ranges. The copy is torch's, of as many bytes: where the table is bfloat16, of the mean of "
        f"both sides. Medians of {sizes.repeats} calls, all in turn."
    )
    of_types = (
        f"Tables of {sizes.table_bytes / 2 / mebibyte:,.3g} MiB in float32, of which {sizes.moved_bytes / mebibyte:,.3g} MiB are "
        "moved. / float32: rows a second, over those of the float32 table and its rows."
    )
    of_graphs = (
        f"{graph.parts_a_batch} of {graph.num_parts} parts at random. Communities: {graph.num_nodes:,} nodes in METIS parts. "
        f"Random: {num_nodes:,} nodes with {num_edges // num_nodes} random sources each, in parts of consecutive nodes. The hash "
        "map (std::unordered_map, int64) relabels as the paper's implementation does, on one thread."
    )
    tables = [
        table("Pulls and pushes", moved, of_rows),
        table("Storage types", stored, of_types),
        table(
            "Pulls of rows in any order, by pages", pages, "Where the system has no huge pages to give, both are small."
        ),
        table(
            "Sums",
            added,
            "add_rows: float32 rows, to those of a float32 table. Ids that ascend, as a halo's do; the same in any order; and "
            "ids that repeat, which are sorted. The copy is torch's, of half as many bytes as sums read and write.",
        ),
        table("Dropout", dropped, "Beside torch's copy of as many bytes; p = 0.5."),
        table("Subgraph of a batch and its transpose", graphs, of_graphs),
    ]
    save(args, "kernels", __doc__, record, tables)


if __name__ == "__main__":
    main()
