"""Contracts 1 to 3 of docs/design.md for every shipped model, option set and adjacency format."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from graphs import FORMATS, adjacency, random_graph, random_parts, to_format
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import scatter

from torch_gas import EvalSubgraphLoader, SubgraphLoader
from torch_gas.graph.normalize import add_self_loops, gcn_norm, in_degree
from torch_gas.models import APPNP, GAT, GCN, GCN2, GIN, PNA, PNA_JK, SAGE, PNAConv, ScalableGNN

N, HIDDEN, OUT = 60, 8, 3
PAIR = {"aggregators": ["mean"], "scalers": ["identity"]}
PAIRS = {"aggregators": ["sum", "max"], "scalers": ["identity", "amplification", "attenuation"]}

# One line for each model and set of options: (id, class, options).
CASES = [
    ("gcn", GCN, {}),
    ("gcn-1-layer", GCN, {"num_layers": 1}),
    ("gcn-bn-res", GCN, {"batch_norm": True, "residual": True, "num_layers": 4}),
    ("gcn-linear", GCN, {"linear": True, "batch_norm": True, "residual": True}),
    ("gcn-linear-1-layer", GCN, {"linear": True, "num_layers": 1, "drop_input": False}),
    ("sage", SAGE, {}),
    ("sage-1-layer", SAGE, {"num_layers": 1}),
    ("sage-bn-res", SAGE, {"batch_norm": True, "residual": True, "drop_input": False}),
    ("gat", GAT, {"hidden_heads": 3, "out_heads": 1}),
    ("gat-heads", GAT, {"hidden_heads": 2, "out_heads": 4, "num_layers": 4}),
    ("gat-1-layer", GAT, {"hidden_heads": 2, "out_heads": 2, "num_layers": 1}),
    ("appnp", APPNP, {"num_layers": 6, "alpha": 0.1}),
    ("appnp-1-layer", APPNP, {"num_layers": 1, "alpha": 0.2}),
    ("gcn2", GCN2, {"alpha": 0.1, "theta": 0.5, "num_layers": 6}),
    ("gcn2-1-layer", GCN2, {"alpha": 0.1, "theta": 0.5, "num_layers": 1}),
    (
        "gcn2-unshared-bn-res",
        GCN2,
        {
            "alpha": 0.5,
            "theta": 1.0,
            "shared_weights": False,
            "batch_norm": True,
            "residual": True,
        },
    ),
    ("gin", GIN, {}),
    ("gin-1-layer", GIN, {"num_layers": 1}),
    ("gin-plain", GIN, {"batch_norm": False, "residual": False, "train_eps": False}),
    ("pna", PNA, PAIR),
    ("pna-1-layer", PNA, PAIR | {"num_layers": 1}),
    ("pna-pairs-bn-res", PNA, PAIRS | {"batch_norm": True, "residual": True}),
    ("pna-jk", PNA_JK, PAIR),
    ("pna-jk-1-layer", PNA_JK, PAIR | {"num_layers": 1}),
    ("pna-jk-pairs-bn-res", PNA_JK, PAIRS | {"batch_norm": True, "residual": True}),
]
MODELS = pytest.mark.parametrize(("cls", "options"), [pytest.param(*case[1:], id=case[0]) for case in CASES])
IN_EACH_FORMAT = pytest.mark.parametrize("fmt", FORMATS)


def prepare(data: Data, cls: type[ScalableGNN], fmt: str = "edge_index") -> Data:
    """The graph as the model wants it: normalised, or with self-loops."""
    if cls in (GCN, APPNP, GCN2):
        data = gcn_norm(data)
    elif cls is GAT:
        data = add_self_loops(data)
    return to_format(data, fmt)


def double(data: Data) -> Data:
    """The same graph with features and weights in float64."""
    return copy.copy(data).apply(lambda value: value.double() if value.is_floating_point() else value)


def make(data: Data, cls: type[ScalableGNN], options: dict[str, object], **kwargs: object):
    """A model whose parameters and batch statistics are all random, none still at its start."""
    options = {"num_layers": 3} | options | kwargs
    if cls in (PNA, PNA_JK):
        options["deg"] = in_degree(adjacency(data), data.num_nodes)
    torch.manual_seed(12)
    model = cls(
        num_nodes=data.num_nodes,
        in_channels=data.x.size(1),
        hidden_channels=HIDDEN,
        out_channels=OUT,
        **options,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return model


def call(model: ScalableGNN, data: Data, *ids: object) -> Tensor:
    args, kwargs = model.inputs(data)
    return model(*args, *ids, **kwargs)


def assert_rows(out: Tensor, expected: Tensor) -> None:
    """Equal up to the order of sums: 1e-5 of the largest entry in float32, 1e-10 in float64."""
    assert out.dtype == expected.dtype
    assert out.shape == expected.shape
    assert expected.abs().max() > 1e-3
    assert expected.std() > 1e-4
    limit = 1e-5 if out.dtype == torch.float32 else 1e-10
    assert float((out - expected).abs().max() / expected.abs().max()) < limit


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads cost more than they save on graphs of this size."""
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(number)


@MODELS
@IN_EACH_FORMAT
@pytest.mark.parametrize(("dtype", "directed"), [(torch.float32, False), (torch.float64, True)])
def test_batches_with_exact_histories_and_inference_equal_the_full_batch(cls, options, fmt, dtype, directed):
    data = prepare(random_graph(N, 240, seed=1, directed=directed), cls)
    data = to_format(double(data) if dtype == torch.float64 else data, fmt)
    ptr = random_parts(N, 7, seed=2)
    model = make(data, cls, options).to(dtype).eval()
    with torch.no_grad():
        full = call(model, data)
    tables = [history.emb.clone() for history in model.histories]
    for history in model.histories:
        history.emb.normal_()

    out = model(loader=EvalSubgraphLoader(data, ptr, batch_size=2))
    assert_rows(out, full)
    for history, table in zip(model.histories, tables, strict=True):
        assert_rows(history.emb, table)

    for batch in SubgraphLoader(data, ptr, batch_size=2, shuffle=True, seed=3):
        assert batch.halo_size > 0
        assert_rows(model(batch).detach(), full[batch.n_id[: batch.batch_size]])


@MODELS
def test_sweeps_make_histories_exact(cls, options):
    data = double(prepare(random_graph(N, 240, seed=4), cls))
    model = make(data, cls, options).double().eval()
    full = call(model, data).detach()
    for history in model.histories:
        history.emb.normal_()

    loader = SubgraphLoader(data, random_parts(N, 6, seed=5), batch_size=2, shuffle=True, seed=6)
    errors = []
    with torch.no_grad():
        for _ in range(model.num_layers):
            out = torch.empty_like(full)
            for batch in loader:
                out[batch.n_id[: batch.batch_size]] = model(batch)
            errors.append(float((out - full).abs().max() / full.abs().max()))
    assert errors[-1] < 1e-10
    assert model.num_layers == 1 or errors[0] > 1e-6  # the histories mattered


def check_one_batch(cls: type[ScalableGNN], options: dict[str, object], fmt: str, dropout: float) -> None:
    """Five steps on the graph and five on the one batch that covers it, from the same start."""
    data = prepare(random_graph(N, 240, seed=7), cls)
    # Dropout on attention draws by position of the edge, and in a batch edges are sorted.
    order = (data.edge_index[1] * N + data.edge_index[0]).argsort()
    data = to_format(double(data.edge_subgraph(order)), fmt)
    (batch,) = SubgraphLoader(data, torch.tensor([0, N]))

    def train(step: Callable[[ScalableGNN], Tensor]) -> tuple[list[float], ScalableGNN]:
        model = make(data, cls, options, dropout=dropout).double().train()
        optimizer = torch.optim.Adam(model.parameter_groups(5e-4, 1e-4), lr=0.01)
        torch.manual_seed(8)
        losses = []
        for _ in range(5):
            optimizer.zero_grad()
            loss = F.cross_entropy(step(model), data.y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses, model

    losses, model = train(lambda model: call(model, data))
    batch_losses, batch_model = train(lambda model: model(batch))
    assert len(set(losses)) == 5
    assert batch_losses == pytest.approx(losses, rel=1e-10)
    for (name, value), other in zip(model.state_dict().items(), batch_model.state_dict().values(), strict=True):
        if not name.endswith(("clock", "pushed_at")):  # only steps on batches are counted
            torch.testing.assert_close(other, value, rtol=1e-8, atol=1e-10, msg=name)


@MODELS
@IN_EACH_FORMAT
def test_one_batch_trains_as_the_full_batch(cls, options, fmt):
    check_one_batch(cls, options, fmt, dropout=0.0)


@MODELS
def test_one_batch_trains_as_the_full_batch_with_dropout(cls, options):
    check_one_batch(cls, options, "edge_index", dropout=0.5)


@MODELS
@IN_EACH_FORMAT
def test_batches_give_every_parameter_the_same_gradient_in_each_format(cls, options, fmt):
    def gradients(fmt: str) -> list[Tensor]:
        data = to_format(double(prepare(random_graph(N, 240, seed=9), cls)), fmt)
        (batch, *_) = SubgraphLoader(data, random_parts(N, 3, seed=1))
        assert batch.halo_size > 0
        model = make(data, cls, options).double().train()
        F.cross_entropy(model(batch), batch.data.y[: batch.batch_size]).backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        return [parameter.grad for parameter in model.parameters()]

    for gradient, expected in zip(gradients(fmt), gradients("edge_index"), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-10)


@MODELS
def test_training_on_batches_lowers_the_loss(cls, options):
    data = prepare(random_graph(N, 240, seed=9), cls)
    model = make(data, cls, options).train()
    loader = SubgraphLoader(data, random_parts(N, 6, seed=5), batch_size=2, shuffle=True, seed=6)
    optimizer = torch.optim.Adam(model.parameter_groups(0.0), lr=0.02)
    losses = []
    for _ in range(6):
        losses.append(0.0)
        for batch in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(batch), batch.data.y[: batch.batch_size])
            loss.backward()
            optimizer.step()
            losses[-1] += loss.item() / len(loader)
    assert losses[-1] < losses[0]


@MODELS
def test_parameter_groups_partition_the_parameters(cls, options):
    model = make(random_graph(N, 240), cls, options)
    groups = model.parameter_groups(0.5, 0.25)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())
    assert [group["weight_decay"] for group in groups] == [0.5, 0.25]


@MODELS
def test_reset_parameters_resets_everything(cls, options):
    model = make(random_graph(N, 240), cls, options)
    fixed = "avg_log_deg"  # a figure of the graph, no state

    def reset(junk: float) -> dict[str, Tensor]:
        with torch.no_grad():
            for name, value in [*model.named_parameters(), *model.named_buffers()]:
                if not name.endswith(fixed):
                    value.fill_(junk)
        torch.manual_seed(0)
        model.reset_parameters()
        return {name: value.clone() for name, value in model.state_dict().items()}

    first, second = reset(3.0), reset(5.0)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    for history in model.histories:
        assert not history.emb.any()
        assert (history.age == -1).all()


@MODELS
def test_state_dict_round_trip(cls, options):
    data = prepare(random_graph(N, 240, seed=3), cls)
    (batch, *_) = SubgraphLoader(data, random_parts(N, 3), batch_size=1)
    model, other = make(data, cls, options).eval(), make(data, cls, options).eval()
    call(model, data)  # fills the histories
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    before = other(batch)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(batch), model(batch))
    assert not torch.equal(before, model(batch))


@pytest.mark.parametrize("cls", [GCN, APPNP, GCN2])
@pytest.mark.parametrize("fmt", FORMATS[2:])
def test_weights_beside_a_matrix_are_refused(cls, fmt):
    data = prepare(random_graph(N, 240), cls, fmt)
    options = {GCN: {}, APPNP: {"alpha": 0.1}, GCN2: {"alpha": 0.1, "theta": 0.5}}[cls]
    model = make(data, cls, options)
    weight = torch.ones(data.num_edges)
    with pytest.raises(ValueError, match=f"{cls.__name__}: edge_weight was given beside"):
        model(data.x, data.adj_t, edge_weight=weight)


@pytest.mark.parametrize(
    ("cls", "option"),
    [(SAGE, "linear"), (PNA_JK, "linear"), (GAT, "drop_input"), (GAT, "residual"), (APPNP, "residual")],
)
def test_options_of_other_models_are_refused(cls, option):
    options = {PNA_JK: PAIR, GAT: {"hidden_heads": 2, "out_heads": 1}, APPNP: {"alpha": 0.1}}.get(cls, {})
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{option}'"):
        make(random_graph(N, 240), cls, options, **{option: True})


@IN_EACH_FORMAT
def test_gat_adds_self_loops_itself(fmt):
    data = random_graph(N, 240, seed=1)
    options = {"hidden_heads": 2, "out_heads": 1}
    model = make(data, GAT, options, add_self_loops=True).eval()
    with_loops = make(data, GAT, options).eval()
    full = call(with_loops, add_self_loops(data)).detach()
    data = to_format(data, fmt)
    assert_rows(call(model, data).detach(), full)
    for batch in SubgraphLoader(data, random_parts(N, 5), batch_size=2):
        assert_rows(model(batch).detach(), full[batch.n_id[: batch.batch_size]])


# -- PNA -------------------------------------------------------------------------------------------


@IN_EACH_FORMAT
@pytest.mark.parametrize("aggregator", ["sum", "mean", "min", "max"])
@pytest.mark.parametrize("scaler", PAIRS["scalers"])
def test_pna_conv_is_its_formula(fmt, aggregator, scaler):
    """Equivalent to: one row at a time, straight from the formula of its docstring."""
    data = random_graph(30, 80, seed=2)
    data.x = data.x.double()
    deg = in_degree(data.edge_index, 30)
    assert (deg == 0).any()
    conv = PNAConv(8, 4, [aggregator], [scaler], deg).double()
    x = data.x.clone().requires_grad_()
    other_x = data.x.clone().requires_grad_()
    data.edge_weight = torch.rand(data.num_edges).double()  # not used
    out = conv(x, adjacency(to_format(data, fmt)))

    src, dst = data.edge_index
    delta = (deg + 1).double().log().mean()
    rows = []
    for v in range(30):
        d = int(deg[v])
        neighbours = conv.pre_lins[0](other_x[src[dst == v]]).relu()
        if d == 0:
            h = neighbours.new_zeros(4)
        elif aggregator in ("sum", "mean"):
            h = neighbours.sum(0) / (d if aggregator == "mean" else 1)
        else:
            h = neighbours.amin(0) if aggregator == "min" else neighbours.amax(0)
        scale = {
            "identity": torch.tensor(1.0).double(),
            "amplification": torch.tensor(d + 1.0).double().log() / delta,
            "attenuation": delta / torch.tensor(max(d, 1) + 1.0).double().log(),
        }[scaler]
        rows.append(conv.lin(other_x[v]) + scale * conv.post_lins[0](h))
    expected = torch.stack(rows)
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)

    weight = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)).double()
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(x.grad, other_x.grad, rtol=1e-6, atol=1e-6)


def test_pna_conv_sums_pairs():
    data = random_graph(30, 80, seed=2)
    deg = in_degree(data.edge_index, 30)
    conv = PNAConv(8, 4, ["mean", "max"], ["identity", "amplification"], deg)
    scale = (deg + 1).log().view(-1, 1) / (deg + 1).log().mean()
    src, dst = data.edge_index
    expected = conv.lin(data.x)
    for i, (reduce, factor) in enumerate([("mean", 1.0), ("mean", scale), ("max", 1.0), ("max", scale)]):
        h = conv.pre_lins[i](data.x).relu()
        expected = expected + factor * conv.post_lins[i](scatter(h[src], dst, 0, 30, reduce))
    torch.testing.assert_close(conv(data.x, data.edge_index), expected)


@pytest.mark.parametrize(
    ("aggregators", "scalers", "message"),
    [
        (["mean", "median"], ["identity"], r"aggregators must be .*'max'\).*'median'"),
        (["mean"], ["linear"], r"scalers must be .*'attenuation'\).*'linear'"),
        ([], ["identity"], r"aggregators must be .* but is \[\]"),
    ],
)
def test_pna_refuses_unknown_names(aggregators, scalers, message):
    with pytest.raises(ValueError, match=message):
        PNAConv(4, 4, aggregators, scalers, torch.ones(5))
    with pytest.raises(TypeError, match=r"aggregators must be Sequence\[str\], but is 'mean'"):
        PNAConv(4, 4, "mean", scalers, torch.ones(5))


@pytest.mark.parametrize("cls", [PNA, PNA_JK])
def test_pna_refuses_degrees_of_another_shape(cls):
    with pytest.raises(ValueError, match=rf"{cls.__name__}: deg must be .* \[60\].* is .* \[9\]"):
        cls(N, 8, HIDDEN, OUT, 2, **PAIR, deg=torch.ones(9))
    with pytest.raises(ValueError, match="deg must hold the in-degree"):
        cls(N, 8, HIDDEN, OUT, 2, **PAIR, deg=torch.zeros(N))


# -- a real graph ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cora(tmp_path_factory: pytest.TempPathFactory) -> Data:
    root = os.environ.get("TORCH_GAS_DATA")
    if root is None:
        pytest.skip("TORCH_GAS_DATA does not name the folder of data sets")
    from torch_geometric.datasets import Planetoid

    copied = tmp_path_factory.mktemp("data") / "planetoid"
    shutil.copytree(Path(root) / "planetoid", copied)
    return Planetoid(str(copied), "Cora")[0]


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (GCN, {"num_layers": 2}),
        (APPNP, {"num_layers": 10, "alpha": 0.1}),
        (GCN2, {"num_layers": 16, "alpha": 0.1, "theta": 0.5}),
        (GAT, {"num_layers": 2, "hidden_heads": 8, "out_heads": 1}),
    ],
)
def test_inference_is_exact_on_cora(cora, cls, options):
    data = prepare(cora, cls, "csr")
    model = make(data, cls, options).eval()
    with torch.no_grad():
        full = call(model, data)
        ptr = torch.arange(0, data.num_nodes + 1, data.num_nodes // 4)
        ptr[-1] = data.num_nodes
        assert_rows(model(loader=EvalSubgraphLoader(data, ptr)), full)


def test_models_are_wired_below_message_passing():
    """The wiring acts on message-passing layers, so each model must consist of such."""
    for _, cls, options in CASES:
        model = make(random_graph(N, 240), cls, options)
        assert any(isinstance(module, MessagePassing) for module in model.modules()), cls
