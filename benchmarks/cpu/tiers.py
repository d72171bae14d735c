"""Do histories that are larger than memory train, and what does it cost to have them in files?

GCNII, whose many layers have a history each, on community graphs: first with histories in files that take more than twice the
memory that the process may have; then, on a smaller graph, epochs with histories in memory and in files in turn.
"""

from __future__ import annotations

import os
import resource
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from bench import apart, arguments, machine, parse, peak_memory, save
from large import Size, community_graph, cut
from matplotlib import pyplot as plt
from shared import save_picture, table
from sides import Side

from torch_gas import FileTier, SubgraphLoader
from torch_gas.models import GCN2

GIB = 2**30
LARGE = Size(500_000, 10.0, 64, 64, 10, nodes_a_part=1250, parts_a_batch=4, num_layers=64)
SMALL = LARGE._replace(num_nodes=50_000, num_layers=16)
TINY = Size(2000, 8.0, 16, 16, 4, nodes_a_part=100, parts_a_batch=4, num_layers=4)
LIMIT = 3 * GIB


def make(size: Size, tier: FileTier | None, backend: str) -> Side:
    """Training of GCNII with its histories in memory or in files."""
    data, ptr, _ = cut(community_graph(size), size, backend)
    torch.manual_seed(0)
    widths = (size.features, size.channels, size.classes)
    model = GCN2(size.num_nodes, *widths, size.num_layers, 0.1, 0.5, dropout=0.1, tier=tier)
    loader = SubgraphLoader(data, ptr, size.parts_a_batch, shuffle=True, seed=0)
    return Side(model, loader, lambda batch: (model(batch), batch.data.y[: batch.batch_size]))


def history_bytes(side: Side) -> int:
    """Bytes of all tables."""
    return sum(history.table.nbytes for history in side.model.histories)


def under(size: Size, limit: int | None, folder: str | None, backend: str) -> dict[str, Any]:
    """An epoch while the process may map no more than ``limit`` bytes, with histories in files of ``folder`` or in memory."""
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    expected = (size.num_layers - 1) * size.num_nodes * size.channels * 4
    row: dict[str, Any] = {
        "histories": "in memory" if folder is None else "in files",
        "limit, GiB": "none" if limit is None else limit / GIB,
        "histories, GiB": expected / GIB,
    }
    try:
        side = make(size, None if folder is None else FileTier(folder), backend)
        assert history_bytes(side) == expected
        seconds = sum(side.epoch().values())
    except (MemoryError, RuntimeError) as error:  # as torch raises it where memory ends
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        return row | {"outcome": "out of memory", "epoch, s": "", "process' peak, GiB": ""}
    return row | {"outcome": "trains", "epoch, s": seconds, "process' peak, GiB": peak_memory() / GIB}


def drop_from_cache(side: Side) -> None:
    """Has the rows of files written to the disk, and read from there the next time."""
    for history in side.model.histories:
        os.fsync(history.table.file)
        os.posix_fadvise(history.table.file, 0, 0, os.POSIX_FADV_DONTNEED)


def compare(size: Size, folder: str, backend: str, epochs: int) -> list[dict[str, Any]]:
    """Epochs with histories in memory, in files that the page cache holds, and in files that it does not."""
    tiers = {
        "in memory": None,
        "in files, in the page cache": FileTier(Path(folder, "warm")),
        "in files, dropped from the cache before each epoch": FileTier(Path(folder, "cold")),
    }
    sides = {name: make(size, tier, backend) for name, tier in tiers.items()}
    times: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for number in range(epochs + 1):
        for name, side in sides.items():
            if "dropped" in name:
                drop_from_cache(side)
            torch.manual_seed(number)  # of dropout
            phases = dict(side.epoch())
            if number > 0:
                times[name].append(phases)
    wanted = next(iter(sides.values())).model.state_dict()
    rows = []
    for name, side in sides.items():
        state = side.model.state_dict()
        epoch = statistics.median(sum(phases.values()) for phases in times[name])
        rows.append(
            {
                "histories": name,
                "epoch, s": epoch,
                "of memory's": epoch / rows[0]["epoch, s"] if rows else 1.0,
                "push and pull": statistics.median(
                    phases["push and pull"] / sum(phases.values()) for phases in times[name]
                ),
                "same bits": str(all(torch.equal(state[key], value) for key, value in wanted.items())),
            }
        )
    return rows


def draw(rows: list[dict[str, Any]]) -> Any:
    """Seconds of an epoch by place of the histories."""
    figure, axes = plt.subplots(figsize=(9, 2.6), layout="constrained")
    bars = axes.barh([row["histories"] for row in rows], [row["epoch, s"] for row in rows], color="tab:blue")
    axes.bar_label(bars, [f"{row['epoch, s']:.2f} s" for row in rows], padding=3)
    axes.set(xlabel="seconds an epoch", title="Histories in memory and in files")
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--backend", default="metis", help="the partitioner (default: metis)")
    parser.add_argument("--folder", type=Path, help="where files are written, on a disk and not in memory")
    args = parse(parser)
    record = machine()
    size, small, limit = (TINY, TINY, None) if args.quick else (LARGE, SMALL, LIMIT)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        limited = []
        for where in (None, folder):
            call = (size, limit, where and str(Path(where, "large")), args.backend)
            limited.append(under(*call) if args.quick else apart(under, *call))
            print(limited[-1], flush=True)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        rows = compare(small, folder, args.backend, 1 if args.quick else 5)
    save_picture(draw(rows), args.out, "tiers")
    about = (
        f"GCNII with {size.num_layers} layers of {size.channels} channels on {size.num_nodes:,} nodes; batches of "
        f"{size.parts_a_batch} parts of about {size.nodes_a_part:,} nodes. Limit: what the process may map in all (RLIMIT_AS), "
        "libraries and graph among it. Peak: its physical memory at the highest."
    )
    turns = (
        f"{small.num_layers} layers, {small.num_nodes:,} nodes; the three take turns, median of epochs after one that does not "
        "count. Push and pull: their share of the epoch. Same bits: whether parameters, histories and ages equal those of the "
        "first row after all epochs."
    )
    save(args, "tiers", __doc__, record, [table("Under a limit", limited, about), table("Their cost", rows, turns)])


if __name__ == "__main__":
    main()
