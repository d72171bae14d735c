"""The losses of an epoch's batches add up to K times the mean over all labelled nodes, whatever a batch has of them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import random_graph, random_parts
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.data import Data

from torch_gas import EvalSubgraphLoader, ExactGradient, SubData, SubgraphLoader, labelled_mean, scale

N = 60
PTR = torch.arange(0, N + 1, 5)  # 12 parts
LOSSES: dict[str, Callable[[Tensor, Data], Tensor]] = {
    "a number a row": lambda out, data: F.cross_entropy(out, data.y, reduction="none"),
    "a row of numbers": lambda out, data: F.binary_cross_entropy_with_logits(out, data.many, reduction="none"),
    "a matrix a row": lambda out, data: (out - data.many).square().view(-1, 3, 1),
}


def graph(labelled: int = 7, num_nodes: int = N) -> Data:
    """With labels of the first nodes only, so that parts have very different numbers of them, and most have none."""
    data = random_graph(num_nodes, 200)
    data.many = torch.rand(num_nodes, 3, dtype=torch.float64)
    data.train_mask = torch.arange(num_nodes) < labelled
    data.valid_mask = torch.arange(num_nodes) % 3 == 0
    data.some_masks = torch.ones(num_nodes, 2, dtype=torch.bool)
    return data


def weights() -> Tensor:
    """Of a linear model, by which batches and the whole graph have the same rows."""
    return torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


def rows_of(weight: Tensor, data: Data, mask: str = "train_mask") -> tuple[Tensor, Data]:
    """Outputs of the labelled rows, and the labels of these."""
    own = data.batch_size if isinstance(data, SubData) else data.num_nodes
    labelled = data[mask][:own]
    out = data.x[:own].double() @ weight
    return out[labelled], Data(y=data.y[:own][labelled], many=data.many[:own][labelled])


def whole(weight: Tensor, data: Data, kind: str, mask: str = "train_mask") -> Tensor:
    return LOSSES[kind](*rows_of(weight, data, mask)).mean()


LOADERS: dict[str, dict[str, Any]] = {
    "regrouped": {"shuffle": True, "seed": 0},
    "groups that stay": {"shuffle": True, "regroup": False, "seed": 0},
    "in turn": {},
    "ahead": {"shuffle": True, "prefetch": 2},
    "batches of another size": {"batch_size": 5, "shuffle": True},
}


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("name", LOADERS)
def test_an_epoch_has_the_gradient_of_the_full_batch(name: str, kind: str) -> None:
    data, weight = graph(), weights()
    loader = SubgraphLoader(data, PTR, **{"batch_size": 2} | LOADERS[name])
    loss = whole(weight, data, kind)
    (expected,) = torch.autograd.grad(loss, weight)
    for _ in range(2):
        weight.grad, total, empty = None, torch.zeros((), dtype=torch.float64), 0
        for batch in loader:
            losses = LOSSES[kind](*rows_of(weight, batch))
            part = labelled_mean(losses, batch)
            assert part.requires_grad and part.shape == ()
            part.backward()  # also where a batch has no labels
            empty += losses.numel() == 0 and part.item() == 0
            total += part.detach()
        assert empty > 0
        assert weight.grad is not None
        torch.testing.assert_close(total / len(loader), loss.detach(), rtol=1e-10, atol=0)
        torch.testing.assert_close(weight.grad / len(loader), expected, rtol=1e-10, atol=1e-14)


@settings(max_examples=25)
@given(num_parts=st.integers(1, 12), batch_size=st.integers(1, 4), labelled=st.integers(1, 40), seed=st.integers(0, 99))
@pytest.mark.filterwarnings("ignore:.*counts parts")
def test_any_parts(num_parts: int, batch_size: int, labelled: int, seed: int) -> None:
    data, weight = graph(labelled, 40), weights()
    loader = SubgraphLoader(data, random_parts(40, num_parts, seed), batch_size, shuffle=True, seed=seed)
    total = sum(labelled_mean(LOSSES["a number a row"](*rows_of(weight, batch)), batch) for batch in loader)
    torch.testing.assert_close(total / len(loader), whole(weight, data, "a number a row"), rtol=1e-10, atol=0)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_batches_of_workers() -> None:
    data, weight = graph(), weights()
    loader = SubgraphLoader(data, PTR, 2, shuffle=True, num_workers=2)
    total = sum(labelled_mean(LOSSES["a number a row"](*rows_of(weight, batch)), batch) for batch in loader)
    torch.testing.assert_close(total / 6, whole(weight, data, "a number a row"), rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    "change",
    [
        lambda batch: batch.to("cpu"),
        copy.copy,
        copy.deepcopy,
        lambda batch: pickle.loads(pickle.dumps(batch)),
        lambda batch: batch.data,
        lambda batch: next(iter(batch)),
    ],
)
def test_whatever_became_of_a_batch(change: Callable[[SubData], Data]) -> None:
    batch = next(iter(SubgraphLoader(graph(), PTR, 2)))
    assert float(labelled_mean(torch.ones(7), change(batch))) == 6


def test_a_batch_outlives_its_loader() -> None:
    (batch, *_) = list(EvalSubgraphLoader(graph(), PTR, 2))
    assert float(labelled_mean(torch.ones(7), batch)) == 6


def test_the_rest_of_an_epoch() -> None:
    """A run that goes on inside of an epoch has the scale of the whole one."""
    loader, other = (SubgraphLoader(graph(), PTR, 2) for _ in "ab")
    next(iter(loader))
    other.load_state_dict(loader.state_dict())
    losses = [labelled_mean(torch.ones(int(b.valid_mask[: b.batch_size].sum())), b, "valid_mask") for b in other]
    assert len(losses) == 5
    assert sum(map(float, losses)) == pytest.approx(6 * (20 - 4) / 20)


@pytest.mark.parametrize("cache_size", [0, 2**20])
@pytest.mark.parametrize("write", ["in place", "through NumPy", "anew"])
def test_labels_that_change_between_epochs(write: str, cache_size: int) -> None:
    data = graph()
    loader = SubgraphLoader(data, PTR, 2, cache_size=cache_size)
    for number in (7, 8):
        for batch in loader:
            rows = int(batch.train_mask[: batch.batch_size].sum())
            assert float(labelled_mean(torch.ones(rows), batch)) == pytest.approx(6 * rows / number)
        if write == "in place":
            data.train_mask[7] = True
        elif write == "through NumPy":
            data.train_mask.numpy()[7] = True
        else:
            data.train_mask = torch.arange(N) < 8


def test_masks_by_name() -> None:
    data, weight = graph(), weights()
    loader = SubgraphLoader(data, PTR, 2, shuffle=True)
    total = sum(
        labelled_mean(LOSSES["a number a row"](*rows_of(weight, batch, "valid_mask")), batch, "valid_mask")
        for batch in loader
    )
    torch.testing.assert_close(total / 6, whole(weight, data, "a number a row", "valid_mask"), rtol=1e-10, atol=0)


@pytest.mark.parametrize("kind", LOSSES)
def test_the_whole_graph_has_the_plain_mean(kind: str) -> None:
    data, weight = graph(), weights()
    losses = LOSSES[kind](*rows_of(weight, data))
    torch.testing.assert_close(labelled_mean(losses, data), losses.mean(), rtol=1e-12, atol=0)
    everything = next(iter(SubgraphLoader(data, torch.tensor([0, N]))))
    torch.testing.assert_close(labelled_mean(losses, everything), losses.mean(), rtol=1e-12, atol=0)


def test_numbers_that_are_given() -> None:
    data = graph()
    batch = next(iter(SubgraphLoader(data, PTR, 2)))
    assert float(labelled_mean(torch.ones(3), batch, num_labelled=4)) == 6 * 3 / 4  # some of the labels
    assert float(labelled_mean(torch.ones(7), batch, num_batches=3)) == 3
    assert float(labelled_mean(torch.ones(2), data, num_labelled=4, num_batches=3)) == 3 * 2 / 4
    by_hand = SubData(data, 10, torch.arange(N))
    assert float(labelled_mean(torch.ones(2), by_hand, "nothing", num_labelled=4, num_batches=3)) == 3 * 2 / 4
    batch = next(SubgraphLoader(data, PTR, 2).only([[0, 1]]))
    assert float(labelled_mean(torch.ones(7), batch, num_batches=6)) == 6


def test_sums_of_narrow_numbers() -> None:
    losses = torch.full((7,), 60000.0, dtype=torch.float16)
    batch = next(iter(SubgraphLoader(graph(), PTR, 2)))
    got = labelled_mean(losses, batch)
    assert got.dtype == torch.float32 and float(got) == pytest.approx(6 * 60000, rel=1e-3)


def test_as_criterion_of_exact_gradients() -> None:
    data = graph(labelled=30)
    model = scale(torch.nn.Linear(8, 3), data)
    loss = ExactGradient(model, SubgraphLoader(data, PTR, 4)).backward(
        lambda out, batch: labelled_mean(
            F.cross_entropy(
                out[batch.train_mask[: len(out)]],
                batch.y[: len(out)][batch.train_mask[: len(out)]],
                reduction="none",
            ),
            batch,
            num_labelled=30,
            num_batches=1,
        )
    )
    out = model.model(data.x)[:30]
    torch.testing.assert_close(loss, F.cross_entropy(out, data.y[:30]))


# -- refused -----------------------------------------------------------------------------------------------------------


def batch_of(**options: Any) -> SubData:
    return next(iter(SubgraphLoader(graph(), PTR, 2, **options)))


class Endless(torch.utils.data.Sampler[int]):
    def __iter__(self) -> Any:
        return iter(range(12))

    def __len__(self) -> int:
        return 12


def without_ids(batch: SubData) -> Data:
    return Data(**batch.to_dict())


REFUSED: dict[str, tuple[str, Callable[[], Tensor]]] = {
    "a mean": (
        r"losses is a scalar, .* mean or a sum; .*reduction=\"none\"",
        lambda: labelled_mean(torch.tensor(1.0), batch_of()),
    ),
    "rows of the whole batch": (
        r"losses has 10 rows, but 7 of the batch's own nodes are in train_mask; .*mask = "
        r"batch\.train_mask\[: batch\.batch_size\] and out\[mask\]",
        lambda: labelled_mean(torch.ones(10), batch_of()),
    ),
    "rows with the halo": (
        "rows, but 7 of the batch's own",
        lambda: labelled_mean(torch.ones(int(batch_of().valid_mask.sum())), batch_of()),
    ),
    "some rows of the whole graph": (
        r"losses has 5 rows, but 7 nodes of the graph are in train_mask; .*mask = batch\.train_mask and out",
        lambda: labelled_mean(torch.ones(5), graph()),
    ),
    "no such mask": (
        "has no mask 'labels', .*; name one of train_mask, valid_mask, or give num_labelled",
        lambda: labelled_mean(torch.ones(7), batch_of(), "labels"),
    ),
    "several masks in one": ("no mask 'some_masks'", lambda: labelled_mean(torch.ones(7), graph(), "some_masks")),
    "no mask at all": (
        "set one before the loader is made",
        lambda: labelled_mean(torch.ones(7), random_graph(N, 200)),
    ),
    "no labels": (
        "no node of the graph is in train_mask",
        lambda: labelled_mean(torch.ones(0), graph(labelled=0)),
    ),
    "a batch made by hand": (
        "was not made by a SubgraphLoader, .*; give num_labelled, .* and num_batches",
        lambda: labelled_mean(torch.ones(7), SubData(graph(), 10, torch.arange(N))),
    ),
    "a batch that lost its ids": (
        "lost its ids",
        lambda: labelled_mean(torch.ones(7), without_ids(batch_of())),
    ),
    "only its labels given": (
        "does not tell how many batches its epoch has, .*; give num_batches",
        lambda: labelled_mean(torch.ones(7), SubData(graph(), 10, torch.arange(N)), num_labelled=7),
    ),
    "a batch of no epoch": (
        "because no epoch of a loader made it",
        lambda: labelled_mean(torch.ones(7), next(SubgraphLoader(graph(), PTR, 2).only([[0, 1]]))),
    ),
    "a sampler that decides on the way": (
        "or a sampler decides on the way",
        lambda: labelled_mean(torch.ones(7), batch_of(sampler=Endless())),
    ),
    "more rows than labels": (
        "losses has 7 rows, which is more than num_labelled=6",
        lambda: labelled_mean(torch.ones(7), batch_of(), num_labelled=6),
    ),
    "a number of nothing": ("num_labelled must be at least 1", lambda: labelled_mean(torch.ones(7), batch_of(), num_labelled=0)),
    "no batches": ("num_batches must be at least 1", lambda: labelled_mean(torch.ones(7), batch_of(), num_batches=0)),
    "whole numbers": ("losses must be floating-point", lambda: labelled_mean(torch.ones(7, dtype=torch.int64), batch_of())),
    "rows without numbers": ("a number in each row", lambda: labelled_mean(torch.ones(7, 0), batch_of())),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    match, call = REFUSED[name]
    with pytest.raises(ValueError, match=f"^labelled_mean: .*{match}"):
        call()
