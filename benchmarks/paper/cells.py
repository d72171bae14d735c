"""Results of single runs ("cells" of a table), kept in a file, so that a command that was stopped goes on where it was.

A cell is a line of JSON, added when it is finished: what was run, by which recipe, and what came out. Several commands may add to
one file at the same time: they share the work, as each leaves out what another one is at. A cell whose recipe has changed since
is run again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from command import host, today
from tqdm import tqdm

MOST_SEEDS = 20  # as many as the paper has
Key = TypeVar("Key", bound=Hashable)


class Job(NamedTuple):
    """A cell to be run."""

    of: dict[str, Any]  # what tells it apart, with its "model" and "data"
    recipe: dict[str, Any]  # all that decides on its result
    compute: Callable[..., dict[str, Any]]  # gives the result, called with the task
    settings: tuple[Any, ...] = ()  # of the task, beside model and data set


class Cells:
    """The finished cells of a table.

    Args:
        path: the file, which is made when the first cell is finished.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: dict[str, dict[str, Any]] = {}
        self._read()

    def get(self, of: dict[str, Any], recipe: dict[str, Any]) -> dict[str, Any] | None:
        """The result of the cell, if it was run by this recipe."""
        cell = self._found.get(_name(of))
        return cell["result"] if cell is not None and cell["recipe"] == _digest(recipe) else None

    def run(self, jobs: Iterable[Job], tasks: Tasks) -> None:
        """Computes and adds what is not there yet; jobs on data sets that are not there are left out."""
        for job in (progress := tqdm(list(jobs), mininterval=1)):
            if self.get(job.of, job.recipe) is not None:
                continue
            with self._claim(job.of) as claimed:
                if not claimed:
                    continue
                self._read()  # another command may have finished it
                if self.get(job.of, job.recipe) is not None:
                    continue
                progress.set_description(f"{job.of['model']} on {job.of['data']}")
                task = tasks.get(job.of["model"], job.of["data"], *job.settings)
                if task is not None:
                    self._add(job.of, job.recipe, job.compute(task=task))

    def _read(self) -> None:
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            cell = json.loads(line)
            self._found[_name(cell["of"])] = cell

    @contextmanager
    def _claim(self, of: dict[str, Any]) -> Iterator[bool]:
        """Whether no other command is at the cell. A command that is killed is at none, because the system drops its locks."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        place = int(hashlib.sha256(_name(of).encode()).hexdigest()[:15], 16)  # a byte of the file for each cell
        with open(self.path.with_suffix(".lock"), "w") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
            except OSError:
                yield False
            else:
                yield True

    def _add(self, of: dict[str, Any], recipe: dict[str, Any], result: dict[str, Any]) -> None:
        machine = {"date": today(), **host()}
        cell = {"of": of, "recipe": _digest(recipe), "result": result, "machine": machine}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(cell, allow_nan=False) + "\n"
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line.encode())  # in one piece, beside those of other commands
        finally:
            os.close(file)
        self._found[_name(of)] = cell

    def complete(
        self, keys: Sequence[Key], of: Callable[[Key, int], dict[str, Any]], recipe: dict[str, Any]
    ) -> dict[Key, list[dict[str, Any]]]:
        """The results for each of ``keys``, of those seeds for which all are there; empty where no seed is complete.

        Args:
            keys: what is compared.
            of: the cell of a key and a seed.
            recipe: by which all were run.
        """
        seeds = ([self.get(of(key, seed), recipe) for key in keys] for seed in range(MOST_SEEDS))
        rows = [[result for result in results if result is not None] for results in seeds]
        rows = [row for row in rows if len(row) == len(keys)]
        return {key: [row[i] for row in rows] for i, key in enumerate(keys)} if rows else {}

    def machine(self) -> dict[str, str]:
        """The machine and versions of the last cell."""
        return list(self._found.values())[-1]["machine"]


class Tasks:
    """What runs are made on, prepared when it is first asked for. The last two are kept.

    Args:
        prepare: makes it of a model, a data set and further settings; raises FileNotFoundError where there are no data.
    """

    def __init__(self, prepare: Callable[..., Any]) -> None:
        self._prepare = lru_cache(maxsize=2)(prepare)
        self._missing: set[str] = set()

    def get(self, model: str, dataset: str, *settings: Any) -> Any:
        """The task, or None where the data set is not there, which is said once."""
        if dataset in self._missing:
            return None
        try:
            return self._prepare(model, dataset, *settings)
        except FileNotFoundError as error:
            tqdm.write(f"{dataset} is left out. {error}")
            self._missing.add(dataset)
            return None


def cell_of(model: str, dataset: str, method: str, seed: int) -> dict[str, Any]:
    """What tells the runs of a method apart."""
    return {"model": model, "data": dataset, "method": method, "seed": seed}


def _name(of: dict[str, Any]) -> str:
    return json.dumps(of, sort_keys=True)


def _digest(recipe: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
