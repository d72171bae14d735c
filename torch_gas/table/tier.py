"""FileTier: where and how tables lie in files."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

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
        reuse: whether to go on with the rows that such files hold already, up to the last commit. Without it they are an error.
            Rows of a file whose last user ended between a push and the next commit are forgotten, with a warning.
        sync: when rows are forced to the disk, so that they also survive a loss of power: at each ``"commit"``, or ``"never"``.
            They survive the end of the process in either case.

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if ``sync`` is neither.
    """

    path: str | os.PathLike[str]
    reuse: bool = False
    sync: Sync = "commit"

    def __post_init__(self) -> None:
        if self.sync not in get_args(Sync):
            raise ValueError(f"FileTier: sync must be one of {get_args(Sync)}, but is {self.sync!r}")

    def part(self, name: str) -> FileTier:
        """The tier of one table in this folder."""
        return replace(self, path=Path(self.path, f"{name}.table"))
