"""Random sequences of calls of `History` and `AsyncIOPool`, compared with a dictionary of rows after each.

The pool works late and in odd orders (lanes.py): what a pull gives must be what the calls before it have pushed.
"""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from lanes import fake_pool
from torch import Tensor

from torch_gas import History

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SEEDS = st.integers(0, 2**16)


class Histories(RuleBasedStateMachine):
    """A history with a pool, and what it must hold: rows, times of their pushes and the clock."""

    @initialize(size=st.integers(1, 12), width=st.integers(1, 4), dtype=st.sampled_from([None, *FLOATS]), seed=SEEDS)
    def make(self, size: int, width: int, dtype: torch.dtype | None, seed: int) -> None:
        self.history, self.size, self.width, self.clock = History(size, width, dtype=dtype), size, width, 0
        self.fixed = dtype is not None
        self.rows: dict[int, Tensor] = {i: torch.zeros(width, dtype=dtype or torch.float32) for i in range(size)}
        self.pushed: dict[int, int] = dict.fromkeys(range(size), -1)
        self.pool, self.lanes = fake_pool(3, seed)
        self.history.use(self.pool)

    # -- what the dictionary does --------------------------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        return self.rows[0].dtype

    def note(self, ids: list[int], x: Tensor) -> None:
        for i, row in zip(ids, x, strict=True):
            self.rows[i], self.pushed[i] = row.to(self.dtype, copy=True), self.clock

    def wanted(self, ids: list[int], dtype: torch.dtype) -> Tensor:
        return torch.stack([self.rows[i] for i in ids]).to(dtype) if ids else torch.empty(0, self.width, dtype=dtype)

    def draw(self, data: st.DataObject, count: int) -> Tensor:
        generator = torch.Generator().manual_seed(data.draw(SEEDS))
        return torch.randn(count, self.width, generator=generator).to(data.draw(st.sampled_from(FLOATS)))

    def ranges(self, data: st.DataObject) -> tuple[Tensor, Tensor, list[int]]:
        cuts = sorted(data.draw(st.lists(st.integers(0, self.size), min_size=2, max_size=6)))
        pairs = data.draw(st.permutations(list(zip(cuts[::2], cuts[1::2], strict=False))))
        offset = torch.tensor([start for start, _ in pairs], dtype=torch.int64)
        count = torch.tensor([stop - start for start, stop in pairs], dtype=torch.int64)
        return offset, count, [i for start, stop in pairs for i in range(start, stop)]

    def ids(self, data: st.DataObject, unique: bool = False) -> list[int]:
        return data.draw(st.lists(st.integers(0, self.size - 1), max_size=2 * self.size, unique=unique))

    # -- calls ---------------------------------------------------------------------------------------------------------

    @rule(data=st.data())
    def push_ids(self, data: st.DataObject) -> None:
        ids = self.ids(data, unique=True)
        x = self.draw(data, len(ids))
        self.history.push(x, torch.tensor(ids, dtype=torch.int64))
        self.note(ids, x)

    @rule(data=st.data())
    def push_ranges(self, data: st.DataObject) -> None:
        offset, count, ids = self.ranges(data)
        x = self.draw(data, len(ids))
        self.history.push(x, offset=offset, count=count)
        self.note(ids, x)

    @rule(data=st.data())
    def push_all(self, data: st.DataObject) -> None:
        x = self.draw(data, self.size)
        self.history.push(x)
        self.note(list(range(self.size)), x)

    @rule(data=st.data())
    def push_by_pool(self, data: st.DataObject) -> None:
        offset, count, ids = self.ranges(data)
        x = self.draw(data, len(ids))
        self.pool.async_push(x, offset, count, self.history.table.storage)
        self.history.mark(None, offset, count)
        self.note(ids, x)
        x.fill_(float("nan"))  # the caller may change its rows

    @rule(data=st.data(), bad=st.sampled_from([-1, 12, 2**40]))
    def push_nothing(self, data: st.DataObject, bad: int) -> None:
        with pytest.raises(IndexError, match="n_id"):
            self.history.push(self.draw(data, 2), torch.tensor([0, bad]))

    @rule(data=st.data(), dtype=st.sampled_from(FLOATS))
    def pull(self, data: st.DataObject, dtype: torch.dtype) -> None:
        ids = self.ids(data)
        assert torch.equal(self.history.pull(torch.tensor(ids, dtype=torch.int64), dtype), self.wanted(ids, dtype))

    @rule(data=st.data(), dtype=st.sampled_from(FLOATS))
    def pull_by_pool(self, data: st.DataObject, dtype: torch.dtype) -> None:
        offset, count, first = self.ranges(data)
        others, table = self.ids(data), self.history.table.storage
        self.pool.async_pull(table, offset, count, torch.tensor(others, dtype=torch.int64), dtype)
        if data.draw(st.booleans()):  # after the pull was asked for, and before it is taken
            self.push_by_pool(data)
        assert torch.equal(self.pool.synchronize_pull(table), self.wanted(first + others, dtype))
        self.pool.free_pull(table)

    @rule()
    def tick(self) -> None:
        self.history.tick()
        self.clock += 1

    @rule()
    def reset(self) -> None:
        self.history.reset_parameters()
        self.clock = 0
        self.pushed = dict.fromkeys(self.pushed, -1)
        self.rows = {i: torch.zeros_like(row) for i, row in self.rows.items()}

    # -- copies, types, files ------------------------------------------------------------------------------------------

    @rule(dtype=st.sampled_from(FLOATS))
    def cast(self, dtype: torch.dtype) -> None:
        self.history.to(dtype)
        if not self.fixed:
            self.rows = {i: row.to(dtype) for i, row in self.rows.items()}
        self.history.use(self.pool)

    @rule(how=st.sampled_from(["pickle", "deepcopy", "state_dict", "assign"]))
    def replace(self, how: str) -> None:
        if how == "pickle":
            self.history = pickle.loads(pickle.dumps(self.history))
        elif how == "deepcopy":
            self.history = copy.deepcopy(self.history)
        else:
            file = io.BytesIO()
            torch.save(self.history.state_dict(), file)
            file.seek(0)
            fresh = History(self.size, self.width, dtype=self.dtype if self.fixed else None).to(self.dtype)
            fresh.load_state_dict(torch.load(file, weights_only=True), assign=how == "assign")
            self.history = fresh
        self.history.use(self.pool)

    @rule()
    def share(self) -> None:
        self.history.share_memory()
        assert self.history.emb.is_shared()
        self.history.use(self.pool)

    # -- what always holds ---------------------------------------------------------------------------------------------

    @invariant()
    def holds_the_same(self) -> None:
        if not hasattr(self, "history"):
            return
        age = [then if then < 0 else self.clock - then for then in self.pushed.values()]
        assert self.history.age.tolist() == age
        assert int(self.history.clock) == self.clock
        assert self.history.table.dtype == self.dtype

    def teardown(self) -> None:
        if hasattr(self, "history"):
            assert self.lanes.races() == []
            assert torch.equal(self.history.emb, self.wanted(list(range(self.size)), self.dtype))


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=40, stateful_step_count=15, deadline=None, derandomize=True)
