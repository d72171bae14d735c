"""Calling a model: on a batch, on a graph, over a loader; and what an error leaves behind."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import FORMATS, adjacency, random_graph, to_format
from nets import Net, assert_same, batch_rows, full_batch, refresh, tables
from torch import Tensor
from torch_geometric.nn import GraphConv, SAGEConv

from torch_gas import AsyncIOPool, EvalSubgraphLoader, ScalableGNN, SubData, SubgraphLoader
from torch_gas.extensions.refresh import EveryEpochs

N = 60
PTR = torch.tensor([0, 13, 13, 29, 45, N])


def make(num_layers: int = 3, **kwargs: Any) -> Net:
    torch.manual_seed(0)
    return Net(N, num_layers=num_layers, **kwargs)


def train_step(model: torch.nn.Module, batch: SubData, optimizer: torch.optim.Optimizer) -> Tensor:
    optimizer.zero_grad()
    loss = F.cross_entropy(model(batch), batch.data.y[: batch.batch_size])
    loss.backward()
    optimizer.step()
    return loss.detach()


# -- three ways to call ----------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", FORMATS)
def test_three_ways_agree(fmt: str) -> None:
    data, model = to_format(random_graph(N, 300), fmt), make().eval()
    full = refresh(model, data)
    for batch in SubgraphLoader(data, PTR, 2, shuffle=True):
        by_hand = model(
            batch.data.x,
            adjacency(batch.data),
            batch.batch_size,
            batch.n_id,
            batch.offset,
            batch.count,
        )
        assert torch.equal(model(batch), by_hand)
        torch.testing.assert_close(by_hand, full[batch_rows(batch)], rtol=1e-5, atol=1e-5)
        without_ranges = model(batch.data.x, adjacency(batch.data), batch.batch_size, batch.n_id)
        assert torch.equal(without_ranges, by_hand)
    model.reset_parameters()
    out = model(loader=EvalSubgraphLoader(data, PTR, 2))
    torch.testing.assert_close(out, full, rtol=1e-5, atol=1e-5)


def test_adjacency_by_name() -> None:
    data, model = random_graph(N, 300), make().eval()
    batch = next(iter(SubgraphLoader(data, PTR, 2)))
    ids = dict(zip(("batch_size", "n_id", "offset", "count"), batch[1:], strict=True))
    for key in ("adj_t", "edge_index"):
        assert torch.equal(model(x=batch.data.x, **{key: batch.data.edge_index}, **ids), model(batch))


@pytest.mark.parametrize("training", [True, False])
def test_full_batch_call_refreshes_histories(training: bool) -> None:
    data, model = random_graph(N, 300), make()
    for history in model.histories:
        history.push(torch.randn(N, 16))
        history.tick()
    model.train(training)
    model(data.x, data.edge_index)
    x = model.convs[0](data.x, data.edge_index).relu()
    torch.testing.assert_close(model.histories[0].emb, x)
    x = model.convs[1](x, data.edge_index).relu()
    torch.testing.assert_close(model.histories[1].emb, x)
    assert all(history.age.tolist() == [0] * N for history in model.histories)


@pytest.mark.parametrize("fmt", FORMATS)
def test_another_graph_leaves_histories_alone(fmt: str) -> None:
    model, other = make().eval(), to_format(random_graph(25, 90), fmt)
    refresh(model, random_graph(N, 300))
    before = tables(model)
    out = model(other.x, adjacency(other))
    x = other.x
    for i, conv in enumerate(model.convs):
        x = conv(x, adjacency(other))
        x = x.relu() if i < 2 else x
    torch.testing.assert_close(out, x)
    assert_same(tables(model), before)


def test_histories_change_a_batch_and_are_changed_by_it() -> None:
    data, model = random_graph(N, 300), make().eval()
    refresh(model, data)
    batch = next(iter(SubgraphLoader(data, PTR, 1)))
    assert batch.halo_size > 0
    exact = model(batch)
    rows, others = batch_rows(batch), torch.ones(N, dtype=torch.bool)
    others[rows] = False
    for history in model.histories:
        history.emb.zero_()
    model.histories[1].emb[others] = 7
    stale = model(batch)
    assert not torch.allclose(stale, exact)
    first, second = (history.emb for history in model.histories)
    assert bool(first[rows].any()) and not first[others].any()
    assert bool((second[rows] != 7).any()) and bool((second[others] == 7).all())


def test_halo_carries_no_gradient_and_batch_does() -> None:
    data, model = random_graph(N, 300), make(2)
    refresh(model, data)
    batch = next(iter(SubgraphLoader(data, PTR, 1)))
    x = batch.data.x.requires_grad_()
    captured = []
    model.convs[1].register_forward_pre_hook(lambda conv, args: captured.append(args[0]))
    model(x, batch.data.edge_index, *batch[1:]).sum().backward()
    # The layer reads a pair: rows of batch and halo, and those of the batch.
    sources = captured[0][0] if isinstance(captured[0], tuple) else captured[0]
    assert sources.size(0) == batch.n_id.numel() and sources.requires_grad
    assert bool(x.grad.any())
    assert model.histories[0].emb.grad is None and not model.histories[0].emb.requires_grad


def test_ages_count_training_steps() -> None:
    data, model = random_graph(N, 300), make()
    loader = SubgraphLoader(data, PTR, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for batch in loader:
        train_step(model, batch, optimizer)
    for history in model.histories:
        ages = [int(history.age[int(batch.n_id[0])]) for batch in loader]
        assert ages == [3, 2, 1, 0]
    model.eval()
    with torch.no_grad():
        for batch in loader:
            model(batch)
    assert all(not history.age.any() for history in model.histories)
    assert all(int(history.clock) == 4 for history in model.histories)


def test_one_batch_trains_like_full_batch() -> None:
    data = random_graph(N, 300)
    (batch,) = SubgraphLoader(data, PTR, 10)
    models = [make(dropout=0.0) for _ in range(2)]
    optimizers = [torch.optim.Adam(model.parameters(), lr=0.01) for model in models]
    for _ in range(5):
        loss = train_step(models[0], batch, optimizers[0])
        optimizers[1].zero_grad()
        full = F.cross_entropy(models[1](data.x, data.edge_index), data.y)
        full.backward()
        optimizers[1].step()
        torch.testing.assert_close(loss, full.detach(), rtol=1e-5, atol=1e-6)
    for left, right in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


class Weighted(ScalableGNN):
    """Takes two further arguments, one of them with a default."""

    def __init__(self) -> None:
        super().__init__(N, 8, 2)
        self.convs = torch.nn.ModuleList([GraphConv(8, 8), GraphConv(8, 3)])

    def forward(self, x: Tensor, edge_index: Tensor, *args: Any, edge_weight: Tensor, scale: float = 1.0) -> Tensor:
        x = self.convs[0](x, edge_index, edge_weight).relu() * scale
        x = self.push_and_pull(self.histories[0], x, *args)
        return self.convs[1](x, edge_index, edge_weight)


def test_further_arguments() -> None:
    data = random_graph(N, 300)
    data.edge_weight = torch.rand(data.num_edges)
    torch.manual_seed(0)
    model = Weighted().eval()
    for batch in SubgraphLoader(data, PTR, 2):
        full = model(data.x, data.edge_index, edge_weight=data.edge_weight, scale=2.0)
        want = full[batch_rows(batch)]
        torch.testing.assert_close(model(batch, scale=2.0), want, rtol=1e-5, atol=1e-5)
        out = model(
            batch.data.x,
            batch.data.edge_index,
            *batch[1:],
            edge_weight=batch.data.edge_weight,
            scale=2.0,
        )
        torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(model(batch), want)
    out = model(loader=EvalSubgraphLoader(data, PTR))
    full = model(data.x, data.edge_index, edge_weight=data.edge_weight)
    torch.testing.assert_close(out, full, rtol=1e-5, atol=1e-5)


class Optional(Weighted):
    def forward(self, x: Tensor, edge_index: Tensor, *args: Any, edge_weight: Tensor | None = None) -> Tensor:
        return super().forward(x, edge_index, *args, edge_weight=edge_weight)


def trained(model: ScalableGNN, data: Any, **further: str) -> ScalableGNN:
    """After an epoch with what ``data`` holds under the names that ``further`` gives for ``forward``'s arguments."""
    for batch, *ids in SubgraphLoader(data, PTR, 2):
        model.train()(batch.x, batch.edge_index, *ids, **{name: batch[key] for name, key in further.items()})
    return model.eval()


def test_training_and_evaluation_are_given_the_same() -> None:
    data = random_graph(N, 300)
    data.edge_weight, data.weight = torch.rand(data.num_edges), torch.rand(data.num_edges)
    batch = next(iter(SubgraphLoader(data, PTR)))
    plain = random_graph(N, 300)
    plain.weight = data.weight
    for given, calls in {
        "no further arguments": [
            lambda model: model(loader=EvalSubgraphLoader(data, PTR)),
            lambda model: model(batch),
            lambda model: model(data.x, data.edge_index, edge_weight=data.edge_weight),
            lambda model: EveryEpochs().bind(model, EvalSubgraphLoader(data, PTR), data).after_epoch(),
        ],
        "edge_weight": [
            lambda model: model(data.x, data.edge_index),
            lambda model: model(batch.data.x, batch.data.edge_index, *batch[1:]),
            lambda model: model(loader=EvalSubgraphLoader(plain, PTR)),
        ],
    }.items():
        names = {} if given == "no further arguments" else {"edge_weight": "weight"}
        for call in calls:
            model = trained(Optional(), data, **names)
            with pytest.raises(
                ValueError, match=f"Optional was trained with {given}, but is evaluated with .*None for it"
            ):
                call(copy.deepcopy(model))
            model.train()(data.x, data.edge_index, edge_weight=None if names else data.edge_weight)
            call(model.eval())  # which is what it was trained with last


def test_arguments_of_training_alone() -> None:
    class Noisy(Optional):
        def inputs(self, data: Any, **kwargs: Any) -> Any:
            args, kwargs = super().inputs(data, **kwargs)
            return args, {**kwargs, "edge_weight": None}

    data = random_graph(N, 300)
    data.weight = torch.rand(data.num_edges)
    model = trained(Noisy(), data, edge_weight="weight")
    out = model(loader=EvalSubgraphLoader(data, PTR))
    torch.testing.assert_close(out, model(data.x, data.edge_index, edge_weight=None), rtol=1e-5, atol=1e-5)


# -- construction ----------------------------------------------------------------------------------


def test_a_width_for_each_history() -> None:
    data, model = random_graph(N, 300), make(widths=[5, 9]).eval()
    assert [history.embedding_dim for history in model.histories] == [5, 9]
    out = model(loader=EvalSubgraphLoader(data, PTR))
    torch.testing.assert_close(out, full_batch(model, data), rtol=1e-5, atol=1e-5)


def test_one_layer_has_no_history() -> None:
    data, model = random_graph(N, 300), make(1).eval()
    assert len(model.histories) == 0 and model.emb_device.type == "cpu"
    full = model(data.x, data.edge_index)
    for batch in SubgraphLoader(data, PTR, 2):
        torch.testing.assert_close(model(batch), full[batch_rows(batch)], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(loader=EvalSubgraphLoader(data, PTR)), full, rtol=1e-5, atol=1e-5)


def test_state_dict_keys() -> None:
    model = make(2)
    state = [f"histories.0.{key}" for key in ("emb", "pushed_at", "clock")]
    parameters = [key for key, _ in model.named_parameters()]
    assert list(model.state_dict()) == [*state, *parameters]
    assert not any(key.startswith("histories") for key in parameters)


def test_reset_parameters_forgets() -> None:
    model = make()
    refresh(model, random_graph(N, 300))
    model.reset_parameters()
    assert all(not h.emb.any() and bool((h.age == -1).all()) for h in model.histories)


# -- moving and copying ----------------------------------------------------------------------------


def test_types_of_a_model() -> None:
    data = random_graph(N, 300)
    model = make().double().eval()
    assert model.to("cpu") is model and model.device == model.pool.device == torch.device("cpu")
    assert all(history.emb.dtype == torch.float64 for history in model.histories)
    data.x = data.x.double()
    full = refresh(model, data)
    for batch in SubgraphLoader(data, PTR, 2):
        torch.testing.assert_close(model(batch), full[batch_rows(batch)], rtol=1e-12, atol=1e-12)
    stored = make(history_dtype=torch.bfloat16).eval()
    assert all(history.emb.dtype == torch.bfloat16 for history in stored.histories)
    data.x = data.x.float()
    full = refresh(stored, data)
    for batch in SubgraphLoader(data, PTR, 2):
        out = stored(batch)
        assert out.dtype == torch.float32
        torch.testing.assert_close(out, full[batch_rows(batch)], rtol=0.05, atol=0.05)


@pytest.mark.parametrize(("dtype", "eps"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8), (torch.int8, 2**-7)])
def test_batches_are_off_by_what_the_storage_type_rounds(dtype: torch.dtype, eps: float) -> None:
    """Each of three histories moves a row by at most ``eps`` of its largest number; what is pushed is exact."""
    data, model = random_graph(N, 300), make(history_dtype=dtype).eval()
    exact = copy.deepcopy(model)
    full = refresh(exact, data)
    refresh(model, data)
    errors = []
    for batch in SubgraphLoader(data, PTR, 2):
        out = model(batch).detach()
        errors.append((out - full[batch_rows(batch)]).abs().max() / full.abs().max())
    assert 0 < float(max(errors)) < 8 * eps
    whole, same = SubgraphLoader(data, torch.tensor([0, N]), 1), make().eval()
    for batch in whole:  # no halo: nothing is read
        assert torch.equal(model(batch), same(batch))


def test_autocast() -> None:
    data, model = random_graph(N, 300), make()
    refresh(model, data)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for batch in SubgraphLoader(data, PTR, 2):
        exact = model.eval()(batch)
        model.train()
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(batch)
            loss = F.cross_entropy(out.float(), batch.data.y[: batch.batch_size])
        loss.backward()
        optimizer.step()
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out.float(), exact, rtol=0.05, atol=0.05)
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert all(history.emb.dtype == torch.float32 for history in model.histories)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_trains_on_as_the_original(duplicate: Callable[[Net], Net]) -> None:
    data = random_graph(N, 300)
    loader = SubgraphLoader(data, PTR, 1)
    model = make()
    for batch in loader:
        train_step(model, batch, torch.optim.SGD(model.parameters(), lr=0.1))
    twin = duplicate(model)
    assert_same(tables(twin), tables(model))
    before = tables(twin)
    losses = [
        [train_step(m, batch, torch.optim.SGD(m.parameters(), lr=0.1)) for batch in loader] for m in (model, twin)
    ]
    assert losses[0] == losses[1]
    assert_same(tables(twin), tables(model))
    assert not torch.equal(tables(twin)["histories.0.emb"], before["histories.0.emb"])


def test_two_models_share_a_loader() -> None:
    data = random_graph(N, 300)
    shared = SubgraphLoader(data, PTR, 1)
    models = [make(), make(num_layers=2)]
    together: list[list[Tensor]] = [[], []]
    for batch in shared:
        for losses, model in zip(together, models, strict=True):
            losses.append(train_step(model, batch, torch.optim.SGD(model.parameters(), lr=0.1)))
    for losses, model in zip(together, [make(), make(num_layers=2)], strict=True):
        loader = SubgraphLoader(data, PTR, 1)
        alone = [train_step(model, b, torch.optim.SGD(model.parameters(), lr=0.1)) for b in loader]
        assert losses == alone


# -- hooks and errors ------------------------------------------------------------------------------


def test_users_hooks_fire() -> None:
    data, model = random_graph(N, 300), make().eval()
    fired: list[str] = []
    model.register_forward_pre_hook(lambda *_: fired.append("before"))
    model.register_forward_hook(lambda *_: fired.append("after"))
    model.convs[0].register_forward_hook(lambda m, args, out: fired.append(f"conv {out.size(0)}"))
    batch = next(iter(SubgraphLoader(data, PTR, 1)))
    model(batch)
    # A hook that was there first sees what the layer itself returned.
    assert fired == ["before", f"conv {batch.batch_size}", "after"]
    fired.clear()
    model(data.x, data.edge_index)
    assert fired == ["before", f"conv {N}", "after"]


def test_no_hook_is_left_behind() -> None:
    data, model = random_graph(N, 300), make().eval()
    for batch in SubgraphLoader(data, PTR, 1):
        model(batch)
    model(loader=EvalSubgraphLoader(data, PTR))
    for conv in model.convs:
        assert not conv._forward_hooks and not conv._forward_pre_hooks
        assert "forward" not in conv.__dict__


class Fragile(torch.nn.Module):
    """A convolution that fails when it is told to."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv, self.fail = SAGEConv(in_channels, out_channels), False

    def forward(self, x: Tensor, adj: Any) -> Tensor:
        if self.fail:
            raise OSError("out of luck")
        return self.conv(x, adj)


def test_an_error_in_forward_leaves_a_model_that_works() -> None:
    """Histories before the failing layer are pushed, those behind are not; clocks have ticked."""
    data = random_graph(N, 300)
    loader = SubgraphLoader(data, PTR, 1)
    model = make(conv=Fragile)
    refresh(model, data)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in loader:
        train_step(model, batch, optimizer)
    twin = copy.deepcopy(model)
    before = tables(model)
    batch = next(iter(loader))
    rows = batch_rows(batch)

    model.convs[1].fail = True
    with pytest.raises(OSError, match="out of luck"):
        model(batch)
    model.convs[1].fail = False
    after = tables(model)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {
        "histories.0.emb", "histories.0.pushed_at", "histories.0.clock", "histories.1.clock"
    }  # fmt: skip
    untouched = torch.ones(N, dtype=torch.bool)
    untouched[rows] = False
    assert torch.equal(before["histories.0.emb"][untouched], after["histories.0.emb"][untouched])
    assert not any(conv.conv._forward_hooks for conv in model.convs)

    # The same batch again pushes the same rows, so the run goes on as one without the failure.
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, twin)]
    for batch in loader:
        losses = [train_step(m, batch, opt) for m, opt in zip((model, twin), optimizers, strict=True)]
        assert losses[0] == losses[1]
    left, right = tables(model), tables(twin)
    for key in left:
        if not key.endswith(("clock", "pushed_at")):
            assert torch.equal(left[key], right[key]), key


def test_a_model_cannot_run_inside_itself() -> None:
    data = random_graph(N, 300)

    class Recursive(Net):
        def forward(self, x: Tensor, adj: Any, *args: Any) -> Tensor:
            return self(x, adj, *args)

    model = Recursive(N)
    with pytest.raises(RuntimeError, match="Recursive was called inside its own forward"):
        model(data.x, data.edge_index)
    assert model._session.call is None


def test_two_models_one_in_the_other() -> None:
    data = random_graph(N, 300)

    class Outer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = make(), make(num_layers=2)

        def forward(self, batch: SubData) -> Tensor:
            return self.left(batch) + self.right(batch)

    model = Outer().eval()
    full = refresh(model.left, data) + refresh(model.right, data)
    for batch in SubgraphLoader(data, PTR, 2):
        torch.testing.assert_close(model(batch), full[batch_rows(batch)], rtol=1e-5, atol=1e-5)


def test_histories_serve_the_device_of_the_parameters() -> None:
    """Parameters can move without the histories being told, as by ``torch.load`` with a map."""
    data = random_graph(40, 200)
    model = Net(40).eval()
    model(data.x, data.edge_index)
    model.histories[0].use(AsyncIOPool(device="meta"))
    model(data.x, data.edge_index)
    assert {history.compute_device for history in model.histories} == {torch.device("cpu")}


def test_the_clock_stays_on_the_host() -> None:
    with torch.device("meta"):
        assert Net(40).histories[0].clock.device == torch.device("cpu")
