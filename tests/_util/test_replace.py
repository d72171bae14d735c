"""Files that are replaced as a whole or not at all, and that nobody else can lead astray."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

import pytest

from torch_gas._util import replace
from torch_gas._util.replace import existing, replacing


def parts(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.endswith(".part"))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("new", [False, True])
def test_a_file_appears_when_it_is_complete(tmp_path: Path, new: bool) -> None:
    path, names = tmp_path / "file", set()
    for content in (b"a long first one", b"second"):
        with replacing(path, new=new) as file:
            file.write(content)
            assert path.exists() == (len(names) > 0 and not new)
            names.update(parts(tmp_path))
        assert path.read_bytes() == content and os.listdir(tmp_path) == ["file"]
        if new:
            path.unlink()
    assert len(names) == 2  # nobody can guess them


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("new", [False, True])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: type[BaseException], new: bool) -> None:
    path = tmp_path / "file"
    if not new:
        path.write_bytes(b"before")
    with pytest.raises(error), replacing(path, new=new) as file:
        file.write(b"after")
        raise error
    assert new or path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == [] if new else ["file"]


def test_where_a_link_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "file")
    with replacing(tmp_path / "link") as file:
        file.write(b"content")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there" / "file").read_bytes() == b"content"


def test_folders_pipes_and_devices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="is a folder; give the path of a file"), replacing(tmp_path):
        pass
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="this is a pipe or a device"), replacing(tmp_path / "pipe"):
        pass
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(ValueError, match="is a pipe or a device; give the path of a file"):
            existing(path)  # which would wait for a writer, or read for ever


def test_a_new_file_takes_no_place(tmp_path: Path) -> None:
    """Neither that of a file, also if it comes meanwhile, nor that of a link that points nowhere."""
    path, link = tmp_path / "file", tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError), replacing(link, new=True):
        pass
    with pytest.raises(FileExistsError), replacing(path, new=True):
        path.write_bytes(b"of somebody else")
    assert path.read_bytes() == b"of somebody else" and sorted(os.listdir(tmp_path)) == ["file", "link"]


def test_names_that_are_guessed_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody knows the name: the link there is not followed, and the pipe is not waited for."""
    monkeypatch.setattr(replace.secrets, "token_hex", lambda size: "0" * 2 * size)
    part, thesis = tmp_path / f"file.{'0' * 16}.part", tmp_path / "thesis"
    thesis.write_bytes(b"a year of work")
    for plant in (lambda: part.symlink_to(thesis), lambda: os.mkfifo(part)):
        plant()
        with pytest.raises(FileExistsError), replacing(tmp_path / "file"):
            pass
        assert thesis.read_bytes() == b"a year of work" and not (tmp_path / "file").exists()


def test_modes_are_kept(tmp_path: Path) -> None:
    path, before = tmp_path / "file", os.umask(0o027)
    try:
        for wanted in (0o640, 0o600, 0o444, 0o664):
            if path.exists():
                path.chmod(wanted)
            with replacing(path) as file:
                file.write(b"secret")
                assert mode(tmp_path / parts(tmp_path)[0]) == wanted  # not even meanwhile
            assert mode(path) == wanted
    finally:
        os.umask(before)


def test_what_a_killed_process_has_left_is_removed(tmp_path: Path) -> None:
    dead, alive, fresh, other = (tmp_path / f"file.{digit * 16}.part" for digit in "abcd")
    other = tmp_path / f"other.{'d' * 16}.part"
    for path in (dead, alive, other):
        path.write_bytes(b"half")
    fresh.touch()  # perhaps of somebody who has not locked it yet
    with alive.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with replacing(tmp_path / "file"), replacing(tmp_path / "file") as second:  # nor that of each other
            second.write(b"second")
            assert len(parts(tmp_path)) == 5
    assert parts(tmp_path) == sorted(path.name for path in (alive, fresh, other))
