"""permute() and unpermute(): every format, attributes by declaration, and the way back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric import EdgeIndex
from torch_geometric.data import Batch, Data, HeteroData

from torch_gas import SubgraphLoader
from torch_gas.graph import edges as edges_of_graph
from torch_gas.graph.edges import coo
from torch_gas.graph.formats import is_csr, is_matrix
from torch_gas.partition import metis, permute, unpermute


@pytest.fixture(autouse=True, params=[1 << 20, 3], ids=["at once", "in pieces"])
def edges_at_once(request, monkeypatch):
    """Graphs are reordered a few edges at a time."""
    monkeypatch.setattr(edges_of_graph, "EDGES_AT_ONCE", request.param)


FORMATS = ["plain", "unsorted", "col", "row", "csr", "sparse_tensor"]


def build(kind, src, dst, num_nodes):
    """The adjacency, and the position in src and dst of each of its edges."""
    size = (num_nodes, num_nodes)
    order = torch.arange(src.numel())
    if kind in ("plain", "unsorted"):
        edge_index = torch.stack([src, dst])
        return (edge_index if kind == "plain" else EdgeIndex(edge_index, sparse_size=size)), order
    if kind in ("col", "row"):  # not canonical: edges of one node keep the order they came in
        order = (dst if kind == "col" else src).argsort(stable=True)
        edge_index = torch.stack([src, dst])[:, order]
        return EdgeIndex(edge_index, sparse_size=size, sort_order=kind), order
    order = (dst * num_nodes + src).argsort(stable=True)
    src, dst = src[order], dst[order]
    if kind == "csr":
        rowptr = torch.searchsorted(dst, torch.arange(num_nodes + 1))
        value = torch.arange(src.numel()).float()
        return torch.sparse_csr_tensor(rowptr, src, value, size=size, check_invariants=False), order
    torch_sparse = pytest.importorskip("torch_sparse")
    value = torch.arange(2 * src.numel()).float().view(-1, 2)
    return torch_sparse.SparseTensor(row=dst, col=src, value=value, sparse_sizes=size), order


@st.composite
def graphs(draw, square=False):
    """Edges that may repeat, the number of nodes, and a permutation; N == E if ``square``."""
    num_nodes = draw(st.integers(1, 7))
    node = st.integers(0, num_nodes - 1)
    size = {"min_size": num_nodes, "max_size": num_nodes} if square else {"max_size": 15}
    edges = torch.tensor(draw(st.lists(st.tuples(node, node), **size)), dtype=torch.int64)
    src, dst = edges.reshape(-1, 2).unbind(1)
    perm = torch.tensor(draw(st.permutations(range(num_nodes))), dtype=torch.int64)
    return src, dst, num_nodes, perm


def make_data(kind, src, dst, num_nodes, edges=True):
    adj, order = build(kind, src, dst, num_nodes)
    data = Data(num_nodes=num_nodes)
    data["adj_t" if kind in ("csr", "sparse_tensor") else "edge_index"] = adj
    data.x = torch.arange(2 * num_nodes).float().view(num_nodes, 2)
    data.train_mask = torch.arange(num_nodes) % 2 == 0
    data.names = [f"node {i}" for i in range(num_nodes)]
    data.array = np.arange(num_nodes) * 3
    data.train_index = torch.tensor([num_nodes - 1, *range(num_nodes)])
    data.edge_label_index = torch.tensor([[0, 0, num_nodes - 1], [num_nodes - 1, 0, 0]])
    data.edge_label = torch.tensor([5, 6, 7])
    data.scale = torch.tensor(2.5)
    data.title = "t" * num_nodes
    if edges:
        data.edge_attr = torch.stack([src, dst], dim=1)[order]
        data.edge_name = [f"{s}->{d}" for s, d in zip(src[order], dst[order], strict=True)]
    return data


def assert_same(left, right):
    """Bit for bit, type for type."""
    assert sorted(left.keys()) == sorted(right.keys())
    for key in left.keys():  # noqa: SIM118
        a, b = left[key], right[key]
        assert type(a) is type(b), key
        if is_matrix(a) or isinstance(a, EdgeIndex):
            for one, other in zip(coo(a), coo(b), strict=True):
                assert one is other is None or one.equal(other), key
            if isinstance(a, EdgeIndex):
                assert (a.sort_order, a.is_undirected) == (b.sort_order, b.is_undirected)
                assert a.sparse_size() == b.sparse_size() and a.dtype == b.dtype
            else:
                assert tuple(a.shape if is_csr(a) else a.sizes()) == tuple(b.shape if is_csr(b) else b.sizes())
        elif isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype and a.equal(b), key
        elif isinstance(a, np.ndarray):
            assert a.dtype == b.dtype and (a == b).all(), key
        else:
            assert a == b, key


def assert_permuted(out, data, perm):
    """Every edge and every entry of ``out``, told in original ids, is one of ``data``."""
    assert out.perm.equal(perm)
    assert out.x.equal(data.x[perm])
    assert out.train_mask.equal(data.train_mask[perm])
    assert out.names == [data.names[i] for i in perm.tolist()]
    assert (out.array == data.array[perm.numpy()]).all()
    assert perm[out.train_index].equal(data.train_index)
    assert perm[out.edge_label_index].equal(data.edge_label_index)
    assert out.edge_label.equal(data.edge_label)
    assert out.scale is data.scale and out.title == data.title
    key = "edge_index" if "edge_index" in data else "adj_t"
    (src, dst, value), (src0, dst0, value0) = coo(out[key]), coo(data[key])
    order = out.edge_perm if "edge_perm" in out else torch.arange(src.numel())
    if "edge_attr" in data:
        assert perm[src].equal(src0[order]) and perm[dst].equal(dst0[order])
        assert out.edge_attr.equal(data.edge_attr[order])
        assert out.edge_attr.equal(torch.stack([perm[src], perm[dst]], dim=1))
        assert out.edge_name == [data.edge_name[i] for i in order.tolist()]
        assert value is value0 is None or value.equal(value0[order])
    if is_matrix(out[key]):
        position = dst * perm.numel() + src
        assert (position.diff() >= 0).all()
    elif isinstance(out[key], EdgeIndex):
        out[key].validate()


@pytest.mark.parametrize("kind", FORMATS)
@settings(deadline=None, max_examples=40)
@given(graph=graphs(), edges=st.booleans())
def test_round_trip(kind, graph, edges):
    src, dst, num_nodes, perm = graph
    data = make_data(kind, src, dst, num_nodes, edges)
    before = make_data(kind, src, dst, num_nodes, edges)
    out = permute(data, perm, log=False)
    assert_same(data, before)
    assert_permuted(out, data, perm)
    assert_same(unpermute(out), data)


@pytest.mark.parametrize("kind", FORMATS)
@settings(deadline=None, max_examples=40)
@given(graph=graphs(square=True))
def test_round_trip_with_as_many_edges_as_nodes(kind, graph):
    src, dst, num_nodes, perm = graph
    data = make_data(kind, src, dst, num_nodes)
    assert len(data.edge_name) == num_nodes
    out = permute(data, perm, log=False)
    assert_permuted(out, data, perm)
    assert_same(unpermute(out), data)


@pytest.mark.parametrize("kind", FORMATS)
@settings(deadline=None, max_examples=40)
@given(graph=graphs(), random=st.randoms(use_true_random=False), edges=st.booleans())
def test_permuting_twice_composes(kind, graph, random, edges):
    src, dst, num_nodes, perm = graph
    data = make_data(kind, src, dst, num_nodes, edges)
    second = list(range(num_nodes))
    random.shuffle(second)
    out = permute(permute(data, perm, log=False), torch.tensor(second), log=False)
    assert_permuted(out, data, perm[second])
    assert_same(unpermute(out), data)


@pytest.mark.parametrize("kind", ["col", "csr"])
def test_edge_perm_only_where_needed(kind):
    src, dst = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 2, 0, 2])
    perm = torch.tensor([2, 0, 1])
    order = (dst * 3 + src).argsort()
    canonical = make_data(kind, src[order], dst[order], 3, edges=False)
    assert "edge_perm" not in permute(canonical, perm, log=False)
    assert permute(make_data(kind, src, dst, 3), perm, log=False).edge_perm.shape == (4,)
    assert "edge_perm" not in permute(make_data("plain", src, dst, 3), perm, log=False)


def test_attributes_added_after_permuting_come_back():
    src, dst = torch.tensor([1, 2, 0, 0]), torch.tensor([0, 0, 1, 2])
    data = make_data("csr", src, dst, 3, edges=False)
    out = permute(data, torch.tensor([2, 0, 1]), log=False)
    src, dst, _ = coo(out.adj_t)
    out.edge_attr = torch.stack([out.perm[src], out.perm[dst]], dim=1)
    back = unpermute(out)
    assert back.edge_attr.equal(torch.stack(coo(back.adj_t)[:2], dim=1))


def test_both_adjacencies():
    src, dst = torch.tensor([2, 0, 1, 2]), torch.tensor([1, 2, 0, 0])
    data = make_data("plain", src, dst, 3)
    data.adj_t = make_data("csr", src, dst, 3).adj_t
    perm = torch.tensor([1, 2, 0])
    out = permute(data, perm, log=False)
    assert_permuted(out, data, perm)
    dense = data.adj_t.to_dense()
    assert out.adj_t.to_dense().equal(dense[perm][:, perm])
    assert_same(unpermute(out), data)


def test_int32_and_undirected_edge_index():
    pairs = torch.tensor([[0, 0, 1, 2], [1, 2, 0, 0]], dtype=torch.int32)
    edge_index = EdgeIndex(pairs, sparse_size=(3, 3), sort_order="row", is_undirected=True)
    data = Data(edge_index=edge_index, num_nodes=3)
    out = permute(data, torch.tensor([2, 0, 1], dtype=torch.int32), log=False)
    assert out.edge_index.dtype == torch.int32 and out.edge_index.is_undirected
    assert out.edge_index.as_tensor().tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]
    assert_same(unpermute(out), data)


def test_cat_dim_of_a_subclass():
    class Transposed(Data):
        def __cat_dim__(self, key, value, *args, **kwargs):
            return 1 if key == "wide" else super().__cat_dim__(key, value, *args, **kwargs)

    data = Transposed(edge_index=torch.tensor([[0], [1]]), num_nodes=3)
    data.wide = torch.tensor([[0, 1, 2], [10, 11, 12]])
    out = permute(data, torch.tensor([2, 0, 1]), log=False)
    assert isinstance(out, Transposed)
    assert out.wide.tolist() == [[2, 0, 1], [12, 10, 11]]
    assert_same(unpermute(out), data)


def test_ids_in_other_containers_and_companions():
    data = Data(edge_index=torch.tensor([[0, 1], [1, 2]]), num_nodes=3)
    data.root_index = [2, 0]
    data.leaf_index = np.array([1, 2], dtype=np.int32)
    data.index_names = ["a", "b"]
    data.parent_index = torch.tensor([2, 2, 0])  # one id per node: reordered and relabelled
    data.split_index = torch.tensor([2, 1, 0])
    data.split = torch.tensor([7, 8, 9])  # describes split_index, not the nodes
    ids = ("root_index", "leaf_index", "parent_index", "split_index")
    with pytest.warns(UserWarning, match="data.parent_index holds one integer for each node"):
        out = permute(data, torch.tensor([2, 0, 1]), log=False)
    assert_same(permute(data, torch.tensor([2, 0, 1]), log=False, ids=ids), out)
    assert out.root_index == [0, 1]
    assert out.leaf_index.tolist() == [2, 0] and out.leaf_index.dtype == np.int32
    assert out.index_names == ["a", "b"]
    assert out.parent_index.tolist() == [1, 0, 0]
    assert out.split_index.tolist() == [0, 2, 1] and out.split.tolist() == [7, 8, 9]
    assert_same(unpermute(out, ids=ids), data)


# -- what names do not tell ---------------------------------------------------------------------------------------------


PERM = torch.tensor([2, 0, 1, 4, 3])  # and where nodes come to be: 1, 2, 0, 4, 3


def graph_with(**attributes):
    return Data(edge_index=torch.tensor([[0, 1, 4], [1, 2, 4]]), num_nodes=5, **attributes)


@pytest.mark.parametrize("name", ["train_idx", "TrainIds", "seeds", "split"])
@pytest.mark.parametrize("kind", [torch.tensor, np.array, lambda ids: {"train": torch.tensor(ids)}])
def test_splits_by_ids_ask(name, kind):
    data = graph_with(**{name: kind([0, 3])})
    with pytest.warns(
        UserWarning, match=rf"data\.{name} holds what may be ids.*is not relabelled.*ids=\(\"{name}\",\)"
    ):
        out = permute(data, PERM, log=False)
    assert str(out[name]) == str(data[name])
    assert str(permute(data, PERM, log=False, ids=())[name]) == str(data[name])
    out = permute(data, PERM, log=False, ids=[name])
    assert str(out[name]) == str(kind([1, 4]))
    assert str(unpermute(out, ids=[name])[name]) == str(data[name])


def test_lists_ask_by_their_name():
    data = graph_with(
        train_idx=[0, 3], sizes=[2, 1], of=torch.tensor([3, 3]), large=torch.tensor([3, 7]), one=torch.tensor([3])
    )
    with pytest.warns(UserWarning, match="train_idx") as caught:
        permute(data, PERM, log=False)
    assert len(caught) == 1


def test_a_category_that_is_called_index():
    data = graph_with(species_index=torch.tensor([0, 0, 1, 1, 2]))
    with pytest.warns(UserWarning, match=r"species_index holds one integer for each node.*leave it out of ids"):
        permute(data, PERM, log=False)
    out = permute(data, PERM, log=False, ids=[])
    assert out.species_index.tolist() == [1, 0, 0, 2, 1]  # moved, and not relabelled
    assert unpermute(out, ids=[]).species_index.tolist() == data.species_index.tolist()
    large = graph_with(species_index=torch.tensor([0, 0, 1, 1, 900]))  # more species than nodes
    assert permute(large, PERM, log=False, ids=[]).species_index.tolist() == [1, 0, 0, 900, 1]


def test_a_dictionary_that_is_called_index():
    data = graph_with(split_index={"train": torch.tensor([0, 3]), "test": [1]})
    out = permute(data, PERM, log=False)
    assert out.split_index["train"].tolist() == [1, 4] and out.split_index["test"] == [2]


class Said(Data):
    """Says itself what its attributes are."""

    def __inc__(self, key, value, *args, **kwargs):
        return {"parent_index": self.num_nodes, "species_index": 0}.get(
            key, super().__inc__(key, value, *args, **kwargs)
        )

    def __cat_dim__(self, key, value, *args, **kwargs):
        return None if key in ("target", "vector") else super().__cat_dim__(key, value, *args, **kwargs)


def test_classes_that_say_what_they_hold_are_not_asked():
    data = Said(edge_index=torch.tensor([[0, 1], [1, 2]]), num_nodes=5, parent_index=torch.tensor([0, 0, 1, 1, 2]))
    data.species_index = data.parent_index.clone()
    out = permute(data, PERM, log=False)
    assert out.species_index.tolist() == [1, 0, 0, 2, 1] and out.parent_index.tolist() == [2, 1, 1, 0, 2]


def test_attributes_of_the_graph():
    data = Said(edge_index=torch.tensor([[0, 1], [1, 2]]), num_nodes=5, x=torch.rand(5, 2))
    data.target, data.vector = torch.rand(5), torch.rand(2)  # as many entries as there are nodes, and edges
    out = permute(data, PERM, log=False)
    assert torch.equal(out.target, data.target) and torch.equal(out.vector, data.vector)
    for batch in SubgraphLoader(out, torch.tensor([0, 2, 5])):
        assert torch.equal(batch.target, data.target) and torch.equal(batch.vector, data.vector)


@pytest.mark.parametrize(("ids", "error"), [(["gone"], ValueError), (["x"], ValueError), (["far"], IndexError)])
def test_ids_that_are_none(ids, error):
    data = graph_with(x=torch.rand(5, 2), far=torch.tensor([1, 5]))
    with pytest.raises(
        error, match=r"permute\(\): .*(no integers of that name; leave it out|data\.far holds the node id 5)"
    ):
        permute(data, PERM, log=False, ids=ids)


def test_sparse_features():
    x = torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.0, 3.0]])
    torch_sparse = pytest.importorskip("torch_sparse")
    data = Data(edge_index=torch.tensor([[0], [1]]), num_nodes=3)
    data.x = torch_sparse.SparseTensor.from_dense(x)
    data.z = x.to_sparse_coo()
    perm = torch.tensor([2, 0, 1])
    out = permute(data, perm, log=False)
    assert out.x.to_dense().equal(x[perm])
    assert out.z.to_dense().equal(x[perm])


def test_partition_as_perm_and_the_log(capsys):
    data = make_data("plain", torch.tensor([0, 2, 1]), torch.tensor([2, 0, 3]), 4)
    partition = metis(data, 2, log=False)
    out = permute(data, partition)
    assert out.perm.equal(partition.perm)
    printed = capsys.readouterr().out
    assert printed.startswith("Permuting data... Done! [") and printed.endswith("s]\n")
    rows = torch.rand(4, 3)
    assert unpermute(rows[partition.perm], partition).equal(rows)
    assert unpermute(rows[partition.perm], out.perm.int()).equal(rows)


def data4(**extra):
    return Data(edge_index=torch.tensor([[0, 1, 2], [1, 2, 3]]), num_nodes=4, **extra)


IDENTITY = torch.arange(4)


@pytest.mark.parametrize(
    ("data", "perm", "error", "message"),
    [
        (
            data4(),
            torch.arange(3),
            ValueError,
            r"perm must have shape \[4\], but has \[3\]: pass the perm",
        ),
        (data4(), torch.eye(2).long(), ValueError, r"perm must have shape \[4\], but has \[2, 2\]"),
        (
            data4(),
            torch.tensor([0, 1, 1, 2]),
            ValueError,
            r"perm holds 1 more than once: pass the perm",
        ),
        (data4(), torch.tensor([0, 1, 2, 4]), ValueError, r"perm holds 4, outside 0 \.\. 3"),
        (data4(), torch.tensor([0, 1, 2, -1]), ValueError, r"perm holds -1, outside 0 \.\. 3"),
        (
            data4(),
            IDENTITY.float(),
            TypeError,
            r"perm must be an integer tensor, but is torch\.float32",
        ),
        (data4(), [0, 1, 2, 3], TypeError, r"perm must be Tensor \| Partition, but is list"),
        (
            Data(edge_index=torch.tensor([[0], [1]])),
            IDENTITY,
            ValueError,
            r"unknown: set data\.num_nodes",
        ),
        (
            HeteroData(),
            IDENTITY,
            TypeError,
            r"data must be Data, but is HeteroData",
        ),
        (Batch.from_data_list([data4()]), IDENTITY, ValueError, r"data is a Batch"),
        (data4(edge_perm=torch.arange(3)), IDENTITY, ValueError, r"data\.edge_perm is reserved"),
        (
            data4(perm=torch.ones(4).long()),
            IDENTITY,
            ValueError,
            r"earlier permute\(\): perm holds 1 more",
        ),
        (
            data4(train_index=torch.tensor([4])),
            IDENTITY,
            IndexError,
            r"data\.train_index holds the node id 4",
        ),
        (
            Data(edge_index=torch.tensor([[0], [9]]), num_nodes=4),
            IDENTITY,
            IndexError,
            r"edge_index holds the node id 9",
        ),
        (
            Data(edge_index=torch.tensor([[-1], [0]]), num_nodes=4),
            IDENTITY,
            IndexError,
            r"holds the node id -1",
        ),
        (data4(adj_t=torch.eye(3).to_sparse_coo()), IDENTITY, TypeError, r"data\.adj_t must be"),
    ],
)
def test_permute_refuses(data, perm, error, message):
    with pytest.raises(error, match=message):
        permute(data, perm, log=False)


def test_permute_refuses_a_matrix_of_another_size():
    data = Data(adj_t=make_data("csr", torch.tensor([0]), torch.tensor([1]), 3).adj_t, num_nodes=4)
    with pytest.raises(ValueError, match=r"data\.adj_t must be \[4, 4\].*but is \[3, 3\]"):
        permute(data, IDENTITY, log=False)


@pytest.mark.parametrize(
    ("value", "perm", "error", "message"),
    [
        (data4(), None, ValueError, r"data has no perm"),
        (data4(perm=IDENTITY), IDENTITY, ValueError, r"carries its own perm: drop the argument"),
        (data4(perm=torch.zeros(4).long()), None, ValueError, r"perm holds 0 more than once"),
        (
            data4(perm=IDENTITY, edge_perm=torch.arange(2)),
            None,
            ValueError,
            r"edge_perm.*shape \[3\], but has \[2\]",
        ),
        (torch.rand(4), None, ValueError, r"perm is needed"),
        (torch.rand(5), IDENTITY, ValueError, r"perm must have shape \[5\], but has \[4\]"),
        (torch.tensor(1.0), IDENTITY, ValueError, r"is a scalar"),
        ("data", None, TypeError, r"value must be DataOrTensor, but is 'data'"),
    ],
)
def test_unpermute_refuses(value, perm, error, message):
    with pytest.raises(error, match=message):
        unpermute(value, perm)


def test_order_is_looked_at_across_pieces():
    """Edges of one node out of order, so that unpermute() needs to know where they were."""
    edge_index = EdgeIndex(torch.tensor([[1, 2, 3, 0], [0, 0, 0, 0]]), sparse_size=(4, 4), sort_order="col")
    data = Data(edge_index=edge_index, num_nodes=4)
    out = permute(data, torch.tensor([0, 2, 1, 3]), log=False)
    assert "edge_perm" in out
    assert_same(unpermute(out), data)
