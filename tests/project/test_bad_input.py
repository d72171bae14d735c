"""Every malformed call is an error that names the argument and the fix, and changes nothing.

Most of these were accepted in silence by the predecessor of this library, or crashed it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from graphs import adjacency, random_graph, to_format
from nets import Net, assert_same, refresh, tables
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.nn import SAGEConv

from torch_gas import EvalSubgraphLoader, History, SubData, SubgraphLoader, metis, permute

N = 60
PTR = torch.tensor([0, 13, 29, 45, N])


@pytest.fixture
def data() -> Data:
    return random_graph(N, 300)


@pytest.fixture
def model(data: Data) -> Net:
    torch.manual_seed(0)
    model = Net(N)
    refresh(model, data)
    return model


@pytest.fixture
def batch(data: Data) -> SubData:
    return next(iter(SubgraphLoader(data, PTR, 2)))


@contextmanager
def refused(module: torch.nn.Module, error: type[Exception], match: str) -> Iterator[None]:
    """Expects ``error``, and not one bit of ``module`` changed."""
    before = tables(module)
    with pytest.raises(error, match=match):
        yield
    assert_same(tables(module), before)


def call(model: Net, batch: SubData, **changes: Any) -> Tensor:
    given = {
        "x": batch.data.x,
        "adj_t": adjacency(batch.data),
        "batch_size": batch.batch_size,
        "n_id": batch.n_id,
        "offset": batch.offset,
        "count": batch.count,
    }
    return model(**(given | changes))


# -- history ---------------------------------------------------------------------------------------

BAD_PUSHES: dict[str, tuple[type[Exception], str, Callable[[], dict[str, Any]]]] = {
    "width 1 is not broadcast": (
        ValueError, r"x must be \[B, 4\], but is \[3, 1\].*hidden_channels",
        lambda: {"x": torch.ones(3, 1), "n_id": torch.tensor([0, 1, 2])},
    ),
    "wrong width": (
        ValueError, r"x must be \[B, 4\], but is \[3, 5\]",
        lambda: {"x": torch.ones(3, 5), "n_id": torch.tensor([0, 1, 2])},
    ),
    "no matrix": (
        ValueError, r"x must be \[B, 4\], but is \[4\]",
        lambda: {"x": torch.ones(4), "n_id": torch.tensor([0])},
    ),
    "integers": (
        TypeError, r"x must be a floating-point tensor, but is torch\.int64",
        lambda: {"x": torch.ones(1, 4, dtype=torch.int64), "n_id": torch.tensor([0])},
    ),
    "no tensor": (
        TypeError, "x must be Tensor, but is list",
        lambda: {"x": [[1.0] * 4], "n_id": torch.tensor([0])},
    ),
    "another device": (
        (NotImplementedError, ValueError), "meta",
        lambda: {"x": torch.ones(1, 4, device="meta"), "n_id": torch.tensor([0])},
    ),
    "one row for three": (
        ValueError, r"`x` must have .* \[3, 4\].* has shape \[1, 4\]; rows are never broadcast",
        lambda: {"x": torch.ones(1, 4), "n_id": torch.tensor([0, 1, 2])},
    ),
    "id too large": (
        IndexError, "10",
        lambda: {"x": torch.ones(2, 4), "n_id": torch.tensor([0, 10])},
    ),
    "id far too large": (
        IndexError, str(2**40),
        lambda: {"x": torch.ones(2, 4), "n_id": torch.tensor([0, 2**40])},
    ),
    "id -1": (
        IndexError, "-1",
        lambda: {"x": torch.ones(2, 4), "n_id": torch.tensor([0, -1])},
    ),
    "id twice": (
        ValueError, "`n_id`.*3",
        lambda: {"x": torch.ones(3, 4), "n_id": torch.tensor([3, 0, 3])},
    ),
    "ids of a wrong type": (
        TypeError, r"`n_id` must be one of int32, int64, but is torch\.float32",
        lambda: {"x": torch.ones(2, 4), "n_id": torch.tensor([0.0, 1.0])},
    ),
    "count too small": (
        ValueError, "count",
        lambda: {"x": torch.ones(3, 4), "offset": torch.tensor([0]), "count": torch.tensor([2])},
    ),
    "count too large": (
        ValueError, "count",
        lambda: {"x": torch.ones(3, 4), "offset": torch.tensor([0]), "count": torch.tensor([4])},
    ),
    "negative count": (
        (ValueError, IndexError), "count",
        lambda: {
            "x": torch.ones(1, 4), "offset": torch.tensor([0, 5]), "count": torch.tensor([2, -1])
        },
    ),
    "offset past the end": (
        IndexError, r"range 0 has `offset` 9 and `count` 2",
        lambda: {"x": torch.ones(2, 4), "offset": torch.tensor([9]), "count": torch.tensor([2])},
    ),
    "ranges that overlap": (
        ValueError, "overlap",
        lambda: {
            "x": torch.ones(4, 4), "offset": torch.tensor([0, 1]), "count": torch.tensor([2, 2])
        },
    ),
    "more offsets than counts": (
        ValueError, "`offset` and `count` must be equally long",
        lambda: {"x": torch.ones(2, 4), "offset": torch.tensor([0, 5]), "count": torch.tensor([2])},
    ),
    "offset alone": (
        ValueError, "offset and count go together; give both or neither",
        lambda: {"x": torch.ones(2, 4), "offset": torch.tensor([0])},
    ),
    "rows without ids": (
        ValueError, "x has 3 rows and the table 10; give n_id, or offset and count",
        lambda: {"x": torch.ones(3, 4)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_PUSHES)
def test_push(name: str) -> None:
    error, match, arguments = BAD_PUSHES[name]
    history = History(10, 4)
    history.push(torch.randn(10, 4))
    history.tick()
    with refused(history, error, match):
        history.push(**arguments())


@pytest.mark.parametrize("bad", [10, -1, 2**40])
def test_pull(bad: int) -> None:
    with pytest.raises(IndexError, match=str(bad)):
        History(10, 4).pull(torch.tensor([0, bad]))


# -- calling a model on a batch --------------------------------------------------------------------


def with_id(batch: SubData, row: int, value: int) -> Tensor:
    n_id = batch.n_id.clone()
    n_id[row] = value
    return n_id


BAD_CALLS: dict[str, tuple[type[Exception], str, Callable[[SubData], dict[str, Any]]]] = {
    "batch_size one too small": (
        ValueError, r"count sums to 29, but batch_size is 28",
        lambda b: {"batch_size": b.batch_size - 1},
    ),
    "batch_size one too large": (
        ValueError, r"count sums to 29, but batch_size is 30",
        lambda b: {"batch_size": b.batch_size + 1},
    ),
    "batch_size too small, no ranges": (
        ValueError, r"edge_index has an edge into row 28, but the batch has 28 nodes",
        lambda b: {
            "batch_size": b.batch_size - 1, "offset": None, "count": None,
            "adj_t": torch.tensor([[0], [b.batch_size - 1]]),
        },
    ),
    "batch_size 0": (
        ValueError, r"batch_size must be in 1 \.\. \d+ \(rows of n_id\), but is 0",
        lambda b: {"batch_size": 0},
    ),
    "batch_size beyond the rows": (
        ValueError, r"batch_size must be in 1 \.\. \d+ \(rows of n_id\), but is 1000",
        lambda b: {"batch_size": 1000},
    ),
    "batch_size as a tensor": (
        ValueError, r"batch_size must be in 1",
        lambda b: {"batch_size": torch.tensor(b.batch_size)},
    ),
    "id out of range": (
        IndexError, r"n_id goes from 0 to 60, but must be in 0 \.\. 59",
        lambda b: {"n_id": with_id(b, -1, N)},
    ),
    "negative id": (
        IndexError, r"n_id goes from -1 to",
        lambda b: {"n_id": with_id(b, -1, -1)},
    ),
    "id twice": (
        ValueError, r"offset and count do not describe the first 29 rows of n_id",
        lambda b: {"n_id": with_id(b, 3, 2)},
    ),
    "id twice, no ranges": (
        ValueError, "`n_id`.*2",
        lambda b: {"n_id": with_id(b, 3, 2), "offset": None, "count": None},
    ),
    "ids of a wrong type": (
        TypeError, r"n_id must be a one-dimensional integer tensor",
        lambda b: {"n_id": b.n_id.float()},
    ),
    "ids as a list": (
        TypeError, r"n_id must be a one-dimensional integer tensor",
        lambda b: {"n_id": b.n_id.tolist()},
    ),
    "offset wrong": (
        ValueError, r"offset and count do not describe the first 29 rows of n_id",
        lambda b: {"offset": b.offset + 1},
    ),
    "count not summing": (
        ValueError, r"count sums to 28, but batch_size is 29",
        lambda b: {"count": b.count - torch.tensor([0, 1])},
    ),
    "count shifted between parts": (
        ValueError, r"offset and count do not describe",
        lambda b: {"count": b.count + torch.tensor([1, -1])},
    ),
    "negative count": (
        ValueError, r"count must not be negative",
        lambda b: {"count": torch.tensor([30, -1])},
    ),
    "count as a list": (
        TypeError, r"count must be a one-dimensional int64 tensor",
        lambda b: {"count": b.count.tolist()},
    ),
    "lengths differ": (
        ValueError, r"offset and count must be equally long, but have 1 and 2",
        lambda b: {"offset": b.offset[:1]},
    ),
    "offset without count": (
        ValueError, r"offset and count go together; give both or neither",
        lambda b: {"count": None},
    ),
    "no ids": (
        ValueError, r"batch_size, offset and count need n_id; pass `\*args`",
        lambda b: {"n_id": None},
    ),
    "too few features": (
        ValueError, r"x has 29 rows, but n_id has \d+",
        lambda b: {"x": b.data.x[:29]},
    ),
    "adjacency of the whole graph": (
        ValueError, r"edge_index has an edge into row 5\d, but the batch has 29 nodes",
        lambda b: {"adj_t": random_graph(N, 300).edge_index},
    ),
    "another adjacency format": (
        TypeError, r"Net: the adjacency must be edge_index .* but is .*sparse_coo",
        lambda b: {"adj_t": torch.eye(4).to_sparse()},
    ),
    "features on another device": (
        ValueError, "x must be rows of nodes.* on meta",
        lambda b: {"x": b.data.x.to("meta")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", BAD_CALLS)
def test_call(name: str, training: bool, model: Net, batch: SubData) -> None:
    """Of ids that are made by hand."""
    error, match, changes = BAD_CALLS[name]
    model.train(training)
    model.check = False
    if name == "id twice, no ranges":
        before = [history.emb.clone() for history in model.histories]
        with pytest.raises(error, match=match):
            call(model, batch, **by_hand(batch) | changes(batch))
        for history, rows in zip(model.histories, before, strict=True):
            assert torch.equal(history.emb, rows)  # only the clock has ticked
        return
    with refused(model, error, match):
        call(model, batch, **by_hand(batch) | changes(batch))


def by_hand(batch: SubData) -> dict[str, Any]:
    return {"batch_size": int(batch.batch_size)}


IDS_OF_ANOTHER = r"n_id holds \d+ ids, which are not the \d+ that the batch was made with"
BAD_IDS: dict[str, tuple[type[Exception], str]] = {
    **dict.fromkeys(
        ("id out of range", "negative id", "id twice", "id twice, no ranges"), (ValueError, IDS_OF_ANOTHER)
    ),
    **dict.fromkeys(
        (
            "offset wrong",
            "count not summing",
            "count shifted between parts",
            "negative count",
            "count as a list",
            "lengths differ",
        ),
        (ValueError, "(offset|count) is not that of the batch; pass all four of its ids"),
    ),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", BAD_CALLS)
def test_call_with_the_ids_of_a_loader(name: str, training: bool, model: Net, batch: SubData) -> None:
    error, match, changes = BAD_CALLS[name]
    error, match = BAD_IDS.get(name, (error, match))
    if "batch_size" in changes(batch):
        error, match = ValueError, r"batch_size is .* does not say which batch .*model\(batch\).*check=False"
    with refused(model.train(training), error, match):
        call(model, batch, **changes(batch))


def test_nothing_but_the_data_of_a_batch(model: Net, batch: SubData) -> None:
    with refused(model.train(), ValueError, r"x has \d+ rows, but the graph .*If this is a batch, pass its ids"):
        model(batch.x, batch.edge_index)
    with refused(model.eval(), TypeError, "x must be a tensor of rows or a SubData, but is Data"):
        model(batch.data)


def test_a_model_works_after_a_refused_call(model: Net, batch: SubData) -> None:
    model.eval()
    wanted = model(batch)
    with pytest.raises(ValueError, match="batch_size"):
        call(model, batch, batch_size=3)
    assert torch.equal(model(batch), wanted)


@pytest.mark.parametrize("fmt", ["EdgeIndex", "csr"])
def test_matrix_of_another_batch(fmt: str, model: Net, data: Data) -> None:
    first, second = SubgraphLoader(to_format(data, fmt), torch.tensor([0, 20, N]), 1)
    with refused(model, ValueError, "the adjacency has 40 destinations, but batch_size is 20"):
        call(model, first, adj_t=adjacency(second.data))
    with refused(model, ValueError, "the adjacency has 60 destinations, but batch_size is 20"):
        call(model, first, adj_t=adjacency(to_format(data, fmt)))


def test_batch_of_a_matrix_without_ids(model: Net, data: Data) -> None:
    batch = next(iter(SubgraphLoader(to_format(data, "csr"), PTR, 1)))
    for training in (True, False):
        for x in (batch.x, batch.x * 1):
            with refused(model.train(training), ValueError, "If this is a batch, pass its ids"):
                model(x, batch.adj_t)


def test_batch_made_for_another_graph(model: Net) -> None:
    for nodes in (N - 10, N + 10):
        other = SubgraphLoader(random_graph(nodes, 300), torch.tensor([0, 20, nodes]), 1)
        for batch in other:
            with refused(model, ValueError, f"made for a graph of {nodes} nodes, but the model for 60"):
                model(batch)


def test_training_on_another_graph(model: Net) -> None:
    other = random_graph(25, 90)
    with refused(model.train(), ValueError, r"x has 25 rows.*call model\.eval\(\) first"):
        model(other.x, other.edge_index)


def test_x_may_be_empty_or_not_contiguous(model: Net, batch: SubData) -> None:
    model.eval()
    wanted = model(batch)
    ids = torch.stack([batch.n_id, batch.n_id], dim=1)[:, 0]
    x = batch.data.x.t().contiguous().t()
    assert not x.is_contiguous() and not ids.is_contiguous()
    torch.testing.assert_close(call(model, batch, x=x, n_id=ids), wanted)


# -- embeddings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_embeddings_that_are_not_finite(value: float, model: Net, batch: SubData, data: Data) -> None:
    x = batch.data.x.clone()
    x[3, 2] = value  # a row of the batch, so that layer 1 is not finite
    before = [history.emb.clone() for history in model.histories]
    with pytest.raises(ValueError, match=r"embeddings of layer 1 hold NaN or infinity.*check_finite"):
        call(model, batch, x=x)
    data.x[3, 2] = value  # whose features are then others than the loader's
    with pytest.raises(ValueError, match="embeddings of layer 1 hold NaN or infinity"):
        model(data.x, data.edge_index)
    for history, rows in zip(model.histories, before, strict=True):
        assert torch.equal(history.emb, rows)
    model.check_finite = False
    with pytest.warns(UserWarning, match=r"data\.x changed since"):
        call(model, batch, x=x)
    assert not model.histories[0].emb.isfinite().all()


class Wrong(Net):
    """Its ``push_and_pull`` is done by ``act(self, x, args)``."""

    act: Callable[..., Tensor]

    def forward(self, x: Tensor, adj: Any, *args: Any) -> Tensor:
        x = self.act(self.convs[0](x, adj), args)
        return self.convs[1](x, adj)


def wrong(act: Callable[..., Tensor]) -> Wrong:
    model = Wrong(N, num_layers=2)
    model.act = act.__get__(model)
    return model


def test_push_and_pull_with_a_wrong_number_of_rows(batch: SubData, data: Data) -> None:
    rows = batch.batch_size
    model = wrong(lambda self, x, args: self.push_and_pull(self.histories[0], x[:-1], *args))
    with refused(
        model.eval(),
        ValueError,
        rf"x has {rows - 1} rows, but must have those of the batch \({rows}\)",
    ):
        model(batch)
    with refused(model, ValueError, "x has 59 rows, but must have one for each of the 60 nodes"):
        model(data.x, data.edge_index)


def test_push_and_pull_with_a_wrong_width(batch: SubData, data: Data) -> None:
    for width in (1, 15):

        def act(self: Wrong, x: Tensor, args: Any, width: int = width) -> Tensor:
            return self.push_and_pull(self.histories[0], x[:, :width], *args)

        model = wrong(act)
        for given in ((batch,), (data.x, data.edge_index)):
            with refused(model.eval(), ValueError, rf"x must be \[B, 16\], but is \[\d+, {width}\]"):
                model(*given)


def test_push_and_pull_twice(batch: SubData) -> None:
    def act(self: Wrong, x: Tensor, args: Any) -> Tensor:
        x = self.push_and_pull(self.histories[0], x, *args)
        return self.push_and_pull(self.histories[0], x, *args)

    with pytest.raises(ValueError, match="this history was used already in this forward pass"):
        wrong(act)(batch)


def test_push_and_pull_with_a_foreign_history(batch: SubData) -> None:
    foreign = History(N, 16)
    model = wrong(lambda self, x, args: self.push_and_pull(foreign, x, *args))
    with pytest.raises(ValueError, match=r"history must be one of self\.histories"):
        model(batch)
    assert not foreign.emb.any()


def test_push_and_pull_outside_of_forward(model: Net, batch: SubData) -> None:
    with refused(model, RuntimeError, "can only be called inside forward, by calling the model itself"):
        model.push_and_pull(model.histories[0], torch.ones(N, 16))
    with refused(model, RuntimeError, "inside forward"):
        model.forward(batch.data.x, batch.data.edge_index, *batch[1:])


def test_a_forgotten_push_and_pull(batch: SubData) -> None:
    model = wrong(lambda self, x, args: x)
    with pytest.raises(ValueError, match=r"SAGEConv was called with x of 29 rows .* self.push_and_pull"):
        model(batch)


# -- construction ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, -1])
def test_num_layers(number: int) -> None:
    with pytest.raises(ValueError, match=f"Net: num_layers must be at least 1, but is {number}"):
        Net(N, num_layers=number)


def test_widths() -> None:
    for widths in ([16], [16, 16, 16], []):
        with pytest.raises(ValueError, match=rf"hidden_channels must be one number or 2 .* has {len(widths)}"):
            Net(N, widths=widths, num_layers=3)
    with pytest.raises(ValueError, match=r"(num_nodes|hidden_channels) must be at least 1"):
        Net(N, widths=0)
    with pytest.raises(ValueError, match=r"(num_nodes|hidden_channels) must be at least 1"):
        Net(0)
    with pytest.raises(TypeError, match="dtype must be one of"):
        Net(N, history_dtype=torch.int16)


# -- loaders ---------------------------------------------------------------------------------------

BAD_LOADERS: dict[str, tuple[type[Exception], str, Callable[[Data], tuple[Any, ...]]]] = {
    "ptr descends": (
        ValueError, "ptr must ascend", lambda d: (d, torch.tensor([0, 30, 20, N])),
    ),
    "ptr ends too early": (
        ValueError, r"ptr must ascend from 0 to the number of nodes, 60, but .* goes from 0 to 59.*another graph\?",
        lambda d: (d, torch.tensor([0, 30, N - 1])),
    ),
    "ptr starts too late": (
        ValueError, "goes from 1 to 60", lambda d: (d, torch.tensor([1, 30, N])),
    ),
    "ptr empty": (
        ValueError, "has 0 entries", lambda d: (d, torch.empty(0, dtype=torch.int64)),
    ),
    "ptr of floats": (
        TypeError, "ptr must be a one-dimensional integer tensor, as metis",
        lambda d: (d, torch.tensor([0.0, N])),
    ),
    "ptr as a list": (
        TypeError, "ptr must be Tensor, but is list", lambda d: (d, [0, N]),
    ),
    "no adjacency": (
        ValueError, r"data has no adjacency: set data\.edge_index or data\.adj_t",
        lambda d: (Data(x=d.x), PTR),
    ),
    "no nodes": (
        ValueError, r"data has no nodes: set data\.x or data\.num_nodes",
        lambda d: (Data(edge_index=torch.empty(2, 0, dtype=torch.int64), num_nodes=0), PTR),
    ),
    "no data": (
        TypeError, "data must be Data, but is dict",
        lambda d: (d.to_dict(), PTR),
    ),
    "adjacency of another size": (
        ValueError, r"data\.adj_t is for 61 nodes, but data has 60",
        lambda d: (Data(x=d.x, adj_t=to_format(random_graph(61, 90), "csr").adj_t), PTR),
    ),
    "edges of floats": (
        TypeError, r"data\.edge_index must be edge_index .* but is \(2, \d+\) torch\.float32",
        lambda d: (Data(x=d.x, edge_index=d.edge_index.float()), PTR),
    ),
    "edges on another device": (
        ValueError, r"data\.edge_index is on meta, .* data\.cpu\(\)",
        lambda d: (Data(x=d.x, edge_index=d.edge_index.to("meta")), PTR),
    ),
    "batch_size 0": (ValueError, "batch_size should be a positive integer", lambda d: (d, PTR, 0)),
    "batch_size None": (
        TypeError, "batch_size must be int, but is None", lambda d: (d, PTR, None),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_LOADERS)
def test_loader(name: str, data: Data) -> None:
    error, match, arguments = BAD_LOADERS[name]
    with pytest.raises(error, match=match):
        SubgraphLoader(*arguments(data))


@pytest.mark.parametrize("fmt", ["edge_index", "EdgeIndex"])
@pytest.mark.parametrize("bad", [N, -1, 2**40])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("ordered", [True, False])
def test_edges_out_of_range(fmt: str, bad: int, side: int, ordered: bool, data: Data) -> None:
    edges = data.edge_index.clone()
    edges[side, 7] = bad
    if ordered:
        edges = edges[:, edges[1].argsort()]
    if fmt == "EdgeIndex":
        from torch_geometric import EdgeIndex

        edges = EdgeIndex(edges, sparse_size=(N, N))
    with pytest.raises(IndexError, match=rf"data\.edge_index holds the node id {bad}"):
        SubgraphLoader(Data(x=data.x, edge_index=edges), PTR)


def test_prefetch_and_cache_size(data: Data) -> None:
    for kwargs in ({"prefetch": -1}, {"cache_size": -1}):
        with pytest.raises(ValueError, match="prefetch and cache_size must not be negative"):
            SubgraphLoader(data, PTR, **kwargs)


def test_data_that_was_not_permuted() -> None:
    data = random_graph(N, 300, directed=False)
    perm, ptr = metis(data, num_parts=4, log=False, seed=0)
    for loader in (SubgraphLoader, EvalSubgraphLoader):
        with pytest.raises(ValueError, match=r"call data = permute\(data, perm\)"):
            loader(data, ptr)
        assert len(loader(permute(data, perm, log=False), ptr)) == 4
    # Parts of equal size may be of any order; batches are then as right, though they cut more edges.
    perm, ptr = metis(data, num_parts=4, log=False, seed=0, node_weight=torch.arange(N) + 1)
    with pytest.raises(ValueError, match=r"call data = permute\(data, perm\)"):
        SubgraphLoader(permute(data, perm.roll(1), log=False), ptr)


def test_loader_whose_data_changed(data: Data) -> None:
    def use(change: Callable[[Data], None]) -> None:
        graph = random_graph(N, 300)
        loader = SubgraphLoader(graph, PTR, 1)
        list(loader)
        change(graph)
        with pytest.raises(RuntimeError, match=r"data changed its size, adjacency, attributes or device.*make a new"):
            list(loader)

    def set_value(key: str, value: Any) -> Callable[[Data], None]:
        return lambda graph: setattr(graph, key, value)

    use(set_value("x", torch.rand(N, 9)))
    use(set_value("x", torch.rand(N + 1, 8)))
    use(set_value("edge_index", data.edge_index[:, 1:]))
    use(set_value("edge_index", data.edge_index.clone()))
    use(set_value("new", torch.rand(N)))
    use(set_value("names", ["a"] * N))
    use(lambda graph: graph.edge_index[0].add_(0))
    use(lambda graph: delattr(graph, "y"))


# -- the build -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_missing_build_says_how_to_build() -> None:
    code = "import sys; sys.modules['torch_gas._C'] = None; import torch_gas"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError: the compiled core torch_gas._C could not be loaded")
    assert "build it with `pip install -e .`" in message


def test_pull_with_ids_on_another_device() -> None:
    with pytest.raises(ValueError, match=r"n_id must be a dense tensor with memory, but is on meta"):
        History(4, 2).pull(torch.tensor([0], device="meta"))


def test_layers_of_a_wrong_width_are_torchs_own_error(model: Net, batch: SubData) -> None:
    model.convs[0] = SAGEConv(5, 16)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(batch)
    model.convs[0] = SAGEConv(8, 16)
    assert model(batch).shape == (batch.batch_size, 3)
