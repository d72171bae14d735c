"""Files that are replaced as a whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from torch_gas._util.replace import replacing


@pytest.mark.parametrize("suffix", [".part", ".7.part"])
def test_a_file_appears_when_it_is_complete(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "file"
    for content in (b"a long first one", b"second"):
        with replacing(path, suffix) as file:
            file.write(content)
            assert sorted(os.listdir(tmp_path))[-1] == "file" + suffix
        assert path.read_bytes() == content and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with pytest.raises(error), replacing(path) as file:
        file.write(b"after")
        raise error
    assert path.read_bytes() == b"before" and os.listdir(tmp_path) == ["file"]


def test_where_a_link_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "file")
    with replacing(tmp_path / "link") as file:
        file.write(b"content")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there" / "file").read_bytes() == b"content"


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="is a folder; give the path of a file"), replacing(tmp_path):
        pass
