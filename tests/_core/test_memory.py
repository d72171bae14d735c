"""Memory of tensors: huge pages and page-locking, as far as that goes without a GPU."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import pytest
import torch

from torch_gas import _core
from torch_gas._core import build

TABLE = torch.arange(8.0).view(4, 2)


def mapping_flags(address: int) -> set[str]:
    """What Linux knows of the mapping that `address` lies in."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = re.match("([0-9a-f]+)-([0-9a-f]+) ", line)
        if first:
            inside = int(first[1], 16) <= address < int(first[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return set(line.split()[1:])
    raise LookupError(f"no mapping holds {address:#x}")


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="needs huge pages of Linux")
def test_advise_huge_pages() -> None:
    table = torch.frombuffer(mmap.mmap(-1, 2**25), dtype=torch.float32).view(-1, 2)
    expected = torch.arange(2.0**23).view(-1, 2)
    table.copy_(expected)
    assert "hg" not in mapping_flags(table[2**21].data_ptr())
    assert _core.advise_huge_pages(table[1:]) is True
    assert "hg" in mapping_flags(table[2**21].data_ptr())
    assert torch.equal(table, expected)


def test_no_huge_pages_below_less_than_one_page() -> None:
    assert _core.advise_huge_pages(torch.zeros(8)) is False


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([1.0], TypeError, "`tensor` must be a torch.Tensor, but is list"),
        (TABLE.to("meta"), ValueError, "`tensor` must be on the host, but is on meta"),
        (TABLE.T, ValueError, "`tensor` must be contiguous"),
    ],
)
@pytest.mark.parametrize(("call", "arguments"), [("register", ["cuda"]), ("advise_huge_pages", [])])
def test_memory_refuses(call: str, arguments: list[str], value: object, error: type, message: str) -> None:
    with pytest.raises(error, match=f"^{call}: {message}"):
        getattr(_core, call)(value, *arguments)


def test_register_refuses() -> None:
    with pytest.raises(ValueError, match=r"^register: `tensor` must have elements, but has shape \[0, 2\]"):
        _core.register(TABLE[:0], "cuda")
    with pytest.raises(ValueError, match=r'^register: `device` must be a CUDA device, but is cpu; pass "cuda"'):
        _core.register(TABLE, "cpu")


def test_register_needs_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "has_cuda", lambda: False)
    with pytest.raises(RuntimeError, match=r"^register: .*built without CUDA; .*TORCH_GAS_CUDA=1 pip install"):
        _core.register(TABLE, "cuda")
