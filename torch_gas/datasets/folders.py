"""Where the raw files of a data set lie, and where their processed form may be written."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

logger = logging.getLogger(__name__)


def find_home(root: str | os.PathLike[str], folder: str, raw: str, files: list[str]) -> Path:
    """The folder to hand to PyG's data set class as its ``root``.

    It is ``root/<folder>``, or ``root`` itself where that is the folder already. Upper and lower
    case are the same, so that folders written by PyGAS (``Planetoid``, ``WIKICS``, ``OGB`` ...) are
    found.

    Args:
        root: what the user passed.
        folder: the data set family's folder below a common root.
        raw: the folder of the raw files below the result.
        files: names of the raw files.
    """
    base = Path(root).expanduser().absolute()
    children = sorted(base.iterdir()) if base.is_dir() else []
    homes = [base / folder, *(child for child in children if child.name.lower() == folder)]
    if base.name.lower() == folder:
        homes.insert(0, base)
    elif raw != "raw":
        # `raw` names the data set, so files found there are its own, whatever the folder is called.
        # A bare `raw` says nothing: Flickr's and Yelp's raw files have the same names.
        homes.append(base)
    return next((home for home in homes if not missing(home / raw, files)), homes[0])


def missing(folder: str | os.PathLike[str], files: list[str]) -> list[str]:
    """Those of ``files`` that ``folder`` lacks."""
    return [name for name in files if not (Path(folder) / name).exists()]


def writable_home(home: Path, raw: str, files: list[str]) -> Path:
    """``home``, or a twin of it in the cache (``$TORCH_GAS_CACHE``, or ``~/.cache/torch_gas``) where ``home`` is read-only.

    PyG writes ``processed/`` beside ``raw/``. The twin's ``raw`` is a link to the original.
    """
    beside = (home / raw).parent
    existing = next(path for path in (beside, *beside.parents) if path.exists())
    # Mode bits count as well: they keep shared data as they are even where the user is root.
    if existing.stat().st_mode & 0o222 and os.access(existing, os.W_OK):
        return home
    key = hashlib.sha256(str(home).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("TORCH_GAS_CACHE") or "~/.cache/torch_gas").expanduser().absolute()
    twin = cache / f"{home.name.lower()}-{key}"
    if not (twin / raw).exists():
        logger.warning("%s is read-only: processed files go to %s (set TORCH_GAS_CACHE to move it)", existing, twin)
        if not missing(home / raw, files):
            (twin / raw).parent.mkdir(parents=True, exist_ok=True)
            (twin / raw).symlink_to(home / raw, target_is_directory=True)
    return twin
