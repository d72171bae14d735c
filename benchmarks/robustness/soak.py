"""Does a process that trains, fails, infers and starts anew for an hour keep its memory, threads and files, and right rows?

Random actions, each checked: pushes and pulls against a plain tensor, training steps with batches of other sizes, inference
against the whole graph, models made and dropped, errors in the middle of a forward pass. `--out` writes the result.
"""

from __future__ import annotations

import argparse
import collections
import gc
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.nn import GraphSAGE, MessagePassing

from torch_gas import EvalSubgraphLoader, History, SubgraphLoader, metis, permute, scale
from torch_gas.datasets import synthetic
from torch_gas.models import SAGE

NODES, CHANNELS, PARTS = 2000, 32, 16
SAMPLE_EVERY = 1.0  # seconds
SLACK = 0.05, 24 * 2**20  # growth of memory that is noise: a share, or bytes
SPREAD = 1  # threads or files more than after the warm-up


class Sample(NamedTuple):
    """What the process holds."""

    seconds: float
    memory: int  # resident, in bytes
    threads: int
    files: int


class Stop(Exception):
    """Raised in the middle of a forward pass."""


class Soak:
    """A graph, a model, a history with its plain twin, and what is done with them at random."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        torch.manual_seed(seed)
        data = synthetic(NODES, num_features=CHANNELS, seed=seed)
        perm, self.ptr = metis(data, PARTS, log=False)
        self.data: Data = permute(data, perm, log=False)
        self.actions: list[Callable[[], None]] = [
            self.rows, self.rows, self.rows, self.step, self.step, self.new_history, self.new_model, self.error, self.inference,
        ]  # fmt: skip
        self.new_history()
        self.new_model()

    def new_history(self) -> None:
        dtype = self.random.choice([torch.float32, torch.float64, torch.float16, torch.bfloat16])
        size = self.random.randrange(1, NODES), self.random.randrange(1, 2 * CHANNELS)
        self.history, self.twin = History(*size, dtype=dtype), torch.zeros(size, dtype=dtype)

    def new_model(self) -> None:
        if self.random.random() < 0.5:
            self.model = SAGE(NODES, CHANNELS, self.random.randrange(8, 64), 10, num_layers=self.random.choice([2, 3]))
        else:
            plain = GraphSAGE(CHANNELS, self.random.randrange(8, 64), num_layers=2, out_channels=10)
            self.model = scale(plain, self.data)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.001)

    def rows(self) -> None:
        """Pushes by ids or by ranges, and pulls."""
        num_rows, width = self.twin.shape
        ids = torch.randperm(num_rows)[: self.random.randrange(num_rows + 1)]
        if self.random.random() < 0.5:
            rows = torch.randn(ids.numel(), width)
            self.history.push(rows, ids)
        else:
            start = self.random.randrange(num_rows)
            ids = torch.arange(start, self.random.randrange(start, num_rows) + 1)
            rows = torch.randn(ids.numel(), width)
            self.history.push(rows, offset=torch.tensor([start]), count=torch.tensor([ids.numel()]))
        self.twin[ids] = rows.to(self.twin.dtype)
        wanted = torch.randint(num_rows, (self.random.randrange(2 * num_rows),))
        assert torch.equal(self.history.pull(wanted), self.twin[wanted])

    def step(self) -> None:
        """A training step on a batch of a size of its own."""
        loader = SubgraphLoader(
            self.data, self.ptr, self.random.randrange(1, PARTS), shuffle=True, prefetch=self.random.randrange(3)
        )
        self.model.train()
        for _, batch in zip(range(2), loader, strict=False):
            self.optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(self.model(batch), batch.data.y[: batch.batch_size])
            loss.backward()
            self.optimizer.step()
            assert torch.isfinite(loss)

    def error(self) -> None:
        """An exception in the last layer, after which histories hold rows of this batch or what they held before."""
        batch = next(iter(SubgraphLoader(self.data, self.ptr, self.random.randrange(1, PARTS), shuffle=True)))
        own = batch.n_id[: batch.batch_size]
        before = [history.emb.clone() for history in self.model.histories]
        last = [layer for layer in self.model.modules() if isinstance(layer, MessagePassing)][-1]
        handle = last.register_forward_pre_hook(stop)
        try:
            self.model.train()(batch)
        except Stop:
            pass
        else:
            raise AssertionError("the hook was not called")
        finally:
            handle.remove()
        for history, rows in zip(self.model.histories, before, strict=True):
            rows[own] = history.emb[own]
            assert torch.equal(history.emb, rows)

    def inference(self) -> None:
        """Layer by layer over batches, which equals the whole graph."""
        self.model.eval()
        with torch.no_grad():
            out = self.model(loader=EvalSubgraphLoader(self.data, self.ptr, self.random.randrange(1, PARTS)))
            wanted: Tensor = self.model(self.data.x, self.data.edge_index)
        torch.testing.assert_close(out, wanted, atol=1e-3, rtol=1e-3)

    def run(self, seconds: float) -> tuple[list[Sample], collections.Counter[str]]:
        samples, counts, start = [], collections.Counter[str](), time.monotonic()
        while (now := time.monotonic() - start) < seconds:
            if not samples or now - samples[-1].seconds >= min(SAMPLE_EVERY, seconds / 20):
                samples.append(sample(now))
            action = self.random.choice(self.actions)
            action()
            counts[action.__name__] += 1
        return samples, counts


def stop(module: torch.nn.Module, arguments: object) -> None:
    raise Stop


def sample(now: float) -> Sample:
    gc.collect()
    memory = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return Sample(now, memory, len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd")))


def verdict(samples: list[Sample]) -> dict[str, object]:
    """Compares the last third with the second, as the first is a warm-up.

    Raises:
        AssertionError: if memory, threads or files have grown.
    """
    third = len(samples) // 3
    middle, last = samples[third : 2 * third], samples[2 * third :]
    found: dict[str, object] = {}
    for name, slack in (("memory", None), ("threads", SPREAD), ("files", SPREAD)):
        before, after = (statistics.median(getattr(s, name) for s in part) for part in (middle, last))
        allowed = max(SLACK[0] * before, SLACK[1]) if slack is None else slack
        assert after - before <= allowed, f"{name} grew from {before:.0f} to {after:.0f}"
        found[name] = {"middle third": before, "last third": after, "peak": max(getattr(s, name) for s in samples)}
    return found


def main(arguments: list[str] | None = None) -> dict[str, object]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="of all choices (default: 0)")
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    args = parser.parse_args(arguments)
    samples, counts = Soak(args.seed).run(60 * args.minutes)
    result = {"minutes": args.minutes, "seed": args.seed, "torch": torch.__version__, "actions": dict(counts)}
    result |= verdict(samples)
    text = json.dumps(result, indent=1)
    print(text)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")
    return result


if __name__ == "__main__":
    main(sys.argv[1:])
