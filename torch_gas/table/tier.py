"""FileTier: where and how tables lie in files."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from torch_gas._util.arguments import checked_fields

Sync = Literal["commit", "never"]


@checked_fields
@dataclass(frozen=True)
class FileTier:
    """Histories in files, for tables that are larger than memory: ``ScalableGNN(..., tier=FileTier("histories"))``.

    A file has room for all rows from the start, but takes disk only for those that were pushed. Rows are read and written
    through the page cache of the system, so that free memory makes it fast, whoever needs the memory gets it.

    Args:
        path: a folder with one file for each history, made if it is missing; or, for a single
            :class:`~torch_gas.History` or :class:`FileTable`, the file.
        reuse: whether to go on with the rows that such files hold already, up to the last commit. Without it they are an error,
            but for files to which nothing was ever written. Rows of a file whose last user ended between a push and the next
            commit are forgotten, with a warning.
        sync: when rows are forced to the disk, so that they also survive a loss of power: at each ``"commit"``, or ``"never"``.
            They survive the end of the process in either case.
        graph: the ``Data``, or the adjacency, whose embeddings a history's file holds. A file remembers the graph of the batches;
            one of release 0.1, or one that was written to by hand, is told once, and says it to whoever opens it next.

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if ``sync`` is neither.
    """

    path: str | os.PathLike[str]
    reuse: bool = False
    sync: Sync = "commit"
    graph: Any = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.sync not in get_args(Sync):
            raise ValueError(f"FileTier: sync must be one of {get_args(Sync)}, but is {self.sync!r}")

    def part(self, name: str) -> FileTier:
        """The tier of one table in this folder."""
        return replace(self, path=Path(self.path, f"{name}.table"))


def check_tier(tier: str | FileTier | None, device: torch.device | str | int | None) -> None:
    """Raises ValueError unless a history on ``device`` may have ``tier``."""
    if not (tier in (None, "pinned", "host") or isinstance(tier, FileTier)):
        raise ValueError(
            f'History: tier must be None, "pinned", "host" or a FileTier, but is {tier!r}; device="cuda" puts the table on a '
            "GPU, and tier=FileTier(path) in a file"
        )
    if tier is not None and torch.device("cpu" if device is None else device).type != "cpu":
        raise ValueError(
            f"History: tier={tier!r} is for a table that does not lie on a GPU, but device is {device}; drop one of them"
        )
