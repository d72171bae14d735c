"""Loading a checkpoint changes all or nothing: late refusals, disks that fail, Ctrl-C, and entries that make no sense."""

from __future__ import annotations

import copy
import io
import os
import random
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graphs import random_graph
from nets import Net
from torch import Tensor
from torch.utils.data import RandomSampler

from torch_gas import EvalSubgraphLoader, FileTier, Monitor, SubgraphLoader, checkpoint
from torch_gas.checkpoint import histories
from torch_gas.checkpoint.file import Saved, write
from torch_gas.checkpoint.header import Damaged
from torch_gas.extensions.refresh import BeforeTraining
from torch_gas.models import SAGE

N = 60


class Counted(SAGE):
    """A model with a state of its own, which it may refuse."""

    calls = 1
    error: BaseException | None = None

    def get_extra_state(self) -> int:
        return self.calls

    def set_extra_state(self, state: int) -> None:
        if self.error is not None and state != self.calls:
            raise self.error
        self.calls = state


class Run:
    """A model, one history of which lies in a file, and an optimiser with a state."""

    def __init__(self, folder: Path, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = Counted(N, 4, 8, 2, num_layers=3, tier=FileTier(folder / f"tables_{seed}"))
        self.model.calls = seed
        for history in self.model.histories:
            history.push(torch.rand(N, 8))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.5 + seed)
        for parameter in self.model.parameters():
            parameter.grad = torch.rand_like(parameter)
        self.optimizer.step()

    def save(self, path: Path) -> Path:
        checkpoint.save(path, model=self.model, optimizer=self.optimizer, epoch=3)
        return path

    def load(self, path: Path) -> None:
        checkpoint.load(path, model=self.model, optimizer=self.optimizer)

    def state(self, with_histories: bool = True) -> str:
        """Everything, bit for bit."""
        state = {
            name: value.tolist() if isinstance(value, Tensor) else value
            for name, value in self.model.state_dict().items()
            if with_histories or "histories" not in name
        }
        moments = copy.deepcopy(self.optimizer.state_dict())
        numbers = torch.get_rng_state().sum(), np.random.get_state()[1].sum(), random.getstate()
        with torch.no_grad():
            return repr((state, str(moments), numbers))


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Run, str]:
    """A checkpoint, a run that may load it, and the state of the one that wrote it."""
    one, other = Run(tmp_path, 2), Run(tmp_path, 3)
    path, after = one.save(tmp_path / "c"), one.state()
    torch.manual_seed(9)
    return path, other, after


def pack(value: Any) -> Tensor:
    file = io.BytesIO()
    torch.save(value, file)
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)


def rewrite(path: Path, **changes: Callable[[Any], Any] | bytes) -> None:
    """Replaces entries, with the right checksums."""
    with Saved(path) as saved:
        entries = {name: saved.read(name) for name in saved.entries}
        texts = {name: text for name, text in saved.texts.items() if not name.startswith("crc32")}
    for name, change in changes.items():
        if isinstance(change, bytes):
            entries[name] = torch.tensor(list(change), dtype=torch.uint8)
        else:
            entries[name] = pack(change(torch.load(io.BytesIO(entries[name].numpy().tobytes()), weights_only=True)))
    write(path, entries, texts)


LATE: dict[str, dict[str, Callable[[Any], Any] | bytes]] = {
    "no random states": {"random": lambda states: None},
    "a generator of numpy that is another one": {
        "random": lambda states: {**states, "numpy": {"bit_generator": "PCG64", "state": {}}}
    },
    "a short state of torch": {"random": lambda states: {**states, "torch": torch.zeros(5, dtype=torch.uint8)}},
    "a state of Python of another version": {"random": lambda states: {**states, "python": (1, (), None)}},
    "devices that are no list": {"random": lambda states: {**states, "cuda": 3}},
    "extra state in the place of a parameter": {"extra_state": lambda extra: {**extra, "convs.0.lin_l.weight": 3}},
    "extra state that is none": {"extra_state": lambda extra: [3]},
    "bytes that are no pickle": {"value.epoch": b"no pickle"},
    "no bytes": {"extra_state": b""},
    "half of a zip file": {"random": b"PK\x03\x04" + bytes(50)},
    "a state of no class": {"object.optimizer": lambda held: held["state"]},
    "a class that is no text": {"object.optimizer": lambda held: {**held, "class": 3}},
    "an object's state that is none": {"object.optimizer": lambda held: {**held, "state": None}},
    "groups that are none": {
        "object.optimizer": lambda held: {**held, "state": {**held["state"], "param_groups": [{}]}}
    },
}


@pytest.mark.parametrize("what", LATE)
def test_entries_that_make_no_sense_change_nothing(runs: tuple[Path, Run, str], what: str) -> None:
    path, run, _ = runs
    rewrite(path, **LATE[what])
    before = run.state()
    with pytest.raises(ValueError, match=r"\w{10}"):
        run.load(path)
    assert run.state() == before


def test_each_cause_is_named(runs: tuple[Path, Run, str]) -> None:
    path, run, _ = runs
    rewrite(path, **{"value.epoch": b"no pickle"})
    with pytest.raises(Damaged, match=r"'value\.epoch' cannot be read by torch\.load\(weights_only=True\)"):
        run.load(path)


@pytest.mark.parametrize("error", [RuntimeError("not mine"), KeyError("calls")])
def test_a_model_that_refuses_its_state_comes_back(runs: tuple[Path, Run, str], error: Exception) -> None:
    """After optimiser and parameters have been given theirs."""
    path, run, _ = runs
    run.model.error = error
    before = run.state()
    with pytest.raises(ValueError, match=r"model refuses its state, and nothing was changed: .*(not mine|calls)"):
        run.load(path)
    assert run.state() == before


def failing(number: int, error: BaseException, times: int = 1) -> Callable[..., None]:
    """Reads tables, but not that of this number, so often."""
    count, left, real = 0, times, Saved.read_into

    def read_into(self: Saved, name: str, table: Any) -> None:
        nonlocal count, left
        count += name.startswith("model.histories") or name.startswith("histories")
        if count >= number and left:
            left -= 1
            raise error
        real(self, name, table)

    return read_into


@pytest.mark.parametrize("number", range(1, 7))
def test_a_disk_that_fails_late_leaves_forgotten_rows(
    runs: tuple[Path, Run, str], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which nobody takes for those of the checkpoint, or for what they were."""
    path, run, _ = runs
    before = run.state(with_histories=False)
    monkeypatch.setattr(Saved, "read_into", failing(number, OSError(5, "Input/output error")))
    with pytest.raises(OSError, match="Input/output error"):
        run.load(path)
    assert run.state(with_histories=False) == before
    assert all((history.age == -1).all() and not history.pull().any() for history in run.model.histories)


@pytest.mark.parametrize("number", range(1, 7))
@pytest.mark.parametrize("alone", [False, True])
def test_ctrl_c_waits_for_the_end(
    runs: tuple[Path, Run, str], number: int, alone: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, run, after = runs
    load = run.load
    if alone:
        Run(tmp_path, 4).model.save_histories(path)
        load = run.model.load_histories
    monkeypatch.setattr(Saved, "read_into", failing(number, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        load(path)
    if not alone:
        assert run.state() == after
    monkeypatch.undo()
    loaded = run.state()
    load(path)
    assert run.state() == loaded


def test_a_second_ctrl_c_is_obeyed(runs: tuple[Path, Run, str], monkeypatch: pytest.MonkeyPatch) -> None:
    path, run, _ = runs
    before = run.state(with_histories=False)
    monkeypatch.setattr(Saved, "read_into", failing(3, KeyboardInterrupt(), times=10**6))
    with pytest.raises(KeyboardInterrupt):
        run.load(path)
    assert run.state(with_histories=False) == before
    assert all((history.age == -1).all() for history in run.model.histories)


def test_what_is_interrupted_is_done_again() -> None:
    done: list[str] = []

    def change() -> None:
        done.append("change")
        if len(done) == 1:
            raise SystemExit

    with pytest.raises(SystemExit):
        histories.all_or_nothing(change, lambda: done.append("undo"))
    assert done == ["change", "change"]


def test_checking_random_states_draws_and_sets_nothing(
    runs: tuple[Path, Run, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, run, _ = runs
    before = run.state()
    for setter in ("torch.set_rng_state", "numpy.random.set_state", "random.setstate"):
        monkeypatch.setattr(setter, lambda *args: (_ for _ in ()).throw(AssertionError("was set")))
    with Saved(path) as saved:
        states = torch.load(io.BytesIO(saved.read("random").numpy().tobytes()), weights_only=True)
    checkpoint.run.check_random_states(states, "")
    assert run.state() == before


def test_a_warning_that_is_an_error_changes_nothing(
    runs: tuple[Path, Run, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, run, _ = runs
    rewrite(path, random=lambda states: {**states, "cuda": [states["torch"]]})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    before = run.state()
    with warnings.catch_warnings(), pytest.raises(UserWarning, match="random numbers of 1 CUDA devices"):
        warnings.simplefilter("error")
        run.load(path)
    assert run.state() == before


def test_checkpoints_stay_private(tmp_path: Path) -> None:
    """And what lies at names that others may guess is left alone."""
    run, path = Run(tmp_path, 1), tmp_path / "c"
    (tmp_path / "thesis").write_text("a year of work")
    (tmp_path / "c.part").symlink_to(tmp_path / "thesis")
    run.save(path)
    path.chmod(0o600)
    run.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and not path.is_symlink()
    assert (tmp_path / "thesis").read_text() == "a year of work"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is a pipe or a device"):
        run.load(tmp_path / "pipe")


def spoilt(state: dict[str, Any], name: str) -> dict[str, Any]:
    last = {"generators": [*state.get("generators", [0])[:-1], torch.zeros(3, dtype=torch.uint8)], "random": (3, (), 1)}
    return {**copy.deepcopy(state), name: last.get(name, {"a": 1})}


@pytest.mark.parametrize(
    ("kind", "name"), [("loader", "generators"), ("refresher", "cost"), ("monitor", "random"), ("monitor", "counts")]
)
def test_objects_that_refuse_a_state_keep_theirs(kind: str, name: str) -> None:
    """Also where no checkpoint gives it back to them."""
    data, ptr = random_graph(N, 300), torch.tensor([0, 20, 40, N])
    model = Net(N)

    def make(seed: int) -> Any:
        draws, sampler = (torch.Generator().manual_seed(seed) for _ in range(2))
        loader = SubgraphLoader(data, ptr, sampler=RandomSampler(range(3), generator=sampler), generator=draws)
        monitor = Monitor(model, every=1, limits=None)
        refresher = BeforeTraining().bind(model, EvalSubgraphLoader(data, ptr))
        refresher.before_training()
        for batch in loader:
            model.train()(batch)
            refresher.after_step()
        return {"loader": loader, "refresher": refresher, "monitor": monitor}[kind]

    thing, other = make(1), make(2)
    before = str(thing.state_dict())
    with pytest.raises((ValueError, TypeError, RuntimeError, KeyError, AttributeError)):
        thing.load_state_dict(spoilt({**other.state_dict(), **({"steps": 99} if kind == "refresher" else {})}, name))
    assert str(thing.state_dict()) == before
