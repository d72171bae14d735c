"""Compensated gradients of batches add up to that of the full batch: always on average, and each epoch once tables are exact."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_geometric.nn as nn
from full_batch import N, assert_same, batches, criterion, grads, graph, learned, whole, wired
from gradient_models import JK, PYG, SHIPPED, of_pyg, plain
from plain_models import MODELS, OUT, C, H, Shared, layered
from torch import Tensor
from torch.amp import GradScaler
from torch.nn import Module, Parameter
from torch.nn.modules.batchnorm import _NormBase
from torch_geometric.data import Data

from torch_gas import FileTier, SubgraphLoader, scale
from torch_gas.exact import DropoutById
from torch_gas.extensions.compensation import Compensation
from torch_gas.models import GCN2, SAGE

SCHEDULES = ["consumed", "swapped"]
Loss = Callable[[Any, Any], Tensor]


def frozen(net: Module, data: Data, **options: Any) -> Any:
    """A model of which a batch computes what the full batch does: it has dropout by ids, and norms apply running statistics."""
    model = wired(net, data, **options)
    with torch.no_grad():
        whole(model, data)  # which moves these statistics
    for module in model.modules():
        if isinstance(module, _NormBase):
            module.eval()
    return model


def one_step(model: Any) -> Any:
    """The model, whose masks of dropout are in all calls those of one step."""
    for extension in model.extensions:
        if isinstance(extension, DropoutById):
            extension.step = 0
    return model


def compensated(model: Any, data: Data, schedule: str) -> None:
    """Has the model compensate from now on, with exact histories."""
    with torch.no_grad():
        whole(one_step(model), data)
    # Told that nothing scales the loss, it does not look for what may, of other tests.
    model.add_extension(Compensation(1.0, schedule=schedule, scaler=GradScaler("cpu", enabled=False)))


def run(model: Any, loader: Iterable[Any], loss_of: Loss, epochs: int = 1) -> None:
    """Adds up the gradients of batches."""
    for _ in range(epochs):
        for batch in loader:
            loss_of(one_step(model)(batch), batch).backward()


def full_batch(model: Any, data: Data, loss_of: Loss) -> dict[str, Tensor]:
    """The gradient, with that of attributes of the graph that learn."""
    reference, same = copy.deepcopy(model), copy.copy(data)
    for name in learning(data):
        same[name] = data[name].detach().clone().requires_grad_()
    loss_of(whole(one_step(reference), same), same).backward()
    return grads(reference) | learned(same)


def learning(data: Data) -> list[str]:
    return [name for name, value in data.to_dict().items() if isinstance(value, Tensor) and value.requires_grad]


def check(
    model: Any,
    data: Data,
    loader: SubgraphLoader | None = None,
    loss_of: Loss = criterion,
    schedules: Sequence[str] = SCHEDULES,
) -> None:
    """Asserts that the gradients of an epoch add up to that of the full batch."""
    want, loader = full_batch(model, data, loss_of), loader or batches(data, model)
    for schedule in schedules:
        ours = copy.deepcopy(model)
        compensated(ours, data, schedule)
        run(ours, loader, loss_of, len(model.histories))  # makes tables exact
        ours.zero_grad()
        for name in learning(data):
            data[name].grad = None
        run(ours, loader, loss_of)
        assert_same(grads(ours) | learned(data), want)


# -- models ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jk", JK)
@pytest.mark.parametrize("name", PYG)
def test_models_of_pyg(name: str, jk: str | None) -> None:
    """Schedules take turns, for the time it takes."""
    torch.manual_seed(0)
    data = graph()
    turn = SCHEDULES[(list(PYG).index(name) + JK.index(jk) // 2) % 2]
    check(frozen(of_pyg(name, jk), data, inputs=plain), data, schedules=[turn])


@pytest.mark.parametrize("name", PYG)
def test_places_behind_all_code(name: str) -> None:
    """Gradients of code in front of a place come from the halo rows of other batches as well."""
    torch.manual_seed(0)
    data = graph()
    turn = SCHEDULES[list(PYG).index(name) % 2]
    check(frozen(of_pyg(name, "cat"), data, inputs=plain, places="cheap"), data, schedules=[turn])


@pytest.mark.parametrize("name", [name for name in MODELS if name != "LayerDrop"])
def test_models_as_users_write_them(name: str) -> None:
    """With residuals, shared layers, several outputs, edges of both directions, and layers of several hops."""
    torch.manual_seed(0)
    data = graph()
    check(frozen(MODELS[name](), data), data, schedules=[SCHEDULES[list(MODELS).index(name) % 2]])


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_models(name: str) -> None:
    torch.manual_seed(0)
    data = graph()
    check(frozen(SHIPPED[name](), data), data)


@pytest.mark.slow
def test_gcnii_of_16_layers() -> None:
    torch.manual_seed(0)
    data = graph()
    check(frozen(GCN2(N, C, H, OUT, 16, 0.1, 0.5), data), data, batches(data, batch_size=2))


@pytest.mark.parametrize("options", [{"batch_size": 2}, {"bipartite": False}, {"neighbors": "both"}], ids=str)
def test_loaders(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    data = graph()
    model = frozen(nn.GAT(C, 8, 3, OUT, heads=2, jk="cat"), data, inputs=plain)
    check(model, data, batches(data, model, **options))


@pytest.mark.parametrize("ptr", [[0, 0, 30, N], [0, 1, 2, N], [0, N]], ids=str)
def test_odd_parts(ptr: list[int]) -> None:
    """The first is empty, two have one node, and there is but one, which has no halo."""
    torch.manual_seed(0)
    data = graph()
    check(frozen(nn.GIN(C, 8, 3, OUT), data, inputs=plain), data, SubgraphLoader(data, torch.tensor(ptr)))


@pytest.mark.parametrize("names", [("x",), ("edge_weight",), ("x", "edge_weight")], ids="-".join)
def test_learned_attributes(names: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    data = graph()
    model = frozen(layered(nn.GraphConv, "edge_weight")(), data)
    for name in names:
        data[name] = Parameter(data[name])
    check(model, data)


def test_learned_features_alone() -> None:
    """Nothing of the model learns."""
    torch.manual_seed(0)
    data = graph()
    model = frozen(layered(nn.GraphConv, "edge_weight")().requires_grad_(False), data)
    data.x.requires_grad_()
    check(model, data)


@pytest.mark.parametrize("frozen_layers", [(0,), (1,), (0, 1), (1, 2)], ids=str)
def test_frozen_layers(frozen_layers: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    data = graph()
    net = nn.GraphSAGE(C, 8, 3, OUT)
    for number in frozen_layers:
        net.convs[number].requires_grad_(False)
    check(frozen(net, data, inputs=plain), data)


# -- losses that do not read all rows ------------------------------------------------------------------------------------

LABELLED = torch.tensor([2, 5, 40])  # in the first and the third of four batches


def with_few_labels() -> Data:
    data = graph()
    data.is_labelled = torch.isin(torch.arange(N), LABELLED)
    return data


def labelled(out: Any, batch: Any) -> Tensor:
    """A sum over the labelled rows, which is 0 where there are none."""
    outs = torch.utils._pytree.tree_leaves(out)
    mask, y = (batch[name][: len(outs[0])] for name in ("is_labelled", "y"))
    return sum(F.cross_entropy(each[mask], y[mask] % each.size(1), reduction="sum") for each in outs)


RESIDUAL: dict[str, Callable[[], Module]] = {
    "residual": lambda: SAGE(N, C, 8, OUT, 3, batch_norm=True, residual=True),
    "shared": lambda: Shared(nn.GATConv(H, H)),
    **{name: MODELS[name] for name in ("several-outputs", "LSTM-over-layers", "DeeperGCN-dense", "TAGConv", "DirGNN")},
}


@pytest.mark.parametrize("name", RESIDUAL)
def test_three_labels(name: str) -> None:
    """Batches without a label carry the gradient of others, and rows that their batch's loss does not read have one."""
    torch.manual_seed(0)
    data = with_few_labels()
    counts = [int(batch.is_labelled[: batch.batch_size].sum()) for batch in batches(data)]
    assert counts == [2, 0, 1, 0]
    check(frozen(RESIDUAL[name](), data), data, loss_of=labelled)


class Branches(Module):
    """Two layers on each of two branches, the second of which makes an output of its own or is added where nodes are marked."""

    def __init__(self, adds: bool) -> None:
        super().__init__()
        self.below = torch.nn.ModuleList([nn.SAGEConv(C, H), nn.SAGEConv(C, H)])
        self.above = torch.nn.ModuleList([nn.GATConv(H, OUT), nn.GATConv(H, OUT)])
        self.adds = adds

    def forward(self, x: Tensor, edge_index: Any, part: Tensor) -> Any:
        layers = zip(self.below, self.above, strict=True)
        first, second = (above(below(x, edge_index).relu(), edge_index) for below, above in layers)
        if not self.adds:
            return first, second
        is_marked = part[: len(first)] == 1
        return first + is_marked[:, None] * second if is_marked.any() else first


def of_parts(out: Any, batch: Any) -> Tensor:
    """Of one output the loss of all but one part; of another that of one part, which others do not ask for."""
    outs = torch.utils._pytree.tree_leaves(out)
    part = batch.part[: len(outs[0])]
    losses = [each[mask].square().sum() for each, mask in zip(outs, (part != 2, part == 1), strict=False) if mask.any()]
    return sum(losses) if losses else outs[0][part != 2].sum()


@pytest.mark.parametrize("adds", [False, True])
def test_rows_that_their_batch_does_not_need(adds: bool) -> None:
    """A batch pushes rows that its loss does not read, or not even its output, while that of another one reads them."""
    torch.manual_seed(0)
    data = graph()
    if adds:
        data.part = torch.ones(N, dtype=torch.long)
        data.part[next(iter(batches(data))).n_id] = 0  # no rows of the first batch are marked, nor those of its halo
    else:
        data.part = torch.cat([torch.full((batch.batch_size,), number) for number, batch in enumerate(batches(data))])
    model = frozen(Branches(adds), data, inputs=lambda data: (data.x, data.edge_index, data.part))
    check(model, data, loss_of=of_parts)


# -- on average --------------------------------------------------------------------------------------------------------

PARTS = torch.tensor([0, 8, 20, 29, 41, 50, N])


def in_pairs(data: Data, regroup: bool) -> SubgraphLoader:
    """Batches of two parts in random order; the same ones in each epoch, or not."""
    return SubgraphLoader(data, PARTS, 2, shuffle=True, regroup=regroup, seed=0)


def error(got: dict[str, Tensor], want: dict[str, Tensor]) -> float:
    """|got - want| / |want|, of all together."""
    got_all, want_all = (torch.cat([each[name].flatten() for name in want]) for each in (got, want))
    return float((got_all - want_all).norm() / want_all.norm())


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("regroup", [True, False])
def test_mean_over_epochs_falls_with_their_number(regroup: bool, schedule: str) -> None:
    """What is in tables stays as large as it was, and all that came before has been passed on once."""
    torch.manual_seed(0)
    data = with_few_labels()
    model = frozen(nn.GCN(C, 8, 3, OUT, dropout=0.3, jk="cat"), data, inputs=plain)
    want = full_batch(model, data, labelled)
    compensated(model, data, schedule)
    loader, errors = in_pairs(data, regroup), []
    for epoch in range(1, 33):
        run(model, loader, labelled)
        errors.append(error({name: grad / epoch for name, grad in grads(model).items()}, want))
    early, late = (sum(errors[epochs // 2 : epochs]) / (epochs // 2) for epochs in (8, 32))  # of 5 to 8 and of 17 to 32
    assert 3 < early / late < 7 and errors[0] > 0.1  # about 4; with parts that meet at random, what is in tables varies
    run(model, loader, lambda out, batch: 0 * labelled(out, batch), len(model.histories))  # empties the tables
    assert_same({name: grad / 32 for name, grad in grads(model).items()}, want)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("regroup", [True, False])
@pytest.mark.parametrize("name", ["residual", "shared", "DeeperGCN-dense", "TAGConv"])
def test_what_is_in_tables_is_all_that_is_missing(name: str, regroup: bool, schedule: str) -> None:
    """Epochs that add nothing new bring it."""
    torch.manual_seed(0)
    data = with_few_labels()
    model = frozen(RESIDUAL[name](), data)
    want = full_batch(model, data, labelled)
    compensated(model, data, schedule)
    loader = in_pairs(data, regroup)
    run(model, loader, labelled, epochs=3)
    assert error({key: grad / 3 for key, grad in grads(model).items()}, want) > 0.01
    run(model, loader, lambda out, batch: 0 * labelled(out, batch), len(model.histories))
    assert_same({key: grad / 3 for key, grad in grads(model).items()}, want)


@pytest.mark.parametrize("name", ["residual", "shared", "DeeperGCN-dense", "TAGConv"])
def test_fixed_groups_in_random_order_are_exact_in_each_epoch_if_swapped(name: str) -> None:
    torch.manual_seed(0)
    data = with_few_labels()
    check(frozen(RESIDUAL[name](), data), data, in_pairs(data, regroup=False), labelled, schedules=["swapped"])


# -- loops of other kinds ----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*backward.. was not called after the forward pass:UserWarning")
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_backward_pass_through_several_batches(schedule: str) -> None:
    """Each adds to rows of the other, which have been read then."""
    torch.manual_seed(0)
    data = graph()
    model = frozen(nn.GCN(C, 8, 3, OUT, dropout=0.3), data, inputs=plain)
    want = full_batch(model, data, criterion)
    compensated(model, data, schedule)
    for _ in range(len(model.histories) + 1):
        model.zero_grad()
        waiting: list[Tensor] = []
        for batch in batches(data):
            waiting.append(criterion(one_step(model)(batch), batch))
            if len(waiting) == 2:
                torch.stack(waiting).sum().backward()
                waiting.clear()
        assert not waiting
    assert_same(grads(model), want)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_batch_that_an_error_ended_is_done_again(schedule: str) -> None:
    torch.manual_seed(0)
    data = graph()
    model = frozen(nn.GCN(C, 8, 3, OUT), data, inputs=plain)
    want = full_batch(model, data, criterion)
    compensated(model, data, schedule)

    def fail(*_: Any) -> None:
        raise RuntimeError("in the last layer")

    for _ in range(len(model.histories) + 1):
        model.zero_grad()
        for batch in batches(data):
            with (
                model.convs[-1].register_forward_pre_hook(fail),
                pytest.raises(RuntimeError, match="in the last layer"),
            ):
                model(batch)
            run(model, [batch], criterion)
    assert_same(grads(model), want)


# -- where tables lie ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("explicit", [False, True])
def test_tables_in_files(explicit: bool, schedule: str, tmp_path: Path) -> None:
    """The same bits as in memory."""
    data = graph()
    found = []
    for tier in (None, FileTier(tmp_path)):
        torch.manual_seed(0)
        options: dict[str, Any] = {"tier": tier, "history_dtype": torch.float64}
        if explicit:
            model = frozen(SAGE(N, C, 8, OUT, 3, **options), data)
        else:
            model = frozen(nn.GAT(C, 8, 3, OUT), data, inputs=plain, **options)
        want = full_batch(model, data, criterion)
        compensated(model, data, schedule)
        tables = [table for layers in model.extension_tables.values() for table in layers]
        assert {table.tier for table in tables} == {"host" if tier is None else "file"}
        assert {table.table.dtype for table in tables} == {torch.float64}
        run(model, batches(data), criterion, len(model.histories))
        model.zero_grad()
        run(model, batches(data), criterion)
        found.append(grads(model))
        assert_same(found[-1], want)
    assert all(torch.equal(grad, found[1][name]) for name, grad in found[0].items())


def tiny(out: Any, batch: Any) -> Tensor:
    """A loss whose gradients a table of 16 bits would hold as zeros."""
    return 1e-9 * criterion(out, batch)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-4), (torch.bfloat16, 1e-3), (torch.int8, 0.03)])
def test_histories_of_a_smaller_type(dtype: torch.dtype, tolerance: float, schedule: str) -> None:
    """Rows are rounded, which changes the gradient a little; gradients are not."""
    torch.manual_seed(0)
    data = graph()
    data.x = data.x.float()
    model = scale(nn.GCN(C, 8, 3, OUT), data, inputs=plain, history_dtype=dtype)
    want = full_batch(model, data, tiny)
    compensated(model, data, schedule)
    assert {history.table.dtype for history in model.histories} == {dtype}
    assert {table.table.dtype for table in model.extension_tables["gradient"]} == {torch.float32}
    errors = []
    for _ in range(len(model.histories) + 1):
        model.zero_grad()
        run(model, batches(data), tiny)
        errors.append(error(grads(model), want))
    assert errors[-1] < tolerance < 0.1 < errors[0]
