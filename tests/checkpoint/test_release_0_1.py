"""Files of release 0.1 are read with the same values; they are told their graph once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.nn import GCN

from torch_gas import (
    EvalSubgraphLoader,
    FileTier,
    History,
    Monitor,
    SubgraphLoader,
    checkpoint,
    load_partition,
    permute,
    scale,
)
from torch_gas.extensions.refresh import EveryEpochs
from torch_gas.graph.key import graph_key
from torch_gas.models import SAGE

FILES = Path(__file__).parents[1] / "data" / "release_0_1"
EXPECTED = torch.load(FILES / "expected.pt", weights_only=True)
N, C = 24, 4
ASKS = "does not tell of which graph"


def make_data() -> Data:
    """As in make.py."""
    node = torch.arange(N)
    edge_index = torch.cat([torch.stack([node, (node + step) % N]) for step in (1, 5)], dim=1)
    x = torch.stack([(node * k % 7).float() / 7 for k in (1, 2, 3)], dim=1)
    data = Data(x=x, edge_index=torch.cat([edge_index, edge_index.flip(0)], dim=1))
    return permute(data, EXPECTED["perm"], log=False)


DATA = make_data()
KEY = graph_key(DATA.edge_index, N, DATA.perm)


def sage(**options: Any) -> SAGE:
    return SAGE(N, 3, C, 2, num_layers=3, **options)


def step(model: Any) -> None:
    model.train()
    model(next(iter(SubgraphLoader(DATA, EXPECTED["ptr"], 2))))


def test_a_partition() -> None:
    perm, ptr = load_partition(FILES / "partition.npz", num_nodes=N)
    assert torch.equal(perm, EXPECTED["perm"]) and torch.equal(ptr, EXPECTED["ptr"])


@pytest.mark.parametrize("name", ["run", "histories"])
def test_checkpoints(name: str, tmp_path: Path) -> None:
    def load(model: SAGE, path: Path, graph: Data | None = None) -> None:
        if name == "histories":
            return model.load_histories(path, graph=graph)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        assert checkpoint.load(path, model=model, optimizer=optimizer, graph=graph)["epoch"] == 1
        torch.testing.assert_close(sage_output(model), EXPECTED["output"])
        checkpoint.load(path, model=model, optimizer=optimizer, graph=graph)

    def sage_output(model: SAGE) -> torch.Tensor:
        if graph_is_known:
            return model.eval()(loader=EvalSubgraphLoader(DATA, EXPECTED["ptr"], 2))
        return EXPECTED["output"]

    graph_is_known, model = False, sage()
    load(model, FILES / f"{name}.safetensors")
    for number, history in enumerate(model.histories):  # which may be read by hand
        assert torch.equal(history.pull(), EXPECTED[f"history_{number}"])
        assert torch.equal(history.age, EXPECTED[f"age_{number}"])
    with pytest.raises(ValueError, match=rf"{name}.safetensors {ASKS}.*graph=data"):
        step(model)

    graph_is_known, model = True, sage()
    load(model, FILES / f"{name}.safetensors", DATA)
    assert all(history.origin.key == KEY for history in model.histories)
    assert torch.equal(model.histories[1].pull(), EXPECTED["history_1"])
    path = tmp_path / f"{name}.safetensors"
    if name == "run":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        checkpoint.save(path, model=model, optimizer=optimizer, epoch=1)
    else:
        model.save_histories(path)
    model = sage()
    load(model, path)
    assert torch.equal(model.histories[0].pull(), EXPECTED["history_0"])
    step(model)


def test_a_loader_a_monitor_and_a_refresher() -> None:
    """Their classes lie in other modules now."""
    model = sage()
    loader = SubgraphLoader(DATA, EXPECTED["ptr"], 2, shuffle=True, seed=3)
    monitor, refresher = Monitor(model, every=1), EveryEpochs(2).bind(model, loader)
    path = FILES / "objects.safetensors"
    checkpoint.load(path, model=model, loader=loader, monitor=monitor, refresher=refresher, graph=DATA)
    assert [layer.pulled for layer in monitor.statistics()] == EXPECTED["pulled"].tolist()
    assert (refresher.steps, refresher.epochs) == (2, 1)
    order = torch.cat([batch.n_id[: batch.batch_size] for batch in loader])
    assert torch.equal(order, EXPECTED["next_epoch"])
    step(model)


def test_histories_of_a_scaled_model() -> None:
    model = scale(GCN(3, C, 2, out_channels=2), DATA)
    with pytest.raises(ValueError, match=r"rows behind a convolution, but this model .*relu; .*places=.*outputs"):
        model.load_histories(FILES / "scaled.safetensors", graph=DATA)
    model = scale(GCN(3, C, 2, out_channels=2), DATA, places="outputs")
    model.load_histories(FILES / "scaled.safetensors", graph=DATA)
    assert torch.equal(model.histories[0].pull(), EXPECTED["scaled"])
    step(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_tables(dtype: torch.dtype, tmp_path: Path) -> None:
    name = str(dtype).removeprefix("torch.")
    path = tmp_path / "history_0.table"
    shutil.copy(FILES / f"{name}.table", path)
    history = History(N, C, dtype=dtype, tier=FileTier(path, reuse=True))  # which may be read by hand
    assert torch.equal(history.pull(), EXPECTED[name]) and torch.equal(history.age, EXPECTED[f"{name}_age"])
    del history

    make = lambda **options: SAGE(  # noqa: E731  # it is called three times
        N, 3, C, 2, num_layers=2, history_dtype=dtype, tier=FileTier(tmp_path, reuse=True, **options)
    )
    with pytest.raises(ValueError, match=rf"history_0.table {ASKS}.*graph=data"):
        step(make())
    model = make(graph=DATA)
    assert torch.equal(model.histories[0].pull(), EXPECTED[name])
    del model
    model = make()  # which knows it now, though nothing was committed
    assert model.histories[0].origin.key == KEY and model.histories[0].table.header.committed
    step(model)
