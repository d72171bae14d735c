"""Layer-wise inference equals the full-batch forward, whatever happens between the layers."""

from __future__ import annotations

import os
import stat
import threading
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graphs import random_graph
from nets import Net, assert_same, batch_rows, full_batch, tables
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.nn import GATConv, GraphSAGE, JumpingKnowledge, SAGEConv

from torch_gas import EvalSubgraphLoader, ScalableGNN, SubgraphLoader, permute, scale, unpermute
from torch_gas.session.inference import Replay

N = 60
PTR = torch.tensor([0, 13, 13, 29, 45, N])


def make(model_class: type[ScalableGNN] = Net, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return model_class(N, **kwargs).eval()


def close(out: Any, want: Any) -> None:
    torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)


@pytest.fixture
def data() -> Any:
    return random_graph(N, 300)


def loader_of(data: Any, batch_size: int = 1, **kwargs: Any) -> EvalSubgraphLoader:
    return EvalSubgraphLoader(data, PTR, batch_size, **kwargs)


class Jumping(Net):
    """Keeps a reference to each layer's rows before they are pushed."""

    def __init__(self, num_nodes: int, mode: str) -> None:
        super().__init__(num_nodes, 16, 3)
        self.convs[-1] = SAGEConv(16, 16)
        self.jump = JumpingKnowledge(mode, 16, 3)
        self.lin = torch.nn.Linear(16 * 3 if mode == "cat" else 16, 3)

    def forward(self, x: Tensor, adj: Any, *args: Any) -> Tensor:
        xs = []
        for conv, history in zip(self.convs, self.histories, strict=False):
            x = conv(x, adj).relu()
            xs.append(x)
            x = self.push_and_pull(history, x, *args)
        xs.append(self.convs[-1](x, adj))
        return self.lin(self.jump(xs))


@pytest.mark.parametrize("mode", ["cat", "max", "lstm"])
def test_jumping_knowledge(data: Any, mode: str) -> None:
    model = make(Jumping, mode=mode)
    out = model(loader=loader_of(data))
    close(out, full_batch(model, data))
    for batch in SubgraphLoader(data, PTR, 2):  # and histories are exact now
        close(model(batch), out[batch_rows(batch)])


class Beside(Net):
    """Uses what a layer returned beside what was pushed: the rectified rows are others."""

    def forward(self, x: Tensor, adj: Any, *args: Any) -> Tensor:
        total = 0
        for conv, history in zip(self.convs, self.histories, strict=False):
            h = conv(x, adj)
            total = total + h.sigmoid().sum(dim=-1, keepdim=True)
            x = self.push_and_pull(history, h.relu(), *args)
        return self.convs[-1](x, adj) * total


def test_a_result_used_beside_push_and_pull(data: Any) -> None:
    model = make(Beside, num_layers=4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out = model(loader=loader_of(data))
    assert [str(w.message)[:60] for w in caught] == ["Beside: a layer's result is used beside push_and_pull, so in"]
    close(out, full_batch(model, data))


class Read(Net):
    """Reads what a layer returned by an operation that may swallow what is not a number."""

    read = staticmethod(lambda h: h)

    def forward(self, x: Tensor, adj: Any, *args: Any) -> Tensor:
        total = 0
        for conv, history in zip(self.convs, self.histories, strict=False):
            h = conv(x, adj)
            total = total + self.read(h)
            x = self.push_and_pull(history, h, *args)
        return self.convs[-1](x, adj) * total


@pytest.mark.parametrize(
    "read",
    [
        lambda h: (h > 0).sum(dim=-1, keepdim=True),
        lambda h: torch.nan_to_num(h).sum(dim=-1, keepdim=True),
        lambda h: h.nansum(dim=-1, keepdim=True),
        lambda h: torch.fmax(h, torch.zeros_like(h)).sum(dim=-1, keepdim=True),
        lambda h: h.sign().sum(dim=-1, keepdim=True),
        lambda h: h.argmax(dim=-1, keepdim=True),
        lambda h: torch.where(h > 0, h, 0).sum(dim=-1, keepdim=True),
        lambda h: 1.0 + float(h.isnan().any()),
    ],
    ids=["compare", "nan_to_num", "nansum", "fmax", "sign", "argmax", "where", "python"],
)
def test_a_result_that_is_read_in_any_way(data: Any, read: Any) -> None:
    model = make(Read, num_layers=4)
    model.read = read
    with pytest.warns(UserWarning, match="used beside push_and_pull"):
        out = model(loader=loader_of(data))
    close(out, full_batch(model, data))


def test_new_tensors_of_the_same_shape_read_nothing(data: Any) -> None:
    model = make(Read, num_layers=4)
    model.read = lambda h: torch.ones_like(h).sum(dim=-1, keepdim=True) + h.new_zeros(h.size(0), 1)
    close(model(loader=loader_of(data)), full_batch(model, data))  # warnings are errors


def test_a_loader_without_batches_is_refused(data: Any) -> None:
    with pytest.raises(ValueError, match=r"hold 0 nodes.*without drop_last"):
        make(Net)(loader=SubgraphLoader(data, torch.tensor([0, data.num_nodes]), 2, drop_last=True))


class Many(Net):
    """Returns a structure, and what is not per node."""

    def forward(self, x: Tensor, adj: Any, *args: Any) -> Any:
        x = self.convs[0](x, adj).relu()
        first = x
        x = self.push_and_pull(self.histories[0], x, *args)
        x = self.convs[1](x, adj)
        return {"out": x, "pair": (x.argmax(dim=-1), first), "size": x.size(0), "norm": x.norm()}


def test_structured_outputs(data: Any) -> None:
    model = make(Many, num_layers=2)
    out = model(loader=loader_of(data))
    full = model(data.x, data.edge_index)
    close(out["out"], full["out"])
    assert torch.equal(out["pair"][0], full["pair"][0])
    close(out["pair"][1], full["pair"][1])
    assert out["size"] == [13, 16, 16, 15]
    assert len(out["norm"]) == 4
    close(torch.stack(out["norm"]).norm(), full["norm"])


class Attention(Net):
    """Layers that return a pair, and that run on a square adjacency."""

    def __init__(self, num_nodes: int) -> None:
        super().__init__(num_nodes, 16, 3, conv=GATConv)

    def forward(self, x: Tensor, adj: Any, *args: Any) -> Tensor:
        for conv, history in zip(self.convs, self.histories, strict=False):
            x, _ = conv(x, adj, return_attention_weights=True)
            x = self.push_and_pull(history, x.relu(), *args)
        return self.convs[-1](x, adj)


def test_layers_that_return_pairs(data: Any) -> None:
    model = make(Attention)
    close(model(loader=loader_of(data)), full_batch(model, data))


class Residual(Net):
    """Residuals over all layers, batch norm, and a layer that runs twice."""

    def __init__(self, num_nodes: int) -> None:
        super().__init__(num_nodes, 16, 4)
        self.norm = torch.nn.BatchNorm1d(16)
        self.convs[2] = self.convs[1]

    def forward(self, x: Tensor, adj: Any, *args: Any) -> Tensor:
        x = self.push_and_pull(self.histories[0], self.convs[0](x, adj).relu(), *args)
        for i in (1, 2):
            h = self.norm(self.convs[i](x, adj)).relu()
            x = self.push_and_pull(self.histories[i], h + x[: h.size(0)], *args)
        return self.convs[3](x, adj)


def test_residuals_norms_and_shared_layers(data: Any) -> None:
    model = make(Residual)
    model.norm.running_mean.normal_()
    close(model(loader=loader_of(data)), full_batch(model, data))


@pytest.mark.parametrize("num_layers", [1, 2, 8])
def test_each_layer_is_computed_once_a_batch(data: Any, num_layers: int) -> None:
    model = make(num_layers=num_layers)
    loader = loader_of(data)
    computed: Counter[int] = Counter()

    def count(i: int) -> Any:
        def hook(*_: Any) -> None:
            if type(model._session.replay) is Replay:  # and no trial on a small graph
                computed.update([i])

        return hook

    for i, conv in enumerate(model.convs):
        conv.aggr_module.register_forward_hook(count(i))
    sweeps = 0

    class Counting(EvalSubgraphLoader):
        def __iter__(self) -> Any:
            nonlocal sweeps
            sweeps += 1
            return super().__iter__()

    out = model(loader=Counting(data, PTR))
    assert sweeps == num_layers
    assert computed == dict.fromkeys(range(num_layers), len(loader))
    close(out, full_batch(model, data))


@pytest.mark.filterwarnings("ignore:.*counts parts")
@pytest.mark.parametrize("batch_size", [1, 3, 9])
def test_any_loader_that_holds_each_node_once(data: Any, batch_size: int) -> None:
    model = make()
    full = full_batch(model, data)
    for loader in (
        SubgraphLoader(data, PTR, batch_size, shuffle=True),
        SubgraphLoader(data, PTR, batch_size, prefetch=0),
        loader_of(data, batch_size, bipartite=False),
    ):
        model.reset_parameters()
        close(model(loader=loader), full)


def test_inference_leaves_no_trace(data: Any) -> None:
    model = make()
    with torch.inference_mode():
        first = model(loader=loader_of(data))
    kept = first.clone()
    second = model(loader=loader_of(data))
    assert torch.equal(first, kept) and first.data_ptr() != second.data_ptr()
    assert torch.equal(first, second) and not second.requires_grad
    assert model._session.replay is None and model._session.call is None
    batch = next(iter(SubgraphLoader(data, PTR, 2)))
    model.train()(batch).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_layers_with_a_forward_of_their_own_keep_it(data: Any) -> None:
    model = make()
    conv = model.convs[0]
    doubled = lambda x, adj: 2 * SAGEConv.forward(conv, x, adj)  # noqa: E731
    conv.forward = doubled
    close(model(loader=loader_of(data)), full_batch(model, data))
    assert conv.forward is doubled


def test_not_a_number_is_no_reason_to_refuse(data: Any) -> None:
    class Undefined(Net):
        def forward(self, x: Tensor, adj: Any, *args: Any) -> Tensor:
            return super().forward(x, adj, *args).abs().neg().log()

    out = make(Undefined)(loader=loader_of(data))
    assert bool(out.isnan().all())


# -- wrong use -------------------------------------------------------------------------------------


def test_progress_is_shown_when_asked_for(data: Any, capsys: pytest.CaptureFixture[str]) -> None:
    model = make(Net, num_layers=3)
    model(loader=loader_of(data))
    assert capsys.readouterr().err == ""
    model(loader=loader_of(data), progress=True)
    shown = capsys.readouterr().err
    assert all(f"sweep {sweep}:" in shown for sweep in (1, 2, 3))


def test_training_mode_is_refused(data: Any) -> None:
    model = make().train()
    before = tables(model)
    with pytest.raises(RuntimeError, match=r"Net: inference over a loader needs model\.eval\(\)"):
        model(loader=loader_of(data))
    assert_same(tables(model), before)


def test_loader_of_another_graph_is_refused() -> None:
    model = make()
    before = tables(model)
    other = random_graph(N + 1, 300)
    loader = EvalSubgraphLoader(other, torch.tensor([0, 30, N + 1]))
    with pytest.raises(ValueError, match="loader's graph has 61 nodes, but the model was made for 60"):
        model(loader=loader)
    assert_same(tables(model), before)


def test_loader_that_misses_nodes_is_refused(data: Any) -> None:
    loader = SubgraphLoader(data, PTR, 3, drop_last=True)
    with pytest.raises(ValueError, match=r"hold 45 nodes, 45 of them .* use EvalSubgraphLoader"):
        make()(loader=loader)
    twice = SubgraphLoader(data, torch.arange(0, 61, 15), 1, sampler=[0, 1, 1, 3])
    with pytest.raises(ValueError, match="hold 60 nodes, 45 of them distinct"):
        make()(loader=twice)


def test_further_arguments_beside_a_loader_are_refused(data: Any) -> None:
    for args, kwargs in (((data.x,), {}), ((), {"edge_weight": torch.ones(3)})):
        with pytest.raises(ValueError, match="Net: loader takes no further arguments"):
            make()(*args, loader=loader_of(data), **kwargs)


def test_an_error_in_a_sweep_leaves_the_model_usable(data: Any) -> None:
    model = make()
    handle = model.convs[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(loader=loader_of(data))
    handle.remove()
    assert model._session.replay is None
    assert all("forward" not in conv.__dict__ for conv in model.convs)
    close(model(loader=loader_of(data)), full_batch(model, data))


# -- where the result goes -------------------------------------------------------------------------


def test_result_on_a_device_and_in_a_file(tmp_path: Path) -> None:
    data = random_graph(N, 4 * N)
    loader = EvalSubgraphLoader(data, PTR)
    model = Net(N).eval()
    full = full_batch(model, data)
    torch.testing.assert_close(model(loader=loader, device="cpu"), full, rtol=1e-5, atol=1e-6)
    path = tmp_path / "out.npy"
    mapped = model(loader=loader, path=path)
    torch.testing.assert_close(mapped, full, rtol=1e-5, atol=1e-6)
    assert np.array_equal(np.load(path), mapped.numpy())
    assert [file.name for file in tmp_path.iterdir()] == ["out.npy"]


@pytest.mark.parametrize("make", [lambda data: Net(N), lambda data: scale(GraphSAGE(8, 16, 3, 3), data)])
def test_rows_in_the_order_before_permute(make: Any, tmp_path: Path) -> None:
    """That of the first graph, however often it was permuted."""
    data = random_graph(N, 4 * N)
    data.position = torch.arange(N)
    model = make(data).eval()
    full = full_batch(model, data)
    for seed in (1, 2):
        data = permute(data, torch.randperm(N, generator=torch.Generator().manual_seed(seed)), log=False)
    loader, state = EvalSubgraphLoader(data, PTR), model.state_dict()
    model = make(data).eval()
    model.load_state_dict({key: state[key] for key in state if "histories" not in key}, strict=False)
    close(model(loader=loader, original_order=True), full)
    close(model(loader=loader), full[data.position])
    close(unpermute(model(loader=loader), data.perm), full)
    path = tmp_path / "out.npy"
    model(loader=loader, original_order=True, path=path)
    close(torch.from_numpy(np.load(path)), full)


def test_the_order_of_a_graph_that_was_never_permuted() -> None:
    data, model = random_graph(N, 4 * N), Net(N).eval()
    with pytest.raises(ValueError, match=r"original_order=True needs data\.perm, which permute\(\) stores"):
        model(loader=EvalSubgraphLoader(data, PTR), original_order=True)
    with pytest.raises(ValueError, match=r"and original_order in which order; pass loader=\.\.\."):
        model(data.x, data.edge_index, original_order=True)
    data.perm = torch.zeros(N, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"data\.perm: perm holds 0 more than once"):
        model(loader=EvalSubgraphLoader(data, PTR), original_order=True)


def test_several_results_go_to_several_files(tmp_path: Path) -> None:
    class Two(Net):
        def forward(self, x: Tensor, adj: Any, *args: Any) -> Any:
            out = super().forward(x, adj, *args)
            return {"out": out, "label": out.argmax(dim=-1), "loss": out.sum()}

    data = random_graph(N, 4 * N)
    out = Two(N).eval()(loader=EvalSubgraphLoader(data, PTR), path=tmp_path / "out.npy")
    assert np.array_equal(np.load(tmp_path / "out_0.npy"), out["out"].numpy())
    assert np.array_equal(np.load(tmp_path / "out_1.npy"), out["out"].argmax(dim=-1).numpy())
    assert isinstance(out["loss"], list)


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    class Fails(Net):
        def forward(self, x: Tensor, adj: Any, batch_size: int, n_id: Tensor, *args: Any) -> Any:
            out = super().forward(x, adj, batch_size, n_id, *args)
            if bool((n_id[:batch_size] == N - 1).any()):
                raise KeyError("the last batch")
            return out

    (tmp_path / "out.npy").write_bytes(b"an older result")
    with pytest.raises(KeyError, match="the last batch"):
        Fails(N, num_layers=1).eval()(loader=EvalSubgraphLoader(random_graph(N, 4 * N), PTR), path=tmp_path / "out.npy")
    assert (tmp_path / "out.npy").read_bytes() == b"an older result"
    assert [path.name for path in tmp_path.iterdir()] == ["out.npy"]


def test_what_lies_beside_the_result_is_left_alone(tmp_path: Path) -> None:
    """Links and pipes at names that others may guess; and who may read the result before may read it now."""
    data, model, path = random_graph(N, 4 * N), Net(N).eval(), tmp_path / "out.npy"
    (tmp_path / "thesis").write_text("a year of work")
    (tmp_path / "out.npy.part").symlink_to(tmp_path / "thesis")
    path.touch(0o600)
    out = model(loader=EvalSubgraphLoader(data, PTR), path=path)
    assert (tmp_path / "thesis").read_text() == "a year of work" and not path.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and np.array_equal(np.load(path), out.numpy())
    before = out.clone()
    model.convs[-1].reset_parameters()
    model(loader=EvalSubgraphLoader(data, PTR), path=path)
    assert torch.equal(out, before)  # is of the file that was there


def test_no_room_for_the_result_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not a signal that ends the process as soon as rows are written through the map."""

    def full(*args: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match=r"No space left on device; make room on the disk.*out\.npy"):
        Net(N).eval()(loader=EvalSubgraphLoader(random_graph(N, 4 * N), PTR), path=tmp_path / "out.npy")
    assert list(tmp_path.iterdir()) == []


def test_places_for_the_result_that_do_not_do(tmp_path: Path) -> None:
    data = random_graph(N, 4 * N)
    loader, model = EvalSubgraphLoader(data, PTR), Net(N).eval()
    with pytest.raises(ValueError, match="give device or path, not both"):
        model(loader=loader, path=tmp_path / "out.npy", device="cpu")
    with pytest.raises(ValueError, match=r"path must end in \.npy, but is 'out\.pt'"):
        model(loader=loader, path="out.pt")
    before = [history.emb.clone() for history in model.histories]
    with pytest.raises(FileNotFoundError, match=r"there is no folder for .*; make it first"):
        model(loader=loader, path=tmp_path / "nowhere" / "out.npy")
    assert all(torch.equal(history.emb, rows) for history, rows in zip(model.histories, before, strict=True))
    with pytest.raises(ValueError, match="device and path say where inference over a loader puts its result"):
        model(data.x, data.edge_index, path="out.npy")
    with pytest.raises(TypeError, match="hold no bfloat16"):
        data.x = data.x.bfloat16()
        Net(N).bfloat16().eval()(loader=EvalSubgraphLoader(data, PTR), path=tmp_path / "out.npy")


@dataclass
class Rows:
    rows: Tensor


class Wrapped(torch.nn.Module):
    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.conv, self.kind = SAGEConv(8, 3), kind

    def forward(self, x: Tensor, edge_index: Tensor) -> Any:
        rows = self.conv(x, edge_index)
        return rows, self.kind(rows)


@pytest.mark.parametrize("kind", [Rows, Data])
def test_rows_in_objects_that_nobody_looks_into(data: Any, kind: Any) -> None:
    class Boxed(Net):
        def forward(self, x: Tensor, adj: Any, *args: Any) -> Any:
            return kind(super().forward(x, adj, *args))

    message = f"returns {kind.__name__}, whose rows of nodes are not found; return tensors"
    with pytest.raises(ValueError, match=message):
        make(Boxed)(loader=loader_of(data))
    with pytest.raises(ValueError, match=message):
        scale(Wrapped(kind), data)


def test_rows_that_were_expanded(data: Any) -> None:
    class Expanded(Net):
        def forward(self, x: Tensor, adj: Any, *args: Any) -> Tensor:
            h = self.convs[0](x, adj).relu()[:, :1].expand(-1, 16)
            first = h
            h = self.push_and_pull(self.histories[0], h, *args)
            return self.convs[1](h, adj) + first[: len(x) if args[0] is None else args[0], :3]

    model = make(Expanded, num_layers=2)
    want = full_batch(model, data)
    with pytest.warns(UserWarning, match="a layer's result is used beside push_and_pull"):
        close(model(loader=loader_of(data)), want)


# -- outputs and inputs ------------------------------------------------------------------------------------------------


class WithTable(Net):
    """Returns a parameter as well, which has as many entries as each batch has nodes."""

    def __init__(self, num_nodes: int) -> None:
        super().__init__(num_nodes)
        self.table = torch.nn.Parameter(torch.rand(15))

    def forward(self, x: Tensor, adj: Any, *args: Any) -> Any:
        return super().forward(x, adj, *args), self.table.clone()


class PlainWithTable(GraphSAGE):
    def __init__(self) -> None:
        super().__init__(8, 16, 2, 3)
        self.table = torch.nn.Parameter(torch.rand(15))

    def forward(self, x: Tensor, edge_index: Tensor) -> Any:  # type: ignore[override]
        return super().forward(x, edge_index), self.table.clone()


@pytest.mark.parametrize("is_scaled", [False, True])
def test_what_has_the_size_of_a_batch_is_no_rows_of_nodes(data: Any, is_scaled: bool) -> None:
    model: Any = scale(PlainWithTable(), data).eval() if is_scaled else make(WithTable)
    out, table = model(loader=EvalSubgraphLoader(data, torch.arange(0, N + 1, 15)))
    assert out.shape == (N, 3)
    assert [each.equal(model.table) for each in table] == 4 * [True]


INPUTS: dict[str, Any] = {
    "edges by position": lambda data: (data.x, data.edge_index[:, :50]),
    "every other edge": lambda data: (data.x, data.edge_index[:, ::2]),
    "a product over the batch": lambda data: (data.x - data.x.mean(0), data.edge_index),
    "numbers that are the batch's": lambda data: (data.x[:4].repeat(len(data.x), 1)[: len(data.x)], data.edge_index),
}


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("by_batch", [False, True])
def test_inputs_that_pick_by_position(data: Any, name: str, by_batch: bool) -> None:
    class Picking(Net):
        def inputs(self, data: Any, **kwargs: Any) -> Any:
            return INPUTS[name](data), kwargs

    model, loader = make(Picking), EvalSubgraphLoader(data, torch.arange(0, N + 1, 30))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"Picking: inputs\(\) takes other (edges|rows of nodes) from a batch"):
            model(next(iter(loader))) if by_batch else model(loader=loader)
    model.train()(next(iter(loader)))  # which may augment what it gets


def test_inputs_that_go_with_nodes_and_edges(data: Any) -> None:
    class Going(Net):
        def inputs(self, data: Any, **kwargs: Any) -> Any:
            return (2 * data.x, data.edge_index[:, data.kept].flip(1)), kwargs

    data.kept = torch.rand(data.num_edges) < 0.5
    model = make(Going)
    out = model(loader=loader_of(data))
    with torch.no_grad():
        close(out, model(2 * data.x, data.edge_index[:, data.kept]))


def test_types_change_after_scale(data: Any) -> None:
    """Of rows that stand in for layers as well."""
    data.x = data.x.double()
    model = scale(GraphSAGE(8, 16, 3, 3).double(), data).float().eval()
    data.x = data.x.float()
    out = model(loader=loader_of(data))
    with torch.no_grad():
        close(out, model(data.x, data.edge_index))


@pytest.mark.parametrize(
    "way", [lambda model, loader: model(loader=loader), lambda model, loader: model(next(iter(loader)))]
)
def test_another_thread_is_told_that_the_model_is_in_use(data: Any, way: Any) -> None:
    """Else it would take part in the sweep, and be ended by what ends a batch of it."""
    model, loader = make().eval(), loader_of(data)
    want, errors, calls = model(loader=loader), [], 0

    def call() -> None:
        try:
            way(model, loader)
        except BaseException as error:
            errors.append(error)

    class Asked(EvalSubgraphLoader):
        def __iter__(self) -> Any:
            nonlocal calls
            for batch in super().__iter__():
                thread = threading.Thread(target=call)  # between two calls of the model
                thread.start()
                thread.join()
                calls += 1
                yield batch

    close(model(loader=Asked(data, loader.ptr)), want)
    assert len(errors) == calls > 0
    assert all(isinstance(error, RuntimeError) and "is in use by another thread" in str(error) for error in errors)
    close(model(loader=loader), want)
