"""Extensions are told of calls in their order, take part in exchanges and gradients, and travel with their model."""

from __future__ import annotations

import copy
import gc
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_geometric.nn as nn
from graphs import adjacency, random_graph
from nets import Net, assert_same, refresh, tables
from plain_models import OUT, C, H
from torch import Tensor
from torch_geometric.data import Data

from torch_gas import EvalSubgraphLoader, FileTier, History, Monitor, SubData, SubgraphLoader, scale
from torch_gas.extensions import Extension
from torch_gas.extensions.refresh import BeforeTraining, EveryEpochs, EverySteps, Sweep
from torch_gas.extensions.regularization import LocalPerturbation

N = 60
PTR = torch.tensor([0, 14, 37, N])


def graph() -> Data:
    return random_graph(N, 4 * N, seed=1)


def loader_of(data: Data) -> SubgraphLoader:
    return SubgraphLoader(data, PTR)


def model_of(kind: str, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    if kind == "explicit":
        return Net(N, H, **kwargs)
    return scale(nn.GraphSAGE(C, H, 3, OUT), graph(), **kwargs)


KINDS = ["explicit", "scaled"]


class Recorder(Extension):
    """Writes down what it is told of, into a log that several may share."""

    def __init__(self, name: str = "", log: list[Any] | None = None) -> None:
        self.name, self.log = name, [] if log is None else log

    def note(self, *what: Any) -> None:
        self.log.append((self.name, *what) if self.name else what)

    def added(self, model: Any) -> None:
        self.note("added")

    def removed(self, model: Any) -> None:
        self.note("removed")

    def before(self, model: Any) -> None:
        self.note("before")

    def begin(self, call: Any) -> None:
        self.note("begin")

    def exchange(self, call: Any, history: History, rows: Tensor, pulled: Tensor) -> None:
        self.note("exchange", list(call.model.histories).index(history))

    def backward(self, call: Any, history: History, grad: Tensor) -> None:
        self.note("backward", list(call.model.histories).index(history))

    def end(self, call: Any) -> None:
        self.note("end")

    def epoch(self, number: int, complete: bool) -> None:
        self.note("epoch", number, complete)


FORWARD = [("begin",), ("exchange", 0), ("exchange", 1), ("end",)]
BACKWARD = [("backward", 1), ("backward", 0)]


def epochs(recorder: Recorder) -> list[tuple[int, bool]]:
    return [what[1:] for what in recorder.log if what[0] == "epoch"]


# -- order -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_are_called_in_order(kind: str) -> None:
    data, model, recorder = graph(), model_of(kind), Recorder()
    model.add_extension(recorder)
    first, _, last = loader_of(data)
    model(first).sum().backward()
    assert recorder.log == [("added",), ("before",), *FORWARD, *BACKWARD]
    for training, grad in ((True, False), (False, True)):
        recorder.log.clear()
        model.train(training)
        with torch.set_grad_enabled(grad):
            model(last)
        assert recorder.log == FORWARD  # no step
        model(data.x, adjacency(data))
        assert recorder.log[4:] == [("begin",), ("end",)]  # nothing is pulled
    model.remove_extension(recorder)
    model.train()(first)
    assert recorder.log[6:] == [("removed",)]


def test_a_call_that_fails_does_not_end() -> None:
    data, model, recorder = graph(), Net(N, H), Recorder()
    model.add_extension(recorder)
    (batch, *_) = loader_of(data)
    model.convs[1].register_forward_pre_hook(lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(batch)
    assert recorder.log == [("added",), ("before",), ("begin",), ("exchange", 0)]


def test_several_are_told_in_the_order_in_which_they_were_added() -> None:
    data, model, log = graph(), Net(N, H, num_layers=2), []
    for name in "abc":
        model.add_extension(Recorder(name, log))
    log.clear()
    (batch, *_) = loader_of(data)
    model(batch).sum().backward()
    hooks = [("before",), ("begin",), ("exchange", 0), ("end",), ("backward", 0)]
    assert log == [(name, *hook) for hook in hooks for name in "abc"]


@pytest.mark.parametrize("kind", KINDS)
def test_training_with_all_that_watch_is_the_same(kind: str) -> None:
    data, states = graph(), []
    for watched in (False, True):
        model = model_of(kind)
        if watched:
            extensions = Monitor(model, every=1), Monitor(model, sample=3), Recorder()
            model.add_extension(extensions[2])
            LocalPerturbation().attach(model)
            model.add_extension(EverySteps(100).bind(model, EvalSubgraphLoader(data, PTR)))
            assert len(model.extensions) == 5
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for batch in [*loader_of(data), *loader_of(data)]:
            optimizer.zero_grad()
            out = model(batch)
            assert not watched or model.regularization() > 0
            out.square().mean().backward()
            optimizer.step()
        states.append(tables(model))
    assert_same(*states)
    assert [monitor.steps for monitor in extensions[:2]] == [6, 6]


# -- epochs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_that_was_left_early_is_noticed_when_the_next_begins(kind: str) -> None:
    model, recorder, loader = model_of(kind), Recorder(), loader_of(graph())
    model.add_extension(recorder)
    for batch in loader:
        assert epochs(recorder) == []
        model(batch)
    assert epochs(recorder) == [(0, True)]
    for batch in loader:
        model(batch)
        break
    assert epochs(recorder) == [(0, True)]
    for batch in loader:
        model(batch)
        assert epochs(recorder)[1] == (1, False)
    assert epochs(recorder) == [(0, True), (1, False), (2, True)]
    told = recorder.log.index(("epoch", 1, False))
    assert recorder.log[told + 1] == ("before",)  # in which is done what is due between two steps


def test_an_epoch_in_which_the_model_left_a_batch_out_is_not_complete() -> None:
    model, recorder = Net(N, H), Recorder()
    model.add_extension(recorder)
    for i, batch in enumerate(loader_of(graph())):
        if i != 1:
            model(batch)
    assert epochs(recorder) == [(0, False)]


@pytest.mark.parametrize("kind", KINDS)
def test_batches_count_once_for_epochs(kind: str) -> None:
    """Also where the model is called on them several times, or an error ended the first of these calls."""
    model, recorder = model_of(kind), Recorder()
    model.add_extension(recorder)
    last_layer = [module for module in model.modules() if isinstance(module, nn.MessagePassing)][-1]

    def fail(*_: Any) -> None:
        raise RuntimeError("in the last layer")

    loader = loader_of(graph())
    for batch in [*loader, *loader]:
        with last_layer.register_forward_pre_hook(fail), pytest.raises(RuntimeError, match="in the last layer"):
            model(batch)
        for _ in range(3):
            model(batch)
    assert epochs(recorder) == [(0, True), (1, True)]


def test_only_training_counts_for_epochs() -> None:
    data, model, recorder = graph(), Net(N, H).eval(), Recorder()
    model.add_extension(recorder)
    for batch in loader_of(data):
        model(batch)
    model(loader=EvalSubgraphLoader(data, PTR))
    model.train()(data.x, adjacency(data))
    assert epochs(recorder) == []


def test_one_that_is_removed_in_the_middle_of_an_epoch_is_told_of_nothing_more() -> None:
    data, model, recorders = graph(), Net(N, H), [Recorder(), Recorder()]
    for recorder in recorders:
        model.add_extension(recorder)
    for i, batch in enumerate(loader_of(data)):
        model(batch)
        if i == 0:
            model.remove_extension(recorders[0])
    assert recorders[0].log == [("added",), ("before",), *FORWARD, ("removed",)]
    assert epochs(recorders[1]) == [(0, True)] and recorders[1].log.count(("end",)) == 3
    model.add_extension(recorders[0])
    for batch in loader_of(data):
        model(batch)
    assert epochs(recorders[0]) == [(0, True)]


def test_one_may_remove_itself_while_others_are_told() -> None:
    class Once(Recorder):
        def end(self, call: Any) -> None:
            super().end(call)
            call.model.remove_extension(self)

    model, first, second = Net(N, H), Once(), Recorder()
    model.add_extension(first)
    model.add_extension(second)
    for batch in loader_of(graph()):
        model(batch)
    assert first.log[-2:] == [("end",), ("removed",)] and second.log.count(("end",)) == 3
    assert model.extensions == [second]


# -- rows and gradients ------------------------------------------------------------------------------------------------


class Gradients(Extension):
    """Keeps the gradients of exchanges, and adds rows of its own to those of batches."""

    def __init__(self, more: dict[int, Tensor] | None = None) -> None:
        self.more = more or {}
        self.found: dict[int, Tensor] = {}

    def backward(self, call: Any, history: History, grad: Tensor) -> Tensor | None:
        layer = list(call.model.histories).index(history)
        self.found[layer] = grad.clone()
        return self.more.get(layer)


class Leaves(Extension):
    """Has halo rows be leaves of the graph of gradients: the slow twin of :meth:`Extension.backward`."""

    def __init__(self) -> None:
        self.halo: dict[int, Tensor] = {}

    def exchange(self, call: Any, history: History, rows: Tensor, pulled: Tensor) -> Tensor:
        layer = list(call.model.histories).index(history)
        self.halo[layer] = pulled.clone().requires_grad_()
        return torch.cat([rows, self.halo[layer]])


def double(kind: str) -> tuple[Any, list[SubData]]:
    """A model of 64 bits with histories that are off, and its batches."""
    data = graph()
    data.x = data.x.double()
    model = model_of(kind).double()
    refresh(model, data)
    for history in model.histories:
        history.push(history.pull() + 0.1 * torch.randn(N, H, dtype=torch.float64))
    return model, list(loader_of(data))


def test_gradients_are_those_of_a_computation_by_hand() -> None:
    model, batches = double("explicit")
    gradients = Gradients()
    model.add_extension(gradients)
    for batch in batches:
        halo, adj = batch.n_id[batch.batch_size :], adjacency(batch.data)
        rows = batch.data.x
        inputs: list[Tensor] = []
        for conv, history in zip(model.convs, model.histories, strict=False):
            rows = torch.cat([conv(rows, adj)[: batch.batch_size].relu(), history.pull(halo)])
            rows.retain_grad()
            inputs.append(rows)
        model.convs[-1](rows, adj)[: batch.batch_size].pow(3).sum().backward()
        want = [own.grad for own in inputs]
        model(batch).pow(3).sum().backward()
        assert halo.numel() > 0 and all(float(grad[batch.batch_size :].norm()) > 0 for grad in want)
        for layer, grad in enumerate(want):
            torch.testing.assert_close(gradients.found[layer], grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_halo_rows_and_what_is_added_to_those_of_the_batch(kind: str) -> None:
    model, batches = double(kind)
    twin = copy.deepcopy(model)
    batch = batches[1]
    more = {layer: torch.randn(batch.batch_size, H, dtype=torch.float64) for layer in range(2)}
    gradients, leaves, plain = Gradients(more), Leaves(), copy.deepcopy(model)
    model.add_extension(gradients)
    twin.add_extension(leaves)
    kept: list[Tensor] = []

    class Keep(Extension):
        def exchange(self, call: Any, history: History, rows: Tensor, pulled: Tensor) -> None:
            kept.append(rows)

    twin.add_extension(Keep())
    model(batch).pow(3).sum().backward()
    out = twin(batch).pow(3).sum()
    torch.autograd.grad(out, list(leaves.halo.values()), retain_graph=True)
    (out + sum((rows * more[layer]).sum() for layer, rows in enumerate(kept))).backward()
    for layer, rows in leaves.halo.items():
        assert float(rows.grad.norm()) > 0
        torch.testing.assert_close(gradients.found[layer][batch.batch_size :], rows.grad, rtol=1e-10, atol=1e-10)
    for own, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-10, atol=1e-10)
    plain(batch).pow(3).sum().backward()
    own, other = next(model.parameters()), next(plain.parameters())
    assert not torch.allclose(own.grad, other.grad)


def test_several_add_to_gradients_and_change_halo_rows() -> None:
    class Shift(Extension):
        def exchange(self, call: Any, history: History, rows: Tensor, pulled: Tensor) -> None:
            pulled += 1

    model, (batch, *_) = double("explicit")
    ones = {0: torch.ones(batch.batch_size, H, dtype=torch.float64)}
    grads = []
    for extensions in ([Gradients({0: 3 * ones[0]}), Gradients()], [Gradients(ones), Gradients({0: 2 * ones[0]})]):
        twin = copy.deepcopy(model)
        for extension in extensions:
            twin.add_extension(extension)
        twin(batch).pow(3).sum().backward()
        assert all(torch.equal(extensions[0].found[layer], extensions[1].found[layer]) for layer in range(2))
        grads.append([parameter.grad for parameter in twin.parameters()])
    for left, right in zip(*grads, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)
    shifted, twin = copy.deepcopy(model), copy.deepcopy(model)
    for _ in range(2):
        shifted.add_extension(Shift())
    for history in twin.histories:
        history.push(history.pull() + 2)
    torch.testing.assert_close(shifted(batch), twin(batch), rtol=1e-10, atol=1e-10)


# -- tables ------------------------------------------------------------------------------------------------------------


class Twice(Extension):
    """Keeps twice what is pushed in tables of its own, and checks what it finds there."""

    tables = ("twice",)

    def exchange(self, call: Any, history: History, rows: Tensor, pulled: Tensor) -> None:
        table = call.model.extension_tables["twice"][list(call.model.histories).index(history)]
        assert torch.equal(table.pull(call.n_id[call.batch_size :]), 2 * pulled)
        table.push(2 * rows.detach(), call.n_id[: call.batch_size], call.offset, call.count)


@pytest.mark.parametrize("kind", KINDS)
def test_tables_count_optimiser_steps_as_histories_do(kind: str) -> None:
    model = model_of(kind)
    model.add_extension(Twice())
    for batch in loader_of(graph()):
        model(batch)
    for history, table in zip(model.histories, model.extension_tables["twice"], strict=True):
        assert torch.equal(table.age, history.age) and table.age.unique().tolist() == [0, 1, 2]


def assert_twice(model: Any) -> None:
    for history, table in zip(model.histories, model.extension_tables["twice"], strict=True):
        assert float(history.emb.norm()) > 0 and torch.equal(2 * history.emb, table.emb)


@pytest.mark.parametrize("kind", KINDS)
def test_tables_travel_with_the_histories(kind: str, tmp_path: Path) -> None:
    data, model = graph(), model_of(kind)
    model.add_extension(Twice())
    for batch in [*loader_of(data), *loader_of(data)]:
        model(batch).sum().backward()
    assert_twice(model)
    model.save_histories(tmp_path / "histories")
    twins = [model_of(kind) for _ in range(2)]
    for twin in twins:
        twin.add_extension(Twice())
    twins[0].load_histories(tmp_path / "histories")
    twins[1].load_state_dict(model.state_dict())
    twins += [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for twin in twins:
        assert_twice(twin)
        for batch in loader_of(data):
            twin(batch)
        assert_twice(twin)
    model.double()
    assert model.extension_tables["twice"][0].pull().dtype == model.histories[0].pull().dtype == torch.float64
    model.reset_parameters()
    assert all(int(table.pushed_at.max()) == -1 for table in model.extension_tables["twice"])


def test_tables_are_stored_as_the_histories_are(tmp_path: Path) -> None:
    model = Net(N, [5, 7], history_dtype=torch.float16, tier=FileTier(tmp_path / "tables"))
    model.add_extension(Twice())
    for history, table in zip(model.histories, model.extension_tables["twice"], strict=True):
        assert (table.tier, table.emb.dtype, table.emb.shape) == ("file", torch.float16, history.emb.shape)
        assert table.emb.data_ptr() != history.emb.data_ptr()


def test_tables_go_with_their_extension() -> None:
    model, extension = Net(N, H), Twice()
    keys = model.state_dict().keys()
    model.add_extension(extension)
    assert model.state_dict().keys() > keys
    with pytest.raises(ValueError, match="another extension has tables named 'twice'; remove that one"):
        model.add_extension(Twice())
    model.remove_extension(extension)
    assert model.state_dict().keys() == keys and model.extensions == []
    model.add_extension(Twice())


# -- copies ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_copies_have_copies_of_what_is_kept(kind: str) -> None:
    data, model = graph(), model_of(kind)
    kept, left = Recorder(), Recorder()
    model.add_extension(kept)
    model.add_extension(left, keep=False)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        (own,) = twin.extensions
        assert isinstance(own, Recorder) and own is not kept
        before = len(kept.log)
        for batch in loader_of(data):
            twin(batch)
        assert len(kept.log) == before and epochs(own) == [(0, True)]
        with pytest.raises(ValueError, match="was added to the model already"):
            twin.add_extension(own)
    del left
    gc.collect()
    assert model.extensions == [kept]


def test_a_refresher_of_a_copy_refreshes_the_copy() -> None:
    data, model = graph(), Net(N, H)
    model.add_extension((BeforeTraining() | EveryEpochs(1, Sweep())).bind(model, EvalSubgraphLoader(data, PTR)))
    twin = copy.deepcopy(model)
    before = tables(model)
    for batch in loader_of(data):
        twin(batch)
    (own,), (refresher,) = twin.extensions, model.extensions
    assert (own.cost.refreshes, refresher.cost.refreshes) == (1, 0)  # that after the epoch is due before the next step
    assert own.model is twin
    assert_same(before, tables(model))
    with pytest.raises(ValueError, match="this Refresher was bound to another model"):
        Net(N, H).add_extension(EverySteps(1).bind(model, EvalSubgraphLoader(data, PTR)))


def test_a_refresher_that_the_model_tells_goes_on_from_its_state() -> None:
    """With what is due after a step or an epoch that was the last before the state was taken."""
    data = graph()
    loader, policy = EvalSubgraphLoader(data, PTR), BeforeTraining() | EverySteps(2, Sweep()) | EveryEpochs(1, Sweep(2))
    costs = []
    for resumed in (False, True):
        model = Net(N, H)
        refresher = policy.bind(model, loader)
        model.add_extension(refresher)
        for _ in range(2):
            for batch in loader_of(data):
                model(batch)
            if resumed:
                state = refresher.state_dict()
                model.remove_extension(refresher)
                refresher = policy.bind(model, loader)
                refresher.load_state_dict(state)
                model.add_extension(refresher)
        costs.append((refresher.steps, refresher.epochs, refresher.cost.refreshes, refresher.cost.batches))
    assert costs[0] == costs[1] == (5, 1, 4, 9 + 2 * 3 + 2 * 3)


# -- misuse ------------------------------------------------------------------------------------------------------------


def test_one_extension_belongs_to_one_model() -> None:
    model, other, extension = Net(N, H), Net(N, H), Recorder()
    model.add_extension(extension)
    with pytest.raises(ValueError, match="this Recorder was added to another model already; make one for each model"):
        other.add_extension(extension)
    with pytest.raises(ValueError, match="this Recorder was added to the model already"):
        model.add_extension(extension)
    with pytest.raises(ValueError, match="the model does not have this Recorder"):
        other.remove_extension(extension)
    assert (model.extensions, other.extensions) == ([extension], [])
    model.remove_extension(extension)
    other.add_extension(extension)
    assert (model.extensions, other.extensions) == ([], [extension])


def test_what_is_no_extension_is_refused() -> None:
    with pytest.raises(TypeError, match=r"extension must be a torch_gas.extensions.Extension, but is list"):
        Net(N, H).add_extension([])  # type: ignore[arg-type]  # what is refused


def test_an_extension_may_refuse_a_model() -> None:
    class Refusing(Twice):
        def added(self, model: Any) -> None:
            raise ValueError("not this one")

    model = Net(N, H)
    with pytest.raises(ValueError, match="not this one"):
        model.add_extension(Refusing())
    assert model.extensions == [] and len(model.extension_tables) == 0


def test_losses_of_several_are_added_up() -> None:
    class Constant(Extension):
        def __init__(self, value: float) -> None:
            self.value = value

        def loss(self) -> Tensor:
            return torch.tensor(self.value)

    model = Net(N, H)
    model.add_extension(Recorder())
    with pytest.raises(RuntimeError, match="Net has no regularisation"):
        model.regularization()
    for value in (1.0, 2.5):
        model.add_extension(Constant(value))
    assert float(model.regularization()) == 3.5


class WithTables(Extension):
    tables = ("average", "momentum")


def test_an_extension_whose_tables_cannot_be_made_is_not_added(tmp_path: Path) -> None:
    model, extension = model_of("explicit", tier=FileTier(tmp_path)), WithTables()
    taken = History(N, H, tier=FileTier(tmp_path / "momentum_1.table"))
    with pytest.raises(RuntimeError, match="in use by another table of this process"):
        model.add_extension(extension)
    assert model.extensions == [] and len(model.extension_tables) == 0
    del taken
    gc.collect()
    model.add_extension(extension)
    assert set(model.extension_tables) == {"average", "momentum"}
    assert {history.tier for history in model._history_tables} == {"file"}


def test_tables_of_a_copy_are_in_memory_as_its_histories(tmp_path: Path) -> None:
    model = model_of("explicit", tier=FileTier(tmp_path))
    other = copy.deepcopy(model)
    other.add_extension(WithTables())
    assert {history.tier for history in other._history_tables} == {"host"}
    model.add_extension(WithTables())  # whose files nobody has taken
