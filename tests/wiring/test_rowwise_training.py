"""Models with row-wise code before their histories: saved, with dropout, and with exact gradients."""

from __future__ import annotations

import copy
import gc
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_geometric.nn as nn
from full_batch import compare, wired
from full_batch import graph as graph_of_exact
from plain_models import H
from rowwise_nets import PLACES, PTR, Layers, N, batches, close, dropped, graph, relu, steps
from torch import Tensor
from torch.nn import Module, ModuleList

from torch_gas import FileTier, ScaledGNN, checkpoint, scale
from torch_gas.graph import dropout as own

# -- other places ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("saved", "loaded"), [("outputs", "row-wise"), ("row-wise", "outputs"), ("row-wise", "cheap")])
def test_rows_behind_other_code_are_not_taken(saved: str, loaded: str, tmp_path: Path) -> None:
    data = graph()
    body = dropped if "cheap" in (saved, loaded) else relu
    other = "holds rows behind .* but this model pushes those behind"

    def scaled(places: str, **options: Any) -> ScaledGNN:
        return scale(Layers(body).eval(), data, places=places, **options)

    model = scaled(saved)
    model(data)
    state, rows = model.state_dict(), model.histories[0].emb
    checkpoint.save(tmp_path / "run", model=model)
    for target in (scaled(loaded), copy.deepcopy(scaled(loaded))):
        with pytest.raises(RuntimeError, match=other):
            target.load_state_dict(state)
        with pytest.raises(ValueError, match=other):
            checkpoint.load(tmp_path / "run", model=target)
        assert not target.histories[0].emb.any()
    for load in (lambda each: each.load_state_dict(state), lambda each: checkpoint.load(tmp_path / "run", model=each)):
        again = scaled(saved)
        load(again)
        assert torch.equal(again.histories[0].emb, rows)


@pytest.mark.parametrize(("saved", "loaded"), [("outputs", "row-wise"), ("row-wise", "outputs"), ("row-wise", "cheap")])
def test_files_of_other_code_are_not_reused(saved: str, loaded: str, tmp_path: Path) -> None:
    data = graph()
    body = dropped if "cheap" in (saved, loaded) else relu

    def scaled(places: str, reuse: bool = True) -> ScaledGNN:
        return scale(Layers(body).eval(), data, places=places, tier=FileTier(tmp_path, reuse=reuse))

    model = scaled(saved, reuse=False)
    model(data)
    rows = model.histories[0].pull(torch.arange(N)).clone()
    model.commit_histories()
    del model
    gc.collect()
    with pytest.raises(ValueError, match=r"holds rows behind .* but this model pushes those behind") as error:
        scaled(loaded)
    again = scaled(saved)  # while the error is still held
    assert torch.equal(again.histories[0].pull(torch.arange(N)), rows)
    del error


# -- dropout -----------------------------------------------------------------------------------------------------------


def random(m: Any, conv: Module, x: Tensor, e: Tensor, first: Tensor) -> Tensor:
    return F.dropout(conv(F.dropout(x, 0.3, m.training), e).relu(), 0.5, m.training)


def gat(left: int, right: int) -> Module:
    return nn.GATConv(left, right, dropout=0.3)


def trained(**options: Any) -> tuple[Tensor, ScaledGNN]:
    data = graph()
    model = scale(Layers(random, gat), data, **options).train()
    torch.manual_seed(7)
    return torch.cat([model(batch).detach() for batch in [*batches(data), *batches(data)]]), model


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("torch_dropout", [False, True])
def test_seeds_reproduce(places: str, torch_dropout: bool) -> None:
    rows, _ = trained(places=places, torch_dropout=torch_dropout)
    assert torch.equal(rows, trained(places=places, torch_dropout=torch_dropout)[0])
    assert not torch.equal(rows, trained(places=places, torch_dropout=not torch_dropout)[0])


def test_places_without_parameters_between_them_train_the_same() -> None:
    """It does not matter whether an activation runs before rows are pushed or after they were pulled."""
    data, found = graph(), []
    for places in PLACES:
        model = scale(Layers(random, gat), data, places=places).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        torch.manual_seed(7)
        for batch in [*batches(data), *batches(data)]:
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
        found.append(torch.nn.utils.parameters_to_vector(model.parameters()))
    outputs, rowwise, cheap = found
    close(outputs, rowwise)
    assert (cheap - rowwise).abs().max() > 1e-3


@pytest.mark.parametrize("torch_dropout", [False, True])
def test_who_draws(torch_dropout: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(own._Dropout, "forward", _noted(own._Dropout.forward, drawn))
    _, model = trained(torch_dropout=torch_dropout)
    assert len(drawn) == (0 if torch_dropout else 3 * 3 * 2 * len(PTR[1:]))  # attention's included
    drawn.clear()
    data, plain = graph(), Layers(random, gat).train()
    torch.manual_seed(1)
    want = plain(data.x, data.edge_index)
    torch.manual_seed(1)
    assert torch.equal(model.unscale().train()(data.x, data.edge_index), want)  # torch's again
    assert not drawn


def _noted(function: Any, calls: list[Any]) -> Any:
    def run(*args: Any) -> Any:
        calls.append(args)
        return function(*args)

    return staticmethod(run)


def test_masks_of_the_plain_model() -> None:
    data, plain = graph(), Layers(random)
    model = scale(copy.deepcopy(plain), data, torch_dropout=True).train()
    (everything,) = batches(data, torch.tensor([0, N]))
    torch.manual_seed(3)
    rows = model(everything)
    torch.manual_seed(3)
    close(rows, plain.train()(data.x, data.edge_index))


def test_exact_gradients_through_norms_before_histories() -> None:
    class Net(Layers):
        def __init__(self) -> None:
            super().__init__(lambda m, c, x, e, f: m.norms[[*m.convs].index(c)](c(x, e)).relu() + x)
            self.norms = ModuleList([torch.nn.BatchNorm1d(H) for _ in range(3)])

    data = graph_of_exact()
    del data.edge_weight, data.edge_attr
    for places in PLACES:
        model = wired(Net(), data, places=places)
        assert steps(model)[0] == (("batch_norm", "relu", "add") if places == "cheap" else ())
        compare(model, data)


def test_code_that_training_chooses_at_random_is_behind_the_place() -> None:
    """Or histories would hold rows of one kind or the other."""

    def body(m: Any, conv: Any, x: Any, e: Any, first: Any) -> Any:
        h = conv(x, e)
        return h.tanh() if m.training and bool(torch.rand(()) < 0.5) else h.relu()

    model = scale(Layers(body), graph()).train()
    assert steps(model) == [(), ()]
    for _ in range(5):
        for batch in batches(graph()):
            model(batch)


class _Dense(nn.MessagePassing):
    """Sums up the rows of a dense layer; a missing neighbour's are zeros."""

    def __init__(self, width: int) -> None:
        super().__init__(aggr="sum")
        self.lin = torch.nn.Linear(width, H)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.propagate(edge_index, x=self.lin(x))

    def message(self, x_j: Tensor) -> Tensor:
        return x_j.nan_to_num()


def test_a_layer_that_goes_on_with_rows_of_a_place_ends_a_segment() -> None:
    """Its rows of the halo are not there yet, and a norm behind it would count others."""

    class Net(Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = ModuleList([_Dense(8), _Dense(H), _Dense(H)])
            self.norms = ModuleList([torch.nn.BatchNorm1d(H), torch.nn.BatchNorm1d(H)])

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            for conv, norm in zip(self.convs, self.norms, strict=False):
                x = norm(conv(x, edge_index)).relu()
            return self.convs[2](x, edge_index)

    data = graph_of_exact()
    model = wired(Net(), data, places="cheap")
    assert [history.behind for history in model.histories] == ["linear"] + ["batch_norm, relu, linear"] * 2
    compare(model, data)
