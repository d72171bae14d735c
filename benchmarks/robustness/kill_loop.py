"""Does a run that is killed again and again end as the one that was never killed, bit for bit?

``train.py`` runs once from start to end. Then it is started again and again, and killed by SIGKILL: at a random moment, or, half
of the time, in the first checkpoint that it writes after that. Each start goes on from the last checkpoint. Whenever a run comes
to its end, its parameters, histories, ages, optimiser, schedule, order of batches, counts and random states are compared with
those of the run that was never killed, and the next run begins.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import random
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from torch_gas.checkpoint.file import Saved

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch_gas"])
TRAIN = Path(__file__).with_name("train.py")
RESULTS = Path(__file__).parents[1] / "results" / "robustness"


@dataclass
class Result:
    """What came of it.

    Args:
        kills: how many there were.
        while_writing: how many of them left a checkpoint behind that was not complete.
        runs: runs that were killed and came to their end.
        different: entries of their last checkpoints that were not the same as in the run that was never killed.
    """

    kills: int = 0
    while_writing: int = 0
    runs: int = 0
    different: int = 0


class Process:
    """Trains in ``folder``, from the last checkpoint on. It is forked from a process that has imported the library already."""

    def __init__(self, folder: Path, options: Sequence[str]) -> None:
        self.folder = folder
        self.left_behind = self._written()
        reader, writer = CONTEXT.Pipe(duplex=False)
        self.process = CONTEXT.Process(target=train, args=(["--folder", str(folder), *options], writer))
        self.process.start()
        writer.close()
        with open(reader.fileno(), closefd=False) as out:
            trains = out.readline().startswith("training")
        reader.close()
        if not trains:
            self.finish()
            raise RuntimeError("train.py ended before it trained")

    def finish(self) -> float:
        """Waits for the end of training, and gives the seconds it took."""
        start = time.perf_counter()
        self.process.join()
        if self.process.exitcode != 0:
            raise RuntimeError(f"train.py ended with {self.process.exitcode}")
        return time.perf_counter() - start

    def kill(self, after: float, in_checkpoint: float | None) -> bool:
        """Kills it after some seconds, or then so many seconds into a checkpoint; False if it had come to its end."""
        self._wait(after)
        if in_checkpoint is not None:
            self._wait(60, until=self.is_writing)
            self._wait(in_checkpoint)
        self.process.kill()
        self.process.join()
        if self.process.exitcode == 0:
            return False
        if self.process.exitcode != -signal.SIGKILL:
            raise RuntimeError(f"train.py ended with {self.process.exitcode}")
        return True

    def is_writing(self) -> bool:
        """Whether there is a checkpoint that is not complete, and that this process began."""
        return not self._written() <= self.left_behind

    def _written(self) -> set[Path]:
        return set(self.folder.glob("checkpoint.safetensors.*.part"))

    def _wait(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end and self.process.is_alive() and not until():
            time.sleep(1e-4)


def train(options: Sequence[str], out: Connection) -> None:
    """Runs train.py in this process, which prints to ``out``."""
    os.dup2(out.fileno(), sys.stdout.fileno())
    sys.argv = [str(TRAIN), *options]
    runpy.run_path(str(TRAIN), run_name="__main__")


def kill_loop(folder: Path, kills: int, seed: int, options: Sequence[str] = ()) -> Result:
    """Kills processes that train in ``folder``, which is empty. ``options`` are those of ``train.py``."""
    moments, result = random.Random(seed), Result()
    final = "final.safetensors"
    whole = folder / "whole"
    whole.mkdir()
    seconds = Process(whole, options).finish()
    expected = contents(whole / final)
    while result.kills < kills:
        run = folder / f"run{result.runs}"
        run.mkdir()
        while not (run / final).exists():
            process = Process(run, options)
            if result.kills == kills:
                process.finish()
                continue
            in_checkpoint = moments.uniform(0, 0.005) if moments.random() < 0.5 else None
            if process.kill(moments.uniform(0, seconds / 2), in_checkpoint):
                result.kills += 1
                result.while_writing += process.is_writing()
        result.runs += 1
        result.different += len(differences(contents(run / final), expected))
    return result


def contents(path: Path) -> dict[str, Any]:
    """All entries of a checkpoint, as tensors, or as what torch.save was given. Wall-clock time is left out."""
    found: dict[str, Any] = {}
    with Saved(path) as saved:
        saved.verify()
        for name in saved.entries:
            entry = saved.read(name)
            is_table = name.startswith("model.")
            found[name] = entry if is_table else torch.load(io.BytesIO(entry.numpy().tobytes()), weights_only=True)
    del found["object.refresher"]["state"]["cost"]["seconds"]
    return found


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Names of the entries that are not the same, bit for bit."""
    return sorted(
        name for name in a.keys() | b.keys() if name not in a or name not in b or _bits(a[name]) != _bits(b[name])
    )


def _bits(value: Any) -> tuple[Any, ...]:
    leaves, spec = pytree.tree_flatten(value)
    return spec, [
        _bits_of_tensor(leaf) if isinstance(leaf, torch.Tensor) else (type(leaf), repr(leaf)) for leaf in leaves
    ]


def _bits_of_tensor(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.shape, tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of kill_loop.json")
    args, options = parser.parse_known_args()  # the others are those of train.py
    with tempfile.TemporaryDirectory() as folder:
        result = kill_loop(Path(folder), args.kills, args.seed, options)
    written = {**asdict(result), "seed": args.seed, "options": options, "torch": torch.__version__}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "kill_loop.json").write_text(json.dumps(written, indent=1) + "\n")
    print(json.dumps(written))
    sys.exit(result.different > 0)
