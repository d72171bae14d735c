"""How much does a table in a file not have to read when the rows that most halos ask for are kept in memory?

Shares of halo rows that a hot set of 1 to 20 % of the nodes serves, for large and small batches, when nodes are chosen by the
halos they are in and, to compare, by degree; and steps of training with histories in files, while the page cache holds them and
after it has dropped them.
"""

from __future__ import annotations

import os
import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from bench import arguments, machine, parse, save
from shared import table
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import degree

from torch_gas import FileTier, SubData, SubgraphLoader, gcn_norm, get_data, hot_nodes, metis, permute
from torch_gas.datasets import synthetic
from torch_gas.models import GCN
from torch_gas.table import HotSet

REAL = ("Amazon-Computers", "WordNet")
SHARES = (0.01, 0.05, 0.1, 0.2)
HISTORIES = 2


class Setting(NamedTuple):
    """Sizes of the community graph, of parts and batches, and of the model."""

    num_nodes: int
    avg_degree: float
    steps_an_epoch: tuple[int, ...]
    parts_a_batch: int
    channels: int
    timed: int  # steps of each way


FULL_SIZE = Setting(100_000, 20.0, (10, 100), parts_a_batch=8, channels=256, timed=30)
TINY = Setting(2000, 8.0, (4, 10), parts_a_batch=4, channels=16, timed=2)


class Graph(NamedTuple):
    """A graph in the order of its parts, and the steps of an epoch."""

    name: str
    data: Data
    ptr: Tensor
    steps: int

    def loader(self, setting: Setting) -> SubgraphLoader:
        """Batches of random parts, made when they are asked for."""
        size = setting.parts_a_batch
        return SubgraphLoader(self.data, self.ptr, size, shuffle=True, seed=0, prefetch=0, cache_size=0)


def graphs(setting: Setting, quick: bool) -> Iterator[Graph]:
    """The graphs that there are, each for fewer and for more steps an epoch."""
    root = os.environ.get("TORCH_GAS_DATA")
    if root is None or quick:
        print("real graphs are left out: a quick run, or TORCH_GAS_DATA names no folder of data sets", flush=True)
    else:
        for name in REAL:
            try:
                data, *_ = get_data(root, name, layout="edge_index")
            except FileNotFoundError as error:
                print(f"{name} is left out: {error}", flush=True)
            else:
                yield from cut(name, data, setting)
    yield from cut("community", synthetic(setting.num_nodes, avg_degree=setting.avg_degree), setting)


def cut(name: str, data: Data, setting: Setting) -> Iterator[Graph]:
    """The graph in METIS parts."""
    data = gcn_norm(Data(x=data.x, y=data.y, edge_index=data.edge_index))
    for steps in setting.steps_an_epoch:
        perm, ptr = metis(data, steps * setting.parts_a_batch, log=False)
        yield Graph(name, permute(data, perm, log=False), ptr, steps)


# -- rows that are served -----------------------------------------------------------------------------------------------


def served(graph: Graph, setting: Setting) -> list[dict[str, Any]]:
    """What hot sets of several sizes serve of the halos of an epoch; a table of counts, the same on any machine."""
    data, loader = graph.data, graph.loader(setting)
    halos = [batch.n_id[batch.batch_size :] for batch in loader]
    asked = sum(halo.numel() for halo in halos)
    by_halos = hot_nodes(loader)
    by_degree = degree(data.edge_index[0], data.num_nodes).argsort(descending=True, stable=True)
    row_bytes = HISTORIES * 4 * setting.channels
    rows = []
    for share in (0.0, *SHARES):
        number = round(share * data.num_nodes)
        hits = [_hits(order[:number], halos, data.num_nodes) for order in (by_halos, by_degree)]
        rows.append(
            {
                "graph": graph.name,
                "steps an epoch": graph.steps,
                "hot nodes, %": f"{100 * share:g}",
                "kept, MB": min(number, by_halos.numel()) * row_bytes / 1e6,
                "of halo rows, %": f"{100 * hits[0] / asked:.1f}",
                "chosen by degree, %": f"{100 * hits[1] / asked:.1f}",
                "read from tables an epoch, MB": (asked - hits[0]) * row_bytes / 1e6,
            }
        )
    return rows


def _hits(n_id: Tensor, halos: list[Tensor], num_nodes: int) -> int:
    nodes = HotSet(n_id, num_nodes)
    return sum(int(nodes.holds(halo).sum()) for halo in halos)


# -- steps with files ---------------------------------------------------------------------------------------------------


class Way:
    """A model whose histories lie in files, with a hot set, that trains while the page cache holds its files or does not."""

    def __init__(self, graph: Graph, setting: Setting, folder: Path, share: float, drops: bool) -> None:
        data = graph.data
        torch.manual_seed(0)
        sizes = (data.num_nodes, data.num_features, setting.channels, int(data.y.max()) + 1)
        self.model = GCN(*sizes, HISTORIES + 1, tier=FileTier(folder / f"{share}_{drops}", sync="never"))
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.share, self.drops = share, drops
        self.loader = graph.loader(setting)
        self.model.keep_hot(hot_nodes(self.loader, round(share * data.num_nodes)))
        self.seconds: list[float] = []
        self.bytes: list[int] = []
        for batch in self.loader:  # writes all rows
            self.step(batch)
        self.seconds.clear()
        self.bytes.clear()

    def step(self, batch: SubData) -> None:
        """A step of training, and what it read from the disk."""
        if self.drops:
            for history in self.model.histories:
                os.fsync(history.table.base.file)  # pages that the disk lacks are not dropped
                os.posix_fadvise(history.table.base.file, 0, 0, os.POSIX_FADV_DONTNEED)
        before, start = _read_bytes(), time.perf_counter()
        loss = torch.nn.functional.cross_entropy(self.model(batch), batch.data.y[: batch.batch_size])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.seconds.append(time.perf_counter() - start)
        self.bytes.append(_read_bytes() - before)


def _read_bytes() -> int:
    """What this process has read from disks."""
    (number,) = re.findall(r"^read_bytes: (\d+)$", Path("/proc/self/io").read_text(), re.MULTILINE)
    return int(number)


def steps(graph: Graph, setting: Setting) -> list[dict[str, Any]]:
    """The same steps in each way, in turn."""
    with tempfile.TemporaryDirectory() as folder:
        ways = [
            Way(graph, setting, Path(folder), share, drops) for drops in (False, True) for share in (0.0, *SHARES[1:])
        ]
        batches = graph.loader(setting)
        made = 0
        while made < setting.timed:
            for batch in batches:
                for way in ways:
                    way.step(batch)
                made += 1
                if made == setting.timed:
                    break
    return [
        {
            "graph": graph.name,
            "steps an epoch": graph.steps,
            "page cache": "dropped before each step" if way.drops else "holds the files",
            "hot nodes, %": f"{100 * way.share:g}",
            "step, ms": 1e3 * statistics.median(way.seconds),
            "read from the disk a step, MB": statistics.mean(way.bytes) / 1e6,
        }
        for way in ways
    ]


def main() -> None:
    args = parse(arguments(__doc__))
    record = machine()
    setting = TINY if args.quick else FULL_SIZE
    counts: list[dict[str, Any]] = []
    timed: list[dict[str, Any]] = []
    for graph in graphs(setting, args.quick):
        counts += served(graph, setting)
        print(counts[-len(SHARES) :], flush=True)
        if graph.steps == max(setting.steps_an_epoch):
            timed += steps(graph, setting)
            print(timed[-2 * len(SHARES) :], flush=True)
    parts = (
        f"{setting.parts_a_batch} METIS parts at random in a batch; {HISTORIES} histories with {setting.channels} channels, "
        "float32."
    )
    note = f"{setting.timed} steps of each way, in turn. What comes from the disk is counted by the kernel, in pages of 4 KB."
    found = [
        table("Halo rows that a hot set serves", counts, parts),
        table("Steps with histories in files", timed, note),
    ]
    save(args, "hot", __doc__, record, found)


if __name__ == "__main__":
    main()
