"""Do batches for a GPU come faster the more threads the loader uses?

A loader with ``device="cuda"`` makes batches on all cores but two, while the GPU computes. Here nothing else runs, and batches
stay on the host: what is sent to a GPU is copied once, as to pinned memory, but features, which are gathered there at once.
"""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from bench import arguments, machine, parse, save
from shared import table
from torch import Tensor
from workload import block_graph

from torch_gas import SubData, SubgraphLoader
from torch_gas.graph.formats import map_tensors

FULL_SIZE, TINY = (262_144, 64, 8), (640, 8, 2)  # nodes, features, rounds; as in benchmarks/gpu/step.py
DEGREE, NUM_PARTS, PARTS_A_BATCH = 40, 32, 4
LAYOUTS = ("csr", "EdgeIndex", "edge_index")


class OnHost:
    """Stands in for what brings batches to a GPU: it copies what that would copy to pinned memory."""

    def __init__(self) -> None:
        self._gathered: set[int] = set()  # addresses of rows that are there already

    def allocate(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        rows = torch.empty(shape, dtype=dtype)
        self._gathered.add(rows.data_ptr())
        return rows

    def send(self, batch: SubData) -> tuple[SubData, None]:
        sent = copy.copy(batch)
        for key, value in batch.to_dict().items():
            sent[key] = map_tensors(value, self._copy)
        self._gathered.clear()
        return sent, None

    def _copy(self, tensor: Tensor) -> Tensor:
        return tensor if tensor.data_ptr() in self._gathered else tensor.clone()


def loader_of(layout: str, num_nodes: int, features: int) -> SubgraphLoader:
    """A loader that makes all batches anew, as for a GPU."""
    data, ptr = block_graph(num_nodes, num_nodes * DEGREE, NUM_PARTS, 1.0, features, 16, layout)
    loader = SubgraphLoader(data, ptr, PARTS_A_BATCH, shuffle=True, seed=0, prefetch=0)
    courier: Any = OnHost()
    loader._courier, loader.builder.allocate = courier, courier.allocate
    return loader


def measure(layout: str, size: tuple[int, int, int], threads: int) -> dict[str, Any]:
    """Milliseconds of a batch with one thread and with all: the fastest epochs, which others have disturbed least."""
    *shape, rounds = size
    loader = loader_of(layout, *shape)
    seconds: dict[int, list[float]] = {1: [], threads: []}
    for _ in range(1 + rounds):
        for number, laps in seconds.items():
            torch.set_num_threads(number)
            start = time.perf_counter()
            for _ in loader:
                pass
            laps.append((time.perf_counter() - start) / len(loader))
    torch.set_num_threads(threads)
    ms = {number: 1e3 * min(laps[1:]) for number, laps in seconds.items()}
    edges = loader.data.num_edges / len(loader)
    return {
        "adjacency": layout,
        "one thread, ms a batch": ms[1],
        f"threads: {threads}, ms a batch": ms[threads],
        "times as fast": ms[1] / ms[threads],
        "ns an edge": 1e6 * ms[threads] / edges,
    }


def main() -> None:
    args = parse(arguments(__doc__))
    record = machine()
    size = TINY if args.quick else FULL_SIZE
    rows = [measure(layout, size, args.threads) for layout in LAYOUTS]
    note = (
        f"{size[0]:,} nodes of {DEGREE} edges and {size[1]} features, {PARTS_A_BATCH} of {NUM_PARTS} parts in a batch, whose "
        f"halo is as large as they are. The fastest of {size[2]} epochs each, in turn, after one that does not count."
    )
    save(args, "threads", __doc__, record, [table("Making batches", rows, note)])


if __name__ == "__main__":
    main()
