"""What cannot be exact is refused, and whatever ends a step in the middle leaves gradients, state and tables as they were."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch_geometric.nn as nn
from full_batch import PTR, N, assert_same, batches, buffers, compare, criterion, grads, graph, whole, wired
from interrupts import interrupt_at
from plain_models import OUT, C, H, LayerDrop
from torch import Tensor
from torch.nn import Module
from torch_geometric.utils import dropout_edge

from torch_gas import SubgraphLoader, exact, permute
from torch_gas.exact import DropoutById, ExactGradient
from torch_gas.extensions.regularization import LocalPerturbation
from torch_gas.models import GIN


def plain(data: Any) -> tuple[Any, ...]:
    return data.x, data.edge_index


def model_of(data: Any, explicit: bool = False, **options: Any) -> Any:
    torch.manual_seed(0)
    net: Module = (
        GIN(N, C, 8, OUT, 3, dropout=0.3) if explicit else nn.GIN(C, 8, 3, OUT, dropout=0.3, norm="batch_norm")
    )
    return wired(net, data, inputs=plain, **options)


def masks_of(model: Any) -> DropoutById:
    return next(each for each in model.extensions if isinstance(each, DropoutById))


def tables_are_zero(model: Any) -> bool:
    return all(not table.emb.any() for table in model.extension_tables["exact_gradient"])


class Before:
    """What a step that fails must leave alone."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.reference = copy.deepcopy(model)
        for parameter in (*model.parameters(), *self.reference.parameters()):
            parameter.grad = torch.full_like(parameter, 2.0)

    def check(self, data: Any, exact: ExactGradient) -> None:
        """Asserts that it did, and that the next step is right."""
        model, reference = self.model, self.reference
        for name, grad in grads(reference).items():
            assert torch.equal(grads(model)[name], grad), name
        for name, value in buffers(reference).items():
            assert torch.equal(buffers(model)[name], value), name
        assert tables_are_zero(model)
        assert torch.is_grad_enabled()
        assert model._session.replay is None
        assert masks_of(model).state_dict() == masks_of(reference).state_dict()
        loss = exact.backward(criterion)
        wanted = criterion(whole(reference, data), data)
        wanted.backward()
        torch.testing.assert_close(loss, wanted.detach())
        assert_same(grads(model), grads(reference))
        for name, value in buffers(reference).items():
            torch.testing.assert_close(buffers(model)[name], value)


# -- where no gradient is computed -------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_call_without_gradients_is_refused(context: Callable[[], Any]) -> None:
    data = graph()
    model = model_of(data)
    exact, before = ExactGradient(model, batches(data)), Before(model)
    with context(), pytest.raises(RuntimeError, match=r"call it outside of torch.no_grad\(\)"):
        exact.backward(criterion)
    before.check(data, exact)


def without_grad(out: Tensor, batch: Any) -> Tensor:
    with torch.no_grad():
        return criterion(out, batch)


@pytest.mark.parametrize(
    "loss_of", [without_grad, lambda out, batch: criterion(out.detach(), batch), lambda out, batch: torch.zeros(())]
)
def test_loss_without_gradient_is_refused(loss_of: Callable[..., Tensor]) -> None:
    data = graph()
    model = model_of(data)
    exact, before = ExactGradient(model, batches(data)), Before(model)
    with pytest.raises(RuntimeError, match=r"the loss has no gradient on any batch; .* without detach\(\)"):
        exact.backward(loss_of)
    before.check(data, exact)


# -- loaders -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("explicit", [False, True])
def test_loader_of_another_graph_is_refused(explicit: bool) -> None:
    data = graph()
    model = model_of(data, explicit)
    smaller = data.subgraph(torch.arange(45))
    with pytest.raises(ValueError, match=r"the loader's graph.*45"):
        ExactGradient(model, SubgraphLoader(smaller, PTR[:-1]))
    exact = ExactGradient(model, batches(data))
    exact.backward(criterion)  # from now on histories are of this graph
    before = Before(model)
    order = torch.cat([torch.arange(1, N), torch.zeros(1, dtype=torch.long)])
    other = permute(graph(), order, log=False)
    edges = graph()
    edges.edge_index = edges.edge_index.flip(0)
    for wrong in (other, edges):
        with pytest.raises(ValueError, match="the histories hold embeddings of another graph"):
            ExactGradient(model, batches(wrong)).backward(criterion)
    before.check(data, exact)


def test_loader_of_another_direction_is_refused() -> None:
    data = graph()
    layers = [
        (nn.DirGNNConv(nn.SAGEConv(C, H)), "x, edge_index -> x"),
        (nn.DirGNNConv(nn.SAGEConv(H, OUT)), "x, edge_index -> x"),
    ]
    model = wired(nn.Sequential("x, edge_index", layers), data, inputs=plain)
    compare(model, data)
    with pytest.raises(ValueError, match=r'make the loader with SubgraphLoader.*neighbors="both"'):
        ExactGradient(model, batches(data, neighbors="in")).backward(criterion)
    assert tables_are_zero(model)


class Groups(torch.utils.data.Sampler):  # type: ignore[type-arg]
    """Batches of these parts, of four."""

    def __init__(self, make: Callable[[], list[list[int]]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.make())

    def __len__(self) -> int:
        return len(self.make())


@pytest.mark.parametrize("groups", [[[0, 1], [3]], [[0, 1], [3, 2], [0]], [[0, 1, 2]] * 2], ids=str)
def test_loader_that_does_not_hold_each_node_once_is_refused(groups: list[list[int]]) -> None:
    data = graph()
    model = model_of(data)
    loader = SubgraphLoader(data, PTR, batch_sampler=Groups(lambda: groups))
    before = Before(model)
    with pytest.raises(ValueError, match="each node is needed once"):
        ExactGradient(model, loader).backward(criterion)
    before.check(data, ExactGradient(model, batches(data)))


def test_loader_that_regroups_in_each_sweep() -> None:
    """It draws random numbers of its own."""
    data, shuffled = graph(), random.Random(0)

    def groups() -> list[list[int]]:
        parts = shuffled.sample(range(4), 4)
        return [parts[:1], parts[1:]]

    compare(model_of(data), data, SubgraphLoader(data, PTR, batch_sampler=Groups(groups)))


def test_sampler_of_some_parts() -> None:
    """Exact mode takes all of them, as the gradient is that of the whole graph."""
    data = graph()
    sampler = torch.utils.data.SubsetRandomSampler([0, 3])
    compare(model_of(data), data, SubgraphLoader(data, PTR, 1, sampler=sampler))


# -- what ends a step in the middle ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 3], ids=["first", "last"])
def test_step_inside_of_the_criterion_is_refused(number: int) -> None:
    data = graph()
    model = model_of(data)
    exact, count = ExactGradient(model, batches(data), check=False), 0
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)

    def stepping(out: Tensor, batch: Any) -> Tensor:
        nonlocal count
        count += 1
        if count == number + 1:
            optimizer.step()
        return criterion(out, batch)

    with pytest.raises(RuntimeError, match=r"parameters changed .*; call optimizer.step\(\) after backward\(\)"):
        exact.backward(stepping)
    Before(model).check(data, exact)


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("known", [False, True], ids=["first step", "later step"])
def test_errors_of_the_criterion(kind: type[BaseException], explicit: bool, known: bool) -> None:
    data = graph()
    model = model_of(data, explicit)
    exact = ExactGradient(model, batches(data), check=False)
    if known:
        exact.backward(criterion)
    for number in (0, 3):
        before, count = Before(model), 0

        def fails(out: Tensor, batch: Any, number: int = number) -> Tensor:
            nonlocal count
            count += 1
            if count > number:
                raise kind("lost")
            return criterion(out, batch)

        with pytest.raises(kind, match="lost"):
            exact.backward(fails)
        before.check(data, exact)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("explicit", [False, True])
def test_errors_of_layers(kind: type[BaseException], explicit: bool) -> None:
    """In any call of any layer: while segments are found, in forward sweeps, and in backward ones."""
    data = graph()
    model = model_of(data, explicit)
    convs = (model if explicit else model.model).convs
    count, last = 0, 0

    def fail(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == last:
            raise kind("lost")

    for conv in convs:
        conv.nn.register_forward_pre_hook(fail)
    exact = ExactGradient(model, batches(data))
    exact.backward(criterion)
    for known in (False, True):

        def step(known: bool = known) -> None:
            nonlocal count
            count = 0
            if not known:
                exact._found_for = None
            exact.backward(criterion)

        last = 0
        step()
        total = count
        assert total >= 24
        for number in (1, total // 2, total):
            last, before = number, Before(model)
            try:
                step()
            except kind:
                last = 0
                before.check(data, exact)
            else:  # where it is tried out which rows a layer can do without, whose errors say that it cannot
                assert not known and kind is ValueError
                last = 0
                criterion(whole(before.reference, data), data).backward()
                assert_same(grads(model), grads(before.reference))


@pytest.mark.slow
def test_interrupts_at_any_function() -> None:
    data = graph()
    model = model_of(data)
    exact_gradient = ExactGradient(model, batches(data, batch_size=3))
    exact_gradient.backward(criterion)
    folder = exact.__path__[0]
    files: set[str | None] = {
        f"{folder}/{name}.py" for name in ("gradient", "sweeps", "segments", "state", "criterion")
    }
    number, step = 1, 97
    while True:
        before = Before(model)
        if not interrupt_at(number, files, lambda: exact_gradient.backward(criterion)):
            break
        if masks_of(model).step != masks_of(before.reference).step:
            break  # it came after the gradient had been added
        if all(torch.equal(grad, torch.full_like(grad, 2.0)) for grad in grads(model).values()):
            before.check(data, exact_gradient)
        number += step
    assert number > 5 * step


# -- random numbers ----------------------------------------------------------------------------------------------------


class Draws(Module):
    """Draws random numbers in training, between two layers."""

    def __init__(self, draw: Callable[[Tensor, Any], tuple[Tensor, Any]]) -> None:
        super().__init__()
        self.first, self.second, self.draw = nn.SAGEConv(C, H), nn.SAGEConv(H, OUT), draw

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        x = self.first(x, edge_index).relu()
        if self.training:
            x, edge_index = self.draw(x, edge_index)
        return self.second(x, edge_index)


DRAWS: dict[str, tuple[Callable[[Tensor, Any], tuple[Tensor, Any]], str]] = {
    "DropEdge": (lambda x, adj: (x, dropout_edge(adj, 0.2)[0]), "torch.rand, called in dropout_edge"),
    "AlphaDropout": (lambda x, adj: (F.alpha_dropout(x, 0.2, True), adj), "torch.nn.functional.alpha_dropout"),
    "channels": (lambda x, adj: (F.dropout1d(x.t()[None], 0.2)[0].t(), adj), "torch.nn.functional.dropout1d"),
    "noise": (lambda x, adj: (x + torch.randn_like(x), adj), "torch.randn_like"),
    "RReLU": (lambda x, adj: (F.rrelu(x - 1, training=True), adj), "torch.nn.functional.rrelu"),
    "bernoulli": (lambda x, adj: (x * torch.empty_like(x).bernoulli_(0.5), adj), "bernoulli_"),
    "Gumbel": (lambda x, adj: (F.gumbel_softmax(x), adj), "torch.nn.functional.gumbel_softmax"),
    "numpy": (lambda x, adj: (x * float(np.random.rand()), adj), "numpy.random"),
    "python": (lambda x, adj: (x * random.random(), adj), "random"),
}


@pytest.mark.parametrize("name", DRAWS)
def test_random_numbers_are_refused_by_name(name: str) -> None:
    data = graph()
    draw, what = DRAWS[name]
    torch.manual_seed(0)
    model = wired(Draws(draw), data, inputs=plain)
    exact = ExactGradient(model, batches(data))
    with pytest.raises(ValueError, match="Draws draws random numbers") as error:
        exact.backward(criterion)
    assert what in str(error.value) and "train with histories, batch by batch" in str(error.value)
    assert not grads(model) and tables_are_zero(model)
    compare(model.eval(), data)


def test_layers_that_are_skipped_at_random_are_refused() -> None:
    data = graph()
    model = wired(LayerDrop(), data, inputs=plain)
    with pytest.raises(ValueError, match=r"LayerDrop draws random numbers by torch.rand, called in forward"):
        ExactGradient(model, batches(data)).backward(criterion)
    assert not grads(model)


def test_masks_are_added_where_there_are_none() -> None:
    data = graph()
    model = model_of(data, seed=None)
    exact = ExactGradient(model, batches(data))
    assert not any(isinstance(each, DropoutById) for each in model.extensions)
    exact.backward(criterion)
    (masks,) = [each for each in model.extensions if isinstance(each, DropoutById)]
    assert masks.step == 1
    model.zero_grad()
    compare(model, data)


def test_no_masks_are_added_where_nothing_is_dropped() -> None:
    data = graph()
    model = wired(nn.GCN(C, 8, 2, OUT), data, seed=None, inputs=plain)
    compare(model, data)
    assert not any(isinstance(each, DropoutById) for each in model.extensions)


# -- state ---------------------------------------------------------------------------------------------------------------


class Average(Module):
    """Has a running mean of its own, of the rows of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.SAGEConv(C, H), nn.SAGEConv(H, OUT)
        self.register_buffer("running_mean", torch.ones(H))

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        x = self.first(x, edge_index)
        if self.training:
            self.running_mean.lerp_(x.detach().mean(0), 0.1)
        return self.second(x - self.running_mean, edge_index)


def test_state_of_batches_is_refused() -> None:
    data = graph()
    model = wired(Average(), data, inputs=plain)
    exact, before = ExactGradient(model, batches(data)), Before(model)
    with pytest.raises(
        ValueError, match=r"the buffer running_mean of Average moves with each forward pass in training"
    ):
        exact.backward(criterion)
    for part in (model, before.reference):
        part.eval()
    before.check(data, exact)


# -- numbers that are not finite ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*data.x changed since the histories were computed:UserWarning")
def test_features_that_are_not_finite() -> None:
    """The error is that of training."""
    data = graph()
    model = model_of(data)
    exact, before, row = ExactGradient(model, batches(data)), Before(model), data.x[3].clone()
    data.x[3] = float("nan")
    with pytest.raises(ValueError, match="the embeddings of layer 1 hold NaN or infinity"):
        exact.backward(criterion)
    data.x[3] = row
    before.check(data, exact)


def test_output_that_is_not_finite() -> None:
    """The gradient is that of the full batch, and says nothing of the criterion."""
    data = graph()
    torch.manual_seed(0)
    model = wired(nn.GraphSAGE(C, 8, 2, OUT), data, inputs=plain)
    with torch.no_grad():
        model.model.convs[1].lin_l.weight[0] = float("nan")
    exact = ExactGradient(model, batches(data))
    assert exact.backward(criterion).isnan()
    assert all(grad.isnan().any() for grad in grads(model).values())
    with torch.no_grad():
        model.model.convs[1].lin_l.weight[0] = 1
    with pytest.raises(ValueError, match="no sum over rows"):  # which is still to be looked at
        exact.backward(lambda out, batch: out.square().mean())


# -- extensions and tables -----------------------------------------------------------------------------------------------


def test_extension_that_changes_training_is_refused() -> None:
    data = graph()
    torch.manual_seed(0)
    model = wired(nn.GIN(C, 8, 3, OUT), data, inputs=plain)
    penalty = LocalPerturbation(noise=0.1)
    model.add_extension(penalty)
    exact, before = ExactGradient(model, batches(data)), Before(model)
    with pytest.raises(ValueError, match=r"LocalPerturbation changes what batches compute .* model.remove_extension"):
        exact.backward(criterion)
    model.remove_extension(penalty)
    before.reference.remove_extension(
        next(each for each in before.reference.extensions if type(each) is LocalPerturbation)
    )
    before.check(data, exact)


def test_tables_that_were_removed_are_made_anew() -> None:
    data = graph()
    model = model_of(data)
    first, second = (ExactGradient(model, batches(data)) for _ in range(2))
    first.remove()
    first.remove()
    assert "exact_gradient" not in model.extension_tables
    second.backward(criterion)
    Before(model).check(data, second)


def test_tables_are_no_part_of_a_state() -> None:
    data = graph()
    model = model_of(data)
    keys = set(model.state_dict())
    ExactGradient(model, batches(data)).backward(criterion)
    assert set(model.state_dict()) == keys
    model.load_state_dict(model_of(data).state_dict())


def test_types_may_change_between_steps() -> None:
    data = graph()
    model = model_of(data)
    ExactGradient(model, batches(data)).backward(criterion)
    model.zero_grad()
    data.x = data.x.float()
    exact = compare(model.float(), data, tolerance=1e-4)
    assert [table.emb.dtype for table in exact._gradients] == [torch.float32] * 2


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda data: (nn.GCN(C, 8, 2, OUT), batches(data)), TypeError, "model must be a ScalableGNN"),
        (lambda data: (model_of(data), data), TypeError, "loader must be SubgraphLoader"),
        (lambda data: (model_of(data), list(batches(data))), TypeError, "loader must be SubgraphLoader"),
    ],
    ids=["plain model", "graph", "list"],
)
def test_wrong_arguments_are_refused(make: Callable[[Any], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        ExactGradient(*make(graph()))


@pytest.mark.parametrize("explicit", [False, True])
def test_criterion_that_calls_the_model_is_refused(explicit: bool) -> None:
    """A second call would take the place of the first one's leaves."""
    data = graph()
    model = model_of(data, explicit)
    exact, before = ExactGradient(model, batches(data), check=False), Before(model)
    with pytest.raises(RuntimeError, match="the criterion calls the model, and would lose the gradient of that call"):
        exact.backward(lambda out, batch: (out - model(batch)).square().sum())
    before.check(data, exact)
