"""Files that are replaced as a whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO


@contextmanager
def replacing(path: str | os.PathLike[str], suffix: str = ".part") -> Iterator[BinaryIO]:
    """A new file, which reaches the disk and then takes the place of ``path``; after an error, what was there still is.

    Args:
        path: of the file; where it is a link, the file that it points to is replaced.
        suffix: what is appended to the name of the file while it is written.

    Raises:
        IsADirectoryError: if ``path`` is a folder.
        OSError: if the file cannot be written.

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
    path = os.path.realpath(path)
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path} is a folder; give the path of a file")
    part = path + suffix
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(part)
        raise
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name
    finally:
        os.close(folder)
