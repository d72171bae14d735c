"""Models inside of what runs them in several processes or on several devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch_geometric.nn as nn
from graphs import random_graph
from nets import Net
from torch.nn import Module, Sequential
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parallel.distributed import _MixedPrecision

from torch_gas import FileTier, SubgraphLoader, scale

# By torch 2.13, without a successor.
pytestmark = pytest.mark.filterwarnings("ignore:`broadcast_buffers` is deprecated")

N, C = 60, 8
HALF = _MixedPrecision(torch.float32, torch.float32, torch.float16)  # of parameters, reductions and buffers
PTR = torch.tensor([0, 14, 37, N])
DATA = random_graph(N, 240, num_features=C)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[None]:
    """The only process of a group."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def step(model: Any) -> None:
    batch, *ids = next(iter(SubgraphLoader(DATA, PTR)))
    model(batch.x, batch.edge_index, *ids).sum().backward()


MODELS: dict[str, Callable[[Path], Module]] = {
    "explicit": lambda path: Net(N),
    "in files": lambda path: Net(N, tier=FileTier(path / "tables")),
    "automatic": lambda path: scale(nn.GraphSAGE(C, 16, 2, 3, norm="BatchNorm"), DATA),
    "with tables": lambda path: scale(nn.GCN(C, 16, 2, 3, norm="BatchNorm"), DATA),
}


@pytest.mark.parametrize("name", MODELS)
def test_tables_are_not_sent_to_other_processes(name: str, tmp_path: Path, process: None) -> None:
    model = MODELS[name](tmp_path)
    parallel = DistributedDataParallel(model)
    step(parallel)
    sent = parallel.named_module_buffers
    assert [key for key in sent if "histories" in key or "table" in key] == []
    assert ("model.norms.0.module.running_mean" in sent) == isinstance(
        getattr(model, "model", None), nn.models.GraphSAGE | nn.GCN
    )


def test_tables_of_extensions_are_not_sent(process: None) -> None:
    model = Net(N)
    model.extension_tables["more"] = torch.nn.ModuleList([model._new_table(16, "more")])
    assert DistributedDataParallel(model).modules_buffers == []


def test_buffers_that_the_user_excludes_as_well(process: None) -> None:
    model = Net(N)
    model.register_buffer("own", torch.zeros(3))
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ["own"])
    assert DistributedDataParallel(model).modules_buffers == []


class Wrapper(Module):
    def __init__(self, model: Module) -> None:
        super().__init__()
        self.inner = Sequential(model)

    def forward(self, *args: Any) -> Any:
        return self.inner[0](*args)


def test_models_inside_of_others(process: None) -> None:
    for model in (Net(N), scale(nn.GraphSAGE(C, 16, 2, 3), DATA), Net(N, save_histories=False)):
        with pytest.raises(RuntimeError, match=r"overwrite the histories.*pass broadcast_buffers=False"):
            step(DistributedDataParallel(Wrapper(model)))
        assert not any((history.pushed_at >= 0).any() for history in model.histories)
        step(DistributedDataParallel(Wrapper(model), broadcast_buffers=False))
        step(model)


@pytest.mark.parametrize("name", MODELS)
def test_tables_are_not_cast_with_the_model(name: str, tmp_path: Path, process: None) -> None:
    model: Any = MODELS[name](tmp_path)
    DistributedDataParallel(model, mixed_precision=HALF)  # which runs on GPUs only
    history = model.histories[0]
    assert history.pushed_at.dtype == torch.int64 and history.emb.dtype == torch.float32
    assert not any(history.pushed_at.is_floating_point() for history in model._stores)


def test_tables_that_were_cast(process: None) -> None:
    parallel = DistributedDataParallel(Wrapper(Net(N)), broadcast_buffers=False, mixed_precision=HALF)
    message = r"Net is in a .* mixed_precision has cast .*wrap the model itself"
    with pytest.raises(RuntimeError, match=message), parallel._inside_ddp_forward():
        step(parallel.module.inner[0])


@pytest.mark.parametrize("to", ["half", "double", "bfloat16"])
def test_ages_stay_integers(to: str) -> None:
    model: Any = Net(N)
    model.histories[0].pushed_at.fill_(2**24 + 1)
    getattr(model, to)()
    assert model.histories[0].pushed_at.tolist() == [2**24 + 1] * N and model.histories[0].clock.dtype == torch.int64


def test_histories_that_come_later(process: None) -> None:
    parallel = DistributedDataParallel(scale(nn.GraphSAGE(C, 16, 2, 3, norm="BatchNorm"), num_nodes=N))
    with pytest.raises(RuntimeError, match=r"pass broadcast_buffers=False"):
        for _ in range(2):
            step(parallel)


def test_copies_on_several_devices() -> None:
    model = Net(N)
    with pytest.raises(RuntimeError, match=r"DataParallel runs copies of a model.*DistributedDataParallel"):
        model._replicate_for_data_parallel()
    step(DataParallel(model))  # on the CPU it is called as it is
