"""A criterion that batches cannot be added up by is refused, with what to write instead; sums of any kind pass."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_geometric.nn as nn
from full_batch import PTR, N, assert_same, batches, compare, criterion, grads, graph, whole, wired
from plain_models import OUT, C
from torch import Tensor

from torch_gas import SubgraphLoader
from torch_gas.exact import ExactGradient
from torch_gas.models import GCN


def data_with_masks() -> Any:
    data = graph()
    generator = torch.Generator().manual_seed(5)
    data.train_mask = torch.rand(N, generator=generator) < 0.6
    data.y = torch.randint(OUT, (N,), generator=generator)
    data.targets = torch.randn(N, OUT, generator=generator, dtype=torch.float64)
    return data


def model_of(data: Any) -> Any:
    torch.manual_seed(0)
    return wired(nn.GraphSAGE(C, 6, 2, OUT), data, inputs=lambda data: (data.x, data.edge_index))


def labelled(out: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
    mask = batch.train_mask[: len(out)]
    return out[mask], batch.y[: len(out)][mask]


def balanced(out: Tensor, batch: Any) -> Tensor:
    """Classes weigh by their numbers in the batch."""
    y = batch.y[: len(out)]
    return F.cross_entropy(out, y, weight=1 / y.bincount(minlength=OUT).clamp(min=1).double(), reduction="sum")


def contrastive(out: Tensor, batch: Any) -> Tensor:
    """Each row is compared with all others of the batch."""
    z = F.normalize(out, dim=1)
    return F.cross_entropy(z @ z.t(), torch.arange(len(z)), reduction="sum")


MEANS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "mean": lambda out, batch: F.cross_entropy(out, batch.y[: len(out)]),
    "mean over labelled rows": lambda out, batch: F.cross_entropy(*labelled(out, batch)),
    "sum over the batch's number": lambda out, batch: (
        F.cross_entropy(*labelled(out, batch), reduction="sum") / len(out)
    ),
    "weighted mean": lambda out, batch: F.cross_entropy(
        out, batch.y[: len(out)], weight=torch.arange(1.0, OUT + 1).double()
    ),
    "balanced in the batch": balanced,
    "contrastive": contrastive,
    "norm": lambda out, batch: out.norm(),
    "penalty": lambda out, batch: criterion(out, batch) + 0.1,
    "variance": lambda out, batch: ((out - out.mean(0)) ** 2).sum(),
}


@pytest.mark.parametrize("name", MEANS)
def test_what_is_no_sum_is_refused(name: str) -> None:
    data = data_with_masks()
    model = model_of(data)
    with pytest.raises(ValueError, match=r"the criterion is no sum over rows: a batch has .* and its halves") as error:
        ExactGradient(model, batches(data)).backward(MEANS[name])
    for advice in ("reduction='sum'", "int(data.train_mask.sum())", "Weigh classes", "gradient[batch.n_id[:len(out)]]"):
        assert advice in str(error.value)
    assert not grads(model)
    assert all(not table.emb.any() for table in model.extension_tables["exact_gradient"])


def test_nan_of_an_empty_mask_is_refused() -> None:
    data = data_with_masks()
    data.train_mask = torch.zeros(N, dtype=torch.bool)
    model = model_of(data)
    with pytest.raises(ValueError, match=r"no sum over rows: a batch has nan .*int\(data.train_mask.sum\(\)\)"):
        ExactGradient(model, batches(data)).backward(MEANS["mean over labelled rows"])
    assert not grads(model)


def test_mean_is_found_in_the_first_batch_that_can_tell() -> None:
    """The loss of one row is its mean; a batch without labels has none."""
    data = data_with_masks()
    data.train_mask[: int(PTR[3])] = False
    loader = SubgraphLoader(data, torch.cat([torch.arange(5), PTR[1:]]))  # batches of one node come first
    model = model_of(data)

    def mean(out: Tensor, batch: Any) -> Tensor:
        rows, y = labelled(out, batch)
        return F.cross_entropy(rows, y) if len(y) else out.sum() * 0

    with pytest.raises(ValueError, match="no sum over rows"):
        ExactGradient(model, loader).backward(mean)


SUMS: dict[str, Callable[[Any, Any], Tensor]] = {
    "sum": lambda out, batch: F.cross_entropy(out, batch.y[: len(out)], reduction="sum"),
    "sum over labelled rows": lambda out, batch: F.cross_entropy(*labelled(out, batch), reduction="sum"),
    "sum over a constant": lambda out, batch: F.cross_entropy(*labelled(out, batch), reduction="sum") / 37,
    "weights of classes": lambda out, batch: F.cross_entropy(
        out, batch.y[: len(out)], weight=torch.tensor([0.2, 1.0, 3.0]).double(), reduction="sum"
    ),
    "squares of targets": lambda out, batch: F.mse_loss(out, batch.targets[: len(out)], reduction="sum"),
    "by ids": lambda out, batch: (out * torch.arange(N).double().view(-1, 1)[rows_of(out, batch)]).sum(),
    "one number in a vector": lambda out, batch: out.sum().view(1),
    "nothing where no label is": lambda out, batch: (
        out[batch.train_mask[: len(out)]].square().sum() if batch.train_mask[: len(out)].any() else torch.zeros(())
    ),
    "a difference that nearly cancels": lambda out, batch: (out - out.detach()).sum() + out.square().sum(),
    "zero": lambda out, batch: out.sum() * 0,
}


def rows_of(out: Tensor, batch: Any) -> Tensor:
    return batch.n_id[: len(out)] if "n_id" in batch else torch.arange(N)


@pytest.mark.parametrize("name", [name for name in SUMS if name != "zero"])
def test_sums_pass(name: str) -> None:
    data = data_with_masks()
    data.train_mask[14:37] = False  # a batch has no label
    compare(model_of(data), data, loss_of=SUMS[name])


def test_loss_of_zero() -> None:
    data = data_with_masks()
    model = model_of(data)
    assert float(ExactGradient(model, batches(data)).backward(SUMS["zero"])) == 0
    assert grads(model) and not any(grad.any() for grad in grads(model).values())


def test_batches_of_one_node() -> None:
    data = data_with_masks()
    loader = SubgraphLoader(data, torch.arange(N + 1))
    compare(model_of(data), data, loader, SUMS["sum over labelled rows"])


def test_contrastive_loss_as_the_error_says() -> None:
    """Its gradient by the embeddings of all nodes first, and a sum over rows with that."""
    data = data_with_masks()
    model = model_of(data)
    reference = whole(model, data)
    contrastive(reference, data).backward()
    wanted = {name: grad.clone() for name, grad in grads(model).items()}
    model.zero_grad()
    out = whole(model, data).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(contrastive(out, data), out)
    ExactGradient(model, batches(data)).backward(lambda out, batch: (out * gradient[batch.n_id[: len(out)]]).sum())
    assert_same(grads(model), wanted)


def test_penalty_of_weights() -> None:
    """Shared out among the rows."""
    data = data_with_masks()
    model = model_of(data)
    reference = copy.deepcopy(model)

    def penalised(of: Any) -> Callable[..., Tensor]:
        return lambda out, batch: (
            criterion(out, batch) + len(out) / N * sum(each.square().sum() for each in of.parameters())
        )

    ExactGradient(model, batches(data)).backward(penalised(model))
    penalised(reference)(whole(reference, data), data).backward()
    assert_same(grads(model), grads(reference))


@pytest.mark.parametrize(
    ("wrong", "came"),
    [
        (lambda out, batch: out, r"a tensor of \[14, 3\], torch.float64"),
        (lambda out, batch: (out > 0).sum(), r"a tensor of \[\], torch.int64"),
        (lambda out, batch: float(out.detach().sum()), "float"),
        (lambda out, batch: None, "NoneType"),
        (lambda out, batch: F.cross_entropy(out, batch.y[: len(out)], reduction="none"), r"a tensor of \[14\]"),
    ],
    ids=["rows", "integer", "float", "None", "a loss for each row"],
)
def test_what_is_no_scalar_is_refused(wrong: Callable[..., Any], came: str) -> None:
    data = data_with_masks()
    model = model_of(data)
    with pytest.raises(TypeError, match=f"must return a scalar tensor, but returned {came}.*Return a sum over"):
        ExactGradient(model, batches(data)).backward(wrong)
    assert not grads(model)


def test_criterion_that_needs_a_whole_batch() -> None:
    """It fails on halves, or reads edges; the error says how to go on, and the check can be left out."""
    data = data_with_masks()
    model = model_of(data)

    def smooth(out: Tensor, batch: Any) -> Tensor:
        """A penalty over the edges into the batch's rows, each of which is in one batch."""
        weight = batch.edge_weight
        return (out[batch.edge_index[1]].sum(1) * weight).sum()

    with pytest.raises(ValueError, match=r"fails on half of a batch .* pass ExactGradient\(..., check=False\)"):
        ExactGradient(model, batches(data)).backward(smooth)
    assert not grads(model)
    exact = ExactGradient(model, batches(data), check=False)
    loss = exact.backward(smooth)
    reference = whole(model, data)
    torch.testing.assert_close(loss, smooth(reference, data).detach())


def test_criterion_is_checked_once() -> None:
    data = data_with_masks()
    calls: list[int] = []

    def counted(out: Tensor, batch: Any) -> Tensor:
        calls.append(len(out))
        return criterion(out, batch)

    exact = ExactGradient(model_of(data), batches(data))
    exact.backward(counted)
    assert calls == [14, 7, 7, 23, 8, 15]
    calls.clear()
    exact.backward(counted)
    assert calls == [14, 23, 8, 15]


def test_check_leaves_the_batch_alone() -> None:
    """Halves are batches of their own, with the rows of all attributes of nodes."""
    data = data_with_masks()
    seen: list[Any] = []

    def criterion(out: Tensor, batch: Any) -> Tensor:
        seen.append((len(out), batch.batch_size, batch.n_id.clone(), batch.y.clone(), batch.targets.clone()))
        return out.sum()

    ExactGradient(model_of(data), batches(data)).backward(criterion)
    (rows, size, n_id, y, _), left, right = seen[:3]
    assert rows == size == 14 and len(n_id) == len(y) > 14
    assert left[:2] == right[:2] == (7, 7)
    for number in (2, 3, 4):
        assert torch.equal(torch.cat([left[number], right[number]]), seen[0][number][:14])


def test_sparse_features() -> None:
    """A criterion may read them, of a batch and of its halves."""
    data = data_with_masks()
    data.x = data.x.relu().to_sparse_csr()
    torch.manual_seed(0)
    model = wired(GCN(N, C, 8, OUT, 3), data)

    def loss(out: Tensor, batch: Any) -> Tensor:
        rows = batch.x.to_dense()[: len(out)]
        return F.cross_entropy(out, batch.y[: len(out)], reduction="sum") + (out[:, :1] * rows[:, :1]).sum()

    exact = ExactGradient(model, batches(data, model))
    exact.backward(loss)
    want = copy.deepcopy(model)
    want.zero_grad()
    loss(whole(want, data), data).backward()
    assert_same(grads(model), grads(want))
