"""Compensation changes its tables once for each forward pass, in the backward pass that trains, and never by halves."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_geometric.nn as nn
from full_batch import PTR, N, assert_same, grads, graph, wired
from interrupts import interrupt_at
from plain_models import OUT, C
from torch import Tensor
from torch.nn import Module

from torch_gas import ExactGradient, SubgraphLoader, checkpoint, labelled_mean, plan, scale
from torch_gas.extensions import Compensation, DropoutById
from torch_gas.extensions.compensation import passes, schedules
from torch_gas.extensions.compensation.trust import START
from torch_gas.models import GCN
from torch_gas.table import table


def plain(data: Any) -> tuple[Any, ...]:
    return data.x, data.edge_index


def model_of(compensation: Compensation | None = None, explicit: bool = False, net: Module | None = None) -> Any:
    """In training mode without random numbers."""
    torch.manual_seed(0)
    net = net or (GCN(N, C, 8, OUT, 3) if explicit else nn.GraphSAGE(C, 8, 3, OUT))
    model = wired(net, graph("csr" if explicit else "edge_index"), None, **({} if explicit else {"inputs": plain}))
    with torch.no_grad():
        model._on_graph(graph("csr" if explicit else "edge_index"))  # rows that are not zero have gradients behind relu
    if compensation is not None:
        model.add_extension(compensation)
    return model


def loader_of(model: Any, batch_size: int = 1, **options: Any) -> SubgraphLoader:
    return SubgraphLoader(graph("csr" if isinstance(model, GCN) else "edge_index"), PTR, batch_size, **options)


def loss_of(out: Tensor, batch: Any) -> Tensor:
    return F.cross_entropy(out, batch.y[: len(out)] % OUT, reduction="sum") / N


def tables(model: Any) -> list[Tensor]:
    """Copies of all gradient tables."""
    return [each.emb.clone() for layers in model.extension_tables.values() for each in layers]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(map(torch.equal, left, right))


def epoch(model: Any, loader: Any = None) -> None:
    for batch in loader or loader_of(model):
        loss_of(model(batch), batch).backward()


SCHEDULES = ["consumed", "swapped"]
WIRINGS = [False, True]


@pytest.fixture(params=WIRINGS, ids=["automatic", "explicit"])
def explicit(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


# -- (a) once, in the backward pass ------------------------------------------------------------------------------------


def no_backward(model: Any, batch: Any) -> None:
    model(batch)


def no_grad(model: Any, batch: Any) -> None:
    with torch.no_grad():
        model(batch)


def in_evaluation(model: Any, batch: Any) -> None:
    model.eval()
    loss_of(model(batch), batch).backward()
    model.train()


def gradient_of_parameters(model: Any, batch: Any) -> None:
    torch.autograd.grad(loss_of(model(batch), batch), list(model.parameters()))


def gradient_of_one_parameter(model: Any, batch: Any) -> None:
    torch.autograd.grad(loss_of(model(batch), batch), next(model.parameters()))


def gradient_of_the_output(model: Any, batch: Any) -> None:
    out = model(batch)
    torch.autograd.grad(loss_of(out, batch), out)


def gradient_of_features(model: Any, batch: Any) -> None:
    batch.x.requires_grad_()
    torch.autograd.grad(model(batch).sum(), batch.x, create_graph=True)


def whole_graph(model: Any, batch: Any) -> None:
    out = model._on_graph(graph("csr" if isinstance(model, GCN) else "edge_index"))
    out.sum().backward()


def inference(model: Any, batch: Any) -> None:
    model.eval()(loader=loader_of(model))


def exact_gradient(model: Any, batch: Any) -> None:
    ExactGradient(model, loader_of(model)).backward(loss_of)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    "call",
    [
        no_backward,
        no_grad,
        in_evaluation,
        gradient_of_parameters,
        gradient_of_one_parameter,
        gradient_of_the_output,
        gradient_of_features,
        whole_graph,
        inference,
        exact_gradient,
    ],
)
def test_what_does_not_train_leaves_tables_alone(
    call: Callable[[Any, Any], None], schedule: Any, explicit: bool
) -> None:
    model = model_of(Compensation(1.0, schedule=schedule), explicit)
    for _ in range(2):
        epoch(model)
    loss_of(model(batch := next(iter(loader_of(model)))), batch).backward()  # tables that are swapped are so now
    before = tables(model)
    assert any(table.any() for table in before)
    call(model, next(iter(loader_of(model))))
    assert same(tables(model), before)


def test_a_penalty_by_autograd_leaves_the_step_as_it_is() -> None:
    models = [model_of(Compensation(1.0)) for _ in range(2)]
    for penalised, model in zip((False, True), models, strict=True):
        for batch in loader_of(model):
            batch.x.requires_grad_()
            out = model(batch)
            loss = loss_of(out, batch)
            if penalised:
                (by_x,) = torch.autograd.grad(out.sum(), batch.x, create_graph=True)
                loss = loss + 0 * by_x.square().sum()
            loss.backward()
    assert same(tables(models[0]), tables(models[1]))
    assert_same(grads(models[1]), grads(models[0]))


def test_a_second_backward_pass_is_an_error(explicit: bool) -> None:
    model = model_of(Compensation(1.0), explicit)
    batch = next(iter(loader_of(model)))
    loss = loss_of(model(batch), batch)
    loss.backward(retain_graph=True)
    before = tables(model)
    with pytest.raises(RuntimeError, match=r"second backward pass.*Add up the losses"):
        loss.backward()
    assert same(tables(model), before)


class TwoLosses(Module):
    """Keeps a loss of its own beside what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = torch.nn.ModuleList([nn.SAGEConv(C, 8), nn.SAGEConv(8, 8), nn.SAGEConv(8, OUT)])
        self.aside = torch.zeros(())

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for conv in self.convs[:-1]:
            x = conv(x, edge_index).relu()
        self.aside = x[:3].square().sum()
        return self.convs[-1](x, edge_index)


def test_a_loss_beside_the_output_is_an_error_unless_it_is_added() -> None:
    model = model_of(Compensation(1.0), net=TwoLosses())
    batch = next(iter(loader_of(model)))
    loss_of(model(batch), batch)
    before = tables(model)
    with pytest.raises(RuntimeError, match="add that loss to the one of the model's output"):
        model.aside.backward()
    assert same(tables(model), before)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = model(batch)
    (loss_of(out, batch) + model.aside).backward()
    assert not same(tables(model), before)


class Several(Module):
    """Returns tensors in a dictionary, some without gradient."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.convs, self.kind = torch.nn.ModuleList([nn.SAGEConv(C, 8), nn.SAGEConv(8, OUT)]), kind

    def forward(self, x: Tensor, edge_index: Tensor) -> Any:
        h = self.convs[0](x, edge_index)
        out = self.convs[1](h.relu(), edge_index)
        return {"out": out, "embeddings": (h, h.detach())} if self.kind == "several" else out.detach()


def test_outputs_of_any_kind() -> None:
    model = model_of(Compensation(1.0), net=Several("several"))
    for batch in loader_of(model):
        out = model(batch)
        assert set(out) == {"out", "embeddings"} and not out["embeddings"][1].requires_grad
        loss_of(out["out"], batch).backward()
    assert any(table.any() for table in tables(model))


class Sometimes(GCN):
    """Returns what it has of the first layer, with or without an output that reads its exchange."""

    reads = True

    def forward(self, x: Any, adj_t: Any, *ids: Any) -> Any:
        out = super().forward(x, adj_t, *ids)
        return out if self.reads else (0.0 * next(self.convs[-1].parameters()).sum()).expand(len(out), OUT)


def test_rows_that_no_output_reads_get_what_others_found() -> None:
    model = model_of(Compensation(1.0), net=Sometimes(N, C, 8, OUT, 3))
    first, *_, last = batches = list(loader_of(model))
    assert len(batches) > 1
    loss_of(model(first), first).backward()
    owned = [table[last.n_id[: last.batch_size]] for table in tables(model)]
    assert all(rows.any() for rows in owned)
    model.zero_grad()
    model.reads = False
    loss_of(model(last), last).backward()
    assert all(each.grad.any() for each in model.convs[0].parameters())
    assert not any(table[last.n_id[: last.batch_size]].any() for table in tables(model))


class OwnLoss(Module):
    """Computes its loss itself."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = torch.nn.ModuleList([nn.SAGEConv(C, 8), nn.SAGEConv(8, OUT)])

    def forward(self, x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        out = self.convs[1](self.convs[0](x, edge_index).relu(), edge_index)
        return out, out[:3].square().sum()


@pytest.mark.parametrize("trust", [1.0, "auto"])
def test_a_loss_that_the_model_returns(trust: Any) -> None:
    model = model_of(Compensation(trust), net=OwnLoss())
    for batch in loader_of(model):
        model(batch)[1].backward()
    assert any(table.any() for table in tables(model))
    assert model.extensions[0].betas == [1.0 if trust == 1.0 else pytest.approx(START, rel=0.3)]


@pytest.mark.filterwarnings("ignore:Using backward")  # of a cycle, which zero_grad() breaks
@pytest.mark.parametrize("trust", [0.5, "auto"])
def test_a_backward_pass_with_a_graph_of_its_own_gives_the_same(trust: Any) -> None:
    found = []
    for create_graph in (False, True):
        model = model_of(Compensation(trust))
        for batch in [*loader_of(model), *loader_of(model)]:
            inputs = [each for each in model.parameters() if each.requires_grad]
            loss_of(model(batch), batch).backward(create_graph=create_graph)
        found.append([*tables(model), *(each.grad.detach().clone() for each in inputs)])
        model.zero_grad()
    assert same(*found)


class Fails(Exception):
    """Raised by a layer."""


@pytest.mark.parametrize("fails", [False, True])
def test_a_call_that_is_over_holds_no_graph(fails: bool) -> None:
    model, calls = model_of(Compensation(1.0)), []
    begin = model.extensions[0].begin
    model.extensions[0].begin = lambda call: (calls.append(call), begin(call))[1]
    if fails:
        last = [each for each in model.modules() if isinstance(each, nn.SAGEConv)][-1]

        def fail(*_: Any) -> None:
            assert calls[0].joined
            raise Fails

        last.register_forward_pre_hook(fail)
    batch = next(iter(loader_of(model)))
    with pytest.raises(Fails) if fails else contextlib.nullcontext():
        model(batch)
    assert len(calls) == 1 and not calls[0].joined


def test_no_output_with_gradient_is_an_error() -> None:
    model = model_of(Compensation(1.0), net=Several("none"))
    with pytest.raises(RuntimeError, match="returned nothing that has a gradient"):
        model(next(iter(loader_of(model))))


def test_output_may_be_written_to() -> None:
    """As that of the model without."""
    model, other = model_of(Compensation(1.0)), model_of()
    for each in (model, other):
        for batch in loader_of(each):
            out = each(batch)
            out.mul_(2).add_(1)
            loss_of(out, batch).backward()
            break
    assert_same(grads(model), grads(other))


# -- (b) batches whose backward pass never came ------------------------------------------------------------------------


def test_a_forward_pass_without_backward_is_noticed_at_the_next(explicit: bool) -> None:
    model = model_of(Compensation(), explicit)
    first, second = list(loader_of(model))[:2]
    model(first)
    with pytest.warns(UserWarning, match=r"backward\(\) was not called.*sum.*out\[mask\]"):
        out = model(second)
    loss_of(out, second).backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(first)


def test_batches_without_labels_pass_on_what_others_found() -> None:
    """Only one node has a label; by the gradient of others, all batches learn from it."""
    model = model_of(Compensation(1.0))
    loader = loader_of(model)
    label = torch.zeros(N, dtype=torch.bool)
    label[int(PTR[-2])] = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            model.zero_grad()
            for batch in loader:
                before = [each.grad.clone() if each.grad is not None else None for each in model.parameters()]
                out = model(batch)
                mask = label[batch.n_id[: len(out)]]
                F.cross_entropy(out[mask], batch.y[: len(out)][mask] % OUT, reduction="sum").backward()
                if not mask.any():
                    moved = any(
                        b is None or not torch.equal(b, each.grad)
                        for b, each in zip(before, model.parameters(), strict=True)
                    )
    assert moved


# -- (d) losses --------------------------------------------------------------------------------------------------------


def uneven(kind: str) -> tuple[Any, SubgraphLoader]:
    """A model and batches, some of which have several times as many labelled nodes."""
    data = graph()
    data.train_mask = torch.zeros(N, dtype=torch.bool)
    for number, (start, end) in enumerate(zip(PTR[:-1].tolist(), PTR[1:].tolist(), strict=True)):
        data.train_mask[start : start + (2 if number % 2 and kind != "even" else min(8, end - start))] = True
    model = wired(nn.GraphSAGE(C, 8, 3, OUT), data, None, inputs=plain)
    model.add_extension(Compensation())
    return model, SubgraphLoader(data, PTR, 1)


def mean(out: Tensor, y: Tensor, batch: Any) -> Tensor:
    return F.cross_entropy(out, y)


def sum_of_constant(out: Tensor, y: Tensor, batch: Any) -> Tensor:
    return F.cross_entropy(out, y, reduction="sum") / 20


def right(out: Tensor, y: Tensor, batch: Any) -> Tensor:
    return labelled_mean(F.cross_entropy(out, y, reduction="none"), batch)


def warned(kind: str, loss: Callable[[Tensor, Tensor, Any], Tensor]) -> bool:
    torch.manual_seed(0)
    model, loader = uneven(kind)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(2):
            for batch in loader:
                out, mask = model(batch), batch.train_mask[: batch.batch_size]
                loss(out[mask], batch.y[: batch.batch_size][mask] % OUT, batch).backward()
    return any(
        "labelled_mean(" in str(each.message) and "mean over the labelled rows" in str(each.message) for each in found
    )


@pytest.mark.parametrize(
    ("kind", "loss", "expected"),
    [("uneven", mean, True), ("even", mean, False), ("uneven", sum_of_constant, False), ("uneven", right, False)],
)
def test_a_mean_over_very_different_numbers_of_rows_is_noticed(kind: str, loss: Any, expected: bool) -> None:
    assert warned(kind, loss) == expected


# -- (e) GradScaler, errors and interrupts -----------------------------------------------------------------------------


def test_tables_hold_gradients_without_the_scale_of_the_loss() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    warnings.filterwarnings(
        "ignore", "Compensation: there is a GradScaler"
    )  # the other model has nothing to do with it
    scaled, other = model_of(Compensation(1.0, scaler=scaler)), model_of(Compensation(1.0))
    for _ in range(2):
        for batch in loader_of(scaled):
            scaler.scale(loss_of(scaled(batch), batch)).backward()
            loss_of(other(batch), batch).backward()
    for left, right_ in zip(tables(scaled), tables(other), strict=True):
        torch.testing.assert_close(left, right_, rtol=1e-6, atol=1e-9)  # of float32
    assert_same({name: grad / 1024 for name, grad in grads(scaled).items()}, grads(other))


def test_a_scaler_that_nobody_told_of_is_noticed() -> None:
    scaler = torch.amp.GradScaler("cpu")
    model = model_of(Compensation())
    batch = next(iter(loader_of(model)))
    with pytest.warns(UserWarning, match=r"Compensation\(scaler=scaler\)"):
        scaler.scale(loss_of(model(batch), batch)).backward()


def test_a_step_that_the_scaler_skips_gives_back_what_was_read() -> None:
    """The gradient of a parameter overflows, and none of those of rows."""
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    model = model_of(Compensation(1.0, scaler=scaler))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for batch in loader_of(model):
        scaler.scale(loss_of(model(batch), batch)).backward()
        scaler.step(optimizer)
        scaler.update()
    before, weight = tables(model), next(model.parameters())
    batch = next(iter(loader_of(model)))
    hook = weight.register_hook(lambda grad: torch.full_like(grad, torch.inf))
    scaler.scale(loss_of(model(batch), batch)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0 and same(tables(model), before)
    hook.remove()
    optimizer.zero_grad()
    scaler.scale(loss_of(model(batch), batch)).backward()
    assert not same(tables(model), before)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_gradients_that_are_not_finite_are_not_passed_on(value: float) -> None:
    model = model_of(Compensation(1.0))
    epoch(model)
    before = tables(model)
    batch = next(iter(loader_of(model)))
    (loss_of(model(batch), batch) * value).backward()
    assert same(tables(model), before)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("layer", [0, 1])
def test_an_error_in_the_backward_pass_gives_back_what_was_read(layer: int) -> None:
    model = model_of(Compensation(1.0))
    epoch(model)
    before = tables(model)
    batch = next(iter(loader_of(model)))
    weight = next(model.model.convs[layer].parameters())

    def fail(grad: Tensor) -> None:
        raise Interrupted

    handle = weight.register_hook(fail)
    with pytest.raises(Interrupted):
        loss_of(model(batch), batch).backward()
    handle.remove()
    assert same(tables(model), before)
    model.zero_grad()
    reference = copy.deepcopy(model)
    for each in (model, reference):
        loss_of(each(batch), batch).backward()
    assert same(tables(model), tables(reference))
    assert_same(grads(model), grads(reference))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ctrl_c_while_tables_change_is_finished_by_the_next_call(schedule: Any) -> None:
    """Wherever it comes in the code that changes tables, they end up as if it had not come."""

    files: set[str | None] = {passes.__file__, schedules.__file__, table.__file__}

    def run(number: int) -> tuple[list[Tensor], bool]:
        model = model_of(Compensation(1.0, schedule=schedule))
        epoch(model)
        batch = next(iter(loader_of(model)))
        loss = loss_of(model(batch), batch)
        log = model.extensions[0]._log
        finish, came = log.finish, []
        log.finish = lambda: came.append(interrupt_at(number, files, finish))
        loss.backward()
        log.finish = finish
        model.extensions[0].before(model)  # as the next step does
        return tables(model), came == [True]

    want, _ = run(0)
    for number in range(1, 100):
        got, came = run(number)
        if not came:
            break
        assert same(got, want), number
    assert number > 2


# -- (f) and state -----------------------------------------------------------------------------------------------------


def test_tables_are_cleared_where_histories_are(explicit: bool) -> None:
    model = model_of(Compensation(1.0), explicit)
    epoch(model)
    model.reset_parameters()
    assert not any(table.any() for table in tables(model))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("trust", [0.5, "auto"])
def test_a_run_goes_on_from_a_checkpoint_bit_for_bit(trust: Any, schedule: Any, tmp_path: Any) -> None:
    def start() -> Any:
        model = model_of(Compensation(trust, schedule=schedule))
        return model, torch.optim.SGD(model.parameters(), lr=0.1), loader_of(model, shuffle=True, seed=0)

    def train(model: Any, optimizer: Any, loader: Any, steps: range) -> None:
        number = iter(steps)
        for _ in range(9):
            for batch in loader:
                if next(number, None) is None:
                    return
                optimizer.zero_grad()
                loss_of(model(batch), batch).backward()
                optimizer.step()
                if saves and model is first[0] and saves.pop() == "last":
                    checkpoint.save(tmp_path / "run", model=model, optimizer=optimizer, loader=loader)

    saves = ["last", *[""] * 10]  # the file is written after the last of these steps
    first = model, optimizer, loader = start()
    train(model, optimizer, loader, range(20))
    other, other_optimizer, other_loader = start()
    checkpoint.load(tmp_path / "run", model=other, optimizer=other_optimizer, loader=other_loader)
    train(other, other_optimizer, other_loader, range(9))
    assert same(tables(other), tables(model))
    want = {name: each.detach() for name, each in model.named_parameters()}
    assert_same({name: each.detach() for name, each in other.named_parameters()}, want, tolerance=0)


def test_a_state_of_another_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="same schedule"):
        Compensation(schedule="swapped").load_state_dict(Compensation().state_dict())


def test_a_state_of_another_trust_is_refused() -> None:
    for left, right_ in ((1.0, "auto"), ("auto", 1.0)):
        with pytest.raises(ValueError, match="decides in another way"):
            Compensation(left).load_state_dict(Compensation(right_).state_dict())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_copy_has_tables_of_its_own(schedule: Any) -> None:
    model = model_of(Compensation(1.0, schedule=schedule))
    epoch(model)
    before = tables(model)
    other = copy.deepcopy(model)
    assert same(tables(other), before)
    epoch(other)
    assert same(tables(model), before) and not same(tables(other), before)


def test_plan_leaves_tables_alone_and_counts_them() -> None:
    data, memory = graph(), 2**30
    model = scale(nn.GraphSAGE(C, 8, 3, OUT).double(), data, inputs=plain)
    before = plan(data, model, host_memory=memory, device_memory=memory)
    model.add_extension(Compensation())
    epoch(model.train())
    rows, state = tables(model), copy.deepcopy(model.extensions[0].state_dict())
    after = plan(data, model, host_memory=memory, device_memory=memory)
    assert same(tables(model), rows) and any(table.any() for table in rows)
    torch.testing.assert_close(model.extensions[0].state_dict(), state, rtol=0, atol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        epoch(model)
    assert after.history_bytes - before.history_bytes >= sum(table.nbytes for table in rows)


# -- arguments and neighbours ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trust", [-0.1, 1.5, float("nan")])
def test_trust_out_of_range(trust: float) -> None:
    with pytest.raises(ValueError, match="trust"):
        Compensation(trust)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="trust"):
        Compensation("always")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="schedule"):
        Compensation(schedule="kept")  # type: ignore[arg-type]


def test_one_is_enough() -> None:
    model = model_of(Compensation())
    with pytest.raises(ValueError, match="tables named 'gradient'"):
        model.add_extension(Compensation())


def test_compiled_models_are_refused() -> None:
    model = model_of(Compensation(), explicit=True)
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # of torch's own
    model.convs[1].compile()
    with pytest.raises(RuntimeError, match=r"torch\.compile.*remove the Compensation"):
        model(next(iter(loader_of(model))))


def test_no_trust_is_no_compensation(explicit: bool) -> None:
    model, other = model_of(Compensation(0.0), explicit), model_of(None, explicit)
    for each in (model, other):
        each.zero_grad()
        for _ in range(2):
            epoch(each)
    assert_same(grads(model), grads(other), tolerance=1e-12)


def test_with_dropout_by_ids_and_batches_of_the_whole_graph_it_is_full_batch_training() -> None:
    model = model_of(Compensation(), net=nn.GraphSAGE(C, 8, 3, OUT, dropout=0.3))
    model.add_extension(DropoutById(1))
    reference = copy.deepcopy(model)
    batch = next(iter(loader_of(model, len(PTR) - 1)))
    loss_of(model(batch), batch).backward()
    data = graph()
    loss_of(reference(data), data).backward()
    assert_same(grads(model), grads(reference))
