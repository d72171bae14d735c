"""One table: rows in and out, storage types, ages, and what a checkpoint carries."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch
import twins
from graphs import random_graph
from nets import Net, assert_same, tables
from torch import Tensor

from torch_gas import History, SubgraphLoader, _core

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def filled(**kwargs: Any) -> History:
    history = History(10, 4, **kwargs)
    history.push(torch.randn(10, 4, generator=torch.Generator().manual_seed(0)))
    return history


# -- rows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [torch.int64, torch.int32])
@pytest.mark.parametrize("rows", FLOATS)
@pytest.mark.parametrize("table", FLOATS)
def test_push_and_pull_by_ids(table: torch.dtype, rows: torch.dtype, ids: torch.dtype) -> None:
    history = History(10, 4, dtype=table)
    n_id = torch.tensor([7, 0, 3], dtype=ids)
    x = torch.randn(3, 4).to(rows)
    wanted = torch.zeros(10, 4, dtype=table)
    wanted[n_id.long()] = x.to(table)
    history.push(x, n_id)
    assert history.emb.dtype == table and torch.equal(history.emb, wanted)
    pulled = history.pull(torch.tensor([3, 3, 9], dtype=ids), rows)
    assert pulled.dtype == rows and torch.equal(pulled, wanted[[3, 3, 9]].to(rows))
    assert history.pull(n_id).dtype == table


@pytest.mark.parametrize("rows", FLOATS)
def test_push_by_ranges(rows: torch.dtype) -> None:
    history = History(10, 4)
    x = torch.randn(5, 4).to(rows)
    history.push(x, offset=torch.tensor([6, 4, 1]), count=torch.tensor([3, 0, 2]))
    wanted = torch.zeros(10, 4)
    wanted[[6, 7, 8, 1, 2]] = x.float()
    assert torch.equal(history.emb, wanted)
    assert (history.pushed_at >= 0).nonzero().view(-1).tolist() == [1, 2, 6, 7, 8]


def test_push_and_pull_of_all_rows() -> None:
    history = History(10, 4)
    x = torch.randn(10, 4, requires_grad=True)
    history.push(x)
    assert torch.equal(history.emb, x) and not history.emb.requires_grad
    copy_of_all = history.pull()
    copy_of_all.zero_()
    assert torch.equal(history.emb, x)
    assert history.pull(dtype=torch.float64).dtype == torch.float64


@pytest.mark.parametrize("rows", FLOATS)
def test_int8_rows(rows: torch.dtype) -> None:
    history, x = History(10, 4, dtype=torch.int8), torch.randn(10, 4).to(rows)
    wanted = twins.dequantize(twins.quantize(x), rows)
    assert history.emb.shape == (10, 8) and history.emb.dtype == torch.int8 and not history.pull().any()
    history.push(x[3:5], torch.tensor([3, 4]))
    history.push(x[5:], offset=torch.tensor([5]), count=torch.tensor([5]))
    assert torch.equal(history.pull(torch.arange(3, 10), rows), wanted[3:])
    history.push(x.t().contiguous().t())
    assert torch.equal(history.emb, twins.quantize(x))
    assert torch.equal(history.pull(dtype=rows), wanted)
    out = torch.empty(10, 4, dtype=rows)
    assert history.pull(out=out) is out and torch.equal(out, wanted)
    assert history.pull(torch.tensor([1]), out=out[:1]).data_ptr() == out.data_ptr()
    assert torch.equal(out[0], wanted[1])


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (lambda: torch.zeros(10, 1).expand(10, 4), "`out` must be contiguous"),
        (lambda: torch.zeros(3, 10, 4), "`out` must "),
        (lambda: torch.zeros(11, 4), "`out` must "),
    ],
)
def test_all_rows_do_not_fit_anything(out: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=f"History.pull: {message}"):
        filled().pull(out=out())


def test_int8_rows_arrive_in_the_type_of_the_model() -> None:
    history = filled(dtype=torch.int8)
    for move, dtype in ((lambda h: h.double(), torch.float64), (lambda h: h.half(), torch.float16)):
        assert move(history).pull().dtype == history.pull(torch.tensor([0])).dtype == dtype
        assert history.emb.dtype == torch.int8
    assert "10, 4, dtype=torch.int8" in repr(history)
    history.reset_parameters()
    assert not history.pull().any() and history.age.tolist() == [-1] * 10


def test_rows_may_be_empty_or_not_contiguous() -> None:
    history = History(10, 4)
    history.push(torch.empty(0, 4), torch.empty(0, dtype=torch.int64))
    assert bool((history.age == -1).all())
    assert history.pull(torch.empty(0, dtype=torch.int64)).shape == (0, 4)
    x, ids = torch.randn(4, 6).t()[::2], torch.tensor([9, 0, 5, 0, 1, 0])[::2]
    assert not x.is_contiguous() and not ids.is_contiguous()
    history.push(x, ids)
    assert torch.equal(history.emb[[9, 5, 1]], x)
    assert torch.equal(history.pull(ids), x)


# -- ages ------------------------------------------------------------------------------------------


def test_ages() -> None:
    history = History(5, 2)
    assert history.age.tolist() == [-1] * 5
    history.push(torch.ones(2, 2), torch.tensor([1, 3]))
    assert history.age.tolist() == [-1, 0, -1, 0, -1]
    history.tick()
    history.tick()
    history.push(torch.ones(2, 2), offset=torch.tensor([0]), count=torch.tensor([2]))
    assert history.age.tolist() == [0, 0, -1, 2, -1]
    history.push(torch.ones(5, 2))
    assert history.age.tolist() == [0] * 5
    history.tick()
    history.reset_parameters()
    assert history.age.tolist() == [-1] * 5 and int(history.clock) == 0
    assert not history.emb.any()


# -- moving and copying ----------------------------------------------------------------------------


def test_storage_type_follows_the_model_unless_fixed() -> None:
    follows, fixed = filled(), filled(dtype=torch.bfloat16)
    rows = follows.pull()
    for move, dtype in (
        (lambda h: h.double(), torch.float64),
        (lambda h: h.half(), torch.float16),
        (lambda h: h.to(torch.bfloat16), torch.bfloat16),
        (lambda h: h.float(), torch.float32),
    ):
        assert move(follows) is follows
        assert follows.emb.dtype == dtype
        assert move(fixed).emb.dtype == torch.bfloat16
        assert follows.pushed_at.dtype == torch.int64
    torch.testing.assert_close(follows.emb, rows, rtol=1e-2, atol=1e-2)
    model = torch.nn.Sequential(filled(), torch.nn.Linear(2, 2)).double()
    assert model[0].emb.dtype == torch.float64
    assert follows.to("cpu").emb.device.type == "cpu" and follows.tier == "host"


def test_default_type_is_that_of_torch() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert History(2, 2).emb.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda h: pickle.loads(pickle.dumps(h))])
def test_copies_are_independent(duplicate: Callable[[History], History]) -> None:
    history = filled(dtype=torch.float16)
    history.tick()
    twin = duplicate(history)
    assert_same(twin.state_dict(), history.state_dict())
    twin.push(torch.zeros(10, 4))
    assert history.emb.any() and history.age.tolist() == [1] * 10
    assert twin.double().emb.dtype == torch.float16  # stays fixed


def test_constructor_checks() -> None:
    with pytest.raises(ValueError, match=r"must be at least 1, but are \(0, 4\)"):
        History(0, 4)
    with pytest.raises(ValueError, match=r"must be at least 1, but are \(4, 0\)"):
        History(4, 0)
    with pytest.raises(TypeError, match=r"dtype must be one of .* but is torch\.int64"):
        History(4, 4, dtype=torch.int64)
    assert "10, 4, dtype=torch.float32, tier='host'" in repr(History(10, 4))


# -- checkpoints -----------------------------------------------------------------------------------


def through_file(state: dict[str, object]) -> dict[str, object]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_state_dict_carries_rows_and_ages() -> None:
    history = filled()
    history.tick()
    other = History(10, 4)
    other.load_state_dict(through_file(history.state_dict()))
    assert torch.equal(other.emb, history.emb) and other.age.tolist() == [1] * 10
    fixed = History(10, 4, dtype=torch.float16)
    fixed.load_state_dict(history.state_dict())
    assert fixed.emb.dtype == torch.float16 and torch.equal(fixed.emb, history.emb.half())


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize(("saved", "loaded"), [(torch.int8, t) for t in FLOATS] + [(t, torch.int8) for t in FLOATS])
def test_a_checkpoint_of_another_storage_type_is_converted(
    saved: torch.dtype, loaded: torch.dtype, assign: bool
) -> None:
    history = filled(dtype=saved)
    history.tick()
    other = History(10, 4, dtype=loaded)
    other.load_state_dict(through_file(history.state_dict()), assign=assign)
    assert other.emb.dtype == loaded and other.age.tolist() == [1] * 10
    wanted = History(10, 4, dtype=loaded)
    wanted.push(history.pull())
    assert torch.equal(other.emb, wanted.emb)


def test_an_int8_checkpoint_is_exact_and_of_one_width() -> None:
    history = filled(dtype=torch.int8)
    other = History(10, 4, dtype=torch.int8)
    other.load_state_dict(through_file(history.state_dict()))
    assert torch.equal(other.emb, history.emb)
    for dtype, width in ((torch.int8, 5), (torch.float32, 8), (torch.float32, 5)):
        wrong = History(10, width, dtype=dtype)
        with pytest.raises(RuntimeError, match=f"10 nodes and width 4, but this one has 10 nodes and width {width}"):
            wrong.load_state_dict(history.state_dict())
        with pytest.raises(RuntimeError, match=f"10 nodes and width {width}, but this one has 10 nodes and width 4"):
            history.load_state_dict(wrong.state_dict())
        assert torch.equal(other.emb, history.emb)


def test_histories_may_stay_out_of_the_checkpoint() -> None:
    model = Net(20, save_histories=False)
    assert not [key for key in model.state_dict() if key.startswith("histories")]
    assert len([key for key in Net(20).state_dict() if key.startswith("histories")]) == 6
    Net(20, save_histories=False).load_state_dict(model.state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*histories\.0\.emb"):
        Net(20).load_state_dict(model.state_dict())


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(("size", "width"), [(21, 16), (20, 12)])
def test_checkpoint_of_another_graph(size: int, width: int, strict: bool) -> None:
    model = Net(20)
    model.histories[0].push(torch.randn(20, 16))
    before = tables(model.histories)
    with pytest.raises(
        RuntimeError,
        match=rf"of {size} nodes and width {width}, but this one has 20 .* 16.*num_nodes={size}",
    ):
        model.load_state_dict(Net(size, width).state_dict(), strict=strict)
    assert_same(tables(model.histories), before)


class Run:
    """Training with dropout; all its state is in parameters, optimiser, random state and loader."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.data = random_graph(60, 400)
        self.model = Net(60, dropout=0.5)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.loader = SubgraphLoader(self.data, torch.arange(0, 61, 6), 3, shuffle=True, generator=torch.Generator())
        self.loader.generator.manual_seed(seed)

    def epochs(self, number: int) -> list[Tensor]:
        losses = []
        self.model.train()
        for _ in range(number):
            for batch, batch_size, *args in self.loader:
                self.optimizer.zero_grad()
                out = self.model(batch.x, batch.edge_index, batch_size, *args)
                loss = torch.nn.functional.cross_entropy(out, batch.y[:batch_size])
                loss.backward()
                self.optimizer.step()
                losses.append(loss.detach())
        return losses

    def save(self, path: Path) -> None:
        torch.save(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "random": torch.get_rng_state(),
                "order": self.loader.generator.get_state(),
            },
            path,
        )

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        self.loader.generator.set_state(state["order"])


def test_resumed_training_is_bit_identical(tmp_path: Path) -> None:
    straight = Run(seed=0)
    straight.epochs(2)
    straight.save(tmp_path / "checkpoint.pt")
    wanted = straight.epochs(2)

    resumed = Run(seed=1)
    resumed.load(tmp_path / "checkpoint.pt")
    assert resumed.epochs(2) == wanted
    assert_same(tables(resumed.model), tables(straight.model))

    forgetful = Run(seed=2)  # the histories matter: without them the run is another one
    forgetful.load(tmp_path / "checkpoint.pt")
    forgetful.model.histories[0].reset_parameters()
    assert forgetful.epochs(2) != wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"tier": "file"},
            'tier must be None, "pinned", "host" or a FileTier, but is \'file\'; device="cuda" puts the table on a GPU',
        ),
        ({"tier": "device"}, "but is 'device'"),
        (
            {"tier": "pinned", "device": "meta"},
            "is for a table that does not lie on a GPU, but device is meta; drop one of them",
        ),
    ],
)
def test_bad_tiers(options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        History(4, 2, **options)


@pytest.mark.parametrize("tier", [None, "pinned", "host"])
def test_tiers_without_a_gpu(tier: str | None) -> None:
    history = History(4, 2, tier=tier)
    assert history.tier == "host" and history.device == history.compute_device
    history.push(torch.ones(1, 2), n_id=torch.tensor([2]))
    assert history.emb.sum() == 2


def test_huge_pages_are_asked_for_whenever_there_is_a_new_table(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(_core, "advise_huge_pages", lambda table: asked.append(table.data_ptr()))
    history = History(4, 2)
    assert asked == [history.emb.data_ptr()]
    history.push(torch.ones(4, 2))
    history.double()
    assert asked[1:] == [history.emb.data_ptr()] and bool((history.emb == 1).all())
    History(4, 2, huge_pages=False).half()
    assert len(asked) == 2


def _push_ones(history: History) -> None:
    history.push(torch.ones(1, 2), n_id=torch.tensor([1]))


@pytest.mark.slow
def test_shared_tables_are_the_same_in_another_process() -> None:
    model = torch.nn.Sequential(History(4, 2)).share_memory()
    history = model[0]
    assert history.emb.is_shared() and history.pushed_at.is_shared()
    history.tick()
    process = torch.multiprocessing.get_context("spawn").Process(target=_push_ones, args=(history,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert history.emb.tolist() == [[0, 0], [1, 1], [0, 0], [0, 0]]
    assert history.age.tolist() == [-1, 0, -1, -1] and history.pushed_at.tolist() == [-1, 1, -1, -1]
    assert history.double().emb.is_shared() and history.emb.dtype == torch.float64
    assert not copy.deepcopy(history).emb.is_shared()  # a copy is another history


def test_a_table_that_a_gpu_reads_does_not_move_to_another_process() -> None:
    history = History(4, 2)
    assert isinstance(ForkingPickler.dumps(history), memoryview)
    registered = History(4, 2)
    registered.table._registration = object()
    with pytest.raises(RuntimeError, match=r"call model.share_memory\(\) before, best before .to\('cuda'\)"):
        ForkingPickler.dumps(registered)
    registered.emb = torch.zeros(4, 2)  # which nothing has locked
    assert not registered.table.is_registered
