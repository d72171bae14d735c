"""Penalties are those of the formulas, on the rows of the whole graph; weights stay below their bounds."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_geometric.nn as nn
from graphs import FORMATS, adjacency, random_graph, to_format
from nets import Net, refresh, tables
from plain_models import OUT, C, H, Shared
from torch import Tensor
from torch.nn import Linear, Module, ReLU, Sequential
from torch.nn.utils import parametrize
from torch_geometric.data import Data

from torch_gas import EvalSubgraphLoader, ScalableGNN, SubData, SubgraphLoader, scale
from torch_gas.extensions.regularization import LocalPerturbation, local_perturbation, parameter_groups, spectral_norm
from torch_gas.models import APPNP, GCN, GIN
from torch_gas.wiring.compiled import OLDEST

N = 60
PTR = torch.tensor([0, 14, 37, N])


def graph(fmt: str = "edge_index") -> Data:
    return to_format(random_graph(N, 4 * N, seed=1), fmt)


def batches(data: Data) -> SubgraphLoader:
    return SubgraphLoader(data, PTR)


def close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


# -- one layer ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [True, False])
def test_local_perturbation_is_the_formula(given: bool) -> None:
    mlp, h = Sequential(Linear(5, 7), ReLU(), Linear(7, 3)), torch.randn(20, 5)
    torch.manual_seed(1)
    penalty = local_perturbation(mlp, h, mlp(h) if given else None, noise=0.3)
    torch.manual_seed(1)
    shift = 0.3 * torch.randn(20, 5)
    assert penalty.dim() == 0
    close(penalty, sum((mlp(h[i]) - mlp(h[i] + shift[i])).square().sum().sqrt() for i in range(20)) / 20)


def test_gradients_of_both_branches_agree_with_finite_differences() -> None:
    lin, h = Linear(4, 3).double(), torch.randn(6, 4, dtype=torch.float64, requires_grad=True)

    def penalty(h: Tensor, weight: Tensor) -> Tensor:
        torch.manual_seed(2)
        return local_perturbation(lambda rows: (rows @ weight.t()).tanh(), h, noise=0.5)

    assert torch.autograd.gradcheck(penalty, (h, lin.weight))


@pytest.mark.parametrize("noise", [0.0, -1.0, float("nan"), float("inf")])
def test_noise_must_be_positive(noise: float) -> None:
    with pytest.raises(ValueError, match=r"local_perturbation: noise must be (positive|a number)"):
        local_perturbation(torch.tanh, torch.ones(2, 2), noise=noise)
    with pytest.raises(ValueError, match=r"LocalPerturbation: noise must be (positive|a number)"):
        LocalPerturbation(noise=noise)


def test_out_must_be_that_of_the_layer() -> None:
    with pytest.raises(ValueError, match=r"out is .* \[2, 1\], but the layer gives .* \[2, 3\]"):
        local_perturbation(torch.tanh, torch.ones(2, 3), torch.ones(2, 1))


# -- whole models ------------------------------------------------------------------------------------------------------


def test_gin_is_penalised_as_published() -> None:
    """The published training code, by hooks on the MLPs of layers 1 .. L-2."""
    data, model = random_graph(N, 4 * N, seed=1), GIN(N, C, H, OUT, num_layers=4)
    twin = copy.deepcopy(model)
    LocalPerturbation(weight=0.5, noise=0.1).attach(model)
    penalties = []

    def penalise(mlp: Any, inputs: tuple[Tensor], out: Tensor) -> None:
        change = out - mlp.forward(inputs[0] + 0.1 * torch.randn_like(inputs[0]))
        penalties.append(change.norm(dim=-1).mean() / len(twin.histories))

    for conv in twin.convs[1:-1]:
        conv.nn.register_forward_hook(penalise)
    for batch in batches(data):
        penalties.clear()
        for each, seed in ((model, 3), (twin, 3)):
            torch.manual_seed(seed)
            each.zero_grad()
            out = each(batch)
            penalty = model.regularization() if each is model else 0.5 * sum(penalties)
            (out.square().mean() + penalty).backward()
        assert len(penalties) == 2
        close(model.regularization(), 0.5 * sum(penalties))
        for left, right in zip(model.parameters(), twin.parameters(), strict=True):
            close(left.grad, right.grad)


def hidden_penalty(plain: Module, data: Data, batch: SubData, noise: float, hidden: slice, layers: int) -> Tensor:
    """The penalty of a batch whose histories are exact, by the plain model's layers on the whole graph."""
    calls: list[tuple[Any, ...]] = []
    convs = [module for module in plain.modules() if isinstance(module, nn.MessagePassing)]
    hooks = [
        conv.register_forward_hook(lambda *call: calls.append(call), with_kwargs=True)
        for conv in convs
        if not any(conv in other.modules() for other in convs if other is not conv)
    ]
    plain(data.x, adjacency(data))
    for hook in hooks:
        hook.remove()
    terms, size = [], batch.batch_size
    for conv, args, kwargs, out in calls[hidden]:
        x = args[0] if args else kwargs["x"]
        moved = x.index_add(0, batch.n_id, noise * torch.randn(batch.n_id.numel(), x.size(1)))
        changed = conv(moved, *args[1:], **kwargs) if args else conv(**{**kwargs, "x": moved})
        terms.append((out - changed)[batch.n_id[:size]].norm(dim=1).mean())
    return sum(terms) / (layers - 1)


def check(model: ScalableGNN, plain: Module, data: Data, hidden: slice, layers: int) -> None:
    """Penalties and gradients of all batches, against those on the whole graph."""
    model.eval()
    with torch.no_grad():
        model(data.x, adjacency(data))  # the histories become exact
    model.train()
    exact = tables(model.histories)
    for batch in batches(data):
        torch.manual_seed(4)
        model(batch)
        torch.manual_seed(4)
        want = hidden_penalty(plain, data, batch, 0.2, hidden, layers)
        assert want > 0
        close(model.regularization(), want)
        model.histories.load_state_dict(exact)


CONVS: dict[str, Callable[[int, int], Module]] = {
    "SAGEConv": nn.SAGEConv,
    "GraphConv": nn.GraphConv,
    "GATConv": lambda i, o: nn.GATConv(i, o, add_self_loops=False),
    "GCNConv": lambda i, o: nn.GCNConv(i, o, normalize=False, add_self_loops=False),
    "EdgeConv": lambda i, o: nn.EdgeConv(Sequential(Linear(2 * i, o), ReLU())),
}


class PlainNet(Module):
    """The layers of :class:`nets.Net` without histories."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.convs = net.convs

    def forward(self, x: Tensor, adj: Any) -> Tensor:
        for conv in self.convs[:-1]:
            x = conv(x, adj).relu()
        return self.convs[-1](x, adj)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("name", CONVS)
def test_hidden_layers_of_any_convolution(name: str, fmt: str) -> None:
    data, model = graph(fmt), Net(N, 6, num_layers=4, conv=CONVS[name])
    LocalPerturbation(noise=0.2).attach(model)
    check(model, PlainNet(model), data, slice(1, 3), 4)


class InitialResidual(Module):
    """GCNII, whose layers take the rows of the first one as well."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.convs = Linear(C, H), torch.nn.ModuleList([nn.GCN2Conv(H, 0.1, 0.5, i + 1) for i in range(4)])

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        x = x_0 = self.lin(x).relu()
        for conv in self.convs:
            x = conv(x=x, x_0=x_0, edge_index=edge_index).relu()
        return x


PLAIN: dict[str, Callable[[], Module]] = {
    "GCN": lambda: nn.GCN(C, H, 4, OUT),  # counts degrees, which batches look up
    "GAT": lambda: nn.GAT(C, H, 4, OUT),
    "SAGE with jumping knowledge": lambda: nn.GraphSAGE(C, H, 4, OUT, jk="cat"),
    "PNA": lambda: nn.PNA(C, H, 4, OUT, aggregators=["mean", "max"], scalers=["identity"], deg=torch.ones(9)),
    "GCNII, by name": InitialResidual,
    "shared": lambda: Shared(nn.SAGEConv(H, H)),
}


@pytest.mark.parametrize("name", PLAIN)
def test_hidden_layers_of_scaled_models(name: str) -> None:
    data = graph()
    plain = PLAIN[name]()
    model = scale(plain, data, regularization=LocalPerturbation(noise=0.2))
    check(model, plain, data, slice(1, len(model.histories)), len(model.histories) + 1)


def test_scaled_gin_is_penalised_at_its_mlps() -> None:
    data = graph()
    plain = nn.GIN(C, H, 4, OUT, norm=None)
    model = scale(plain, data, regularization=LocalPerturbation(noise=0.2))
    twin = scale(copy.deepcopy(plain), data, regularization=LocalPerturbation(0.5, 0.2, ["convs.1.nn", "convs.2.nn"]))
    for batch in batches(data):
        torch.manual_seed(4), model(batch)
        torch.manual_seed(4), twin(batch)
        assert model.regularization() > 0
        close(0.5 * model.regularization(), twin.regularization())


@pytest.mark.parametrize("name", [*PLAIN, "explicit"])
def test_a_second_call_leaves_the_first_what_it_is(name: str) -> None:
    """Outputs, gradients and histories are those of training without it, where nothing of the loss is penalty."""
    data = graph()
    plain = Net(N, H, 4) if name == "explicit" else PLAIN[name]()
    one, two = (copy.deepcopy(plain) if name == "explicit" else scale(copy.deepcopy(plain), data) for _ in range(2))
    LocalPerturbation().attach(two)
    for batch in batches(data):
        outs = [model(batch) for model in (one, two)]
        assert two.regularization() > 0
        assert torch.equal(*outs)
        for out in outs:
            out.square().mean().backward()
        for left, right in zip(one.parameters(), two.parameters(), strict=True):
            assert torch.equal(left.grad, right.grad)
        for left, right in zip(one.histories, two.histories, strict=True):
            assert torch.equal(left.emb, right.emb) and torch.equal(left.pushed_at, right.pushed_at)


def test_dropout_inside_of_a_layer_is_the_same_in_both_calls() -> None:
    data, model = graph(), Net(N, H, 4, conv=lambda i, o: nn.GATConv(i, o, dropout=0.5, add_self_loops=False))
    LocalPerturbation(noise=1e-4).attach(model)
    for batch in batches(data):
        torch.manual_seed(0)
        out = model(batch)
        torch.manual_seed(1)
        assert (out - model(batch)).abs().max() > 1e-2  # other masks do matter
        assert 0 < model.regularization() < 1e-3


def test_gradients_reach_both_branches() -> None:
    """Of a linear layer f(x) = W x, the penalty is |W (shift)|, in which the rows themselves cancel."""
    data, model = graph(), Net(N, H, 3, conv=lambda i, o: nn.SimpleConv() if i == o else nn.SAGEConv(i, o))
    model.convs[1] = nn.GraphConv(H, H, bias=False)
    refresh(model, data)
    LocalPerturbation(noise=0.1).attach(model)
    batch = next(iter(batches(data)))
    model(batch)
    model.regularization().backward()
    assert all(parameter.grad.norm() > 0 for parameter in model.convs[1].parameters())
    for parameter in model.convs[0].parameters():
        assert parameter.grad.norm() < 1e-6  # one branch alone would send a gradient here


def test_weight_may_change_and_zero_costs_nothing() -> None:
    data, model, regularizer = graph(), Net(N, H, 4), LocalPerturbation()
    regularizer.attach(model)
    batch = next(iter(batches(data)))

    def penalty(weight: float) -> Tensor:
        regularizer.weight = weight
        torch.manual_seed(0)
        model(batch)
        return model.regularization()

    close(penalty(3.0), 3 * penalty(1.0))
    state = torch.manual_seed(0).get_state()
    assert penalty(0.0) == 0 and torch.equal(torch.get_rng_state(), state)


def test_layers_by_name() -> None:
    data, model = graph(), Net(N, H, num_layers=2)
    LocalPerturbation(weight=2.0, noise=0.1, layers=["convs.1", "convs.1"]).attach(model)
    batch = next(iter(batches(data)))
    torch.manual_seed(0)
    model(batch)
    pulled = []
    twin = copy.deepcopy(model)
    twin.convs[1].register_forward_hook(lambda conv, args, out: pulled.append((args, out)))
    twin.train(), torch.manual_seed(0), twin(batch)
    ((sources, targets), adj), out = pulled[0]
    torch.manual_seed(0)
    shift = 0.1 * torch.randn(sources.shape)
    changed = twin.convs[1]((sources + shift, targets + shift[: batch.batch_size]), adj)
    close(model.regularization(), 2 * (out - changed).norm(dim=1).mean())


def test_whole_graphs_are_penalised_as_well() -> None:
    data = graph()
    for model in (Net(N, H, 4), scale(nn.GCN(C, H, 4, OUT), data)):
        LocalPerturbation(noise=0.2).attach(model)
        torch.manual_seed(4)
        model(data.x, data.edge_index)
        torch.manual_seed(4)
        plain = PlainNet(model) if isinstance(model, Net) else model.unscale()
        everything = SubData(data, N, torch.arange(N), torch.tensor([0]), torch.tensor([N]))
        close(model.regularization(), hidden_penalty(plain, data, everything, 0.2, slice(1, 3), 4))


# -- when nothing happens ----------------------------------------------------------------------------------------------


def test_evaluation_inference_and_sweeps_are_left_alone() -> None:
    data = graph()
    for model in (Net(N, H, 4), scale(nn.GCN(C, H, 4, OUT), data)):
        LocalPerturbation().attach(model)
        batch = next(iter(batches(data)))
        model(batch)
        assert model.regularization() > 0
        state = torch.get_rng_state()
        for mode, call in (
            (True, lambda model=model, batch=batch: model(batch)),
            (False, lambda model=model, batch=batch: model(batch)),
            (False, lambda model=model: model(data.x, data.edge_index)),
            (False, lambda model=model: model(loader=EvalSubgraphLoader(data, PTR))),
        ):
            with torch.no_grad():
                model.train(mode)
                call()
            assert model.regularization().item() == 0 and not model.regularization().requires_grad
            assert torch.equal(torch.get_rng_state(), state)


def test_the_trial_of_scale_is_left_alone() -> None:
    data, plain = graph(), nn.GCN(C, H, 4, OUT)
    state = torch.get_rng_state()
    plain_found = scale(plain, data).found
    found = scale(plain, data, regularization=LocalPerturbation()).found
    assert found == plain_found and torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in plain.modules())


def test_models_are_copied_and_sent_between_two_steps() -> None:
    data = graph()
    for model in (Net(N, H, 4), scale(nn.GCN(C, H, 4, OUT), data)):
        LocalPerturbation(noise=0.2).attach(model)
        batch = next(iter(batches(data)))
        model(batch)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert twin.regularization() == 0
            for each in (model, twin):
                torch.manual_seed(0)
                each(batch)
            assert torch.equal(model.regularization(), twin.regularization()) and twin.regularization() > 0


# -- misuse ------------------------------------------------------------------------------------------------------------


def test_nothing_attached() -> None:
    with pytest.raises(RuntimeError, match=r"Net has no regularisation; attach one: .*LocalPerturbation\(\).attach"):
        Net(N).regularization()


def test_no_layer_between_two_histories() -> None:
    data, model = graph(), Net(N, H, num_layers=2)
    LocalPerturbation().attach(model)
    with pytest.raises(ValueError, match=r"met none of its layers.* this model has 1; say which"):
        model(next(iter(batches(data))))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1.0}, "weight must be at least 0, but is -1.0"),
        ({"weight": float("nan")}, "weight must be a number, but is nan"),
        ({"layers": []}, r"layers must be a list of names, but is empty"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"LocalPerturbation: {message}"):
        LocalPerturbation(**options)


def test_layers_that_are_not_there() -> None:
    with pytest.raises(ValueError, match=r"Net has no module 'conv.1'; it has .*'convs.1'"):
        LocalPerturbation(layers=["conv.1"]).attach(Net(N))
    with pytest.raises(TypeError, match="model must be HistoryModel, but is GCN"):
        LocalPerturbation().attach(nn.GCN(C, H, 3))  # type: ignore[arg-type]


def test_layers_with_histories_inside_are_refused_before_anything_is_written() -> None:
    data = graph()
    plain = nn.Sequential(
        "x, adj",
        [
            (nn.SAGEConv(C, H), "x, adj -> x"),
            (nn.TAGConv(H, H, K=2), "x, adj -> x"),
            (nn.SAGEConv(H, OUT), "x, adj -> x"),
        ],
    )
    model = scale(plain, data, inputs=lambda batch: (batch.x, batch.edge_index), regularization=LocalPerturbation())
    before = tables(model.histories[1:])
    with pytest.raises(ValueError, match=r"calls TAGConv a second time, but there are histories inside of it"):
        model(next(iter(batches(data))))
    assert all(
        torch.equal(value, before[key]) for key, value in model.histories[1:].state_dict().items() if "emb" in key
    )
    LocalPerturbation(layers=["module_2"]).attach(model)
    model(next(iter(batches(data))))
    assert model.regularization() > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch")
@pytest.mark.skipif(torch.__version__ < OLDEST, reason=f"needs torch {OLDEST}")
@pytest.mark.parametrize("how", ["torch.compile(model)", "model.compile()", "layer"])
def test_compiled_models_are_refused(how: str) -> None:
    data, model = graph(), Net(N, H, 4)
    LocalPerturbation().attach(model)
    call: Any = model
    if how == "torch.compile(model)":
        call = torch.compile(model, backend="eager")
    else:
        (model if how == "model.compile()" else model.convs[1]).compile(backend="eager")
    batch = next(iter(batches(data)))
    with pytest.raises(RuntimeError, match=r"which torch.compile cannot follow; call local_perturbation"):
        call(batch.data.x, batch.data.edge_index, *batch[1:])
    torch._dynamo.reset()


def test_compiled_parts_without_penalised_layers_stay() -> None:
    data, model = graph(), GCN(N, C, H, OUT, num_layers=4, linear=True)
    model.lins[0].compile(backend="eager")
    LocalPerturbation().attach(model)
    model(next(iter(batches(data))))
    assert model.regularization() > 0
    torch._dynamo.reset()


def test_models_whose_layers_have_no_parameters() -> None:
    data = graph()
    data.edge_weight = torch.rand(data.num_edges)
    model = APPNP(N, C, H, OUT, num_layers=3, alpha=0.1)
    LocalPerturbation().attach(model)
    model(next(iter(batches(data))))
    assert model.regularization() > 0


# -- spectral norms ----------------------------------------------------------------------------------------------------


def norms(model: Module) -> list[float]:
    kinds = (Linear, nn.Linear)
    return [torch.linalg.matrix_norm(m.weight, 2).item() for m in model.modules() if isinstance(m, kinds)]


def test_spectral_norms_stay_below_the_bound() -> None:
    torch.manual_seed(0)
    model = Sequential(Linear(9, 12), Linear(12, 12), Linear(12, 5), Linear(5, 7))
    with torch.no_grad():
        model[0].weight.mul_(0.01)  # below the bound already
        model[3].weight.zero_()
    small, before = model[0].weight.clone(), norms(model)
    assert spectral_norm(model, bound=0.4) == ["0.weight", "1.weight", "2.weight", "3.weight"]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    x, y = torch.randn(30, 9), 100 * torch.randn(30, 7)
    assert torch.equal(model[0].weight, small) and before[1] > 0.4
    for _ in range(20):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        for _ in range(200):
            model(x)  # parameters stay, the estimate converges
    after = norms(model.eval())
    assert max(after) < 0.4 * 1.001
    assert after[1] > 0.399 and after[2] > 0.399 and all(torch.isfinite(p).all() for p in model.parameters())


def test_spectral_gradient_is_that_of_the_scaled_weight() -> None:
    torch.manual_seed(0)
    lin, x = Linear(6, 4, bias=False).double(), torch.randn(10, 6, dtype=torch.float64)
    weight = lin.weight.detach().clone().requires_grad_()
    spectral_norm(lin.train(), bound=0.3, layers=["weight"])
    for _ in range(200):
        lin(x)
    (lin(x) ** 3).sum().backward()
    scaled = weight * 0.3 / torch.linalg.matrix_norm(weight, 2)
    ((x @ scaled.t()) ** 3).sum().backward()
    torch.testing.assert_close(lin.parametrizations.weight.original.grad, weight.grad)


def test_spectral_models_train_are_saved_and_restored() -> None:
    data = graph()
    plain = nn.GAT(C, H, 3, OUT)
    names = spectral_norm(plain, bound=0.1)
    assert names == [f"convs.{i}.lin.weight" for i in range(3)]
    model = scale(plain, data)
    for batch in batches(data):
        model(batch).square().mean().backward()
    twin = nn.GAT(C, H, 3, OUT)
    spectral_norm(twin, bound=0.1)
    twin = scale(twin, data)
    twin.load_state_dict(model.state_dict())
    model.eval(), twin.eval()
    assert torch.equal(model(data), twin(data))
    full = plain(data.x, data.edge_index)
    close(model(loader=EvalSubgraphLoader(data, PTR)), full)
    for i in range(3):
        parametrize.remove_parametrizations(plain.convs[i].lin, "weight")
    close(plain(data.x, data.edge_index), full)
    nn.GAT(C, H, 3, OUT).load_state_dict(plain.state_dict())


def test_spectral_norm_of_matrices_by_name() -> None:
    data, plain = graph(), InitialResidual()
    assert spectral_norm(plain, 0.1, ["lin", "convs.2.weight1"]) == ["lin.weight", "convs.2.weight1"]
    assert torch.linalg.matrix_norm(plain.convs[2].weight1, 2) < 0.101
    model = scale(plain, data).eval()
    with torch.no_grad():
        model(data)
        for batch in batches(data):
            close(model(batch), plain(data.x, data.edge_index)[batch.n_id[: batch.batch_size]])


@pytest.mark.parametrize(
    ("layers", "bound", "message"),
    [
        (None, 0.0, "bound must be positive, but is 0.0"),
        (["lin"], float("inf"), "bound must be positive, but is inf"),
        (["lins"], 1.0, "InitialResidual has no module 'lins'; it has 'lin', 'convs'"),
        (["lin.bias"], 1.0, "lin.bias is no matrix of parameters"),
        (["convs.0"], 1.0, "convs.0.weight is no matrix of parameters"),
        (["lin", "lin"], 1.0, "lin.weight has a parametrisation already"),
    ],
)
def test_spectral_norm_refuses(layers: list[str] | None, bound: float, message: str) -> None:
    plain = InitialResidual()
    with pytest.raises(ValueError, match=f"spectral_norm: {message}"):
        if layers == ["lin", "lin"]:
            spectral_norm(plain, bound, ["lin"])
        spectral_norm(plain, bound, layers)


def test_spectral_norm_needs_shapes_and_layers() -> None:
    with pytest.raises(ValueError, match=r"spectral_norm: .*weight has no shape yet; call the model once"):
        spectral_norm(nn.SAGEConv(-1, H))
    with pytest.raises(ValueError, match="spectral_norm: ReLU has no linear layer"):
        spectral_norm(ReLU())


# -- weight decay ------------------------------------------------------------------------------------------------------


def test_parameter_groups_hold_each_parameter_once() -> None:
    plain = nn.GCN(C, H, 3, OUT)
    decay, last, bias = groups = parameter_groups(plain, 5e-4, {"convs.2": 0.1, "convs.2.bias": 0.0})
    assert [group["weight_decay"] for group in groups] == [5e-4, 0.1, 0.0]
    assert [id(p) for p in last["params"]] == [id(plain.convs[2].lin.weight)]
    assert [id(p) for p in bias["params"]] == [id(plain.convs[2].bias)]
    ids = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(ids) == sorted(map(id, plain.parameters())) and len(decay["params"]) == 4
    torch.optim.Adam(groups)
    scaled = parameter_groups(scale(plain, graph()), 5e-4, {"convs.2": 0.1, "convs.2.bias": 0.0})
    assert [[id(p) for p in group["params"]] for group in scaled] == [[id(p) for p in g["params"]] for g in groups]


def test_parameter_groups_match_those_of_shipped_models() -> None:
    model = GCN(N, C, H, OUT, num_layers=3)
    own, general = model.parameter_groups(5e-4, 0.1), parameter_groups(model, 5e-4, {"convs.2": 0.1})
    assert [[id(p) for p in group["params"]] for group in own] == [
        [id(p) for p in group["params"]] for group in general
    ]


@pytest.mark.parametrize("name", ["conv", "convs.1.act", "", "convs.1.bias."])
def test_parameter_groups_refuse_names_without_parameters(name: str) -> None:
    with pytest.raises(ValueError, match=f"parameter_groups: '{name}' in others holds no parameter of GCN"):
        parameter_groups(nn.GCN(C, H, 3, OUT), 0.1, {name: 0.0})
