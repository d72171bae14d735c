"""Gradient tables are tables of an extension: in every tier, beside histories of every type, in copies and checkpoints."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from graphs import random_graph
from interrupts import interrupt_after, interrupt_at
from nets import Net, assert_same, tables
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch_geometric.data import Data
from torch_geometric.nn import GraphSAGE

import torch_gas
from torch_gas import FileTier, SubData, SubgraphLoader, checkpoint, scale
from torch_gas.exact import DropoutById, ExactGradient
from torch_gas.table import FileTable
from torch_gas.wiring.compiled import OLDEST

N = 60
DATA, PTR = random_graph(N, 300), torch.arange(0, N + 1, 12)
KINDS = ["explicit", "scaled"]


@pytest.fixture(autouse=True)
def random_states() -> Iterator[None]:
    """Loading a checkpoint sets all random states, which other tests must not see."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(before[0])
    np.random.set_state(before[1])
    torch.set_rng_state(before[2])


def make(kind: str, dropout: float = 0.0, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    if kind == "explicit":
        return Net(N, 16, 3, dropout=dropout, **kwargs)
    return scale(GraphSAGE(8, 16, 3, 3, norm="batch_norm", dropout=dropout), DATA, **kwargs)


def loader_of(data: Data = DATA, **kwargs: Any) -> SubgraphLoader:
    return SubgraphLoader(data, PTR, 2, **kwargs)


def summed(out: Tensor, batch: SubData) -> Tensor:
    return F.cross_entropy(out, batch.y[: len(out)], reduction="sum")


def gradient(model: Any) -> Tensor:
    """The gradient that a model has, which is then without one."""
    found = torch.cat([parameter.grad.double().flatten() for parameter in model.parameters()])
    model.zero_grad()
    return found


def full(model: Any, data: Data = DATA) -> Tensor:
    """The gradient of the full batch."""
    twin = copy.deepcopy(model)
    twin.zero_grad()
    summed(twin._on_graph(data), data).backward()  # type: ignore[arg-type]
    return gradient(twin)


def exact(model: Any, data: Data = DATA) -> Tensor:
    ExactGradient(model, loader_of(data)).backward(summed)
    return gradient(model)


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def of_gradients(model: Any) -> list[Any]:
    return list(model.extension_tables["exact_gradient"])


# -- types and tiers -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("dtype", "bound"),
    [
        (None, 1e-6),
        (torch.float64, 1e-6),
        (torch.float16, 2e-3),
        (torch.bfloat16, 0.06),
        (torch.int8, 0.2),
        (torch.float8_e4m3fn, 0.25),
        (torch.float8_e5m2, 0.35),
    ],
)
def test_storage_types(kind: str, dtype: torch.dtype | None, bound: float) -> None:
    """Rows are rounded as the histories' type does it, and gradients are not."""
    model = make(kind, history_dtype=dtype).train()
    assert distance(exact(model), full(model)) < bound
    assert {table.table.dtype for table in of_gradients(model)} == {torch.float32}
    assert not any(table.pull().any() for table in of_gradients(model))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tier", ["host", "pinned", "file"])
def test_tiers_give_the_same_bits(kind: str, tier: str, tmp_path: Path) -> None:
    model, other = make(kind).train(), make(kind, tier=FileTier(tmp_path) if tier == "file" else tier).train()
    wanted = full(model)
    for _ in range(2):
        found = exact(other)
        assert torch.equal(found, exact(model)) and distance(found, wanted) < 1e-6
        other.commit_histories()
    assert {table.tier for table in of_gradients(other)} == {"file" if tier == "file" else "host"}


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_tables_in_files_leave_none_behind(kind: str, tmp_path: Path) -> None:
    """Their files have no name: a copy, other types of numbers and the next run have their own."""
    model = make(kind, tier=FileTier(tmp_path)).train()
    gradients = ExactGradient(model, loader_of())
    assert sorted(os.listdir(tmp_path)) == ["history_0.table", "history_1.table"]
    wanted = exact(model)
    gradients.remove()
    assert torch.equal(exact(model), wanted)
    twin = copy.deepcopy(model)
    assert torch.equal(exact(twin), wanted)
    assert {table.tier for table in of_gradients(twin)} == {"host"}
    double = copy.copy(DATA)
    double.x = DATA.x.double()
    model.double()
    assert distance(exact(model, double), full(model, double)) < 1e-6  # histories in files stay as they are
    assert {table.table.dtype for table in of_gradients(model)} == {torch.float64}
    model.commit_histories()
    del model, gradients, twin
    gc.collect()
    again = make(kind, tier=FileTier(tmp_path, reuse=True)).train()
    assert torch.equal(exact(again), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_hot_rows(kind: str) -> None:
    model, hot = make(kind).train(), make(kind).train()
    gradients = ExactGradient(hot, loader_of())
    hot.keep_hot(torch.arange(0, N, 3))
    for _ in range(2):
        gradients.backward(summed)
        found = gradient(hot)
        assert torch.equal(found, exact(model)) and distance(found, full(model)) < 1e-6


# -- copies, casts, checkpoints --------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_have_tables_of_their_own(kind: str, how: Callable[[Any], Any]) -> None:
    model = make(kind).train()
    wanted, before = exact(model), {id(table) for table in of_gradients(model)}
    twin = how(model)
    assert len(twin.extensions) == 1 and not before & {id(table) for table in of_gradients(twin)}
    of_gradients(model)[0].table.add(torch.tensor([1]), torch.ones(1, 16))  # of which the copy knows nothing
    assert torch.equal(exact(twin), wanted)
    assert len(twin.extensions) == 1
    assert torch.equal(exact(model), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_of_exact_gradient_is_that_of_its_own_model(kind: str) -> None:
    model = make(kind).train()
    gradients = ExactGradient(model, loader_of())
    gradients.backward(summed)
    wanted, twin = gradient(model), copy.deepcopy(gradients)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert twin.model is not model
    twin.backward(summed)
    assert torch.equal(gradient(twin.model), wanted)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-12), (torch.float16, 5e-3), (torch.bfloat16, 0.2), (torch.float32, 1e-6)]
)
def test_the_same_gradients_after_a_cast(kind: str, dtype: torch.dtype, bound: float) -> None:
    model, data = make(kind).train(), copy.copy(DATA)
    gradients = ExactGradient(model, loader_of(data))
    gradients.backward(summed)
    model.to(dtype).zero_grad()
    data.x = data.x.to(dtype)
    gradients.backward(summed)
    assert distance(gradient(model), full(model, data)) < bound
    wide = torch.promote_types(dtype, torch.float32)
    assert {table.table.dtype for table in of_gradients(model)} == {wide}


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_hold_no_gradient_tables(kind: str, tmp_path: Path) -> None:
    model = make(kind)
    checkpoint.save(tmp_path / "without", model=model)
    gradients = ExactGradient(model, loader_of())
    checkpoint.save(tmp_path / "with", model=model)
    assert (tmp_path / "with").stat().st_size == (tmp_path / "without").stat().st_size
    model.save_histories(tmp_path / "histories")
    assert not any("exact_gradient" in name for name in model.state_dict())
    other = make(kind)
    for name in ("with", "without"):
        checkpoint.load(tmp_path / name, model=other)  # without gradient tables
        checkpoint.load(tmp_path / name, model=model)  # and with some
    model.load_histories(tmp_path / "histories")
    other.load_histories(tmp_path / "histories")
    gradients.backward(summed)
    assert distance(gradient(model), full(model.train())) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_bit_for_bit(kind: str, tmp_path: Path) -> None:
    """With masks of dropout, running statistics, Adam, and batches between steps."""

    def begin(seed: int) -> tuple[Any, ...]:
        model = make(kind, dropout=0.5)
        model.add_extension(DropoutById(seed=seed))
        loader = loader_of(shuffle=True, seed=1)
        return model, torch.optim.Adam(model.parameters()), loader, ExactGradient(model, loader)

    def steps(run: tuple[Any, ...]) -> list[Tensor]:
        model, optimizer, loader, gradients = run
        losses = []
        for batch in loader:
            for loss in (lambda: gradients.backward(summed), lambda: summed(model(batch), batch).backward()):  # noqa: B023  # called before the batch changes
                optimizer.zero_grad()
                losses.append(loss())
                optimizer.step()
        return [loss for loss in losses if loss is not None]

    def state(run: tuple[Any, ...]) -> dict[str, Any]:
        return dict(zip(("model", "optimizer", "loader"), run, strict=False))

    one = begin(seed=3)
    steps(one)
    checkpoint.save(tmp_path / "run", **state(one))
    wanted = steps(one)
    other = begin(seed=4)
    checkpoint.load(tmp_path / "run", **state(other))
    assert torch.equal(torch.stack(steps(other)), torch.stack(wanted))
    assert_same(tables(one[0]), tables(other[0]))
    (masks,) = (each for each in other[0].extensions if isinstance(each, DropoutById))
    assert (masks.seed, masks.step) == (3, 12)


# -- Ctrl-C ----------------------------------------------------------------------------------------

ROUNDS = int(os.environ.get("TORCH_GAS_INTERRUPTS", 40))
ROOT = Path(torch_gas.__file__).parent
FILES: set[str | None] = {
    *map(str, (ROOT / "exact").glob("*.py")),
    *(
        str(ROOT / name)
        for name in ("table/file.py", "table/outbox.py", "wiring/statistics.py", "session/inference.py")
    ),
}


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # where open() itself is interrupted
@pytest.mark.parametrize("kind", ["explicit", "scaled", "file"])
def test_interrupts_at_any_moment(kind: str, tmp_path: Path) -> None:
    """They change no gradient, buffer, mode or mask; the next step is right, and files are free for the next model."""
    tier = {"tier": FileTier(tmp_path)} if kind == "file" else {}
    wired = "scaled" if kind == "scaled" else "explicit"
    model = make(wired, dropout=0.5, **tier).train()
    masks = DropoutById(seed=1)
    model.add_extension(masks)
    state, rng = {key: value for key, value in tables(model).items() if "histories" not in key}, random.Random(kind)
    wanted, masks.step = exact(model), 0
    interrupted, number = 0, 0
    for _ in range(ROUNDS):
        model.load_state_dict(state, strict=False)
        gradients = ExactGradient(model, loader_of())

        def work(gradients: ExactGradient = gradients) -> None:
            gradients.backward(summed)

        number += rng.randrange(1, 100)
        if rng.random() < 0.5:
            ended = interrupt_at(number, FILES, work)
        else:
            ended = interrupt_after(rng.uniform(1e-4, 0.1), work, times=rng.choice((1, 2)))
        if not ended:
            number = 0
        elif all(parameter.grad is None for parameter in model.parameters()):  # else it came when all was done
            interrupted += 1
            assert masks.step == 0 and model.training and all(module.training for module in model._plain.modules())
            assert_same(state, {key: value for key, value in tables(model).items() if key in state})
            work()
            assert torch.equal(gradient(model), wanted)
        model.zero_grad()
        masks.step = 0
    assert interrupted > ROUNDS // 4
    if kind == "file":
        model.commit_histories()
        del model, gradients, work
        gc.collect()
        again = make(wired, dropout=0.5, tier=FileTier(tmp_path, reuse=True)).train()
        again.add_extension(DropoutById(seed=1))
        assert torch.equal(exact(again), wanted)


def test_a_second_interrupt_leaves_no_model_in_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first comes while layers are tried out, in evaluation mode, and the second while that is put back."""
    model = make("scaled").train()
    wanted = exact(model)
    gradients = ExactGradient(model, loader_of())

    @contextmanager
    def interrupted(model: Any) -> Iterator[None]:
        model.eval()
        yield
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("torch_gas.exact.gradient.undisturbed", interrupted)
        gradients.backward(summed)
    assert model.training and all(module.training for module in model._plain.modules())
    gradients.backward(summed)
    assert torch.equal(gradient(model), wanted)


# -- whatever else is around -----------------------------------------------------------------------


class Mine(SubgraphLoader):
    """Whose batches are taken as they are."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [{"prefetch": 2}, {"shuffle": True}, {"device": "cpu"}, pytest.param({"num_workers": 1}, marks=pytest.mark.slow)],
)
def test_loaders(kind: str, options: dict[str, Any]) -> None:
    model = make(kind).train()
    wanted = full(model)
    for loader in (loader_of(**options), Mine(DATA, PTR, 2, **options)):
        ExactGradient(model, loader).backward(summed)
        assert distance(gradient(model), wanted) < 1e-6


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("where", [lambda: torch.device("meta"), lambda: default_device("meta")])
@pytest.mark.parametrize("kind", KINDS)
def test_default_devices(kind: str, where: Callable[[], AbstractContextManager[Any]]) -> None:
    model, other = make(kind, dropout=0.5).train(), make(kind, dropout=0.5).train()
    torch.manual_seed(1)  # from which seeds of masks are drawn
    wanted = exact(model)
    torch.manual_seed(1)
    with where():
        found = exact(other)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast(kind: str) -> None:
    model = make(kind).train()
    gradients = ExactGradient(model, loader_of())
    with torch.autocast("cpu", torch.bfloat16):
        gradients.backward(summed)
        found, wanted = gradient(model), full(model)
    assert distance(found, wanted) < 0.05
    assert distance(found, full(model)) > 1e-4  # it did compute in that type
    gradients.backward(summed)
    assert distance(gradient(model), full(model)) < 1e-6


@pytest.mark.skipif(torch.__version__ < OLDEST, reason="torch.compile of models needs a newer version")
@pytest.mark.slow
def test_compiled_models_and_modules() -> None:
    """Compiled code runs as it was written."""
    model = make("explicit").train()
    wanted = full(model)
    compiled = torch.compile(model, backend="eager")
    ExactGradient(compiled, loader_of()).backward(summed)
    assert distance(gradient(model), wanted) < 1e-6
    for conv in model.convs:
        conv.lin_l.compile(backend="eager")
    assert distance(exact(model), wanted) < 1e-6


def test_processes(tmp_path: Path) -> None:
    """Each computes the gradient of its own graph, of the model itself."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        model = make("scaled").train()
        wanted = full(model)
        parallel = DistributedDataParallel(model)
        with pytest.raises(TypeError, match=r"DistributedDataParallel.*pass the module"):
            ExactGradient(parallel, loader_of())
        ExactGradient(parallel.module, loader_of()).backward(summed)
        assert distance(gradient(model), wanted) < 1e-6
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_processes_that_share_histories_have_gradient_tables_of_their_own() -> None:
    """Both write the same rows, and sums of both would be of neither."""
    model = make("explicit").train()
    wanted = exact(model)
    model.share_memory()
    context = multiprocessing.get_context("fork")
    done = [context.Queue() for _ in range(2)]
    processes = [context.Process(target=add_up, args=(model, each)) for each in done]
    for process in processes:
        process.start()
    for each in done:
        assert all(torch.equal(torch.tensor(found), wanted) for found in each.get(timeout=120))
    for process in processes:
        process.join()


def add_up(model: Any, done: Any) -> None:
    torch.set_num_threads(1)
    done.put([exact(model).tolist() for _ in range(10)])


def test_a_model_without_data_is_tried_out_on_the_loaders_graph() -> None:
    torch.manual_seed(0)
    model = scale(GraphSAGE(8, 16, 3, 3), num_nodes=N).train()
    gradients = ExactGradient(model, loader_of())
    assert len(model.histories) == len(of_gradients(model)) == 2
    gradients.backward(summed)
    assert distance(gradient(model), full(model)) < 1e-6


def test_files_of_gradients_are_files(tmp_path: Path) -> None:
    """Or the tests above would be about memory."""
    model = make("explicit", tier=FileTier(tmp_path))
    ExactGradient(model, loader_of())
    assert all(isinstance(table.table, FileTable) for table in of_gradients(model))
