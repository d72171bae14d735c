"""Histories and whole runs are saved and go on bit for bit; files of something else change nothing."""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from graphs import random_graph
from torch import Tensor
from torch.utils import _pytree as pytree
from torch_geometric.data import Data
from torch_geometric.nn import GCN as PlainGCN

from torch_gas import EvalSubgraphLoader, Monitor, ScalableGNN, SubgraphLoader, checkpoint, gcn_norm, scale
from torch_gas.checkpoint import rng
from torch_gas.checkpoint.file import Saved, write
from torch_gas.extensions.refresh import EverySteps, Stalest
from torch_gas.models import GCN

N = 60
PTR = torch.tensor([0, 5, 12, 18, 23, 30, 34, 41, 48, 55, N])
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def graph() -> Data:
    return gcn_norm(random_graph(N, 300))


def gcn(num_nodes: int = N, hidden: int = 8, layers: int = 3, **options: Any) -> GCN:
    return GCN(num_nodes, 8, hidden, 3, num_layers=layers, dropout=0.5, batch_norm=True, **options)


def filled(model: ScalableGNN) -> ScalableGNN:
    """``model`` with histories of random rows and ages."""
    for history in model._stores:
        history.emb.copy_(torch.randn(history.emb.shape))
        history.pushed_at.copy_(torch.randint(-1, 9, history.pushed_at.shape))
        history.clock.fill_(9)
    return model


def bits(value: Tensor) -> Tensor:
    return value.detach().cpu().contiguous().view(-1).view(torch.uint8)


def tables(model: ScalableGNN) -> list[Tensor]:
    return [bits(table) for each in model._stores for table in (each.emb, each.pushed_at, each.clock)]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


# -- histories ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_histories_and_ages_come_back(dtype: torch.dtype, tmp_path: Path) -> None:
    model, other = filled(gcn(history_dtype=dtype)), gcn(history_dtype=dtype)
    model.save_histories(tmp_path / "h")
    other.load_histories(tmp_path / "h")
    assert equal(tables(model), tables(other))
    state = {key: value for key, value in model.state_dict().items() if key.startswith("histories.")}
    read = safetensors.torch.load_file(tmp_path / "h")
    assert read.keys() == state.keys()
    assert all(torch.equal(bits(read[key]), bits(value)) for key, value in state.items())


def test_histories_that_safetensors_wrote(tmp_path: Path) -> None:
    model, other = filled(gcn()), gcn()
    state = {key: value for key, value in model.state_dict().items() if key.startswith("histories.")}
    safetensors.torch.save_file(state, tmp_path / "h")
    other.load_histories(tmp_path / "h")
    assert equal(tables(model), tables(other))


def test_histories_that_no_state_dict_carries(tmp_path: Path) -> None:
    model, other = filled(gcn(save_histories=False)), gcn(save_histories=False)
    model.save_histories(tmp_path / "h")
    other.load_histories(tmp_path / "h")
    assert equal(tables(model), tables(other))


def test_tables_of_scaled_models(tmp_path: Path) -> None:
    """Degrees that were counted once are saved as well."""
    data = random_graph(N, 300)
    model, other = (scale(PlainGCN(8, 8, num_layers=3, out_channels=3), data) for _ in range(2))
    assert len(model.tables) > 0
    filled(model).save_histories(tmp_path / "h")
    other.load_histories(tmp_path / "h")
    assert equal(tables(model), tables(other))


def test_a_model_without_histories(tmp_path: Path) -> None:
    gcn(layers=1).save_histories(tmp_path / "h")
    gcn(layers=1).load_histories(tmp_path / "h")
    with pytest.raises(ValueError, match=r"does not hold 'histories\.0\.clock', which this model with 2 histories has"):
        gcn().load_histories(tmp_path / "h")


OTHERS: dict[str, tuple[Callable[[], ScalableGNN], str]] = {
    "fewer layers": (lambda: gcn(layers=2), "holds 'histories.1.clock', which this model with 1 histories has not"),
    "more layers": (lambda: gcn(layers=4), "does not hold 'histories.2.clock', which this model with 3 histories has"),
    "another graph": (lambda: gcn(N + 1), r"'histories\.0\.emb' .* is .* \[60, 8\], but .* \[61, 8\].*num_nodes"),
    "another width": (lambda: gcn(hidden=9), r"'histories\.0\.emb' .* \[60, 8\], but .* \[60, 9\].*hidden_channels"),
    "another type": (
        lambda: gcn(history_dtype=torch.float16),
        r"'histories\.0\.emb' .* is torch\.float32 .* but torch\.float16 .*history_dtype",
    ),
    "not tried out": (
        lambda: scale(PlainGCN(8, 8, num_layers=3, out_channels=3), num_nodes=N),
        r"with 0 histories has not; .*scale\(\) has its histories once",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_histories_of_other_models_change_nothing(name: str, tmp_path: Path) -> None:
    filled(gcn()).save_histories(tmp_path / "h")
    make, message = OTHERS[name]
    other = filled(make())
    before = tables(other)
    with pytest.raises(ValueError, match=message):
        other.load_histories(tmp_path / "h")
    assert equal(tables(other), before)


def test_a_damaged_file_changes_nothing(tmp_path: Path) -> None:
    filled(gcn()).save_histories(tmp_path / "h")
    whole = (tmp_path / "h").read_bytes()
    other = filled(gcn())
    before = tables(other)
    for damaged in (whole[:-1], whole[:-9] + b"x" + whole[-8:], whole[:100]):
        (tmp_path / "h").write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged"):
            other.load_histories(tmp_path / "h")
    assert equal(tables(other), before)


@pytest.mark.cuda
@pytest.mark.parametrize("where", [{"device": "cuda"}, {"tier": "pinned"}, {"tier": "host"}])
def test_tables_of_models_on_a_gpu(where: dict[str, str], tmp_path: Path) -> None:
    model, other = filled(gcn(**where).cuda()), gcn(**where).cuda()
    model.save_histories(tmp_path / "h")
    other.load_histories(tmp_path / "h")
    assert equal(tables(model), tables(other))
    on_host = gcn()
    on_host.load_histories(tmp_path / "h")
    assert equal(tables(model), tables(on_host))


# -- runs --------------------------------------------------------------------------------------------------------------


class Training:
    """Everything that takes part in a run."""

    def __init__(self, prepare: Callable[[GCN], ScalableGNN] = lambda model: model, **options: Any) -> None:
        data = graph()
        self.model = prepare(gcn(**options))
        optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        batches = EvalSubgraphLoader(data, PTR, 2)
        self.state = {
            "optimizer": optimizer,
            "scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4]),
            "loader": SubgraphLoader(data, PTR, 2, shuffle=True, prefetch=2),
            "refresher": EverySteps(3, Stalest(batches=1)).bind(self.model, batches),
            "monitor": Monitor(self.model, every=2, limits=None),
        }
        self.losses: list[float] = []

    def run(self, epochs: int, until: int | None = None, first: int = 0) -> int:
        """Trains until so many losses are there, and gives the epoch."""
        for epoch in range(first, epochs):
            self.model.train()
            for batch in self.state["loader"]:
                out = self.model(batch)
                loss = F.cross_entropy(out, batch.data.y[: batch.batch_size])
                self.state["optimizer"].zero_grad()
                loss.backward()
                self.state["optimizer"].step()
                self.state["refresher"].after_step()
                self.losses.append(loss.item() + random.random() + np.random.rand())
                if len(self.losses) == until:
                    return epoch
            self.state["scheduler"].step()
        return epochs

    def all_tensors(self) -> list[Tensor]:
        adam = self.state["optimizer"].state_dict()["state"].values()
        monitor = [
            each for layer in self.state["monitor"].statistics() for each in (layer.ages, torch.tensor(layer.drift))
        ]
        moments = [value for each in adam for value in each.values()]
        return [*map(bits, [*self.model.state_dict().values(), *moments, *monitor, torch.get_rng_state()])]


def seed() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


def resume(path: Path, until: int, make: Callable[[], Training]) -> Training:
    """A run that is stopped after ``until`` steps, and goes on in another one."""
    seed()
    first = make()
    epoch = first.run(3, until)
    checkpoint.save(path, model=first.model, **first.state, epoch=epoch, losses=first.losses)
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    second = make()
    values = checkpoint.load(path, model=second.model, **second.state)
    second.losses = values["losses"]
    second.run(3, first=values["epoch"])
    return second


# torch does not know that a run which goes on at the end of an epoch had steps of the optimiser before.
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")
@pytest.mark.parametrize("until", [1, 4, 5, 7, 15])
def test_a_run_goes_on_bit_for_bit(until: int, tmp_path: Path) -> None:
    seed()
    whole = Training()
    whole.run(3)
    second = resume(tmp_path / "run", until, Training)
    assert second.losses == whole.losses
    assert equal(second.all_tensors(), whole.all_tensors())
    assert second.state["refresher"].steps == whole.state["refresher"].steps == 15
    assert second.state["refresher"].cost.batches == whole.state["refresher"].cost.batches == 5


def test_a_run_with_histories_that_state_dict_leaves_out(tmp_path: Path) -> None:
    seed()
    whole = Training(save_histories=False)
    whole.run(3)
    second = resume(tmp_path / "run", 7, lambda: Training(save_histories=False))
    assert second.losses == whole.losses
    assert equal(tables(second.model), tables(whole.model))


@pytest.mark.cuda
@pytest.mark.parametrize("where", [{"device": "cuda"}, {"tier": "pinned"}, {"tier": "host"}])
def test_a_run_on_a_gpu_goes_on(where: dict[str, str], tmp_path: Path) -> None:
    """With dropout, whose masks come from the state of the device."""
    model = gcn(**where).cuda()
    F.dropout(torch.ones(9, device="cuda"))
    checkpoint.save(tmp_path / "run", model=filled(model))
    expected = torch.rand(5, device="cuda")
    other = gcn(**where).cuda()
    checkpoint.load(tmp_path / "run", model=other)
    assert torch.equal(torch.rand(5, device="cuda"), expected)
    assert equal(tables(other), tables(model))
    assert all(map(torch.equal, other.parameters(), model.parameters()))


def test_values_come_back(tmp_path: Path) -> None:
    model, values = (
        gcn(),
        {"epoch": 3, "best": [0.5, "a"], "out": torch.randn(2), "scheduler": None, "nested": {"a": (1, 2)}},
    )
    checkpoint.save(tmp_path / "run", model=model, **values)
    loaded = checkpoint.load(tmp_path / "run", model=model, scheduler=None)
    assert torch.equal(loaded.pop("out"), values.pop("out"))  # type: ignore[arg-type]
    assert loaded == values


def test_scaled_models_keep_the_names_of_the_plain_one(tmp_path: Path) -> None:
    data = random_graph(N, 300)
    model, other = (scale(PlainGCN(8, 8, num_layers=3, out_channels=3), data) for _ in range(2))
    checkpoint.save(tmp_path / "run", model=filled(model))
    assert "model.convs.0.bias" in safetensors.torch.load_file(tmp_path / "run")
    checkpoint.load(tmp_path / "run", model=other)
    assert equal(tables(model), tables(other))
    assert all(map(torch.equal, model.parameters(), other.parameters()))


def test_compiled_models_are_those_that_they_wrap(tmp_path: Path) -> None:
    model, other = filled(gcn()), gcn()
    checkpoint.save(tmp_path / "run", model=torch.compile(model, backend="eager"))
    checkpoint.load(tmp_path / "run", model=other)
    assert equal(tables(model), tables(other))


class Counted(GCN):
    """A model with a state that is no tensor."""

    calls = 0

    def get_extra_state(self) -> int:
        return self.calls

    def set_extra_state(self, state: int) -> None:
        self.calls = state


def test_extra_state_comes_back(tmp_path: Path) -> None:
    model, other = (Counted(N, 8, 8, 3, num_layers=2) for _ in range(2))
    model.calls = 5
    checkpoint.save(tmp_path / "run", model=model)
    checkpoint.load(tmp_path / "run", model=other)
    assert other.calls == 5


# -- mistakes ----------------------------------------------------------------------------------------------------------


def without(state: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key != name}


def other_parts(run: Training) -> dict[str, Any]:
    return {**run.state, "loader": SubgraphLoader(graph(), PTR + (PTR == 12).long(), 2, shuffle=True)}


def other_batches(run: Training) -> dict[str, Any]:
    return {**run.state, "loader": SubgraphLoader(graph(), PTR, 3, shuffle=True)}


def other_optimizer(run: Training) -> dict[str, Any]:
    return {**run.state, "optimizer": torch.optim.SGD(run.model.parameters())}


def fewer_parameters(run: Training) -> dict[str, Any]:
    return {**run.state, "optimizer": torch.optim.Adam([next(run.model.parameters())])}


MISTAKES: dict[str, tuple[Callable[[Training], dict[str, Any]], type[Exception], str]] = {
    "no loader": (
        lambda run: without(run.state, "loader"),
        ValueError,
        r"holds the state of 'loader', which was not given",
    ),
    "loader is None": (
        lambda run: {**run.state, "loader": None},
        ValueError,
        "holds the state of 'loader', which was not",
    ),
    "one too many": (
        lambda run: {**run.state, "scaler": torch.amp.GradScaler("cpu")},
        ValueError,
        "no state of 'scaler'",
    ),
    "a value": (
        lambda run: {**run.state, "epoch": 1},
        TypeError,
        "epoch has no state_dict; leave it out, plain values are",
    ),
    "another optimiser": (
        other_optimizer,
        TypeError,
        r"torch\.optim\.adam\.Adam for 'optimizer', but got a torch\.optim\.sgd",
    ),
    "fewer parameters": (fewer_parameters, ValueError, "optimizer refuses its state, and nothing was changed: "),
    "another partition": (other_parts, ValueError, r"loader refuses its state, .*\(checksums of ptr\) are others"),
    "another batch size": (other_batches, ValueError, r"loader refuses its state, .*\(batch_size\) are others"),
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    run = Training()
    run.run(3, 7)
    checkpoint.save(tmp_path / "run", model=run.model, **run.state)
    return tmp_path / "run"


def snapshot(run: Training) -> tuple[list[Tensor], list[dict[str, Any]], Any]:
    states = [copy.deepcopy(run.state[name].state_dict()) for name in ("loader", "scheduler", "monitor")]
    return run.all_tensors(), states, (random.getstate(), run.state["refresher"].steps)


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_change_nothing(name: str, saved: Path) -> None:
    run = Training()
    run.run(3, 3)
    mistake, error, message = MISTAKES[name]
    state, before = mistake(run), snapshot(run)
    with pytest.raises(error, match=message):
        checkpoint.load(saved, model=run.model, **state)
    after = snapshot(run)
    assert equal(after[0], before[0])
    assert str(after[1]) == str(before[1])
    assert after[2] == before[2]


def test_a_damaged_checkpoint_changes_nothing(saved: Path) -> None:
    run = Training()
    run.run(3, 3)
    before, whole = snapshot(run), saved.read_bytes()
    with Saved(saved) as file:
        history = file.entries["model.histories.0.emb"].begin
    start = 8 + int.from_bytes(whole[:8], "little")
    for position in (start + history + 40, len(whole) - 1):
        saved.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(ValueError, match="have changed since they were written"):
            checkpoint.load(saved, model=run.model, **run.state)
        after = snapshot(run)
        assert equal(after[0], before[0]) and str(after[1:]) == str(before[1:])
    saved.write_bytes(whole)
    checkpoint.load(saved, model=run.model, **run.state)
    assert not equal(snapshot(run)[0], before[0])


MODELS: dict[str, tuple[Callable[[], torch.nn.Module], str]] = {
    "another width": (lambda: gcn(hidden=9), r"of another model: '.*' is torch\.float32 \[8.* there, but .*9"),
    "another number of layers": (lambda: gcn(layers=4), "of another model: "),
    "another graph": (lambda: gcn(N + 1), "a history belongs to one graph"),
    "another type": (lambda: gcn().double(), r"is torch\.float32 .* but torch\.float64"),
    "without batch norm": (
        lambda: GCN(N, 8, 8, 3, num_layers=3, dropout=0.5),
        "which this model with 2 histories has not",
    ),
    "no histories": (lambda: torch.nn.Linear(8, 3), "is of another model: it holds no 'weight', which this one has"),
}


@pytest.mark.parametrize("name", MODELS)
def test_other_models_are_refused(name: str, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "run", model=gcn())
    make, message = MODELS[name]
    other = make()
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=message):
        checkpoint.load(tmp_path / "run", model=other)
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())


def test_files_of_something_else(tmp_path: Path) -> None:
    model = gcn()
    model.save_histories(tmp_path / "h")
    with pytest.raises(ValueError, match=r"was not written by checkpoint\.save; .*model\.load_histories\(path\)"):
        checkpoint.load(tmp_path / "h", model=model)
    torch.save(model.state_dict(), tmp_path / "pt")
    with pytest.raises(ValueError, match="damaged or no safetensors file"):
        checkpoint.load(tmp_path / "pt", model=model)
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path / "nothing", model=model)


@pytest.mark.parametrize("value", [np.float64(1), lambda: 0, object(), {"a": [np.arange(3)]}, Data()])
def test_values_that_could_not_be_read_back_are_refused_at_once(value: Any, tmp_path: Path) -> None:
    model = gcn()
    checkpoint.save(tmp_path / "run", model=model, best=1)
    with pytest.raises(TypeError, match=r"best holds something that torch\.load\(weights_only=True\) cannot read back"):
        checkpoint.save(tmp_path / "run", model=model, best=value)
    assert checkpoint.load(tmp_path / "run", model=model) == {"best": 1}
    assert os.listdir(tmp_path) == ["run"]


def test_a_file_cannot_run_code(tmp_path: Path) -> None:
    """What a pickle would call is refused."""
    model = gcn()
    checkpoint.save(tmp_path / "run", model=model, best=1)
    with Saved(tmp_path / "run") as saved:
        entries = {name: saved.read(name) for name in saved.entries}
    evil = b"\x80\x02cposix\nsystem\n(X\x04\x00\x00\x00truetR."
    entries["value.best"] = torch.frombuffer(bytearray(evil), dtype=torch.uint8)
    write(tmp_path / "run", entries)
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        checkpoint.load(tmp_path / "run", model=model)


def test_fewer_devices_than_there_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = gcn()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [torch.get_rng_state()])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    checkpoint.save(tmp_path / "run", model=model)
    with pytest.warns(UserWarning, match="random numbers of 1 CUDA devices were saved, but 0 are here"):
        checkpoint.load(tmp_path / "run", model=model)


def test_random_states_are_of_types_that_torch_2_4_can_save() -> None:
    leaves = pytree.tree_leaves(rng.random_states())
    assert {leaf.dtype for leaf in leaves if isinstance(leaf, Tensor)} == {torch.uint8, torch.int32}
