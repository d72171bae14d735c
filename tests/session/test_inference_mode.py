"""What is made, moved or loaded under torch.inference_mode() is trained afterwards as if it had not been, or refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import random_graph
from nets import Net, assert_same, tables
from torch_geometric.nn import GCN, GraphSAGE

from torch_gas import EvalSubgraphLoader, FileTier, History, Monitor, SubgraphLoader, checkpoint, plan, scale
from torch_gas.models import GCN as Model

N = 60
PTR = torch.tensor([0, 14, 37, N])
Made = Callable[[AbstractContextManager[Any], Path], Any]


def data() -> Any:
    return random_graph(N, 240, seed=1)


def gcn() -> Any:
    torch.manual_seed(0)
    return GCN(8, 6, 3, 3)


def scaled(context: Any, path: Path) -> Any:
    model = gcn()
    with context:
        return scale(model, data())


def with_lazy_parameters(context: Any, path: Path) -> Any:
    torch.manual_seed(0)
    model = GraphSAGE(-1, 6, 2, 3)
    with context:
        return scale(model, data())


def tried_out_late(context: Any, path: Path) -> Any:
    torch.manual_seed(0)
    model = scale(GraphSAGE(8, 6, 3, 3), num_nodes=N).eval()
    with context:
        model(loader=EvalSubgraphLoader(data(), PTR))
    for history in model.histories:
        history.reset_parameters()  # of what differs in rounding
    return model


def in_files(context: Any, path: Path) -> Any:
    model = gcn()
    with context:
        return scale(model, data(), tier=FileTier(str(path / "histories")))


def cast(context: Any, path: Path) -> Any:
    torch.manual_seed(0)
    model = Net(N)
    with context:
        return model.double().float()


def resumed(context: Any, path: Path) -> Any:
    model = scaled(nullcontext(), path)
    optimizer = torch.optim.Adam(model.parameters())
    model(next(iter(SubgraphLoader(data(), PTR)))).sum().backward()
    optimizer.step()
    checkpoint.save(path / "run", model=model, optimizer=optimizer)
    with context:
        checkpoint.load(path / "run", model=model, optimizer=optimizer)
    optimizer.step()  # writes to what was loaded
    return model


@pytest.mark.parametrize("make", [scaled, with_lazy_parameters, tried_out_late, in_files, cast, resumed])
def test_training_afterwards(make: Made, tmp_path: Path) -> None:
    states = []
    for number, context in enumerate((nullcontext(), torch.inference_mode())):
        (tmp_path / str(number)).mkdir()
        model = make(context, tmp_path / str(number)).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for batch in SubgraphLoader(data(), PTR):
            optimizer.zero_grad()
            model(batch).square().sum().backward()
            optimizer.step()
        states.append(tables(model))
    assert_same(*states)


def test_a_history() -> None:
    with torch.inference_mode():
        history = History(N, 4)
        history.push(torch.ones(N, 4))
    history.push(torch.zeros(2, 4), torch.tensor([3, 5]))
    history.tick()
    assert not any(buffer.is_inference() for buffer in history.buffers())
    assert history.emb.sum() == 4 * (N - 2)


def test_parameters_that_cannot_be_trained() -> None:
    message = r"has parameters that were made, copied or loaded under torch.inference_mode\(\).*do that outside"
    batch = next(iter(SubgraphLoader(data(), PTR)))
    outside = scale(gcn(), data())
    with torch.inference_mode():
        with pytest.raises(RuntimeError, match=r"scale\(\): GCN " + message):
            scale(gcn(), data())
        models = [Net(N), copy.deepcopy(outside)]
        for model in models:
            model.eval()(batch)  # which is all that can be done with it
    for model, name in zip(models, ("Net", "GCN"), strict=True):
        before = tables(model)
        with pytest.raises(RuntimeError, match=f"{name} {message}"):
            model.train()(batch)
        assert_same(tables(model), before)


def test_a_history_that_is_cast_shared_or_copied() -> None:
    """A copy for a second pass shares the parameters, so that all else is as if it had been made outside."""
    model = Net(N)
    with torch.inference_mode():
        history = History(N, 4).double()
        other = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    history.reset_parameters()
    history.push(torch.ones(N, 4))
    for batch in SubgraphLoader(data(), PTR):
        other(batch).sum().backward()
        model(batch)
    assert_same(tables(other), tables(model))
    for each in (history, *other.histories):
        assert not any(buffer.is_inference() for buffer in each.buffers())
        assert each.table.storage is each.emb


def test_what_trains_beside() -> None:
    """Plans, bounds and gradients are those from outside."""
    model, loader = Model(N, 8, 6, 3, 3), SubgraphLoader(data(), PTR)
    for batch in loader:
        model(batch)
    monitor = Monitor(model)

    def found() -> tuple[Any, ...]:
        error = monitor.gradient_error(loader, lambda out, batch: out.square().sum())
        return plan(data(), model, device_memory="1 GiB").step_memory, monitor.bound(loader), error

    wanted = found()
    with torch.inference_mode():
        assert found() == wanted
