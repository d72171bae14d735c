"""Scores, splits, masks and edge dropout, against slow twins where there is one."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import Data

import torch_gas
from torch_gas.pygas import compute_micro_f1, dropout, gen_masks, index_to_mask

# torch warns once per process that its sparse matrices are in beta and unchecked.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse (CS|invariant):UserWarning")

# --- compute_micro_f1 -----------------------------------------------------------------------------


def slow_micro_f1(logits: list[list[float]], y: list[list[int]]) -> float:
    """Counts one label of one node at a time and averages precision and recall."""
    tp = fp = fn = 0
    for scores, labels in zip(logits, y, strict=True):
        for score, label in zip(scores, labels, strict=True):
            tp += score > 0 and label == 1
            fp += score > 0 and label == 0
            fn += score <= 0 and label == 1
    if tp == 0:
        return 0.0
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    return 2 * precision * recall / (precision + recall)


@settings(deadline=None)
@given(st.data(), st.integers(1, 12), st.integers(1, 5))
def test_several_labels_equal_the_slow_twin(data: st.DataObject, rows: int, classes: int) -> None:
    scores = st.sampled_from([-2.0, -0.5, 0.0, 0.5, 2.0])
    logits = data.draw(matrix(scores, rows, classes))
    y = data.draw(matrix(st.integers(0, 1), rows, classes))
    mask = data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows).filter(any))
    kept = [i for i in range(rows) if mask[i]]
    for labels in (torch.tensor(y), torch.tensor(y).float(), torch.tensor(y).bool()):
        assert compute_micro_f1(torch.tensor(logits), labels) == pytest.approx(slow_micro_f1(logits, y))
        assert compute_micro_f1(torch.tensor(logits), labels, torch.tensor(mask)) == pytest.approx(
            slow_micro_f1([logits[i] for i in kept], [y[i] for i in kept])
        )


@settings(deadline=None)
@given(st.data(), st.integers(1, 12), st.integers(1, 5))
def test_one_label_is_accuracy(data: st.DataObject, rows: int, classes: int) -> None:
    order = st.permutations([float(i) for i in range(classes)])  # no ties
    logits = data.draw(st.lists(order, min_size=rows, max_size=rows))
    y = data.draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows))
    hits = [scores.index(max(scores)) == label for scores, label in zip(logits, y, strict=True)]
    score = compute_micro_f1(torch.tensor(logits), torch.tensor(y))
    assert score == pytest.approx(sum(hits) / rows)


def matrix(elements: st.SearchStrategy, rows: int, columns: int) -> st.SearchStrategy:
    row = st.lists(elements, min_size=columns, max_size=columns)
    return st.lists(row, min_size=rows, max_size=rows)


def test_no_positive_label_and_no_positive_prediction_is_zero() -> None:
    assert compute_micro_f1(-torch.ones(3, 2), torch.zeros(3, 2)) == 0.0


def test_micro_f1_bad_arguments() -> None:
    logits = torch.randn(4, 3)
    with pytest.raises(ValueError, match=r"y is \[4, 1\]; pass y.view\(-1\)"):
        compute_micro_f1(logits, torch.zeros(4, 1, dtype=torch.long))
    with pytest.raises(ValueError, match=r"logits is \[4, 3\] and y is \[3\]"):
        compute_micro_f1(logits, torch.zeros(3, dtype=torch.long))
    y = torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"mask must be bool \[4\].*pass one split, mask\[:, i\]"):
        compute_micro_f1(logits, y, torch.ones(4, 20, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"mask must be bool \[4\], but is torch.int64 \[4\]"):
        compute_micro_f1(logits, y, torch.ones(4, dtype=torch.long))
    with pytest.raises(ValueError, match="no row is selected"):
        compute_micro_f1(logits, y, torch.zeros(4, dtype=torch.bool))


# --- gen_masks ------------------------------------------------------------------------------------


def test_gen_masks_counts() -> None:
    y = torch.arange(100) % 4
    train, val, test = gen_masks(y, 5, 7, num_splits=6, seed=0)
    assert train.shape == val.shape == test.shape == (100, 6)
    assert (train.int() + val.int() + test.int() == 1).all()
    for label in range(4):
        assert (train[y == label].sum(dim=0) == 5).all()
        assert (val[y == label].sum(dim=0) == 7).all()
    assert not torch.equal(train[:, 0], train[:, 1])


def test_gen_masks_random_state() -> None:
    y = torch.arange(60) % 3
    torch.manual_seed(7)
    drawn = gen_masks(y, 2, 3)
    assert not torch.equal(gen_masks(y, 2, 3)[0], drawn[0])  # the global state went on
    state = torch.get_rng_state()
    seeded = gen_masks(y, 2, 3, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, seeded, drawn))


def test_gen_masks_leaves_unlabeled_nodes_out() -> None:
    y = torch.tensor([-1] * 5 + [0] * 10 + [2] * 10)  # and there is no class 1
    train, val, test = gen_masks(y, 2, 3, num_splits=3, seed=0)
    assert not (train | val | test)[:5].any()
    assert (train | val | test)[5:].all()
    assert (test.sum(dim=0) == 10).all()


def test_gen_masks_bad_arguments() -> None:
    y = torch.tensor([0] * 10 + [1] * 4)
    with pytest.raises(ValueError, match="= 5 nodes, but class 1 has 4: lower the counts"):
        gen_masks(y, 2, 3)
    with pytest.raises(ValueError, match=r"y must be class ids \[N\], but is torch.float32"):
        gen_masks(torch.zeros(5))
    with pytest.raises(ValueError, match=r"y must be class ids \[N\].*\[5, 1\]"):
        gen_masks(torch.zeros(5, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="num_splits=0"):
        gen_masks(y, 1, 1, num_splits=0)


# --- index_to_mask --------------------------------------------------------------------------------


def test_index_to_mask() -> None:
    assert index_to_mask(torch.tensor([3, 1, 3]), 5).tolist() == [False, True, False, True, False]
    assert not index_to_mask(torch.empty(0, dtype=torch.long), 4).any()


@pytest.mark.parametrize("bad", [-1, 5])
def test_index_to_mask_out_of_range(bad: int) -> None:
    with pytest.raises(IndexError, match=r"must lie in 0 \.\. 4"):
        index_to_mask(torch.tensor([0, bad]), 5)


# --- dropout --------------------------------------------------------------------------------------

NUM_NODES = 60
P = 0.3


@pytest.fixture
def edge_index() -> Tensor:
    """2,000 or so coalesced directed edges, sorted by destination."""
    torch.manual_seed(0)
    dst, src = (torch.rand(NUM_NODES, NUM_NODES) < 0.55).nonzero().t()
    return torch.stack([src, dst])


def pairs(edge_index: Tensor) -> set[tuple[int, int]]:
    return set(zip(*edge_index.tolist(), strict=True))


def assert_dropped_at_rate_p(num_left: int, num_edges: int) -> None:
    slack = 5 * (num_edges * P * (1 - P)) ** 0.5
    assert abs(num_left - (1 - P) * num_edges) < slack


def test_dropout_edge_index(edge_index: Tensor) -> None:
    left = dropout(edge_index, P)
    assert_dropped_at_rate_p(left.size(1), edge_index.size(1))
    assert pairs(left) < pairs(edge_index)
    assert (left[1].diff() >= 0).all()  # order is kept
    assert not torch.equal(left, dropout(edge_index, P))


def test_dropout_edge_index_object(edge_index: Tensor) -> None:
    adj = EdgeIndex(edge_index, sparse_size=(NUM_NODES, NUM_NODES), sort_order="col").fill_cache_()
    left = dropout(adj, P)
    assert isinstance(left, EdgeIndex)
    left.validate()
    assert left.is_sorted_by_col
    assert left.sparse_size() == (NUM_NODES, NUM_NODES)
    assert_dropped_at_rate_p(left.size(1), edge_index.size(1))
    assert pairs(left.as_tensor()) < pairs(edge_index)
    x = torch.randn(NUM_NODES, 3)
    expected = torch.zeros(NUM_NODES, 3).index_add_(0, left.as_tensor()[1], x[left.as_tensor()[0]])
    torch.testing.assert_close(left.matmul(x, transpose=True), expected)  # no stale cache


def test_dropout_undirected_edge_index_object() -> None:
    adj = EdgeIndex([[0, 1, 1, 2], [1, 0, 2, 1]], is_undirected=True, sort_order="row")
    torch.manual_seed(0)
    assert not dropout(adj, 0.5).is_undirected


def csr_of(edge_index: Tensor, value: Tensor) -> Tensor:
    rowptr = torch.searchsorted(edge_index[1].contiguous(), torch.arange(NUM_NODES + 1))
    return torch.sparse_csr_tensor(rowptr, edge_index[0], value, size=(NUM_NODES, NUM_NODES))


def test_dropout_csr(edge_index: Tensor) -> None:
    value = torch.rand(edge_index.size(1)) + 0.5
    adj = csr_of(edge_index, value)
    left = dropout(adj, P)
    assert left.layout == torch.sparse_csr
    assert_dropped_at_rate_p(left.values().numel(), value.numel())
    dense, kept = adj.to_dense(), left.to_dense() != 0
    torch.testing.assert_close(left.to_dense(), torch.where(kept, dense / (1 - P), 0))
    torch.sparse_csr_tensor(left.crow_indices(), left.col_indices(), left.values(), left.shape, check_invariants=True)
    assert torch.equal(adj.values(), value)


def test_dropout_csr_without_weights(edge_index: Tensor) -> None:
    left = dropout(csr_of(edge_index, torch.ones(edge_index.size(1))), P)
    assert_dropped_at_rate_p(left.values().numel(), edge_index.size(1))
    assert (left.values() == 1).all()
    assert dropout(left, 1.0).values().numel() == 0


def test_dropout_csr_keeps_the_gradient_of_values(edge_index: Tensor) -> None:
    value = torch.rand(edge_index.size(1), requires_grad=True)
    dropout(csr_of(edge_index, value), P).values().sum().backward()
    assert_dropped_at_rate_p(int((value.grad != 0).sum()), value.numel())
    assert set(value.grad.tolist()) == {0.0, float(torch.tensor(1.0) / (1 - P))}


def test_dropout_sparse_tensor(edge_index: Tensor) -> None:
    torch_sparse = pytest.importorskip("torch_sparse")
    src, dst = edge_index
    size = (NUM_NODES, NUM_NODES)
    left = dropout(torch_sparse.SparseTensor(row=dst, col=src, sparse_sizes=size), P)
    row, col, value = left.coo()
    assert value is None
    assert left.sizes() == [NUM_NODES, NUM_NODES]
    assert_dropped_at_rate_p(left.nnz(), src.numel())
    assert pairs(torch.stack([col, row])) < pairs(edge_index)

    weight = torch.rand(src.numel()) + 0.5
    adj = torch_sparse.SparseTensor(row=dst, col=src, value=weight, sparse_sizes=size)
    row, col, value = dropout(adj, P).coo()
    assert_dropped_at_rate_p(value.numel(), weight.numel())
    torch.testing.assert_close(value, adj.to_dense()[row, col] / (1 - P))


def test_dropout_returns_the_same_object_when_nothing_can_drop(edge_index: Tensor) -> None:
    assert dropout(edge_index, 0.0) is edge_index
    assert dropout(edge_index, P, training=False) is edge_index


def test_dropout_bad_arguments(edge_index: Tensor) -> None:
    with pytest.raises(ValueError, match=r"p must lie in \[0, 1\], but is 1.5"):
        dropout(edge_index, 1.5, training=False)
    with pytest.raises(TypeError, match=r"dropout: adj must be edge_index \[2, E\]"):
        dropout(torch.randn(5, 5), P)


# --- modules of PyGAS -----------------------------------------------------------------------------


def test_modules_of_pygas(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        "data": "get_data get_planetoid get_wikics get_coauthor get_amazon get_arxiv get_products get_yelp get_flickr "
        "get_reddit get_ppi get_sbm",
        "metis": "metis permute",
        "pool": "AsyncIOPool",
        "history": "History",
        "models": "GCN ScalableGNN",
        "models.base": "ScalableGNN",
    }
    for module, held in names.items():
        for name in held.split():
            found: dict[str, Any] = {}
            exec(f"from torch_gas.{module} import {name}", found)  # as scripts say it
            assert callable(found[name])
            assert getattr(torch_gas, name, found[name]) is found[name]
    monkeypatch.delitem(sys.modules, "torch_gas.utils", raising=False)  # which warns where it is imported first
    with pytest.warns(DeprecationWarning, match="torch_gas.utils is torch_gas.pygas"):
        from torch_gas.utils import index2mask
    assert index2mask(torch.tensor([1]), 3).tolist() == [False, True, False]


@pytest.mark.filterwarnings("ignore:torch_gas.utils is:DeprecationWarning")
def test_names_of_the_package_stay_what_they_are() -> None:
    edge_index = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
    for line in (
        "import torch_gas.metis",
        "from torch_gas.metis import permute",
        "import torch_gas.data as d, torch_gas.pool as p",
    ):
        found: dict[str, Any] = {}
        exec(line, found)
    assert found["d"].get_data is torch_gas.get_data and found["p"].AsyncIOPool is torch_gas.AsyncIOPool
    _, ptr = torch_gas.metis(edge_index, 2, num_nodes=4, log=False)
    assert ptr.tolist() == [0, 2, 4]


def test_getters_of_data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_gas.data import get_coauthor, get_planetoid, get_ppi, get_reddit, get_wikics

    loaded = []

    def load(root: str, key: str, split: str) -> Data:
        loaded.append((key, split))
        return Data(x=torch.rand(3, 2), y=torch.tensor([0, 1, 0]), edge_index=torch.tensor([[0, 1], [1, 2]]))

    monkeypatch.setattr("torch_gas.datasets.loading._load", load)
    data, num_features, num_classes = get_wikics("root")
    assert "adj_t" in data and (num_features, num_classes) == (2, 2)
    get_reddit("root"), get_planetoid("root", "Cora"), get_coauthor("root", "CS")
    get_ppi("root"), get_ppi("root", "val"), get_ppi("root", split="test")
    assert [key for key, _ in loaded[:4]] == ["WikiCS", "Reddit", "Cora", "Coauthor-CS"]
    assert loaded[4:] == [("PPI", "train"), ("PPI", "val"), ("PPI", "test")]
