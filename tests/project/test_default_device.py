"""All works whatever the default device is: tensors are made on a device that is named, or that of another tensor."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import random_graph
from torch import Tensor
from torch.utils._device import _device_constructors
from torch_geometric.nn import GraphSAGE

import torch_gas
from torch_gas import (
    EvalSubgraphLoader,
    History,
    Monitor,
    SubgraphLoader,
    checkpoint,
    metis,
    permute,
    scale,
    store_features,
)
from torch_gas.models import GCN, PNA

# Functions of torch whose results are on the default device, unless they are told another one.
MAKERS = {function.__name__ for function in _device_constructors()} | {"from_file"}


def without_device(source: str) -> Iterator[int]:
    """The lines on which tensors are made on the default device."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "torch" and MAKERS & {each.name for each in node.names}:
            yield node.lineno  # by a name of its own, which nobody would find here
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        named = {keyword.arg for keyword in node.keywords}
        if ast.unparse(node.func.value) == "torch" and node.func.attr in MAKERS and "device" not in named:
            yield node.lineno


def test_devices_are_named() -> None:
    found = []
    for path in sorted(Path(torch_gas.__file__).parent.rglob("*.py")):
        found += [f"{path}:{line}" for line in without_device(path.read_text())]
    assert found == []


def test_a_device_that_is_not_named_is_found() -> None:
    assert list(without_device("x = f(torch.zeros(3))\ny = torch.arange(3, device='cpu')\nz = y.new_zeros(1)")) == [1]
    assert list(without_device("from torch import arange")) == [1]


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


def run(folder: Path, where: AbstractContextManager[Any]) -> list[Tensor]:
    """Most of what a script does. Modules are made before: they are where the user wants them."""
    torch.manual_seed(0)
    folder.mkdir()
    data = random_graph(60, 300)
    data.num_nodes = 60  # features in a file do not tell it
    degree = torch_gas.in_degree(data.edge_index, num_nodes=60)
    models: list[Any] = [
        GCN(60, 8, 16, 3, num_layers=3, dropout=0.5),
        PNA(60, 8, 16, 3, num_layers=2, aggregators=["mean"], scalers=["amplification"], deg=degree),
        GraphSAGE(8, 16, num_layers=3, out_channels=3, dropout=0.5),
    ]
    optimizers = [torch.optim.SGD(model.parameters(), 1e-5) for model in models]
    with where:
        perm, ptr = metis(data, 4, log=False, seed=0)
        metis(data, 4, log=False, seed=0, backend="stream")
        data = permute(data, perm, log=False)
        models[2] = scale(models[2], data)
        models[0].keep_hot(torch.arange(9, device="cpu"))
        data.x = store_features(data.x, folder / "x")
        loaders = [SubgraphLoader(data, ptr, shuffle=True), SubgraphLoader(data, ptr, batch_size=2, neighbors="both")]
        results = [perm, ptr]
        for model, optimizer in zip(models, optimizers, strict=True):
            monitor = Monitor(model, every=1)
            for loader in loaders:
                for batch in loader:
                    optimizer.zero_grad()
                    model(batch).square().mean().backward()
                    optimizer.step()
            model.eval()
            results += [model(loader=EvalSubgraphLoader(data, ptr)), torch.tensor(monitor.steps, device="cpu")]
        checkpoint.save(folder / "run", model=models[0], loader=loaders[0])
        checkpoint.load(folder / "run", model=models[0], loader=loaders[0])
        history = History(60, 8)
        history.push(torch.ones(60, 8, device="cpu"))
        return [*results, history.pull(ptr[:2]), history.age, *(each.emb.clone() for each in models[0].histories)]


@pytest.mark.slow
@pytest.mark.parametrize("where", [lambda: torch.device("meta"), lambda: default_device("meta")])
def test_a_run_is_the_same(where: Callable[[], AbstractContextManager[Any]], tmp_path: Path) -> None:
    wanted, given = run(tmp_path / "plain", nullcontext()), run(tmp_path / "other", where())
    assert all(map(torch.equal, given, wanted))


@pytest.mark.slow
def test_workers(tmp_path: Path) -> None:
    data = random_graph(60, 300)
    with torch.device("meta"):
        loader = SubgraphLoader(data, torch.tensor([0, 20, 60], device="cpu"), shuffle=True, num_workers=1)
        assert sorted(batch.batch_size for batch in loader) == [20, 40]
