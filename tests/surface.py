"""A valid call of everything that torch_gas offers, from which malformed ones are made."""

from __future__ import annotations

import copy
import functools
import inspect
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from graphs import adjacency, random_graph
from nets import Net
from torch import Tensor
from torch_geometric.nn import GraphSAGE

import torch_gas
from torch_gas import (
    AsyncIOPool,
    FileTable,
    FileTier,
    History,
    Monitor,
    StoredFeatures,
    SubgraphLoader,
    _core,
    datasets,
    extensions,
    models,
)
from torch_gas.extensions import refresh, regularization

N, C = 12, 4
FOLDER = tempfile.TemporaryDirectory()  # of the files that calls make
PTR = torch.tensor([0, 4, 8, N])


class Call(NamedTuple):
    """A call that works.

    Args:
        function: what is called.
        arguments: all of its arguments, by name.
        state: what no malformed call may change, beside the arguments: modules, tensors.
    """

    function: Callable[..., Any]
    arguments: dict[str, Any]
    state: tuple[Any, ...] = ()

    @property
    def valid(self) -> Any:
        return self.function(**self.arguments)


MAKERS: dict[str, Callable[[], Call]] = {}


def call_of(name: str) -> Callable[[Callable[[], Call]], Callable[[], Call]]:
    def register(maker: Callable[[], Call]) -> Callable[[], Call]:
        MAKERS[name] = maker
        return maker

    return register


def defaults(function: Callable[..., Any], **given: Any) -> dict[str, Any]:
    """All arguments of ``function``: those given, and the defaults of others."""
    parameters = inspect.signature(function).parameters.values()
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    missing = {p.name: p.default for p in parameters if p.kind not in kinds and p.name != "self"}
    return missing | given


def new(function: Callable[..., Any], **given: Any) -> Call:
    return Call(function, defaults(function, **given))


def anew(function: Callable[..., Any], **given: Any) -> Callable[..., Any]:
    """``function``, which gets copies of the arguments that it is made to change."""

    @functools.wraps(function)
    def call(**arguments: Any) -> Any:
        copies = {name: copy.deepcopy(value) for name, value in given.items() if arguments[name] is value}
        return function(**(arguments | copies))

    return call


def rows(count: int = N) -> Tensor:
    return torch.arange(count * C, dtype=torch.float32).view(count, C)


def history() -> History:
    table = History(N, C)
    table.push(rows())
    return table


def graph() -> Any:
    return random_graph(N, 40, directed=False)


def net() -> Net:
    torch.manual_seed(0)
    return Net(N, C)


# -- histories and transfers -------------------------------------------------------------------------------------------


@call_of("History")
def _() -> Call:
    return new(History, num_embeddings=N, embedding_dim=C)


@call_of("History.push")
def _() -> Call:
    table = history()
    given = {"x": rows(3), "n_id": torch.tensor([4, 0, 7]), "offset": None, "count": None}
    return Call(table.push, given, (table,))


@call_of("History.push of ranges")
def _() -> Call:
    table = history()
    given = {"x": rows(3), "n_id": None, "offset": torch.tensor([5, 0]), "count": torch.tensor([2, 1])}
    return Call(table.push, given, (table,))


@call_of("History.pull")
def _() -> Call:
    table = history()
    return Call(table.pull, {"n_id": torch.tensor([4, 0, 4]), "dtype": torch.float32, "out": rows(3)}, (table,))


@call_of("History.mark")
def _() -> Call:
    table = history()
    given = {"n_id": None, "offset": torch.tensor([5, 0]), "count": torch.tensor([2, 1])}
    return Call(table.mark, given, (table,))


@call_of("History.mark of ids")
def _() -> Call:
    table = history()
    return Call(table.mark, {"n_id": torch.tensor([4, 0, 7]), "offset": None, "count": None}, (table,))


@call_of("History.check_rows")
def _() -> Call:
    return Call(history().check_rows, {"x": rows(3)})


@call_of("AsyncIOPool")
def _() -> Call:
    return new(AsyncIOPool)


@call_of("AsyncIOPool.to")
def _() -> Call:
    return Call(AsyncIOPool().to, {"device": "cpu"})


@call_of("AsyncIOPool.async_pull")
def _() -> Call:
    pool, table = AsyncIOPool(100), rows()
    given = {
        "src": table, "offset": torch.tensor([5, 0]), "count": torch.tensor([2, 1]), "index": torch.tensor([4, 4]),
        "dtype": torch.float16,
    }  # fmt: skip
    return Call(pool.async_pull, given, (table,))


@call_of("AsyncIOPool.async_push")
def _() -> Call:
    table = rows()
    given = {"rows": rows(3) + 1, "offset": torch.tensor([5, 0]), "count": torch.tensor([2, 1]), "dst": table}
    return Call(AsyncIOPool().async_push, given, (table,))


@call_of("AsyncIOPool.pull_now")
def _() -> Call:
    given = {"src": rows(), "index": torch.tensor([4, 0, 4]), "out": rows(3)}
    return Call(AsyncIOPool().pull_now, given)


@call_of("AsyncIOPool.synchronize_pull")
def _() -> Call:
    pool, table = AsyncIOPool(), rows()
    pool.async_pull(table, None, None, torch.tensor([1]))
    return Call(pool.synchronize_pull, {"src": table})


@call_of("AsyncIOPool.free_pull")
def _() -> Call:
    pool, table = AsyncIOPool(), rows()
    for _ in range(100):
        pool.async_pull(table, None, None, torch.tensor([1]))
    return Call(pool.free_pull, {"src": table})


# -- files -------------------------------------------------------------------------------------------------------------


def fresh() -> str:
    """The name of a new file, wherever the process is."""
    return os.path.join(tempfile.mkdtemp(dir=FOLDER.name), "table")


def table() -> FileTable:
    """A table in a file."""
    made = FileTable(FileTier(fresh()), N, C, torch.float32)
    _core.scatter_rows(made, torch.arange(N), rows())
    return made


@call_of("FileTier")
def _() -> Call:
    return new(FileTier, path="folder")


@call_of("FileTable")
def _() -> Call:
    @functools.wraps(FileTable)
    def make(**arguments: Any) -> None:
        FileTable(**arguments).close()

    return Call(make, {"tier": FileTier("a.table", reuse=True), "num_rows": N, "num_cols": C, "dtype": torch.float32})


@call_of("StoredFeatures")
def _() -> Call:
    return new(StoredFeatures, path=torch_gas.store_features(rows(), fresh()).path)


@call_of("StoredFeatures.batch_rows")
def _() -> Call:
    features = torch_gas.store_features(rows(), fresh())
    given = {"offset": torch.tensor([5, 0]), "count": torch.tensor([2, 1]), "halo": torch.tensor([7])}
    return Call(features.batch_rows, given)


@call_of("store_features")
def _() -> Call:
    @functools.wraps(torch_gas.store_features)
    def store(**arguments: Any) -> None:
        os.unlink(torch_gas.store_features(**arguments).path)

    return Call(store, defaults(store, x=rows(), path=fresh(), perm=torch.arange(N).flip(0)))


@call_of("hot_nodes")
def _() -> Call:
    return new(torch_gas.hot_nodes, loader=SubgraphLoader(graph(), PTR), number=3)


@call_of("ScalableGNN.keep_hot")
def _() -> Call:
    model = net()
    return Call(model.keep_hot, {"n_id": torch.tensor([4, 0, 7]), "max_bytes": 1000}, (model,))


# -- models ------------------------------------------------------------------------------------------------------------


@call_of("ScalableGNN")
def _() -> Call:
    return new(torch_gas.ScalableGNN, num_nodes=N, hidden_channels=C, num_layers=3)


@call_of("ScalableGNN.__call__")
def _() -> Call:
    model, batch = net().eval(), next(iter(SubgraphLoader(graph(), PTR, 2)))
    given = {
        "x": batch.data.x, "adj_t": adjacency(batch.data), "batch_size": batch.batch_size, "n_id": batch.n_id,
        "offset": batch.offset, "count": batch.count,
    }  # fmt: skip
    return Call(model, given, (model,))


@call_of("ScalableGNN.__call__ with ids made by hand")
def _() -> Call:
    call = MAKERS["ScalableGNN.__call__"]()
    model, given = call.function, call.arguments
    model.check = False
    return Call(model, {**given, "batch_size": int(given["batch_size"])}, (model,))


@call_of("ScalableGNN.__call__ with a loader")
def _() -> Call:
    model = net().eval()
    loader = torch_gas.EvalSubgraphLoader(graph(), PTR)
    model(loader=loader)  # which makes histories exact
    return Call(model, {"loader": loader, "progress": False, "device": None, "path": None}, (model,))


def of_model(name: str, **given: Any) -> None:
    @call_of(f"models.{name}")
    def _() -> Call:
        sizes: dict[str, Any] = {
            "num_nodes": N,
            "in_channels": 8,
            "hidden_channels": C,
            "out_channels": 3,
            "num_layers": 3,
        }
        return new(getattr(models, name), **(sizes | given))


AGGREGATION = {"aggregators": ["mean", "max"], "scalers": ["identity", "amplification"], "deg": torch.arange(N)}
of_model("APPNP", alpha=0.1)
of_model("GAT", hidden_heads=2, out_heads=1)
of_model("GCN")
of_model("GCN2", alpha=0.1, theta=0.5)
of_model("GIN")
of_model("PNA", **AGGREGATION)
of_model("PNA_JK", **AGGREGATION)
of_model("SAGE")


@call_of("models.PNAConv")
def _() -> Call:
    return new(models.PNAConv, in_channels=8, out_channels=C, **AGGREGATION)


@call_of("scale")
def _() -> Call:
    torch.manual_seed(0)
    model = GraphSAGE(8, C, num_layers=2, out_channels=3)
    return Call(torch_gas.scale, defaults(torch_gas.scale, model=model, data=graph()), (model,))


@call_of("check")
def _() -> Call:
    torch.manual_seed(0)
    model = GraphSAGE(8, C, num_layers=2, out_channels=3)
    return Call(torch_gas.check, {"model": model, "data": graph()}, (model,))


# -- graphs ------------------------------------------------------------------------------------------------------------


def of_loader(name: str) -> None:
    @call_of(name)
    def _() -> Call:
        return new(getattr(torch_gas, name), data=graph(), ptr=PTR)


of_loader("SubgraphLoader")
of_loader("EvalSubgraphLoader")


@call_of("labelled_mean")
def _() -> Call:
    data = graph()
    data.train_mask = torch.arange(N) % 3 == 0
    batch = next(iter(SubgraphLoader(data, PTR, 2)))
    return new(torch_gas.labelled_mean, losses=torch.rand(3), batch=batch)


@call_of("SubgraphLoader.only")
def _() -> Call:
    return Call(SubgraphLoader(graph(), PTR).only, {"batches": [[0, 2], [1]]})


@call_of("metis")
def _() -> Call:
    edges = graph().edge_index
    weights = {"edge_weight": torch.ones(edges.size(1)), "node_weight": torch.ones(N, dtype=torch.int64)}
    return new(torch_gas.metis, adj=edges, num_parts=3, log=False, seed=0, num_nodes=N, **weights)


@call_of("permute")
def _() -> Call:
    return new(torch_gas.permute, data=graph(), perm=torch.arange(N).flip(0), log=False)


@call_of("unpermute")
def _() -> Call:
    return new(torch_gas.unpermute, value=rows(), perm=torch.arange(N).flip(0))


@call_of("save_partition")
def _() -> Call:
    return Call(torch_gas.save_partition, {"path": "parts.npz", "partition": torch_gas.Partition(torch.arange(N), PTR)})


@call_of("load_partition")
def _() -> Call:
    torch_gas.save_partition("parts.npz", torch_gas.Partition(torch.arange(N), PTR))
    return Call(torch_gas.load_partition, {"path": "parts.npz", "num_nodes": N})


@call_of("gcn_norm")
def _() -> Call:
    return new(torch_gas.gcn_norm, data=graph())


@call_of("add_self_loops")
def _() -> Call:
    return new(torch_gas.add_self_loops, data=graph())


@call_of("in_degree")
def _() -> Call:
    return new(torch_gas.in_degree, adj=graph().edge_index, num_nodes=N)


@call_of("dropout")
def _() -> Call:
    return new(torch_gas.dropout, adj=graph().edge_index, p=0.5)


@call_of("compute_micro_f1")
def _() -> Call:
    return new(torch_gas.compute_micro_f1, logits=rows(), y=torch.arange(N) % C, mask=torch.ones(N, dtype=torch.bool))


@call_of("gen_masks")
def _() -> Call:
    return new(torch_gas.gen_masks, y=torch.arange(N) % 2, train_per_class=1, val_per_class=2, num_splits=2, seed=0)


@call_of("datasets.synthetic")
def _() -> Call:
    return new(datasets.synthetic, num_nodes=N, num_classes=2)


@call_of("datasets.synthetic_cluster")
def _() -> Call:
    return new(datasets.synthetic_cluster, num_graphs=1)


# -- on top of a model -------------------------------------------------------------------------------------------------


@call_of("Monitor")
def _() -> Call:
    model = net()
    return Call(Monitor, defaults(Monitor, model=model), (model,))


@call_of("plan")
def _() -> Call:
    model = net()
    given = defaults(torch_gas.plan, data=graph(), model=model, device_memory="1 GiB", ptr=PTR, optimizer_states=2)
    return Call(torch_gas.plan, given, (model,))


@call_of("refresh.Sweep")
def _() -> Call:
    return new(refresh.Sweep)


@call_of("refresh.Stalest")
def _() -> Call:
    return new(refresh.Stalest, batches=2)


@call_of("refresh.Stalest of nodes")
def _() -> Call:
    return new(refresh.Stalest, nodes=2)


@call_of("refresh.BeforeTraining")
def _() -> Call:
    return new(refresh.BeforeTraining)


@call_of("refresh.EveryEpochs")
def _() -> Call:
    return new(refresh.EveryEpochs)


@call_of("refresh.EverySteps")
def _() -> Call:
    return new(refresh.EverySteps, k=2)


@call_of("refresh.Joined")
def _() -> Call:
    return new(refresh.Joined, first=refresh.Never(), second=refresh.EveryEpochs())


@call_of("refresh.Policy.bind")
def _() -> Call:
    model, data = net(), graph()
    return Call(
        refresh.EveryEpochs().bind, {"model": model, "loader": SubgraphLoader(data, PTR), "data": data}, (model,)
    )


@call_of("ExactGradient")
def _() -> Call:
    model = net()
    given = {"model": model, "loader": SubgraphLoader(graph(), PTR), "check": True}
    return Call(torch_gas.ExactGradient, given, (model,))


@call_of("DropoutById")
@call_of("extensions.DropoutById")
def _() -> Call:
    return new(extensions.DropoutById, seed=0)


@call_of("extensions.Compensation")
def _() -> Call:
    return new(
        extensions.Compensation, trust=0.5, schedule="swapped", scaler=torch.amp.GradScaler("cpu", enabled=False)
    )


@call_of("extensions.AgeWeights")
def _() -> Call:
    return new(extensions.AgeWeights, rate=0.5)


@call_of("extensions.Momentum")
def _() -> Call:
    return new(extensions.Momentum, beta=0.3)


@call_of("extensions.Waves")
def _() -> Call:
    return new(extensions.Waves, passes=2)


@call_of("extensions.Important")
def _() -> Call:
    return new(extensions.Important, batches=2, importance=torch.ones(N))


@call_of("regularization.LocalPerturbation")
def _() -> Call:
    return new(regularization.LocalPerturbation)


@call_of("regularization.local_perturbation")
def _() -> Call:
    layer = torch.nn.Linear(C, 2)
    return new(regularization.local_perturbation, layer=layer, h=rows(), out=layer(rows()))


@call_of("regularization.parameter_groups")
def _() -> Call:
    return new(regularization.parameter_groups, model=net(), weight_decay=0.1, others={"convs.0": 0.0})


@call_of("regularization.spectral_norm")
def _() -> Call:
    model = torch.nn.Sequential(torch.nn.Linear(C, C))
    return Call(
        anew(regularization.spectral_norm, model=model), defaults(regularization.spectral_norm, model=model), (model,)
    )


# -- the compiled core -------------------------------------------------------------------------------------------------


def matrix() -> dict[str, Tensor]:
    return {"rowptr": torch.tensor([0, 2, 3, 5]), "col": torch.tensor([1, 2, 0, 0, 1])}


def of_core(name: str, **given: Any) -> None:
    @call_of(f"_core.{name}")
    def _() -> Call:
        return new(getattr(_core, name), **{key: v.clone() if isinstance(v, Tensor) else v for key, v in given.items()})


RANGES = {"offset": torch.tensor([5, 0]), "count": torch.tensor([2, 1])}
SPARSE = _core.Sparse(**matrix(), num_cols=3)
SCORES = {"left": torch.rand(3, 2), "right": torch.rand(3, 2), "slope": 0.2}
of_core("add_rows", table=rows(), index=torch.tensor([4, 0, 4]), rows=rows(3), ascending=False)
of_core("adjacent_pairs", src=torch.tensor([0, 1, 2]), dst=torch.tensor([1, 2, 0]), rowptr=None, num_nodes=3)
of_core("advise_huge_pages", tensor=torch.zeros(4))
of_core("batch_rows_of", tables=[rows()], halo=torch.tensor([9, 9]), **RANGES)
of_core("batch_rows", table=rows(), halo=torch.tensor([9, 9]), **RANGES)
of_core("fingerprint", tensors=[rows()], lines=0)
of_core("dropout", x=rows(), p=0.5, seed=0)
of_core("dropout_rows", x=rows(), ids=torch.arange(len(rows())), p=0.5, key=0)
of_core("entry_dots", matrix=SPARSE, left=rows(3), right=rows(3))
of_core("entry_softmax", matrix=SPARSE, **SCORES)
of_core("entry_softmax_backward", matrix=SPARSE, softmax=torch.rand(5, 2), grad=torch.rand(5, 2), **SCORES)
of_core("gather_rows", table=rows(), index=torch.tensor([4, 0, 4]), out=rows(3))
of_core("own_transpose", **matrix(), weight=torch.rand(5))
of_core("product", matrix=SPARSE, rows=rows(3), weight=torch.rand(5))
of_core("reductions", matrix=SPARSE, rows=rows(3), variance=True, most=True)
of_core(
    "reductions_backward",
    matrix=SPARSE,
    rows=rows(3),
    grad=_core.ReductionsGradient(constant=rows(3), slope=rows(3)),
)
of_core("read_chunks", table=rows(), out=rows(3), **RANGES)
of_core("row_pointers", ids=torch.tensor([0, 0, 2]), num_nodes=3)
of_core("scatter_rows", table=rows(), index=torch.tensor([4, 0, 7]), rows=rows(3))
of_core("stream_parts", **matrix(), num_parts=2, seed=0, report=print, edge_weight=torch.ones(5, dtype=torch.float64))
of_core("subgraph", **matrix(), start=torch.tensor([2, 0]), count=torch.tensor([1, 2]))
of_core("symmetric", rowptr=torch.tensor([0, 2, 3, 3]), col=torch.tensor([1, 2, 2]))
of_core("to_csr", src=torch.tensor([0, 1, 2]), dst=torch.tensor([1, 2, 0]), num_nodes=3)
of_core("transpose", **matrix(), num_cols=3)
of_core("write_chunks", table=rows(), rows=rows(3), **RANGES)


# -- what there is to call ---------------------------------------------------------------------------------------------


@call_of("_core.fill_chunks")
def _() -> Call:
    times = torch.zeros(N, dtype=torch.int64)
    ranges = {"offset": torch.tensor([5, 0]), "count": torch.tensor([2, 1])}
    return Call(anew(_core.fill_chunks, table=times), {"table": times, **ranges, "value": 7})


@call_of("_core.read_ahead")
def _() -> Call:
    return Call(_core.read_ahead, {"table": table(), "index": torch.tensor([4, 0, 7])})


@call_of("_core.clear_rows")
def _() -> Call:
    return Call(_core.clear_rows, {"table": table(), "offset": torch.tensor([5, 0]), "count": torch.tensor([2, 1])})


LEFT_OUT = {
    "refresh.Exact": "takes nothing",
    "refresh.Never": "takes nothing",
    "models.ScalableGNN": "is ScalableGNN",
    "extensions.Extension": "takes nothing",
    "Partition": "a record, which the functions that take it check",
    "Plan": "a record, which plan() makes",
    "SubData": "a record, which loaders make and models check",
    "ScaledGNN": "made by scale()",
    "get_data": "reads files; see tests/test_datasets.py",
    "datasets.get_data": "is get_data",
    "_core.FileRows": "a record, which tables in files are made of",
    "_core.row_shape": "tells the shape of rows",
    "_core.stored_width": "tells the shape of rows",
    "_core.batch_rows_into": "is batch_rows_of in memory of the loader",
    "_core.at_page": "takes a shape and a type that History has checked",
    "_core.locked_by": "tells of page-locked memory; see tests/_core/test_memory.py",
    "_core.stored_copy": "makes what write_chunks takes, which checks it",
    "_core.forget_failure": "for a CUDA device; see tests/test_cuda_model.py",
    "_core.noted_failure": "for a CUDA device; see tests/test_cuda_model.py",
    "_core.Reductions": "a record, which reductions() makes",
    "_core.ReductionsGradient": "a record, which the function that takes it checks",
    "_core.Sparse": "a record, which the functions that take it check",
    "_core.Staging": "for a CUDA device; see tests/test_cuda.py",
    "_core.Subgraph": "a record, which subgraph() makes",
    "_core.register": "needs a CUDA device; see tests/test_cuda.py",
    "_core.has_cuda": "takes nothing",
    "_core.is_table": "tells of anything whether it is a table",
}


def offered() -> Iterator[str]:
    """Names of all public classes and functions."""
    for prefix, module in (("", torch_gas), ("models.", models), ("extensions.", extensions),
                           ("regularization.", regularization), ("datasets.", datasets), ("_core.", _core)):  # fmt: skip
        yield from (f"{prefix}{name}" for name in module.__all__ if callable(getattr(module, name)))
    for name, value in vars(refresh).items():
        if (
            inspect.isclass(value)
            and issubclass(value, refresh.Policy | refresh.Refresh)
            and not inspect.isabstract(value)
        ):
            yield f"refresh.{name}"
