"""Only the training graph, in its order and with its features, reads and writes histories."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import FORMATS, adjacency, random_graph, to_format
from nets import Net
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.explain import Explainer, GNNExplainer
from torch_geometric.nn import GCN, DeepGraphInfomax, GraphConv, GraphSAGE, SAGEConv
from torch_geometric.transforms import AddSelfLoops, ToUndirected
from torch_geometric.utils import dropout_edge

from torch_gas import EvalSubgraphLoader, History, Monitor, ScalableGNN, SubData, SubgraphLoader, gcn_norm, scale
from torch_gas.graph.formats import format_of
from torch_gas.session.model import HistoryModel

N = 60
DATA = random_graph(N, 300)
PTR = torch.arange(0, N + 1, 15)
OTHER_ROWS = torch.randperm(N, generator=torch.Generator().manual_seed(1))


def with_(**values: Any) -> Data:
    """The graph with some attributes replaced."""
    data = copy.copy(DATA)
    for name, value in values.items():
        data[name] = value
    return data


def loader(data: Data = DATA) -> SubgraphLoader:
    return SubgraphLoader(data, PTR, 2)


def explicit() -> HistoryModel:
    return Net(N)


def scaled() -> HistoryModel:
    return scale(GraphSAGE(8, 16, 3, 3), DATA)


KINDS = pytest.mark.parametrize("make", [explicit, scaled])


def exact(make: Callable[[], HistoryModel], data: Data = DATA) -> HistoryModel:
    """A model in evaluation mode whose histories are exact."""
    torch.manual_seed(0)
    model = make().eval()
    model(loader=EvalSubgraphLoader(data, PTR))
    return model


def rows_of(model: HistoryModel) -> list[Tensor]:
    return [history.pull() for history in model.histories]


def assert_left(model: HistoryModel, before: list[Tensor]) -> None:
    for rows, history in zip(before, model.histories, strict=True):
        torch.testing.assert_close(history.pull(), rows)


def corrupt(x: Tensor) -> Tensor:
    return x[torch.randperm(x.size(0), generator=torch.Generator().manual_seed(2))]


# -- whole graphs ------------------------------------------------------------------------------------------------------


def explained(model: HistoryModel) -> None:
    config = {"mode": "multiclass_classification", "task_level": "node", "return_type": "raw"}
    algorithm, masks = GNNExplainer(epochs=2), {"node_mask_type": "attributes", "edge_mask_type": "object"}
    explainer = Explainer(model, algorithm, explanation_type="model", model_config=config, **masks)
    assert explainer(DATA.x, DATA.edge_index, index=3).edge_mask is not None


def through_numpy(model: HistoryModel) -> None:
    edges = DATA.edge_index.clone()
    model(DATA.x, edges)
    edges.numpy()[0, :9] = 0
    model(DATA.x, edges)


EVALUATIONS: dict[str, Callable[[HistoryModel], Any]] = {
    "corrupted features": lambda model: model(DATA.x[OTHER_ROWS], DATA.edge_index),
    "edges of the test set": lambda model: model(DATA.x, torch.cat([DATA.edge_index, DATA.edge_index[:, :5]], dim=1)),
    "edges that training lacked": lambda model: model(DATA.x, dropout_edge(DATA.edge_index, 0.1)[0]),
    "a mask that learns": lambda model: model(DATA.x * torch.rand(8).requires_grad_(), DATA.edge_index),
    "an explainer": explained,
    "edges changed through NumPy": through_numpy,
    "undirected": lambda model: model(DATA.x, ToUndirected()(copy.copy(DATA)).edge_index),
    "with self-loops": lambda model: model(DATA.x, AddSelfLoops()(copy.copy(DATA)).edge_index),
    "normalised features": lambda model: model(F.normalize(DATA.x), DATA.edge_index),
}


@KINDS
@pytest.mark.parametrize("name", EVALUATIONS)
def test_evaluation_of_another_whole_graph_leaves_histories_alone(name: str, make: Any) -> None:
    model = exact(make)
    before = rows_of(model)
    EVALUATIONS[name](model)
    assert_left(model, before)


@pytest.mark.parametrize("fmt", FORMATS)
def test_other_weights_of_the_same_edges(fmt: str) -> None:
    data = to_format(gcn_norm(with_(edge_weight=torch.rand(DATA.num_edges))), fmt)
    torch.manual_seed(0)
    model = scale(GCN(8, 16, 2, 3, normalize=False), data).eval()
    model(loader=EvalSubgraphLoader(data, PTR))
    before = rows_of(model)
    other = to_format(gcn_norm(with_(edge_weight=torch.rand(DATA.num_edges))), fmt)
    model(other)
    assert_left(model, before)
    for parameter in model.parameters():
        parameter.data.mul_(2)
    model(data)  # its own
    assert not torch.equal(model.histories[0].pull(), before[0])


@KINDS
def test_sparse_features(make: Any) -> None:
    if make is scaled:
        pytest.skip("scale() takes dense features")
    x = (DATA.x * (DATA.x > 0.5)).to_sparse_csr()
    model = Net(N, conv=lambda c, d: SAGEConv(c, d, aggr="sum")).eval()
    model.convs[0] = Sparse()
    data = with_(x=x)
    [model(batch) for batch in loader(data)]
    before = rows_of(model)
    model((DATA.x[OTHER_ROWS] * (DATA.x[OTHER_ROWS] > 0.5)).to_sparse_csr(), DATA.edge_index)
    assert_left(model, before)


class Sparse(SAGEConv):
    """A layer that projects sparse features first."""

    def __init__(self) -> None:
        super().__init__(8, 16, project=False)

    def forward(self, x: Any, edge_index: Any, size: Any = None) -> Tensor:
        x = tuple(each.to_dense() for each in x) if isinstance(x, tuple) else x.to_dense()
        return super().forward(x, edge_index, size)


@KINDS
@pytest.mark.parametrize("corrupted_first", [False, True])
def test_a_corrupted_pass_over_the_whole_graph_in_training(make: Any, corrupted_first: bool) -> None:
    model = exact(make).train()
    before = rows_of(model)
    for x in (DATA.x[OTHER_ROWS], DATA.x) if corrupted_first else (DATA.x, DATA.x[OTHER_ROWS]):
        model(x, DATA.edge_index)
    assert_left(model, before)


@KINDS
def test_two_views_of_the_whole_graph_in_one_step(make: Any) -> None:
    """No batch was seen: the first pass of each step is what histories hold."""
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        first, second = (dropout_edge(DATA.edge_index, 0.3)[0] for _ in range(2))
        out = model(DATA.x, first)
        before = rows_of(model)
        (out.sum() + model(DATA.x, second).sum()).backward()
        assert_left(model, before)
        optimizer.step()


@KINDS
def test_its_own_graph_still_refreshes(make: Any) -> None:
    model = exact(make)
    for parameter in model.parameters():
        parameter.data.mul_(1.5)
    with torch.no_grad():
        out = model(DATA.x.clone(), DATA.edge_index.flip(1))  # the same in another tensor, and order of edges
        for batch in loader():
            torch.testing.assert_close(model(batch), out[batch.n_id[: batch.batch_size]])
    model.double()
    with torch.no_grad():
        out = model(DATA.x.double(), DATA.edge_index)
        batch = next(iter(loader()))
        torch.testing.assert_close(
            model(batch.x.double(), batch.edge_index, *batch[1:]), out[batch.n_id[: batch.batch_size]]
        )


@KINDS
def test_features_that_learn_are_told_apart_by_shape(make: Any) -> None:
    model, embedding = make(), torch.nn.Embedding(N, 8)
    data = Data(edge_index=DATA.edge_index, num_nodes=N)
    optimizer = torch.optim.SGD([*model.parameters(), *embedding.parameters()], lr=0.1)
    with torch.no_grad():
        model.eval()(embedding.weight, data.edge_index)
    for batch in loader(data):
        model.train()(embedding(batch.n_id), batch.edge_index, *batch[1:]).sum().backward()
        optimizer.step()
    with torch.no_grad():
        out = model.eval()(embedding.weight, data.edge_index)
        for batch in loader(data):
            torch.testing.assert_close(
                model(embedding(batch.n_id), batch.edge_index, *batch[1:]), out[batch.n_id[: batch.batch_size]]
            )


# -- batches -----------------------------------------------------------------------------------------------------------


def other_features(model: HistoryModel, batch: SubData) -> None:
    model(corrupt(batch.x), batch.edge_index, *batch[1:])


def in_place(model: HistoryModel, batch: SubData) -> None:
    batch.x[:, 0] = 0
    model(batch)


def a_mask(model: HistoryModel, batch: SubData) -> None:
    model(batch.x * torch.rand(8).requires_grad_(), batch.edge_index, *batch[1:])


def fewer_edges(model: HistoryModel, batch: SubData) -> None:
    model(batch.x, batch.edge_index[:, 1:], *batch[1:])


def shuffled_edges(model: HistoryModel, batch: SubData) -> None:
    batch.edge_index = torch.stack([corrupt(batch.edge_index[0]), batch.edge_index[1]])
    model(batch)


def one_rewired_in_ten(model: HistoryModel, batch: SubData) -> None:
    edges = batch.edge_index.clone()
    edges[0, ::10] = (edges[0, ::10] + 1) % batch.batch_size
    model(batch.x, edges, *batch[1:])


def edges_through_numpy(model: HistoryModel, batch: SubData) -> None:
    batch.edge_index.numpy()[0] = 0
    model(batch)


def masked_messages(model: HistoryModel, batch: SubData) -> None:
    modules = [module for module in model.modules() if isinstance(module, SAGEConv)]
    for module in modules:
        module.explain = True
    try:
        model(batch)
    finally:
        for module in modules:
            module.explain = False


OTHER_BATCHES = [
    other_features, in_place, a_mask, fewer_edges, shuffled_edges, one_rewired_in_ten, edges_through_numpy, masked_messages,
]  # fmt: skip


@KINDS
@pytest.mark.parametrize("act", OTHER_BATCHES)
def test_evaluation_of_another_batch_is_refused(act: Any, make: Any) -> None:
    model = exact(make)
    before = rows_of(model)
    with pytest.raises(ValueError, match=r"explain the model on the whole graph|not those that the loader gave"):
        act(model, next(iter(loader())))
    assert_left(model, before)


def weighted_net() -> HistoryModel:
    return Weighted(N)


def weighted_scaled() -> HistoryModel:
    return scale(GCN(8, 16, 2, 3, normalize=False), WEIGHTED)


class Weighted(ScalableGNN):
    """Two layers that take edge weights."""

    def __init__(self, num_nodes: int) -> None:
        super().__init__(num_nodes, 16, 2)
        self.convs = torch.nn.ModuleList([GraphConv(8, 16), GraphConv(16, 3)])

    def forward(self, x: Tensor, adj: Any, *args: Any, edge_weight: Tensor | None = None) -> Tensor:
        x = self.push_and_pull(self.histories[0], self.convs[0](x, adj, edge_weight).relu(), *args)
        return self.convs[1](x, adj, edge_weight)


WEIGHTED = with_(edge_weight=torch.rand(DATA.num_edges, generator=torch.Generator().manual_seed(3)))
WEIGHTED_KINDS = pytest.mark.parametrize("make", [weighted_net, weighted_scaled])


def mask_in_the_batch(model: HistoryModel, batch: SubData) -> None:
    batch.edge_weight = batch.edge_weight * torch.rand(batch.num_edges)
    model(batch)


def mask_that_learns(model: HistoryModel, batch: SubData) -> None:
    mask = torch.rand(batch.num_edges, requires_grad=True)
    model(batch.x, batch.edge_index, *batch[1:], edge_weight=batch.edge_weight * mask.sigmoid())


def some_weights_through_numpy(model: HistoryModel, batch: SubData) -> None:
    batch.edge_weight.numpy()[::4] = 0
    model(batch)


@WEIGHTED_KINDS
@pytest.mark.parametrize("act", [mask_in_the_batch, mask_that_learns, some_weights_through_numpy])
def test_evaluation_of_a_batch_with_other_edge_weights_is_refused(act: Any, make: Any) -> None:
    if act is mask_that_learns and make is weighted_scaled:
        act = mask_by_name
    model = exact(make, WEIGHTED)
    before = rows_of(model)
    with pytest.raises(ValueError, match="the edge_weight of this batch are not those that the loader gave"):
        act(model, next(iter(loader(WEIGHTED))))
    assert_left(model, before)
    for parameter in model.parameters():
        parameter.data.mul_(2)
    for batch in loader(WEIGHTED):
        model.double()(batch.update({"x": batch.x.double(), "edge_weight": batch.edge_weight.double()}))


def mask_by_name(model: HistoryModel, batch: SubData) -> None:
    names = dict(zip(["batch_size", "n_id", "offset", "count"], batch[1:], strict=True))
    mask = torch.rand(batch.num_edges, requires_grad=True)
    model(batch.x, batch.edge_index, edge_weight=batch.edge_weight * mask, **names)


@pytest.mark.parametrize("fmt", FORMATS[2:])
def test_evaluation_of_a_batch_with_another_matrix_is_refused(fmt: str) -> None:
    data = to_format(WEIGHTED, fmt)
    model = exact(lambda: Net(N, conv=GraphConv), data)
    before = rows_of(model)
    for name in ("edges", "values of edges"):
        batch = next(iter(loader(data)))
        adj = adjacency(batch)
        _, _, ids = format_of(adj).stored_edges(adj)
        part = ids if name == "edges" else format_of(adj).values(adj)
        part.copy_(part.flip(0))
        with pytest.raises(ValueError, match=f"the {name} of this batch are not those that the loader gave"):
            model(batch)
    assert_left(model, before)


OTHER_NAMES = Data(feat=DATA.x, kind=torch.arange(N) % 3, pos=torch.rand(N, 8), target=torch.rand(N), num_nodes=N)
OTHER_NAMES.update({"edge_index": DATA.edge_index, "w": WEIGHTED.edge_weight})


class Named(Weighted):
    """Takes what has other names in the graph."""

    def forward(self, x: Tensor, adj: Any, *args: Any, pos: Any = None, kind: Any = None, **weights: Any) -> Tensor:
        return super().forward(x + pos + kind[:, None], adj, *args, **weights)

    def inputs(self, data: Data, **kwargs: Any) -> Any:
        return (data.feat, data.edge_index), {"pos": data.pos, "kind": data.kind, "edge_weight": data.w, **kwargs}


class PlainNamed(GCN):
    def forward(self, x: Tensor, edge_index: Tensor, pos: Tensor, kind: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x + pos + kind[:, None], edge_index, weight)


def scaled_named() -> HistoryModel:
    model = PlainNamed(8, 16, 2, 3, normalize=False)
    return scale(model, OTHER_NAMES, inputs=lambda data: (data.feat, data.edge_index, data.pos, data.kind, data.w))


@pytest.mark.parametrize("make", [lambda: Named(N), scaled_named])
@pytest.mark.parametrize("name", ["feat", "pos", "kind", "w"])
def test_inputs_under_other_names(make: Any, name: str) -> None:
    model = exact(make, OTHER_NAMES)
    before = rows_of(model)
    batch = next(iter(loader(OTHER_NAMES)))
    batch[name] = corrupt(batch[name])
    with pytest.raises(ValueError, match=r"of this batch are not those that the loader gave"):
        model(batch)
    other = copy.copy(OTHER_NAMES)
    other[name] = corrupt(other[name])
    with pytest.raises(ValueError, match=rf"embeddings of another data\.{name} than the loader's"):
        model(loader=EvalSubgraphLoader(other, PTR))
    if make is scaled_named:
        model(other)
    else:
        model(other.feat, other.edge_index, pos=other.pos, kind=other.kind, edge_weight=other.w)
    assert_left(model, before)
    other = copy.copy(OTHER_NAMES)
    other.target = 2 * other.target  # which the model does not see
    model(loader=EvalSubgraphLoader(other, PTR))


def test_evaluations_before_training_are_of_one_function() -> None:
    model = exact(weighted_net, WEIGHTED)
    before = rows_of(model)
    batch = next(iter(loader(WEIGHTED)))
    with pytest.raises(
        ValueError, match=r"Weighted was first called with edge_weight, but is evaluated with no further"
    ):
        model(batch.x, batch.edge_index, *batch[1:])
    assert_left(model, before)
    model.train()(batch.x, batch.edge_index, *batch[1:])


@WEIGHTED_KINDS
def test_weights_that_training_changes_are_remembered(make: Any) -> None:
    """As are edges: evaluation may then have others than the loader's as well."""
    model = make().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in loader(WEIGHTED):
        batch.edge_weight = F.dropout(batch.edge_weight, 0.2)
        model(batch).sum().backward()
        optimizer.step()
    model.eval()
    for batch in loader(WEIGHTED):
        model(batch.update({"edge_weight": batch.edge_weight * 0.8}))


@WEIGHTED_KINDS
def test_two_weights_in_one_step_are_refused(make: Any) -> None:
    model, batch = make().train(), next(iter(loader(WEIGHTED)))
    model(batch)
    with pytest.raises(ValueError, match=r"other features or edges in an earlier call of this step"):
        model(batch.update({"edge_weight": 1 - batch.edge_weight}))


@KINDS
@pytest.mark.parametrize("by_batch", [False, True])
def test_loaders_of_other_features_are_refused_in_evaluation(make: Any, by_batch: bool) -> None:
    model, other = exact(make), with_(x=DATA.x[OTHER_ROWS])
    before = rows_of(model)
    with pytest.raises(ValueError, match=r"another data\.x than the loader's.*reset_parameters"):
        if by_batch:
            model(next(iter(loader(other))))
        else:
            model(loader=EvalSubgraphLoader(other, PTR))
    assert_left(model, before)
    for history in model.histories:
        history.reset_parameters()
    model(loader=EvalSubgraphLoader(other, PTR))


@KINDS
def test_features_that_change_during_training(make: Any) -> None:
    model, data = make().train(), copy.copy(DATA)
    batches = loader(data)
    for batch in batches:
        model(batch)
    data.x = F.normalize(data.x)
    with pytest.warns(UserWarning, match=r"data\.x changed since the histories were computed.*reset_parameters"):
        for batch in batches:
            model(batch)
    model.eval()
    for batch in batches:
        model(batch)
    before = rows_of(model)
    model(DATA.x, DATA.edge_index)
    assert_left(model, before)


def infomax(model: HistoryModel, batch: SubData) -> None:
    """The two passes of a step of Deep Graph Infomax."""

    def shuffle(x: Tensor, *args: Any) -> tuple[Any, ...]:
        return corrupt(x), *args

    module = DeepGraphInfomax(3, model, lambda z, *args, **kwargs: z.mean(0).sigmoid(), shuffle)
    module(batch.x, batch.edge_index, *batch[1:])


def two_views(model: HistoryModel, batch: SubData) -> None:
    for seed in range(2):
        keep = torch.randperm(batch.num_edges, generator=torch.Generator().manual_seed(seed))[:-9]  # as many in each
        model(batch.x, batch.edge_index[:, keep], *batch[1:])


def apart(model: HistoryModel, batch: SubData) -> None:
    """The second pass comes after another batch."""
    model(batch)
    model(list(loader())[1])
    model(batch.clone().update({"x": corrupt(batch.x)}))


@KINDS
@pytest.mark.parametrize("act", [infomax, two_views, apart])
def test_a_second_pass_in_one_step_is_refused(act: Any, make: Any) -> None:
    model = make()
    with pytest.raises(ValueError, match=r"earlier call of this step.*copy\.deepcopy\(model"):
        act(model.train(), next(iter(loader())))


@KINDS
def test_a_second_pass_may_have_histories_of_its_own(make: Any) -> None:
    model = exact(make)
    other = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    for history in other.histories:
        history.reset_parameters()
    assert all(mine is its for mine, its in zip(model.parameters(), other.parameters(), strict=True))
    before = rows_of(model)
    for _ in range(2):
        for batch in loader():
            model(batch)
            other(corrupt(batch.x), batch.edge_index, *batch[1:])
    assert_left(model, before)
    (model.train()(batch).sum() + other.train()(batch).sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def steps_on_a_batch(model: HistoryModel) -> None:
    """Some steps on the same batch, with dropout before the model."""
    optimizer = torch.optim.Adam(model.parameters())
    for batch in list(loader()) * 2:
        for _ in range(3):
            model(F.dropout(batch.x), batch.edge_index, *batch[1:]).sum().backward()
            optimizer.step()


def gradients_accumulate(model: HistoryModel) -> None:
    for batch in [*loader(), *loader()]:
        model(batch).sum().backward()
        model(batch).sum().backward()  # dropout inside of a model may differ


def adversarial(model: HistoryModel) -> None:
    for batch in loader():
        shift = torch.zeros_like(batch.x, requires_grad=True)
        for _ in range(2):
            model(batch.x + shift, batch.edge_index, *batch[1:]).sum().backward()
            shift.data.add_(shift.grad.sign())


def parameters_replaced(model: HistoryModel) -> None:
    batch = next(iter(loader()))
    for _ in range(3):
        model(F.dropout(batch.x), batch.edge_index, *batch[1:])
        conv = next(module for module in model.modules() if isinstance(module, SAGEConv))
        conv.lin_l.weight = torch.nn.Parameter(conv.lin_l.weight.detach().clone())


def evaluated_meanwhile(model: HistoryModel) -> None:
    for batch in loader():
        model(F.dropout(batch.x), batch.edge_index, *batch[1:])
        model.eval()(batch)
        model.train()


def dropped_edges(model: HistoryModel) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for batch in [*loader(), *loader()]:
        batch.edge_index = dropout_edge(batch.edge_index, 0.3)[0]
        model(batch).sum().backward()
        optimizer.step()


def watched(model: HistoryModel) -> None:
    batches = loader()
    with Monitor(model, every=1) as monitor:
        for batch in batches:
            model(batch)
        monitor.errors(batches)
        for batch in batches:
            model(batch)


@KINDS
@pytest.mark.parametrize(
    "train",
    [
        steps_on_a_batch, gradients_accumulate, adversarial, parameters_replaced, evaluated_meanwhile, dropped_edges, watched,
    ],
)  # fmt: skip
def test_training_that_goes_on(train: Any, make: Any) -> None:
    model = make().train()
    train(model)
    model.eval()
    for batch in loader():
        model(batch)
    out = model(loader=EvalSubgraphLoader(DATA, PTR))
    with torch.no_grad():
        torch.testing.assert_close(out, model(DATA.x, DATA.edge_index))


def test_features_with_nan_are_the_same() -> None:
    data = with_(x=DATA.x.clone())
    data.x[::2, 0] = torch.nan
    model = Net(N, check_finite=False).eval()
    for _ in range(2):
        for batch in loader(data):
            model(batch)


def test_check_false_lets_batches_be_anything() -> None:
    model = Net(N, check=False).eval()
    for batch in loader():
        model(batch)
        model(corrupt(batch.x), batch.edge_index, *batch[1:])


# -- histories that forward uses by hand -------------------------------------------------------------------------------


class ByHand(Net):
    """Uses a history beside ``push_and_pull``."""

    def __init__(self, use: Callable[[History, Tensor], Any], when: Callable[[Any, Any], bool]) -> None:
        super().__init__(N)
        self.use, self.when = use, when

    def forward(self, x: Tensor, adj: Any, *args: Any) -> Tensor:
        n_id = args[1] if args else None
        for conv, history in zip(self.convs, self.histories, strict=False):
            x = self.push_and_pull(history, conv(x, adj).relu(), *args)
            if self.when(self, n_id):
                self.use(history, torch.arange(N) if n_id is None else n_id)
        return self.convs[-1](x, adj)


def put(history: History, ids: Tensor) -> None:
    history.emb[ids] = 0.0


USES: dict[str, Callable[[History, Tensor], Any]] = {
    "push": lambda history, ids: history.push(torch.zeros(len(ids), 16), ids),
    "pull": lambda history, ids: history.pull(ids),
    "emb": put,
}


@pytest.mark.parametrize("use", USES)
def test_inference_refuses_histories_by_hand(use: str) -> None:
    model = ByHand(USES[use], lambda model, n_id: n_id is not None).eval()
    with pytest.raises(RuntimeError, match=r"ByHand: forward reads or writes a history by hand.*if self\.training"):
        model(loader=EvalSubgraphLoader(DATA, PTR))
    USES[use](model.histories[0], torch.arange(3))  # afterwards, it may be used as ever


@pytest.mark.parametrize("use", USES)
def test_histories_by_hand_in_training(use: str) -> None:
    model = ByHand(USES[use], lambda model, n_id: model.training and n_id is not None)
    for batch in loader():
        model(batch)
    out = model.eval()(loader=EvalSubgraphLoader(DATA, PTR))
    with torch.no_grad():
        torch.testing.assert_close(out, model(DATA.x, DATA.edge_index))


def test_another_graph_and_the_monitor_keep_hands_off() -> None:
    model = ByHand(USES["push"], lambda model, n_id: True).eval()
    for batch in loader():
        model(batch)
    with pytest.raises(RuntimeError, match="this whole graph is another one than the histories are of"):
        model(DATA.x[OTHER_ROWS], DATA.edge_index)
    with pytest.raises(RuntimeError, match="forward reads or writes a history by hand"):
        Monitor(model).errors(loader())


def test_adjacency_formats_do_not_count() -> None:
    model = exact(explicit)
    before = rows_of(model)
    for parameter in model.parameters():
        parameter.data.mul_(2)
    model(DATA.x, adjacency(to_format(DATA, "csr")))
    assert not torch.equal(model.histories[0].pull(), before[0])


@pytest.mark.parametrize("fresh", [False, True])
@KINDS
def test_rows_from_a_dictionary_that_does_not_tell_their_graph(make: Callable[[], HistoryModel], fresh: bool) -> None:
    """As the best of a run is kept, {name: value.clone()}, or by a format without metadata."""
    model = exact(make)
    best = {name: value.clone() for name, value in model.state_dict().items()}
    before, out = rows_of(model), [model(batch) for batch in loader()]
    model = make().eval() if fresh else model
    model.load_state_dict(best)
    model(
        DATA.x[OTHER_ROWS], OTHER_ROWS.argsort()[DATA.edge_index]
    )  # in another order, which the dictionary's may be or not
    assert_left(model, before)
    torch.testing.assert_close([model(batch) for batch in loader()], out)
    if not fresh:
        with pytest.raises(ValueError, match="they differ in edges"):
            model(next(iter(loader(with_(edge_index=DATA.edge_index[:, 1:])))))


def test_models_that_share_histories_share_a_step() -> None:
    model = explicit()
    other, batch = copy.copy(model), next(iter(loader()))
    model(batch)
    second = copy.copy(batch)
    second.x = corrupt(batch.x)
    before = rows_of(model)
    with pytest.raises(ValueError, match="this batch had other features or edges in an earlier call of this step"):
        other(second)
    assert_left(model, before)
    copy.deepcopy(model)(second)  # which has histories of its own
