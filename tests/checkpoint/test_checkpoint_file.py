"""Files of tables: the safetensors format in both directions, damage, replacement as a whole, and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from torch_gas.checkpoint import file, header
from torch_gas.checkpoint.file import Saved, write
from torch_gas.checkpoint.header import DTYPES, Damaged

SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)


def table(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Any bits; bytes of booleans are 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    high = 2 if dtype == torch.bool else 256
    count = dtype.itemsize * torch.Size(shape).numel()
    return torch.randint(high, (count,), dtype=torch.uint8, generator=generator).view(dtype).view(shape)


def same(a: Tensor, b: Tensor) -> bool:
    """Whether types, shapes and bits are equal."""
    bits = [each.contiguous().view(-1).view(torch.uint8) for each in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)


def read_all(path: Path) -> dict[str, Tensor]:
    with Saved(path) as saved:
        saved.verify()
        return {name: saved.read(name) for name in saved.entries}


TABLES = st.dictionaries(
    st.text(max_size=8).filter(lambda name: name != "__metadata__" and name.isprintable()),
    st.builds(table, st.sampled_from(list(DTYPES.values())), SHAPES, st.integers(0, 9)),
    max_size=5,
)


@given(tables=TABLES, block=st.integers(1, 64))
def test_both_directions_with_the_reference(
    tables: dict[str, Tensor], block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("files") / "tables"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file, "BLOCK", block)  # so that there are several
        write(path, tables)
        ours, theirs = read_all(path), safetensors.torch.load_file(path)
        safetensors.torch.save_file(tables, path)
        back = read_all(path)
    for read in (ours, theirs, back):
        assert read.keys() == tables.keys()
        assert all(same(read[name], value) for name, value in tables.items())


def test_tables_that_are_not_contiguous(tmp_path: Path) -> None:
    wide = torch.arange(24.0).view(4, 6)
    write(tmp_path / "a", {"t": wide.t(), "some": wide[::2, 1::2]})
    with Saved(tmp_path / "a") as saved:
        into = torch.zeros(4, 6)
        saved.read_into("t", into.t())
        assert torch.equal(into, wide)
        assert torch.equal(saved.read("some"), wide[::2, 1::2])


def test_types_that_the_format_lacks(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"'z' is torch\.complex128, which safetensors files cannot hold"):
        write(tmp_path / "a", {"z": torch.zeros(2, dtype=torch.complex128)})
    assert list(tmp_path.iterdir()) == []


# -- damage ------------------------------------------------------------------------------------------------------------


def small(path: Path) -> bytes:
    write(path, {"a": torch.arange(6.0).view(3, 2), "b": torch.tensor(7)})
    return path.read_bytes()


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    whole = small(tmp_path / "a")
    for size in range(len(whole)):
        (tmp_path / "a").write_bytes(whole[:size])
        with pytest.raises(Damaged, match="damaged or no safetensors file"):
            read_all(tmp_path / "a")
    (tmp_path / "a").write_bytes(whole + b"\0")
    with pytest.raises(Damaged, match=r"damaged or no safetensors file: .*not fully covered"):
        read_all(tmp_path / "a")


def test_every_changed_byte_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    whole = small(tmp_path / "a")
    right, silent = read_all(tmp_path / "a"), 0
    for position in range(len(whole)):
        for flip in (0x01, 0x20, 0x80):
            damaged = bytearray(whole)
            damaged[position] ^= flip
            (tmp_path / "a").write_bytes(damaged)
            try:
                read = read_all(tmp_path / "a")
            except Damaged:
                continue
            # A tensor by another name, or of another type of the same size, is found when it is asked for.
            silent += 1
            bits = {name: value.contiguous().view(-1).view(torch.uint8) for name, value in read.items()}
            for name, value in right.items():
                assert torch.equal(bits[name], value.view(-1).view(torch.uint8))
    assert silent < 20


def with_header(change: str | bytes | Callable[[dict[str, Any]], Any], whole: bytes) -> bytes:
    """The file with another header, or with one that ``change`` has changed in place."""
    length = int.from_bytes(whole[:8], "little")
    if callable(change):
        content = json.loads(whole[8 : 8 + length])
        change(content)
        change = json.dumps(content)
    text = change.encode() if isinstance(change, str) else change
    return len(text).to_bytes(8, "little") + text + whole[8 + length :]


BY_LIBRARY = "is damaged or no safetensors file: Error while deserializing header: .*; take another copy of it"
HEADERS: dict[str, tuple[str | bytes | Callable[[dict[str, Any]], Any], str]] = {
    "not JSON": ("{", BY_LIBRARY),
    "not UTF-8": (b"\xff{}", BY_LIBRARY),
    "a list": ("[]", BY_LIBRARY),
    "deep": ("[" * 100_000, BY_LIBRARY),
    "no descriptions": ('{"a": 1, "b": 2}', BY_LIBRARY),
    "metadata are numbers": (lambda h: h.update(__metadata__={"x": 1}), BY_LIBRARY),
    "metadata are no dictionary": (lambda h: h.update(__metadata__=[1]), BY_LIBRARY),
    "an unknown type": (lambda h: h["a"].update(dtype="F128"), BY_LIBRARY),
    "no shape": (lambda h: h["a"].pop("shape"), BY_LIBRARY),
    "a negative shape": (lambda h: h["a"].update(shape=[-3, -2]), BY_LIBRARY),
    "a shape of booleans": (lambda h: h["a"].update(shape=[True, 6]), BY_LIBRARY),
    "a broken shape": (lambda h: h["a"].update(shape=[1.5, 4]), BY_LIBRARY),
    "a huge shape": (lambda h: h["a"].update(shape=[2**62, 2**62]), BY_LIBRARY),
    "three offsets": (lambda h: h["a"].update(data_offsets=[0, 8, 24]), BY_LIBRARY),
    "an overlap": (lambda h: h["a"].update(data_offsets=[0, 24]), BY_LIBRARY),
    "a gap": (lambda h: h.pop("b"), BY_LIBRARY),
    "a checksum is missing": (lambda h: h["__metadata__"].pop("crc32 a"), "a checksum is missing"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_wrong_headers(name: str, tmp_path: Path) -> None:
    change, message = HEADERS[name]
    (tmp_path / "a").write_bytes(with_header(change, small(tmp_path / "a")))
    with pytest.raises(Damaged, match=message):
        Saved(tmp_path / "a")


def test_a_header_longer_than_the_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes((2**63).to_bytes(8, "little") + b"{}")
    with pytest.raises(Damaged, match=BY_LIBRARY):
        Saved(tmp_path / "a")


def test_a_name_twice(tmp_path: Path) -> None:
    """Of two descriptions the last holds, and the first then leaves bytes that belong to nobody."""
    entry = '"a": {"dtype": "U8", "shape": [4], "data_offsets": %s}'
    header = f"{{{entry % '[0, 4]'}, {entry % '[4, 8]'}}}".encode()
    (tmp_path / "a").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(Damaged, match=BY_LIBRARY):
        Saved(tmp_path / "a")


def test_a_type_that_torch_lacks(tmp_path: Path) -> None:
    header = b'{"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}'
    (tmp_path / "a").write_bytes(len(header).to_bytes(8, "little") + header + bytes(1))
    with pytest.raises(ValueError, match="a holds a tensor of type 'F4', which torch lacks; convert it"):
        Saved(tmp_path / "a")


def test_a_file_that_is_replaced_while_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(tmp_path / "a")

    def decode(path: str) -> Any:
        small(tmp_path / "a")
        return header.decode(path)

    monkeypatch.setattr(file, "decode", decode)
    with pytest.raises(OSError, match="a was replaced while it was opened; open it again"):
        Saved(tmp_path / "a")


# -- replacement -------------------------------------------------------------------------------------------------------


class Failing(dict[str, Tensor]):
    """Tables, of which one cannot be read."""

    def __getitem__(self, name: str) -> Tensor:
        if name == "b":
            raise KeyboardInterrupt
        return super().__getitem__(name)


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a"
    before = small(path)
    with pytest.raises(KeyboardInterrupt):
        write(path, Failing(a=torch.zeros(9, 9, dtype=torch.float64), b=torch.ones(3)))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a"]


def test_what_a_crash_left_behind_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.0123456789abcdef.part").write_bytes(b"half of a file" * 1000)
    small(tmp_path / "a")
    assert os.listdir(tmp_path) == ["a"]
    assert torch.equal(read_all(tmp_path / "a")["b"], torch.tensor(7))


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "file")
    small(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert os.listdir(tmp_path / "there") == ["file"]


def test_paths_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="is a folder; give the path of a file"):
        small(tmp_path)
    with pytest.raises(FileNotFoundError):
        small(tmp_path / "nowhere" / "a")
    with pytest.raises(FileNotFoundError):
        Saved(tmp_path / "a")


def python(code: str, *args: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk."""
    before = small(tmp_path / "a")
    code = """
        import errno, resource, signal, sys, torch
        from torch_gas.checkpoint.file import write
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
        try:
            write(sys.argv[1], {"a": torch.zeros(2**21, dtype=torch.uint8)})
        except OSError as error:
            print(errno.errorcode[error.errno])
    """
    assert python(code, tmp_path / "a").strip() == "EFBIG"
    assert (tmp_path / "a").read_bytes() == before
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.slow
def test_there_is_no_second_copy_in_memory(tmp_path: Path) -> None:
    """Writing and reading a table of 256 MiB takes a few blocks of 8 MiB."""
    code = """
        import resource, sys, torch
        from torch_gas import History
        from torch_gas.checkpoint.histories import load_histories, save_histories

        def peak():
            size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            return size if sys.platform == "darwin" else size * 1024

        model = torch.nn.ModuleList([History(2**19, 128)])
        model[0].emb.fill_(1)
        model[0].emb[-1] = 2
        before = peak()
        save_histories(model, sys.argv[1])
        saved = peak()
        model[0].reset_parameters()
        load_histories(model, sys.argv[1])
        assert model[0].emb[2**18].eq(1).all() and model[0].emb[-1].eq(2).all()
        print((saved - before) >> 20, (peak() - before) >> 20)
    """
    assert all(0 <= int(grown) < 64 for grown in python(code, tmp_path / "a").split())
