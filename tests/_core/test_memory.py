"""Memory of tensors: huge pages and page-locking, as far as that goes without a GPU."""

from __future__ import annotations

import mmap
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import twins
from driver import Driver, gpu_pool
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from torch_gas import AsyncIOPool, _core
from torch_gas._core import build, memory
from torch_gas.table.memory import MemoryTable

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


# -- page-locking, with a driver that keeps exact ranges -----------------------------------------------------------------


def test_a_view_is_page_locked_with_its_storage(driver: Driver) -> None:
    whole = torch.zeros(100, 8)
    view = whole[3:50]
    registration = _core.register(view, "cuda:0")
    assert view.is_pinned() and view[10:].is_pinned() and driver.covers(whole)
    assert _core.register(whole[60:], "cuda:0") is registration is _core.locked_by(whole)
    del registration
    assert driver.ranges == [] and _core.locked_by(view) is None


def test_memory_that_somebody_else_has_page_locked_is_an_error(driver: Driver) -> None:
    table = torch.zeros(100, 8)
    somebody = memory._C.HostRegistration(None, table.data_ptr() + 64, 64, 0)
    with pytest.raises(RuntimeError, match="AlreadyRegistered"):
        _core.register(table, "cuda:0")
    assert _core.locked_by(table) is None
    del somebody


@pytest.mark.parametrize("dropped", [0, 1])
def test_tables_on_views_of_one_storage_keep_it_page_locked(driver: Driver, dropped: int) -> None:
    """Whichever of them goes first."""
    whole, pool = torch.zeros(100, 8), gpu_pool()
    views = [whole[:40], whole[40:]]
    tables = [MemoryTable(view, 8) for view in views]
    for table in tables:
        table.use(pool)
        table.use(pool)  # once more, as each change of the pool asks for it
        assert table.tier == "pinned" and table.is_registered
    assert len(driver.ranges) == 1
    del table
    tables.pop(dropped)
    assert tables[0].tier == "pinned" and driver.covers(views[1 - dropped])


def test_a_table_that_leaves_its_memory_unlocks_it(driver: Driver) -> None:
    pool, old = gpu_pool(), torch.zeros(100, 8)[10:]
    table = MemoryTable(old, 8)
    table.use(pool)
    table.storage = torch.zeros(50, 8)[5:]
    assert not driver.covers(old) and driver.covers(table.storage)
    table.share()
    assert table.storage.is_shared() and driver.covers(table.storage) and len(driver.ranges) == 1
    table.use(AsyncIOPool())
    assert driver.ranges == [] and not table.is_registered


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8])
@pytest.mark.parametrize("num_rows", [1, 1000, 30_000])
def test_tables_begin_at_a_page(num_rows: int, dtype: torch.dtype) -> None:
    """Where torch would have a large one begin 64 bytes behind it."""
    for huge_pages in (False, True):
        table = MemoryTable.zeros(num_rows, 64, dtype, torch.device("cpu"), huge_pages=huge_pages, pageable=False)
        kept = [table.storage] if dtype == torch.int8 else [table.storage, table.cast(torch.bfloat16)]
        table.fill(torch.ones(num_rows, 64))
        expected = table.storage.clone()
        table.share()
        assert torch.equal(table.storage, expected)
        for storage in (*kept, table.storage):
            assert storage.data_ptr() % memory.PAGE == 0 and storage.is_contiguous() and not storage._is_view()
            assert storage.untyped_storage().nbytes() <= storage.nbytes + memory.PAGE


def test_no_table_begins_where_there_is_no_memory() -> None:
    with FakeTensorMode(), pytest.raises(RuntimeError, match="leave FakeTensorMode"):
        _core.at_page([4, 2], torch.float32)


# -- fingerprints --------------------------------------------------------------------------------------------------------


@given(twins.seeds, st.lists(st.integers(0, 400), max_size=3), st.sampled_from([0, 1, 2, 5, 2**58, 2**63, 2**64 - 1]))
def test_fingerprint(seed: int, sizes: list[int], lines: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    dtypes = [*twins.FLOATS, *twins.COPIED, torch.complex64]
    tensors = []
    for number, size in enumerate(sizes):
        value = torch.randint(0, 256, (size, 16), generator=generator, dtype=torch.uint8)
        dtype = dtypes[(seed + number) % len(dtypes)]
        value = value > 99 if dtype == torch.bool else value.view(dtype)
        tensors.append(value.T if (seed >> number) % 2 else value)
    assert _core.fingerprint(tensors, lines) == twins.fingerprint(tensors, lines)


@pytest.mark.parametrize("size", [2**16, 2**16 + 1, 2**18 + 3])
def test_fingerprint_of_several_pieces(size: int) -> None:
    value = torch.arange(size).to(torch.uint8)
    for lines in (0, 3):
        assert _core.fingerprint([value, value[1:]], lines) == twins.fingerprint([value, value[1:]], lines)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool, torch.bfloat16])
@pytest.mark.parametrize("size", [0, 1, 7, 33, 20_000, 300_000])
def test_fingerprints_go_by_all_that_is_there(size: int, dtype: torch.dtype) -> None:
    value = torch.arange(size).to(dtype)
    first = _core.fingerprint([value])
    assert first == _core.fingerprint([value.clone()]) != _core.fingerprint([value, value])
    places = {0, size // 2, size - 1} if size else set()
    seen, memory = {first}, value.view(torch.uint8).numpy()
    for place in places:
        memory[place * value.element_size()] ^= 1
        seen.add(_core.fingerprint([value]))
        memory[place * value.element_size()] ^= 1
    assert len(seen) == 1 + len(places)
    assert _core.fingerprint([value]) == first


def test_fingerprints_tell_orders_and_signs_apart() -> None:
    value = torch.arange(1.0, 1001.0, dtype=torch.float64).view(10, 100)
    others = [value, -value, value.flip(0), value.flip(1), value.T, value.roll(1), value[:, :99], value[1:]]
    assert len({_core.fingerprint([other]) for other in others}) == len(others)
    assert _core.fingerprint([value.T]) == _core.fingerprint([value.T.contiguous()])  # the same matrix
    assert _core.fingerprint([value[:5], value[5:]]) != _core.fingerprint([value[5:], value[:5]])


def test_fingerprints_do_not_depend_on_threads() -> None:
    value, threads = torch.arange(2_000_003, dtype=torch.int32), torch.get_num_threads()
    found = set()
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            found.add(_core.fingerprint([value]))
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1


def test_fingerprints_of_samples() -> None:
    value = torch.zeros(100_000)
    first = _core.fingerprint([value], lines=4)
    for place, seen in ((0, True), (99_999, True), (1000, False)):
        value[place] = 1
        assert (_core.fingerprint([value], lines=4) != first) is seen
        value[place] = 0
    ones = torch.eye(64)  # rows of as many lines as are looked at
    assert len({_core.fingerprint([row], lines=4) for row in [torch.zeros(64), *ones]}) == 65


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([[1.0]], TypeError, "`tensors` must be a torch.Tensor, but is list"),
        ([TABLE.to("meta")], ValueError, "`tensors` must be on the host, but is on meta"),
        (
            [torch.eye(2).to_sparse()],
            TypeError,
            "`tensors` must be a dense tensor with memory, but its layout is torch.sparse_coo",
        ),
    ],
)
def test_fingerprints_refuse(value: list[Any], error: type, message: str) -> None:
    with pytest.raises(error, match=f"^fingerprint: {message}"):
        _core.fingerprint(value)
    with pytest.raises(ValueError, match=r"^fingerprint: `lines` must not be negative"):
        _core.fingerprint([TABLE], lines=-1)
    with pytest.raises(ValueError, match=r"^fingerprint: `lines` must be less than 2\*\*64"):
        _core.fingerprint([TABLE], lines=2**64)
