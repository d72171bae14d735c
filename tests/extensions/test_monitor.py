"""Monitor: what it counts is what happens, what it measures is what a plain computation gives, and it changes nothing."""

from __future__ import annotations

import copy
import math
import pickle
import random
import re
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import adjacency, random_graph, random_parts, to_format
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Net, assert_same, batch_rows, refresh, tables
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.nn import GCN as PlainGCN
from torch_geometric.nn import GATConv, GINConv, MessagePassing, SAGEConv

from torch_gas import EvalSubgraphLoader, Monitor, SubData, SubgraphLoader, gcn_norm, scale
from torch_gas.exact import DropoutById, ExactGradient
from torch_gas.extensions import Extension
from torch_gas.extensions.monitor import Limits, bound_table, errors_table, gains, lipschitz
from torch_gas.extensions.monitor.counts import evenly_spread
from torch_gas.extensions.monitor.errors import _layer_of
from torch_gas.extensions.monitor.gains import jacobian_norm
from torch_gas.models import APPNP, GAT, GCN, GCN2, GIN, SAGE
from torch_gas.wiring.compiled import OLDEST

N = 60
PTR = torch.tensor([0, 13, 13, 29, 45, N])
EVERYTHING: dict[str, Any] = {"sample": 10**6, "every": 1, "limits": None}


def make(num_layers: int = 3, **kwargs: Any) -> Net:
    torch.manual_seed(0)
    return Net(N, num_layers=num_layers, **kwargs)


def loader_of(data: Data, size: int = 2, **kwargs: Any) -> SubgraphLoader:
    return SubgraphLoader(data, PTR, size, shuffle=True, seed=0, **kwargs)


def train(model: torch.nn.Module, loader: SubgraphLoader, epochs: int = 3, lr: float = 0.05) -> list[Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    losses = []
    for _ in range(epochs):
        for batch in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(batch), batch.data.y[: batch.batch_size])
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    return losses


@torch.no_grad()
def refresh_as_stored(model: Any, data: Data) -> None:
    """As :func:`refresh`, with the edge weights that the graph has."""
    model.eval()._on_graph(data)


def summed(out: Tensor, data: Data) -> Tensor:
    return F.cross_entropy(out, data.y[: out.size(0)], reduction="sum")


# -- counting --------------------------------------------------------------------------------------


def test_counts_are_those_of_a_count_by_hand() -> None:
    data, model = random_graph(N, 300), make()
    monitor = Monitor(model, **EVERYTHING)
    ages: list[Counter[int]] = [Counter(), Counter()]
    squares = torch.zeros(2, 2, dtype=torch.float64)
    rows = halo = steps = 0
    for batch in [*loader_of(data, 1), *loader_of(data, 2)]:
        before = [(history.emb.clone(), history.age.clone()) for history in model.histories]
        model(batch)
        steps, rows, halo = steps + 1, rows + batch.batch_size, halo + batch.halo_size
        own = batch_rows(batch)
        for layer, (table, age) in enumerate(before):
            pulled = age[batch.n_id[batch.batch_size :]]
            ages[layer].update((pulled + (pulled >= 0)).tolist())  # the step itself makes rows older
            written = own[age[own] >= 0]
            change = model.histories[layer].emb[written] - table[written]
            squares[layer] += torch.stack([change.square().sum(), table[written].square().sum()])
    assert (monitor.steps, monitor.halo_ratio) == (steps, halo / rows)
    for layer, found in enumerate(monitor.statistics()):
        never = ages[layer].pop(-1)
        assert {age: int(n) for age, n in enumerate(found.ages) if n > 0} == ages[layer]
        assert found.pulled == halo and found.never == never / halo
        torch.testing.assert_close(found.drift, math.sqrt(squares[layer, 0] / squares[layer, 1]))
        each = sorted(ages[layer].elements())
        assert found.age(1.0) == each[-1]
        assert found.age() == each[math.ceil(len(each) / 2) - 1]


def test_sample_is_bounded_and_stands_for_all() -> None:
    data = random_graph(N, 300)
    exact, sampled = make(), make()
    monitors = [Monitor(exact, **EVERYTHING), Monitor(sampled, sample=5, every=1, limits=None)]
    for model in (exact, sampled):
        train(model, loader_of(data), epochs=60, lr=0.01)
    assert_same(tables(exact), tables(sampled))
    for all_rows, some in zip(*(monitor.statistics() for monitor in monitors), strict=True):
        assert 0 < some.pulled <= 5 * monitors[1].steps < all_rows.pulled
        assert abs(some.never - all_rows.never) < 0.02
        shares = [layer.ages[:5] / layer.ages.sum() for layer in (some, all_rows)]
        torch.testing.assert_close(*shares, atol=0.05, rtol=0)
        assert some.drift == pytest.approx(all_rows.drift, rel=0.2)


@pytest.mark.parametrize("number", [0, 3, 5, 6, 23])
def test_each_row_is_sampled_as_often_as_any_other(number: int) -> None:
    generator, times, draws = random.Random(0), torch.zeros(number), 600
    for _ in range(draws):
        chosen = evenly_spread(number, 5, generator)
        assert times[chosen].numel() <= 5
        times[chosen] += 1
    share = 1 / math.ceil(max(number, 1) / 5)
    torch.testing.assert_close(times / draws, torch.full((number,), share), atol=0.07, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8, torch.float64])
def test_storage_error_is_that_of_what_was_pushed(dtype: torch.dtype) -> None:
    data, model, writer = random_graph(N, 300), make(history_dtype=dtype), Writer()
    pushed = exact_rows(model)
    squares = torch.zeros(2, 2, dtype=torch.float64)
    with Monitor(model, **EVERYTHING) as monitor:
        for batch in loader_of(data):
            model(batch)
            for layer, history in enumerate(model.histories):
                new, stored = pushed[layer].double(), history.pull(dtype=torch.float64)[batch_rows(batch)]
                squares[layer] += torch.stack([(stored - new).square().sum(), new.square().sum()])
    found = [layer.storage for layer in monitor.statistics()]
    monitor.log(1, writer)
    if dtype == torch.float64:  # which holds all rows
        assert all(map(math.isnan, found)) and "storage error" not in str(monitor)
        assert "histories/1/storage_error" not in writer.scalars
        return
    expected = (squares[:, 0] / squares[:, 1]).sqrt().tolist()
    assert found == pytest.approx(expected, rel=1e-3) and min(found) > 1e-5 and max(found) < 0.02
    assert str(monitor).splitlines()[1].endswith("storage error")
    assert str(monitor).splitlines()[2].endswith(f"{100 * found[0]:.2g} %")
    assert writer.scalars["histories/2/storage_error", 1] == found[1]
    pytest.importorskip("matplotlib")
    figure = monitor.figure()
    assert len(figure.axes) == 3 and list(figure.axes[2].lines[0].get_ydata()) == [100 * share for share in found]


def exact_rows(model: Net) -> dict[int, Tensor]:
    """The rows that were pushed last, by layer, as the model computed them."""
    rows: dict[int, Tensor] = {}
    exchange = model.push_and_pull

    def noting(history: Any, x: Tensor, batch_size: int, *ids: Any) -> Tensor:
        rows[[own is history for own in model.histories].index(True)] = x[:batch_size].detach().clone()
        return exchange(history, x, batch_size, *ids)

    model.push_and_pull = noting  # type: ignore[method-assign]
    return rows


def test_some_steps_stand_for_all() -> None:
    data, model = random_graph(N, 300), make()
    monitor = Monitor(model, sample=10**6, every=4, limits=None)
    train(model, loader_of(data), epochs=80)
    observed = monitor._counts.observed
    assert monitor.steps == 160 and 20 < observed < 60
    assert monitor.statistics()[0].pulled < N * observed


def test_a_monitor_goes_on_from_its_state() -> None:
    """As if the model had been watched by one monitor throughout."""
    data = random_graph(N, 300)
    model, twin = make(), make()
    twin.load_state_dict(model.state_dict())
    whole, first = Monitor(model, every=2, sample=5), Monitor(twin, every=2, sample=5)
    loaders = [loader_of(data) for _ in range(2)]
    train(model, loaders[0], 6)
    train(twin, loaders[1], 3)
    state = copy.deepcopy(first.state_dict())
    first.detach()
    second = Monitor(twin, every=2, sample=5)
    second.load_state_dict(state)
    train(twin, loaders[1], 3)
    assert str(second) == str(whole)
    for one, other in zip(second.statistics(), whole.statistics(), strict=True):
        assert torch.equal(one.ages, other.ages) and one.drift == other.drift
    assert str(second.state_dict()) == str(whole.state_dict())
    assert str(state) == str(first.state_dict())  # which the second does not count on


def test_states_of_other_monitors_are_refused() -> None:
    model = make(num_layers=4)
    watched = Monitor(model)
    train(model, loader_of(random_graph(N, 300)), 8)
    monitor = Monitor(make(num_layers=2))
    for state, message in (
        ({}, r"not what state_dict\(\) of a monitor"),
        (watched.state_dict(), "than the 1 of this model"),
    ):
        with pytest.raises(ValueError, match=message):
            monitor.load_state_dict(state)
    assert monitor.steps == 0


def test_only_training_on_batches_is_counted() -> None:
    data, model = random_graph(N, 300), make()
    monitor = Monitor(model, **EVERYTHING)
    refresh(model, data)
    batch = next(iter(loader_of(data)))
    with torch.no_grad():
        model(batch)
    model.eval()
    model(batch)
    model(loader=EvalSubgraphLoader(data, PTR))
    assert monitor.steps == 0 and monitor.statistics() == [] and math.isnan(monitor.halo_ratio)
    model.train()(batch)
    assert monitor.steps == 1 and len(monitor.statistics()) == 2
    assert all(layer.never == 0 and layer.age(1.0) == 1 for layer in monitor.statistics())
    monitor.reset()
    assert monitor.steps == 0 and monitor.statistics() == []


def test_batch_without_halo() -> None:
    data, model = random_graph(N, 300), make()
    monitor = Monitor(model, **EVERYTHING)
    train(model, SubgraphLoader(data, torch.tensor([0, N])), epochs=2)
    assert monitor.halo_ratio == 0
    for layer in monitor.statistics():
        assert layer.pulled == 0 and layer.age() == 0 and layer.drift > 0


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_monitor_changes_no_bit_of_training(dropout: float) -> None:
    data = random_graph(N, 300)
    alone, watched = make(dropout=dropout), make(dropout=dropout)
    losses = []
    for model in (alone, watched):
        monitor = Monitor(model, sample=7, every=2) if model is watched else None
        torch.manual_seed(1)
        loader = loader_of(data)
        first = train(model, loader)
        if monitor is not None:
            monitor.errors(loader), monitor.errors(loader, whole=True), monitor.bound(loader)
            monitor.gradient_error(loader, summed)
            str(monitor)
        losses.append(first + train(model, loader))
    assert torch.equal(*map(torch.stack, losses))
    assert_same(tables(alone), tables(watched))
    assert watched.training and all(p.grad is not None for p in watched.parameters())


def test_measuring_draws_no_random_numbers() -> None:
    class Drawing(torch.nn.Linear):  # whose copies draw parameters, as those of PyG 2.6's linear layers do
        def __deepcopy__(self, memo: dict[int, Any]) -> Drawing:
            return Drawing(self.in_features, self.out_features)

    model, data = make(), random_graph(N, 300)
    model.unused = Drawing(2, 2)
    monitor, loader = Monitor(model), loader_of(data)
    train(model, loader, epochs=1)
    before = torch.get_rng_state()
    monitor.errors(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_attaching_and_detaching() -> None:
    data, model = random_graph(N, 300), make()
    loader = loader_of(data)
    with Monitor(model, **EVERYTHING) as monitor:
        second = Monitor(model, **EVERYTHING)
        train(model, loader, epochs=1)
        assert str(second) == str(monitor)
    train(model, loader, epochs=1)
    assert (monitor.steps, second.steps) == (2, 4)
    other = Monitor(model, **EVERYTHING)
    monitor.detach()  # the other one stays
    train(model, loader, epochs=1)
    assert (monitor.steps, other.steps) == (2, 2)
    other.detach()
    monitor.attach()
    train(model, loader, epochs=1)
    assert (monitor.steps, other.steps) == (4, 2)
    del monitor, other, second
    assert model.extensions == []  # a model keeps none that nobody else holds


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match=r"Monitor takes a model with histories .* but got Linear"):
        Monitor(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="sample must be at least 1, but is 0"):
        Monitor(make(), sample=0)
    with pytest.raises(ValueError, match="every must be at least 1, but is 0"):
        Monitor(make(), every=0)
    monitor = Monitor(make())
    other = SubgraphLoader(random_graph(20, 60), torch.tensor([0, 20]))
    with pytest.raises(ValueError, match="graph has 20 nodes, but the model was made for 60"):
        monitor.errors(other)


def test_model_is_pickled_and_copied_without_monitor() -> None:
    data, model = random_graph(N, 300), make()
    keys = model.state_dict().keys()
    monitor = Monitor(model, **EVERYTHING)
    train(model, loader_of(data), epochs=1)
    assert model.state_dict().keys() == keys
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert_same(tables(twin), tables(model))
        train(twin, loader_of(data), epochs=1)
        assert monitor.steps == 2
        assert twin.extensions == []
    assert monitor.model is model


def test_scaled_models() -> None:
    data = random_graph(N, 300)
    torch.manual_seed(0)
    model = scale(PlainGCN(8, 16, num_layers=3, out_channels=3), data)
    monitor = Monitor(model, **EVERYTHING)
    train(model, loader_of(data))
    assert [layer.layer for layer in monitor.statistics()] == [1, 2]
    with torch.no_grad():
        twin = copy.deepcopy(model).eval()
        twin(data)
    for error, stale, exact in zip(monitor.errors(loader_of(data)), model.histories, twin.histories, strict=False):
        relative = float((stale.emb - exact.emb).norm() / exact.emb.norm())
        assert error.history == pytest.approx(relative, rel=1e-4)
    monitor.detach()
    assert_errors_vanish(model, data)
    assert all(layer.estimated and layer.worst < 2 for layer in Monitor(model).bound(loader_of(data)))
    untried = scale(PlainGCN(8, 16, num_layers=3, out_channels=3, normalize=False), num_nodes=N)
    with pytest.raises(RuntimeError, match="has not been called on a batch yet"):
        Monitor(untried).errors(loader_of(data))


@pytest.mark.skipif(torch.__version__ < OLDEST, reason=f"needs torch {OLDEST}")
def test_compiled_model() -> None:
    model = make()
    compiled = torch.compile(model, backend="eager", dynamic=True)
    monitor, data = Monitor(compiled, **EVERYTHING), random_graph(N, 300)
    train(compiled, loader_of(data))
    assert monitor.steps == 6 and all(layer.pulled > 0 for layer in monitor.statistics())
    assert monitor.errors(loader_of(data))[-1].computed > 0


# -- measuring -------------------------------------------------------------------------------------


def assert_errors_vanish(model: Any, data: Data) -> None:
    """With exact histories, there is no error."""
    with torch.no_grad():
        mode = model.training
        model.eval()(loader=EvalSubgraphLoader(data, PTR))
        model.train(mode)
    monitor = Monitor(model)
    for whole in (True, False):
        for layer in monitor.errors(loader_of(data), whole=whole):
            assert layer.history < 1e-5 and layer.computed < 1e-5


def test_errors_are_those_of_a_computation_by_hand() -> None:
    data, model = random_graph(N, 300), make(dropout=0.5)
    train(model, loader_of(data))
    loader = loader_of(data)
    twin = copy.deepcopy(model).eval()
    output = refresh(twin, data)
    exact = [*(history.emb.clone() for history in twin.histories), output]
    stale = [history.emb.clone() for history in model.histories]
    squares = torch.zeros(3)
    for batch in loader:
        for history, rows in zip(twin.histories, stale, strict=True):
            history.emb.copy_(rows)
        with torch.no_grad():
            computed = [twin(batch), batch_rows(batch)]
        rows = [*(history.emb[computed[1]] for history in twin.histories), computed[0]]
        squares += torch.stack([(a - b[computed[1]]).square().sum() for a, b in zip(rows, exact, strict=True)])
    for whole in (True, False):
        found = Monitor(copy.deepcopy(model)).errors(loader_of(data), whole=whole)
        assert [error.layer for error in found] == [1, 2, 3]
        for layer, error in enumerate(found):
            assert error.computed == pytest.approx(
                float(squares[layer].sqrt() / exact[layer].norm()), rel=1e-3, abs=1e-6
            )
            if layer < 2:
                relative = float((stale[layer] - exact[layer]).norm() / exact[layer].norm())
                assert error.history == pytest.approx(relative, rel=1e-4)
        assert found[2].history == 0 and found[2].computed > 0.01


def test_errors_vanish_with_exact_histories() -> None:
    data, model = random_graph(N, 300), make(dropout=0.5)
    train(model, loader_of(data))
    assert_errors_vanish(model, data)


def test_history_that_was_never_written_is_all_wrong() -> None:
    data, model = random_graph(N, 300), make()
    errors = Monitor(model).errors(loader_of(data))
    assert [error.history for error in errors] == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("conv", [SAGEConv, GATConv])
def test_gradient_error(conv: Any) -> None:
    data, model = random_graph(N, 300), make(conv=conv, dropout=0.5)
    train(model, loader_of(data))
    monitor = Monitor(model)
    one = SubgraphLoader(data, torch.tensor([0, N]))
    exact = monitor.gradient_error(one, summed)
    assert exact.relative < 1e-5 and exact.cosine == pytest.approx(1)
    found = monitor.gradient_error(loader_of(data), summed)
    assert found.relative > 1e-2 and -1 <= found.cosine < 1
    assert found.parameters.keys() == dict(model.named_parameters()).keys()
    assert list(found.layers) == ["convs.0", "convs.1", "convs.2"]
    head, names, *lines = str(found).splitlines()
    assert head == f"gradient: relative error {found.relative:.2g}, cosine {found.cosine:.3f}"
    assert names.split() == ["layer", "relative", "error", "cosine"]
    for line, (layer, (relative, cosine)) in zip(lines, found.layers.items(), strict=False):
        assert line.split() == [layer, f"{100 * relative:.1f}", "%", f"{cosine:.3f}"]
    assert lines[3].startswith("Normal with exact histories: 0 % at the last layer")

    def gradient(batches: Any, twin: Net) -> dict[str, Tensor]:
        twin.zero_grad()
        for batch in batches:
            for history, own in zip(twin.histories, model.histories, strict=True):
                history.emb.copy_(own.emb)
            data, *ids = batch
            summed(twin(data.x, adjacency(data), *ids), data).backward()
        return {name: parameter.grad.clone() for name, parameter in twin.named_parameters()}

    twin = copy.deepcopy(model).eval()
    full, parts = gradient([(data,)], twin), gradient(loader_of(data), twin)
    measured = {layer: (layer, *pair) for layer, pair in found.layers.items()}
    measured |= {name: (name, error, None) for name, error in found.parameters.items()}
    for prefix, relative, cosine in [("", found.relative, found.cosine), *measured.values()]:
        b, a = (
            torch.cat([g.flatten() for name, g in each.items() if name.startswith(prefix)]) for each in (full, parts)
        )
        assert relative == pytest.approx(float((a - b).norm() / b.norm()), rel=1e-3)
        assert cosine is None or cosine == pytest.approx(float(F.cosine_similarity(a, b, dim=0)), rel=1e-3)
    refresh(twin, data)
    model.histories.load_state_dict(twin.histories.state_dict())
    layers = monitor.gradient_error(loader_of(data), summed).layers
    assert layers["convs.2"][0] < 1e-5 < 1e-2 < min(layers["convs.0"][0], layers["convs.1"][0])


def test_gradient_of_batches_without_labels_is_zero() -> None:
    data, model = random_graph(N, 300), make()
    data.train_mask = torch.arange(N) < 5

    def loss(out: Tensor, data: Data) -> Tensor:
        mask = data.train_mask[: out.size(0)]
        return summed(out[mask], Data(y=data.y[: out.size(0)][mask])) if bool(mask.any()) else torch.zeros(())

    found = Monitor(model).gradient_error(loader_of(data, 1), loss)
    assert 0 < found.relative < 2


def test_gradient_error_in_the_memory_of_a_batch() -> None:
    """The whole graph is never computed, in a scaled model and in one that is wired by hand."""
    data, sizes = random_graph(N, 300), list[int]()
    plain = PlainGCN(8, 16, 3, 3)
    for model in (make(), scale(plain, data)):
        for layer in model.modules():
            if isinstance(layer, MessagePassing):
                layer.register_forward_hook(lambda layer, args, out: sizes.append(len(out)))
        found = Monitor(model).gradient_error(loader_of(data, 1), summed)
        assert found.layers.keys() == {"convs.0", "convs.1", "convs.2"}
        assert 0 < max(sizes) < N
        sizes.clear()


@pytest.mark.parametrize("kind", ["explicit", "scaled"])
def test_gradient_error_leaves_all_as_it_was(kind: str) -> None:
    class Counting(Extension):
        calls = 0

        def begin(self, call: Any) -> None:
            self.calls += 1

    data = random_graph(N, 300)
    weight = torch.nn.Parameter(data.x.clone())
    torch.manual_seed(0)
    model = (
        make(dropout=0.5) if kind == "explicit" else scale(PlainGCN(8, 16, 3, 3, norm="batch_norm", dropout=0.5), data)
    )
    own, counting, masks = ExactGradient(model, loader_of(data)), Counting(), DropoutById(seed=1)
    model.add_extension(counting)
    train(model, loader_of(data))
    model.add_extension(masks)
    own.backward(summed)
    data.x = weight * 2  # learned, and no leaf
    loader = loader_of(data)
    before, grads = tables(model), [parameter.grad.clone() for parameter in model.parameters()]
    extensions, calls, step = model.extensions, counting.calls, masks.step
    random_state, order = torch.get_rng_state(), loader.sampler.generator.get_state()
    modes = [module.training for module in model.modules()]
    Monitor(model, limits=None).gradient_error(loader, summed)
    assert_same(before, tables(model))
    assert all(torch.equal(parameter.grad, grad) for parameter, grad in zip(model.parameters(), grads, strict=True))
    assert weight.grad is None and (counting.calls, masks.step) == (calls, step)
    assert model.extensions == extensions and modes == [module.training for module in model.modules()]
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(loader.sampler.generator.get_state(), order)
    assert not any(table.emb.any() for table in model.extension_tables["exact_gradient"])
    data.x.sum().backward()  # its graph is there still
    assert weight.grad is not None


def test_gradient_error_wants_a_sum() -> None:
    data, model = random_graph(N, 300), make()
    with pytest.raises(ValueError, match="no sum over rows"):
        Monitor(model).gradient_error(loader_of(data), lambda out, data: F.cross_entropy(out, data.y[: len(out)]))
    assert len(model.extensions) == 0


def test_names_of_layers() -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.conv1 = GINConv(torch.nn.Sequential(torch.nn.Linear(2, 2)))
            self.blocks = torch.nn.ModuleList([torch.nn.ModuleDict({"conv": SAGEConv(2, 2)}), torch.nn.Linear(2, 2)])
            self.net = PlainGCN(2, 2, 2, 2)
            self.lin = torch.nn.Linear(2, 2)

    odd = Odd()
    found = dict.fromkeys(_layer_of(odd, name) for name, _ in odd.named_parameters())
    assert list(found) == ["weight", "conv1", "blocks.0.conv", "blocks.1", "net.convs.0", "net.convs.1", "lin"]


# -- bounds ----------------------------------------------------------------------------------------


def random_model(name: str, num_layers: int, switch: bool, dropout: float) -> Any:
    sizes = {"in_channels": 8, "hidden_channels": 6, "out_channels": 3, "num_layers": num_layers, "dropout": dropout}
    match name:
        case "GCN":
            return GCN(N, **sizes, batch_norm=switch, residual=switch, linear=switch)
        case "SAGE":
            return SAGE(N, **sizes, batch_norm=switch, residual=switch)
        case "GIN":
            return GIN(N, **sizes, batch_norm=switch, residual=switch, train_eps=switch)
        case "GCN2":
            return GCN2(N, **sizes, alpha=0.2, theta=1.0, shared_weights=switch, batch_norm=switch, residual=switch)
        case "APPNP":
            return APPNP(N, **sizes, alpha=0.3)
    raise ValueError(name)


def vary(model: torch.nn.Module) -> None:
    """Other parameters and statistics, and histories that are far off."""
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if value.is_floating_point():
            value.data.copy_(torch.rand_like(value) + 0.1 if "running_var" in name else torch.randn_like(value))


@given(
    name=st.sampled_from(["GCN", "SAGE", "GIN", "GCN2", "APPNP"]),
    num_layers=st.integers(2, 5),
    switch=st.booleans(),
    seed=st.integers(0, 1000),
    fmt=st.sampled_from(["edge_index", "EdgeIndex", "csr"]),
    noise=st.sampled_from([0.0, 1e-3, 1.0]),
)
@settings(max_examples=25)
def test_error_is_below_the_bounds(name: str, num_layers: int, switch: bool, seed: int, fmt: str, noise: float) -> None:
    torch.manual_seed(seed)
    data = random_graph(N, 200, seed)
    if name in ("GCN", "GCN2", "APPNP"):
        data.edge_weight = torch.randn(data.edge_index.size(1))
    data = to_format(data, fmt)
    model = random_model(name, num_layers, switch, 0.5)
    vary(model)
    if noise < 1:
        refresh_as_stored(model, data)
        for history in model.histories:
            history.emb.mul_(1 + noise * torch.randn_like(history.emb))
    loader = SubgraphLoader(data, random_parts(N, 5, seed), 2, shuffle=True, seed=seed)
    found = Monitor(model).bound(loader, whole=switch)
    assert [layer.layer for layer in found] == list(range(1, num_layers + 1))
    for layer in found:
        assert not layer.estimated and layer.theorem is not None
        assert layer.worst <= 1
        assert layer.measured <= layer.bound <= layer.theorem * (1 + 1e-9)
    assert found[0].measured < 1e-10 * (1 + max(layer.staleness for layer in found))


@pytest.mark.parametrize("name", ["GCN", "SAGE", "GIN", "GCN2", "APPNP"])
def test_bound_is_reached(name: str) -> None:
    """With one channel, positive weights and errors of one sign, nothing cancels out."""
    torch.manual_seed(0)
    data = gcn_norm(random_graph(N, 200))
    data.x = data.x.abs()
    model = random_model(name, 3, False, 0.0)
    model = type(model)(
        N, **{"in_channels": 8, "hidden_channels": 1, "out_channels": 1, "num_layers": 3}, **_extra(name)
    )
    for parameter in model.parameters():
        parameter.data.abs_()
    refresh_as_stored(model, data)
    for history in model.histories:
        history.emb.add_(torch.rand_like(history.emb))
    last = Monitor(model).bound(loader_of(data))[-1]
    assert last.worst == pytest.approx(1, abs=1e-6)
    assert last.measured == pytest.approx(last.bound, rel=1e-5)


def _extra(name: str) -> dict[str, float]:
    return {"GCN2": {"alpha": 0.2, "theta": 1.0}, "APPNP": {"alpha": 0.3}}.get(name, {})


def test_theorem_by_hand() -> None:
    """Two layers of means have one term: the staleness times the norms of the last layer's weights."""
    torch.manual_seed(0)
    data = random_graph(N, 300)
    model = SAGE(N, 8, 6, 3, num_layers=2)
    stale = torch.randn(N, 6)
    model.histories[0].push(stale)
    exact = model.convs[0](data.x, data.edge_index).relu().detach()
    staleness = float((stale - exact).norm(dim=1).max())
    last = model.convs[1]
    gain = sum(float(torch.linalg.matrix_norm(lin.weight.detach(), 2)) for lin in (last.lin_l, last.lin_r))
    first, second = Monitor(model).bound(loader_of(data))
    assert first.staleness == pytest.approx(staleness, rel=1e-5)
    assert second.gain == pytest.approx(gain, rel=1e-5)
    assert second.theorem == pytest.approx(gain * staleness, rel=1e-5)


def test_layers_without_known_constants_are_estimated() -> None:
    torch.manual_seed(0)
    data = random_graph(N, 300)
    model = GAT(N, 8, 4, hidden_heads=2, out_channels=3, out_heads=1, num_layers=3)
    refresh_as_stored(model, data)
    for history in model.histories:
        history.emb.add_(1e-4 * torch.randn_like(history.emb))
    found = Monitor(model).bound(loader_of(data))
    assert all(layer.estimated and layer.theorem is None for layer in found)
    assert all(layer.measured <= layer.bound and layer.worst <= 1 for layer in found)
    assert found[-1].measured > 0 and found[-1].bound < 100 * found[-1].measured
    assert "estimated" in bound_table(found)


def test_jacobian_norm_is_the_largest_singular_value() -> None:
    torch.manual_seed(0)
    matrix, x = torch.randn(7, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor) -> Tensor:
        return torch.tanh(x @ matrix.t()).cumsum(0)

    jacobian: Any = torch.autograd.functional.jacobian(function, x)
    largest = float(torch.linalg.matrix_norm(jacobian.view(21, 15), 2))
    assert jacobian_norm(function(x), x, 500) == pytest.approx(largest, rel=1e-6)
    assert jacobian_norm(function(x.detach()), x) == 0
    assert jacobian_norm(function(x.detach().requires_grad_()), x) == 0


def test_lipschitz_constants() -> None:
    torch.manual_seed(0)
    first, norm, last = torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 3)
    vary(norm)
    scaled = torch.diag(norm.weight / (norm.running_var + norm.eps).sqrt()) @ first.weight
    largest = [float(torch.linalg.matrix_norm(matrix.detach(), 2)) for matrix in (scaled, last.weight)]
    network = torch.nn.Sequential(first, norm, torch.nn.ReLU(), torch.nn.Identity(), last)
    assert lipschitz(network) == pytest.approx(largest[0] * largest[1], rel=1e-5)
    assert lipschitz([]) == 1
    with pytest.raises(TypeError, match=r"constant of Embedding.* is not known"):
        lipschitz([torch.nn.Embedding(3, 3)])


@pytest.mark.parametrize("name", ["GCN", "SAGE", "GIN", "GCN2"])
def test_batch_norm_multiplies_constants(name: str) -> None:
    model = random_model(name, 3, True, 0.0)
    before = gains(model)
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm1d):
            norm.weight.data.mul_(10)
    after = gains(model)
    assert before is not None and after is not None
    factors = [b.update / a.update for a, b in zip(before, after, strict=True)]
    assert factors == pytest.approx([10, 10, 1 if name == "SAGE" else 10])


def test_constants_of_own_models_can_be_registered() -> None:
    class Own(Net):
        pass

    assert gains(make()) is None
    gains.register(Own, lambda model: gains(SAGE(N, 8, 6, 3, num_layers=3)))
    found = gains(Own(N))
    assert found is not None and all(gain.mean for gain in found)


@pytest.mark.cuda
@pytest.mark.parametrize("device", [None, "cuda"])
def test_on_a_gpu(device: str | None) -> None:
    data, found = random_graph(N, 300), []
    for where in ("cpu", "cuda"):
        model = make(device=device if where == "cuda" else None).to(where)
        monitor, optimizer = Monitor(model, **EVERYTHING), torch.optim.SGD(model.parameters(), lr=0.05)
        for batch in [*loader_of(data), *loader_of(data)]:
            optimizer.zero_grad()
            out = model(batch.to(where))
            F.cross_entropy(out, batch.data.y[: batch.batch_size].to(where)).backward()
            optimizer.step()
        loader = loader_of(data)
        errors, bound = monitor.errors(loader), monitor.bound(loader)
        found.append((monitor.statistics(), errors, bound, monitor.gradient_error(loader, summed)))
    for left, right in zip(*(layers for layers, *_ in found), strict=True):
        assert torch.equal(left.ages, right.ages) and left.never == right.never
        assert left.drift == pytest.approx(right.drift, rel=1e-3)
    for left, right in zip(*(errors for _, errors, *_ in found), strict=True):
        assert left == pytest.approx(right, rel=1e-3, abs=1e-5)
    for left, right in zip(*(bound for *_, bound, _ in found), strict=True):
        assert left.measured == pytest.approx(right.measured, rel=0.05, abs=1e-5)
    assert found[0][3].relative == pytest.approx(found[1][3].relative, rel=1e-2)


# -- reports ---------------------------------------------------------------------------------------


def test_table() -> None:
    data, model = random_graph(N, 300), make()
    monitor = Monitor(model, **EVERYTHING)
    assert "0 training steps" in str(monitor)
    train(model, loader_of(data), epochs=5)
    head, names, *lines = str(monitor).splitlines()
    assert head == f"Monitor of Net: 10 training steps, halo ratio S / B {monitor.halo_ratio:.2f}"
    assert "never written" in names and "drift" in names and len(lines) == 2
    for layer, line in zip(monitor.statistics(), lines, strict=True):
        assert line.split()[:2] == [str(layer.layer), f"{layer.pulled:,}"]
        assert line.endswith(f"{100 * layer.drift:.1f} %") and f"{100 * layer.never:.1f} %" in line
    errors = monitor.errors(loader_of(data))
    assert f"{100 * errors[0].history:.1f} %" in errors_table(errors).splitlines()[1]
    assert errors_table(errors).splitlines()[-1].split()[0] == "output"
    with torch.no_grad():
        model.eval()(data.x, adjacency(data))
    *_, last, note, _ = errors_table(monitor.errors(loader_of(data))).splitlines()
    assert last.split() == ["output", "0.0", "%"] and note.startswith(
        "Histories are exact, as they are right after an evaluation"
    )
    bound = monitor.bound(loader_of(data))
    assert f"{bound[-1].measured:.3g}" in bound_table(bound).splitlines()[-1]


def test_figure_shows_what_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    data, model = random_graph(N, 300), random_model("SAGE", 3, False, 0.0)
    monitor, loader = Monitor(model, **EVERYTHING), loader_of(data)
    assert len(monitor.figure().axes) == 2
    train(model, loader)
    errors, bound = monitor.errors(loader), monitor.bound(loader)
    figure = monitor.figure(errors, bound)
    assert len(figure.axes) == 4
    measured = next(line for line in figure.axes[3].lines if line.get_label() == "measured")
    assert list(measured.get_ydata()) == [layer.measured for layer in bound[1:]]
    drift = figure.axes[1].lines[0].get_ydata()
    assert list(drift) == [100 * layer.drift for layer in monitor.statistics()]
    figure.savefig(tmp_path / "monitor.png")


def test_page_of_docs_runs(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page = (Path(__file__).parents[2] / "docs" / "monitor.md").read_text()
    model = random_model("GCN2", 3, False, 0.5)
    optimizer = torch.optim.Adam(model.parameters())
    names = {"model": model, "optimizer": optimizer, "loader": loader_of(random_graph(N, 300)), "loss": summed}
    blocks = re.findall(r"^```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "monitor.md", "exec"), names)
    assert len(names["figure"].axes) == 4  # type: ignore[attr-defined]


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = Monitor(make())
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        monitor.figure()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        monitor.log(0)


class Writer:
    """As TensorBoard's."""

    def __init__(self) -> None:
        self.scalars: dict[tuple[str, int], float] = {}

    def add_scalar(self, name: str, value: float, step: int) -> None:
        assert (name, step) not in self.scalars
        self.scalars[name, step] = value


def test_log_writes_what_is_new() -> None:
    data, model = random_graph(N, 300), make()
    monitor, writer = Monitor(model, **EVERYTHING), Writer()
    monitor.log(0, writer)
    assert writer.scalars == {}
    train(model, loader_of(data))
    monitor.log(1, writer)
    first = monitor.statistics()[0]
    assert writer.scalars["histories/1/never_written", 1] == first.never > 0
    assert writer.scalars["histories/1/drift", 1] == first.drift
    assert writer.scalars["histories/2/median_age", 1] == monitor.statistics()[1].age()
    assert writer.scalars["histories/halo_ratio", 1] == monitor.halo_ratio
    train(model, loader_of(data))
    monitor.log(2, writer)
    assert writer.scalars["histories/1/never_written", 2] == 0  # all of them before
    assert writer.scalars["histories/1/drift", 2] != monitor.statistics()[0].drift


def test_warns_once_with_the_remedy() -> None:
    data = random_graph(N, 300)
    strict = Limits(drift=0.0, age=0.0, never=0.0)
    model = make()
    monitor = Monitor(model, every=1, limits=strict)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(model, loader_of(data), epochs=50)
    messages = [str(entry.message) for entry in caught]
    assert len(messages) == 3 and all(entry.category is UserWarning for entry in caught)
    assert "had never been written: fill the histories" in messages[0]
    assert "steps old in the median, though 2 steps see all nodes" in messages[1]
    assert "from one push to the next: refresh the histories" in messages[2]
    assert len(monitor.advice()) == 3 and str(monitor).count("\n! ") == 3


def test_training_as_usual_gives_no_warning() -> None:
    data, model = random_graph(N, 300), make()
    refresh(model, data)
    monitor = Monitor(model, every=1)
    train(model, loader_of(data), epochs=40, lr=0.01)
    assert monitor.advice() == []


def test_rows_that_are_left_out_are_noticed() -> None:
    """Where batches hold some nodes only, rows of the others become older and older."""
    data, model = random_graph(N, 300), make()
    refresh(model, data)
    monitor = Monitor(model, every=1, limits=Limits(drift=math.inf))
    batches: list[SubData] = [batch for batch in SubgraphLoader(data, PTR, 1) if int(batch.n_id[0]) == 0]
    with pytest.warns(UserWarning, match="rows pulled from history 1 are .* steps old"):
        train(model, batches, epochs=100)  # type: ignore[arg-type]
    assert monitor.statistics()[0].age(1.0) == 100
