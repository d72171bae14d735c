"""Files that appear when they are complete: the one way in which the package writes files, and opens those that are there."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from io import BufferedIOBase
from typing import BinaryIO, cast

Path = str | os.PathLike[str]


@contextmanager
def replacing(path: Path, *, new: bool = False) -> Iterator[BinaryIO]:
    """A new file, which reaches the disk and then takes the place of ``path``; after an error, what was there still is.

    It is written beside ``path`` under a name that nobody can guess, so that no link or pipe waits there. What a process
    that was killed has left of it is removed by the next one that writes to ``path``. The file has the mode, and if the
    system permits it the owner, of the one that it replaces.

    Args:
        path: of the file; where it is a link, the file that it points to is replaced.
        new: whether nothing may be there, and no link is followed.

    Raises:
        FileExistsError: if something is there, and ``new``.
        IsADirectoryError: if ``path`` is a folder.
        OSError: if ``path`` is a pipe or a device, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> with replacing(f"{folder.name}/file") as file:
        ...     file.write(b"whole")
        5
        >>> os.listdir(folder.name)
        ['file']
        >>> folder.cleanup()
    """
    place = os.path.abspath(path) if new else os.path.realpath(path)
    if new and os.path.lexists(place):
        raise FileExistsError(errno.EEXIST, "this exists already; delete it, or choose another path", place)
    before = None
    with suppress(FileNotFoundError):
        before = os.stat(path)  # not of `place`: the system knows of links that must not be followed
    if before is not None and stat.S_ISDIR(before.st_mode):
        raise IsADirectoryError(f"{place} is a folder; give the path of a file")
    if before is not None and not stat.S_ISREG(before.st_mode):
        raise OSError(errno.EINVAL, "this is a pipe or a device; give the path of a file", place)
    _remove_left_behind(place)
    part = f"{place}.{secrets.token_hex(8)}.part"
    try:
        try:
            with _begin(part, before) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                if new:
                    os.link(part, place)  # an error if something is there meanwhile
                else:
                    os.replace(part, place)
        finally:
            _unlink(part)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            fix = "make room on the disk, and write the file again"
            raise OSError(error.errno, f"{error.strerror}; {fix}", place) from error
        raise
    finally:
        _unlink(part)  # where Ctrl-C came just before the first one
    folder = os.open(os.path.dirname(place), os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name
    finally:
        os.close(folder)


def existing(path: Path, writes: bool = False) -> BufferedIOBase:
    """A file that is there, open to be read, and to be written to as well where ``writes``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is a pipe or a device, for which a reader might wait for ever.
        OSError: if the system refuses.
    """
    kind = os.stat(path).st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):  # the system refuses folders
        raise ValueError(f"{os.fspath(path)} is a pipe or a device; give the path of a file")
    return cast(BufferedIOBase, open(path, "r+b" if writes else "rb"))


def nameless(beside: Path) -> BinaryIO:
    """A file on the disk of another one for what ends with the process at the latest: nobody finds it, or has to remove it."""
    return cast(BinaryIO, tempfile.TemporaryFile(buffering=0, dir=os.path.dirname(os.path.abspath(beside))))


def _begin(part: str, before: os.stat_result | None) -> BinaryIO:
    """A new file, locked while it is written, which nobody may read who may not read that ``before``."""
    mode = 0o666 if before is None else stat.S_IMODE(before.st_mode) & 0o777
    # No frame of Python in which Ctrl-C could lose a descriptor; an object that is lost closes its file.
    file: BinaryIO = open(part, "x+b", opener=partial(os.open, mode=mode))  # noqa: SIM115  # closed by the caller
    with suppress(OSError):  # a file system without locks
        fcntl.flock(file, fcntl.LOCK_EX)
    if before is not None:
        with suppress(OSError):
            os.fchown(file.fileno(), before.st_uid, before.st_gid)
        if os.fstat(file.fileno()).st_gid != before.st_gid:
            mode &= ~stat.S_IRWXG  # which are the rights of another group
        os.fchmod(file.fileno(), mode)
    return file


def _unlink(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def _remove_left_behind(place: str) -> None:
    """Removes what processes that were killed have left behind: parts that hold something, and that nobody has locked."""
    folder, name = os.path.split(place)
    pattern = re.compile(re.escape(name) + r"\.[0-9a-f]{16}\.part")
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if pattern.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with suppress(OSError), open(entry.path, "r+b") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if os.fstat(file.fileno()).st_size > 0:  # or it may not have been locked yet
                        os.unlink(entry.path)
