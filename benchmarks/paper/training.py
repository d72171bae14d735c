"""How the paper trains: a graph in parts, a shipped model, and epochs with exact evaluation that refreshes the histories."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.utils import to_torch_csr_tensor

from torch_gas import SubgraphLoader, add_self_loops, compute_micro_f1, gcn_norm, get_data, metis, models, permute
from torch_gas.extensions.regularization import LocalPerturbation

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECIPES = Path(__file__).parent / "recipes"
HISTORIES, FULL_BATCH = "histories", "full batch"
SETS_OF_GRAPHS = ("CLUSTER", "synthetic-cluster")
NORMALISED = ("GCN", "APPNP", "GCN2")  # by the degrees of the whole graph, once
SPARSE = 0.1  # features of which fewer are not zero are stored as a sparse matrix


@dataclass(frozen=True)
class Recipe:
    """How a model is trained on a data set; recipes/*.toml say what each entry is."""

    model: dict[str, Any]
    parts: int
    batch_size: int
    lr: float
    epochs: int
    weight_decay: float = 0.0
    last_weight_decay: float = 0.0
    max_norm: float | None = None
    published: dict[str, list[float]] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides on results."""
        return {key: value for key, value in asdict(self).items() if key != "published"}


AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)


def load_recipes(path: Path, kind: type[AnyRecipe] = Recipe) -> dict[str, dict[str, AnyRecipe]]:
    """Recipes by model and data set."""
    tables = tomllib.loads(path.read_text())
    return {model: {data: kind(**entry) for data, entry in found.items()} for model, found in tables.items()}


class Task(NamedTuple):
    """A graph in the order of its parts, ready for a model."""

    graph: Data
    ptr: Tensor
    in_channels: int
    out_channels: int


def prepare(root: str, model: str, dataset: str, parts: int, partition: str = "metis") -> Task:
    """The graph as ``model`` needs it, in ``parts`` parts by METIS, or of nodes at random."""
    joined = dataset.split(":")[0] in SETS_OF_GRAPHS
    data, in_channels, out_channels = (_join if joined else partial(get_data, layout="csr"))(root, dataset)
    return Task(*arrange(data, model, parts, partition), in_channels, out_channels)


def arrange(data: Data, model: str, parts: int, partition: str = "metis", seed: int = 0) -> tuple[Data, Tensor]:
    """The graph with what ``model`` needs, in the order of its parts, and where these start; ``seed`` draws random ones."""
    if model in NORMALISED:
        data = gcn_norm(data)
    elif model == "GAT":
        data = add_self_loops(data)
    if partition == "metis":
        perm, ptr = metis(data, parts, log=False)
    else:
        perm = torch.randperm(data.num_nodes, generator=torch.Generator().manual_seed(seed))
        ptr = torch.linspace(0, data.num_nodes, parts + 1).long()
    if float((data.x != 0).float().mean()) < SPARSE:
        data.x = data.x.to_sparse_csr()
    return permute(data, perm, log=False), ptr


def _join(root: str, dataset: str) -> tuple[Data, int, int]:
    """Graphs for training, validation and test as one graph, in which no edge joins them."""
    splits = ("train", "val", "test")
    loaded = [get_data(root, dataset, split=split, layout="edge_index") for split in splits]
    for data, *_ in loaded:
        for split in splits:
            mask = f"{split}_mask"
            data[mask] = data[mask] if mask in data else torch.zeros(data.num_nodes, dtype=torch.bool)
    graph = Batch.from_data_list([data for data, *_ in loaded])
    size = (graph.num_nodes, graph.num_nodes)
    adj_t = to_torch_csr_tensor(graph.edge_index.flip(0), size=size)
    masks = {f"{split}_mask": graph[f"{split}_mask"] for split in splits}
    return Data(x=graph.x, y=graph.y, adj_t=adj_t, **masks), *loaded[0][1:]


def make_model(name: str, task: Task, recipe: Recipe, device: str, **options: Any) -> models.base.Model:
    """A shipped model of that name; its histories are on the same device, as these graphs are small.

    Args:
        options: further arguments of the model.
    """
    shape = {"in_channels": task.in_channels, "out_channels": task.out_channels, **recipe.model}
    return getattr(models, name)(task.graph.num_nodes, **shape, **options, device=device).to(device)


class Epoch(NamedTuple):
    """After an epoch: scores in [0, 1] on the whole graph, and seconds of training and of evaluation so far."""

    train: float
    val: float
    test: float
    training_seconds: float
    evaluation_seconds: float


def train(
    model: models.base.Model,
    task: Task,
    recipe: Recipe,
    method: str,
    seed: int,
    device: str,
    every_epoch: Callable[[], None] = lambda: None,
    refresh: bool = True,
    penalty: LocalPerturbation | None = None,
    trained: Callable[[int], None] = lambda epoch: None,
) -> list[Epoch]:
    """Trains ``model``, whose parameters are drawn by ``seed``, and tells of each epoch.

    Evaluation is exact, on the whole graph, and writes its embeddings to the histories unless ``refresh`` is false; it does so in
    any case before the first epoch.

    Args:
        every_epoch: called after each epoch.
        penalty: added to the loss of batches.
        trained: called with the number of the epoch, from 1, before it is evaluated.
    """
    graph = copy.copy(task.graph).to(device)
    train_mask, val_mask, test_mask = split_of(graph, seed)
    batches: Any = [(graph,)]
    if method == HISTORIES:
        options = (
            {"prefetch": 0} if device == "cpu" else {"device": device}
        )  # batches are too small to share with a thread
        batches = SubgraphLoader(task.graph, task.ptr, recipe.batch_size, shuffle=True, seed=seed, **options)
    if penalty is not None:
        penalty.attach(model)
    torch.manual_seed(seed)
    model.reset_parameters()
    optimizer = torch.optim.Adam(model.parameter_groups(recipe.weight_decay, recipe.last_weight_decay), lr=recipe.lr)

    @torch.no_grad()
    def evaluate(refresh: bool) -> Tensor:
        kept = [] if refresh else [history.emb.clone() for history in model.histories]
        out = model.eval()(graph.x, graph.adj_t)
        for history, table in zip(model.histories, kept, strict=False):
            history.emb.copy_(table)
        return out

    seconds = {"training": 0.0, "evaluation": 0.0}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = call()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds[name] += time.perf_counter() - start
        return result

    def step_through() -> None:
        model.train()
        for batch, *ids in batches:
            step(model, optimizer, batch, ids, split_of(batch, seed)[0], recipe.max_norm, penalty is not None)

    timed("evaluation", partial(evaluate, True))  # fills the histories
    epochs = []
    for epoch in range(recipe.epochs):
        timed("training", step_through)
        trained(epoch + 1)
        out = timed("evaluation", partial(evaluate, refresh))
        scores = (compute_micro_f1(out, graph.y, mask) for mask in (train_mask, val_mask, test_mask))
        epochs.append(Epoch(*scores, seconds["training"], seconds["evaluation"]))
        every_epoch()
    return epochs


def step(
    model: Any,
    optimizer: torch.optim.Optimizer,
    batch: Data,
    ids: list[Any],
    train_mask: Tensor,
    max_norm: float | None = None,
    regularised: bool = False,
) -> None:
    """A step of the optimiser on a batch; one without training nodes only pushes its embeddings."""
    out = model(batch.x, batch.adj_t, *ids)
    mask, y = train_mask[: out.size(0)], batch.y[: out.size(0)]
    if not mask.any():
        return
    loss_of = F.cross_entropy if y.dim() == 1 else F.binary_cross_entropy_with_logits
    loss = loss_of(out[mask], y[mask])
    if regularised:
        loss = loss + model.regularization()
    optimizer.zero_grad()
    loss.backward()
    if max_norm is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()


def split_of(data: Data, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Training, validation and test mask [N] of a run, of which each may come as [N, splits]."""
    masks = (data.train_mask, data.val_mask, data.test_mask)
    train, val, test = (mask[:, seed % mask.size(1)] if mask.dim() == 2 else mask for mask in masks)
    return train, val, test


def best(epochs: list[Epoch]) -> tuple[int, Epoch]:
    """The first epoch with the best validation score, counted from 1."""
    index = max(range(len(epochs)), key=lambda i: (epochs[i].val, -i))
    return index + 1, epochs[index]
