"""Partitions: invariants on synthetic and real graphs, weights, seeds, errors and files."""

import math
import mmap
import os
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric import EdgeIndex
from torch_geometric.data import Data
from torch_geometric.utils import to_undirected

from torch_gas.datasets import synthetic
from torch_gas.graph.key import edges_of_key, graph_key
from torch_gas.partition import (
    Partition,
    backends,
    edge_cut,
    load_partition,
    memory,
    metis,
    parts,
    permute,
    save_partition,
)
from torch_gas.partition.backends import MAX_TOTAL_WEIGHT, Task, integer_weights, simple_graph
from torch_gas.partition.record import is_in_order, make_partition

BACKENDS = ["metis", "kaminpar", "stream", "random"]


def assert_valid(partition, num_nodes, num_parts):
    perm, ptr = partition
    assert perm.dtype == ptr.dtype == torch.int64
    assert perm.sort().values.equal(torch.arange(num_nodes))
    assert ptr.shape == (num_parts + 1,)
    assert ptr[0] == 0 and ptr[-1] == num_nodes
    for start, end in zip(ptr[:-1].tolist(), ptr[1:].tolist(), strict=True):
        assert start <= end
        assert (perm[start:end].diff() > 0).all()


def real_graph(name):
    root = os.environ.get("TORCH_GAS_DATA")
    if root is None:
        pytest.skip("TORCH_GAS_DATA does not name a folder with real graphs")
    with np.load(Path(root) / "plain" / f"{name}.npz") as file:
        edge_index = torch.from_numpy(file["edge_index"].astype(np.int64))
        return Data(edge_index=edge_index, num_nodes=int(file["num_nodes"]))


@pytest.fixture(scope="module")
def ring():
    """32 cliques of 4 nodes, node i of clique i % 32, joined to a ring."""
    clique = torch.arange(128) % 32
    near = (clique[:, None] == clique[None, :]).nonzero()
    step = torch.stack([torch.arange(32), (torch.arange(32) + 1) % 32], dim=1)
    return torch.cat([near, step]).t().contiguous()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["wing", "nell_graph", "prone_dblp", "astro-ph"])
def test_real_graphs(name, backend, capsys):
    data = real_graph(name)
    if backend == "stream":
        data.edge_index = to_undirected(data.edge_index, num_nodes=data.num_nodes)
    partition = metis(data, 20, backend=backend, seed=0, log=True)
    assert_valid(partition, data.num_nodes, 20)
    cut = edge_cut(data, partition)
    begin = {
        "metis": "Building the graph... Computing METIS partitioning with 20 parts... ",
        "kaminpar": "Building the graph... Computing KaMinPar partitioning with 20 parts... ",
        "stream": "Computing streaming partitioning with 20 parts...\n",
        "random": "Computing random partitioning with 20 parts... ",
    }[backend]
    out, bar = capsys.readouterr()
    end = rf"Done! \[\d+\.\d\ds, {cut:.1%} of edges between parts \(random parts: 95%\), peak \+[\d.]+ (B|[KM]iB)\]\n"
    assert re.fullmatch(re.escape(begin) + end, out)
    assert ("pass/s" in bar) == (backend == "stream")
    if backend == "random":
        assert cut == pytest.approx(0.95, abs=0.01)
        assert partition.ptr.diff().max() - partition.ptr.diff().min() <= 1
    else:
        assert cut < 0.5
        if name == "wing":
            assert cut < 0.07
    if backend == "stream":
        assert cut < 1.6 * edge_cut(data, metis(data, 20, seed=0, log=False))
        assert partition.ptr.diff().max() <= 1.05 * data.num_nodes / 20


@pytest.mark.parametrize("backend", BACKENDS)
def test_seed(ring, backend):
    first, again, other = (metis(ring, 8, backend=backend, seed=seed, num_nodes=128, log=False) for seed in (1, 1, 2))
    assert first.perm.equal(again.perm) and first.ptr.equal(again.ptr)
    if backend in ("stream", "random"):
        assert not first.perm.equal(other.perm)


def test_kaminpar_seed_is_reproducible_on_a_large_graph():
    data = real_graph("wing")
    runs = [metis(data, 40, backend="kaminpar", seed=s, log=False) for s in (3, 3, 4)]
    assert runs[0].perm.equal(runs[1].perm)
    assert not runs[0].perm.equal(runs[2].perm)


def test_random_without_seed_uses_torch_generator(ring):
    def draw():
        return metis(ring, 4, backend="random", num_nodes=128, log=False).perm

    torch.manual_seed(5)
    first, second = draw(), draw()
    torch.manual_seed(5)
    assert draw().equal(first)
    assert not second.equal(first)


@pytest.mark.parametrize(
    ("backend", "recursive", "most"),
    [("metis", False, 8), ("metis", True, 8), ("kaminpar", False, 8), ("stream", False, 32)],
)
def test_finds_the_cliques(ring, backend, recursive, most):
    partition = metis(ring, 4, recursive, log=False, backend=backend, num_nodes=128)
    assert edge_cut(ring, partition, num_nodes=128) <= most / ring.size(1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_formats_give_the_same_parts(ring, backend):
    torch_sparse = pytest.importorskip("torch_sparse")
    size = (128, 128)
    both = torch.cat([ring, ring.flip(0)], dim=1)
    key = (both[1] * 128 + both[0]).unique()
    dst, src = key // 128, key % 128
    csr = torch.sparse_coo_tensor(
        torch.stack([dst, src]), torch.ones(key.numel()), size, check_invariants=True
    ).to_sparse_csr()
    adj_t = torch_sparse.SparseTensor(row=dst, col=src, sparse_sizes=size)
    narrow = torch.sparse_csr_tensor(csr.crow_indices().int(), csr.col_indices().int(), csr.values(), size)
    expected = metis(
        torch.stack([src, dst])[:, torch.randperm(src.numel())], 8, log=False, backend=backend, seed=0, num_nodes=128
    )
    cut = edge_cut(torch.stack([src, dst]), expected, num_nodes=128)
    assert 0 < cut < {"random": 1, "stream": 0.3}.get(backend, 0.1)
    for adj in (EdgeIndex(torch.stack([src, dst]), sparse_size=size), csr, narrow, adj_t):
        for given_as in (
            adj,
            Data(edge_index=adj) if isinstance(adj, EdgeIndex) else Data(adj_t=adj),
        ):
            partition = metis(given_as, 8, log=False, backend=backend, seed=0)
            assert partition.perm.equal(expected.perm) and partition.ptr.equal(expected.ptr)
            assert edge_cut(given_as, partition) == cut


@settings(deadline=None, max_examples=40)
@given(
    num_nodes=st.integers(1, 12),
    num_parts=st.integers(1, 12),
    backend=st.sampled_from(BACKENDS),
    data=st.data(),
)
def test_any_small_graph(num_nodes, num_parts, backend, data):
    """Directed edges, self-loops, duplicates, isolated nodes, no edges at all."""
    num_parts = min(num_parts, num_nodes)
    node = st.integers(0, num_nodes - 1)
    edges = data.draw(st.lists(st.tuples(node, node), max_size=30))
    edge_index = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).t().contiguous()
    weights = {}
    if backend != "random" and data.draw(st.booleans()):
        one = st.floats(0, 5)
        weights["edge_weight"] = torch.tensor(data.draw(st.lists(one, min_size=len(edges), max_size=len(edges))))
        weights["node_weight"] = torch.arange(1, num_nodes + 1)
    partition = metis(edge_index, num_parts, log=False, backend=backend, num_nodes=num_nodes, **weights)
    assert_valid(partition, num_nodes, num_parts)


@settings(deadline=None, max_examples=40)
@given(num_nodes=st.integers(1, 8), weighted=st.booleans(), data=st.data())
def test_simple_graph_is_the_symmetric_sum(num_nodes, weighted, data):
    node = st.integers(0, num_nodes - 1)
    edges = data.draw(st.lists(st.tuples(node, node, st.integers(0, 9)), max_size=40))
    src, dst, weight = torch.tensor(edges, dtype=torch.int64).reshape(-1, 3).unbind(1)
    task = Task(torch.stack([src, dst]), num_nodes, 2, False, weight if weighted else None, None, None, False)
    graph = simple_graph(task)
    dense = torch.zeros(num_nodes, num_nodes, dtype=torch.int64)
    dense.index_put_((src, dst), weight if weighted else torch.ones_like(weight), accumulate=True)
    dense = (dense + dense.t()).fill_diagonal_(0)
    row, col = dense.nonzero(as_tuple=True)
    assert graph.rowptr.equal(torch.searchsorted(row, torch.arange(num_nodes + 1)))
    assert graph.col.equal(col)
    if weighted:
        assert graph.edge_weight.equal(dense[row, col])
    else:
        assert graph.edge_weight is None


@pytest.mark.parametrize("backend", ["metis", "kaminpar"])
@pytest.mark.parametrize("offset", [0, 1])
def test_edge_weight_decides_the_cut(backend, offset):
    """A cycle of 64 nodes whose every other edge is heavy: the same graph, cut elsewhere."""
    src = torch.arange(64)
    cycle = torch.stack([src, (src + 1) % 64])
    heavy = src % 2 == offset
    weight = torch.where(heavy, 7.5, 0.25)
    partition = metis(cycle, 4, log=False, backend=backend, edge_weight=weight, num_nodes=64)
    assert edge_cut(cycle[:, heavy], partition, num_nodes=64) == 0
    assert edge_cut(cycle, partition, num_nodes=64) > 0


@pytest.mark.parametrize("shuffled", [False, True])
def test_edge_weight_decides_the_cut_of_stream(shuffled):
    """Four communities under one grouping of the nodes or the other, whichever edges are heavy."""
    node = torch.arange(400)
    row = node.repeat_interleave(40)
    draw = torch.randint(0, 100, (row.numel(),), generator=torch.Generator().manual_seed(0))
    first = torch.arange(row.numel()) % 2 == 0
    dst = torch.where(first, row // 100 * 100 + draw, row % 4 + draw * 4)
    edge_index = torch.stack([row, dst])
    order = torch.randperm(row.numel()) if shuffled else torch.arange(row.numel())
    for heavy in (first, ~first):
        weight = torch.where(heavy, 7.5, 0.25)
        options = {"backend": "stream", "num_nodes": 400, "edge_weight": weight[order], "log": False}
        partition = metis(edge_index[:, order], 4, **options)
        assert edge_cut(edge_index[:, heavy], partition, num_nodes=400) < 0.1
        assert edge_cut(edge_index[:, ~heavy], partition, num_nodes=400) > 0.6


@pytest.mark.parametrize("backend", ["metis", "kaminpar", "stream"])
def test_node_weight_is_balanced(ring, backend):
    weight = torch.zeros(128, dtype=torch.int64)
    weight[torch.arange(128) % 32 < 8] = 1
    perm, ptr = metis(ring, 2, log=False, backend=backend, node_weight=weight, num_nodes=128)
    loads = [int(weight[perm[ptr[i] : ptr[i + 1]]].sum()) for i in range(2)]
    assert max(loads) <= 20
    mask_ptr = metis(ring, 2, log=False, backend=backend, node_weight=weight.bool(), num_nodes=128)
    assert mask_ptr.ptr.equal(ptr) or backend == "kaminpar"


@settings(deadline=None, max_examples=100)
@given(
    num_nodes=st.integers(3, 60),
    num_parts=st.integers(2, 12),
    seed=st.integers(0, 9),
    weighted=st.booleans(),
    data=st.data(),
)
def test_stream_keeps_its_bound(num_nodes, num_parts, seed, weighted, data):
    num_parts = min(num_parts, num_nodes - 1)
    node = st.integers(0, num_nodes - 1)
    edges = data.draw(st.lists(st.tuples(node, node), max_size=4 * num_nodes))
    edge_index = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).t()
    draw = st.lists(st.integers(0, 20), min_size=num_nodes, max_size=num_nodes).filter(any)
    weight = torch.tensor(data.draw(draw)) if weighted else torch.ones(num_nodes, dtype=torch.int64)
    given = {"node_weight": weight} if weighted else {}
    perm, ptr = metis(edge_index, num_parts, log=False, backend="stream", num_nodes=num_nodes, seed=seed, **given)
    heaviest = max(int(weight[perm[ptr[i] : ptr[i + 1]]].sum()) for i in range(num_parts))
    average = int(weight.sum()) / num_parts
    assert heaviest <= max(1.05 * average, average + int(weight.max()) if weighted else math.ceil(average))


@pytest.mark.parametrize("by", [0, 1, None])
def test_stream_reads_either_direction(by):
    """Of a directed graph whose edges are sorted by source, by destination or not at all."""
    generator = torch.Generator().manual_seed(0)
    src = torch.randint(0, 4000, (40_000,), generator=generator)
    dst = src // 100 * 100 + torch.randint(0, 100, (40_000,), generator=generator)
    shuffle = torch.randperm(4000, generator=generator)
    directed = shuffle[torch.stack([src, dst])]
    directed = directed if by is None else directed[:, directed[by].argsort()]
    partition = metis(directed, 10, log=False, backend="stream", seed=0, num_nodes=4000)
    assert edge_cut(directed, partition, num_nodes=4000) < 0.15


def test_stream_is_as_good_as_multilevel_where_there_are_communities():
    data = synthetic(20_000, num_features=1, avg_degree=20)
    cut = {name: edge_cut(data, metis(data, 20, log=False, backend=name, seed=0)) for name in BACKENDS}
    assert cut["stream"] < 1.1 * cut["metis"] < 0.5 * cut["random"]


def test_the_log_tells_memory(monkeypatch, capsys):
    for held, peak, told in ((2, 3.5, "1.50 GiB"), (2, 2.125, "128 MiB"), (2, 1, "0 B")):
        monkeypatch.setattr(parts, "held_memory", lambda held=held: held * 2**30)
        monkeypatch.setattr(parts, "peak_memory", lambda peak=peak: int(peak * 2**30))
        metis(EDGES, 2, num_nodes=4)
        assert f"peak +{told}]" in capsys.readouterr().out


def test_memory_of_the_process():
    before = memory.held_memory()
    held = np.frombuffer(mmap.mmap(-1, 64 * 2**20), dtype=np.uint8)  # pages that nothing has held before
    held[:] = 1
    assert memory.peak_memory() >= memory.held_memory() * 0.99
    if Path("/proc/self/statm").exists():
        assert memory.held_memory() - before > 0.9 * held.nbytes


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_binary_format_of_kaminpar(tmp_path, monkeypatch, wide, weighted):
    monkeypatch.setattr(backends, "ITEMS_AT_ONCE", 3)
    weights = (torch.tensor([7, 7, 8, 9, 8, 9]), torch.tensor([1, 2, 3, 4])) if weighted else (None, None)
    graph = backends.SimpleGraph(torch.tensor([0, 1, 4, 5, 6]), torch.tensor([1, 0, 2, 3, 1, 1]), *weights)
    backends.write_parhip(tmp_path / "graph", graph, wide)
    width = 8 if wide else 4
    content = (tmp_path / "graph").read_bytes()
    flags, num_nodes, num_edges = np.frombuffer(content[:24], "<u8").tolist()
    assert (num_nodes, num_edges) == (4, 6)
    assert flags == (0 if weighted else 0b11) | (0 if wide else 0b111100)
    body = np.frombuffer(content[24:], f"<u{width}").tolist()
    start = 24 + 5 * width
    expected = [start + width * i for i in (0, 1, 4, 5, 6)] + [1, 0, 2, 3, 1, 1]
    assert body == expected + ([1, 2, 3, 4, 7, 7, 8, 9, 8, 9] if weighted else [])


def test_integer_weights():
    assert integer_weights(torch.tensor([0.0, 3.0, 7.0])).tolist() == [0, 3, 7]
    assert integer_weights(torch.tensor([0.5, 0.25, 1e-9, 0.0])).tolist() == [1000, 500, 1, 0]
    huge = integer_weights(torch.full((10,), 1e12, dtype=torch.float64))
    assert (huge > 0).all() and int(huge.sum()) <= MAX_TOTAL_WEIGHT
    many = integer_weights(torch.tensor([1e300, 5e299], dtype=torch.float64))
    assert many.tolist() == [1000, 500]
    assert integer_weights(torch.tensor([1e-310, 0.0], dtype=torch.float64)).tolist() == [1000, 0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_part_is_the_identity(ring, backend):
    perm, ptr = metis(ring, 1, log=False, backend=backend, num_nodes=128)
    assert perm.equal(torch.arange(128)) and ptr.tolist() == [0, 128]


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_parts_than_nodes(backend):
    edge_index = torch.tensor([[0, 1], [1, 2]])
    with pytest.warns(
        UserWarning,
        match=r"num_parts is 5, but the graph has only 3 nodes.*other 2 parts are empty",
    ):
        perm, ptr = metis(edge_index, 5, log=False, backend=backend, num_nodes=3)
    assert perm.tolist() == [0, 1, 2] and ptr.tolist() == [0, 1, 2, 3, 3, 3]


def test_partition_record():
    partition = metis(torch.tensor([[0], [1]]), 2, log=False, num_nodes=2)
    assert isinstance(partition, Partition)
    assert repr(partition) == "Partition(num_nodes=2, num_parts=2)"


EDGES = torch.tensor([[0, 1, 2], [1, 2, 3]])


@pytest.mark.parametrize(
    ("adj", "num_parts", "options", "error", "message"),
    [
        (EDGES, 0, {}, ValueError, r"num_parts must be at least 1, but is 0"),
        (EDGES, -3, {}, ValueError, r"num_parts must be at least 1, but is -3"),
        (EDGES, 2.0, {}, TypeError, r"num_parts must be int, but is 2\.0"),
        (
            EDGES,
            2,
            {"backend": "scotch"},
            ValueError,
            r"one of \('metis', 'kaminpar', 'stream', 'random'\), but is 'scotch'",
        ),
        (EDGES, 2, {"backend": "kaminpar", "recursive": True}, ValueError, r"drop recursive=True"),
        (
            EDGES,
            2,
            {"backend": "random", "node_weight": torch.ones(4).long()},
            ValueError,
            r"ignores weights",
        ),
        (EDGES, 2, {"seed": -1}, ValueError, r"seed must lie in 0 \.\. 2\*\*31 - 1, but is -1"),
        (EDGES, 2, {"seed": 1.5}, TypeError, r"seed must be int \| None, but is 1\.5"),
        (EDGES, 2, {"num_nodes": None}, ValueError, r"num_nodes is unknown.*pass num_nodes"),
        (EDGES, 2, {"num_nodes": 0}, ValueError, r"at least one node, but num_nodes is 0"),
        (
            EDGES,
            2,
            {"num_nodes": 3},
            IndexError,
            r"holds the node id 3, but ids must lie in 0 \.\. 2",
        ),
        (EDGES - 1, 2, {}, IndexError, r"holds the node id -1, but ids must lie in 0 \.\. 3"),
        (EDGES.float(), 2, {}, TypeError, r"metis\(\): adj must be edge_index"),
        (
            Data(edge_index=EDGES, num_nodes=4),
            2,
            {"num_nodes": 5},
            ValueError,
            r"num_nodes is 5, but adj has 4",
        ),
        (
            Data(edge_index=EDGES),
            2,
            {"num_nodes": None},
            ValueError,
            r"unknown: set data\.num_nodes",
        ),
        (
            EDGES,
            2,
            {"edge_weight": torch.ones(4)},
            ValueError,
            r"edge_weight must hold one number per edge, \[3\]",
        ),
        (
            EDGES,
            2,
            {"edge_weight": torch.tensor([1.0, -1, 1])},
            ValueError,
            r"finite and not negative",
        ),
        (
            EDGES,
            2,
            {"edge_weight": torch.tensor([1.0, torch.inf, 1])},
            ValueError,
            r"finite and not negative",
        ),
        (
            EDGES,
            2,
            {"edge_weight": [1, 2, 3]},
            TypeError,
            r"edge_weight must be Tensor \| None, but is list",
        ),
        (EDGES, 2, {"node_weight": torch.ones(4)}, TypeError, r"node_weight must be integers"),
        (
            EDGES,
            2,
            {"node_weight": torch.ones(3).long()},
            ValueError,
            r"one number per node, \[4\]",
        ),
        (EDGES, 2, {"node_weight": torch.zeros(4).long()}, ValueError, r"nothing to balance"),
    ],
)
def test_refused(adj, num_parts, options, error, message):
    with pytest.raises(error, match=message):
        metis(
            adj,
            num_parts,
            log=False,
            **{"num_nodes": None if isinstance(adj, Data) else 4, **options},
        )


@pytest.mark.parametrize(("backend", "package"), [("metis", "pymetis"), ("kaminpar", "kaminpar")])
def test_missing_package(monkeypatch, backend, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        metis(EDGES, 2, log=False, backend=backend, num_nodes=4)


def test_edge_cut():
    partition = metis(EDGES, 4, log=False, num_nodes=4)
    assert edge_cut(EDGES, partition, num_nodes=4) == 1.0
    assert edge_cut(torch.tensor([[0, 1], [0, 2]]), partition, num_nodes=4) == 0.5
    assert edge_cut(torch.empty(2, 0, dtype=torch.int64), partition, num_nodes=4) == 0.0
    with pytest.raises(ValueError, match=r"edge_cut\(\): partition has 4 nodes, but the graph has 5"):
        edge_cut(EDGES, partition, num_nodes=5)


def test_file_round_trip(tmp_path, ring):
    partition = metis(ring, 8, log=False, num_nodes=128)
    path = tmp_path / "parts"  # no suffix: the name is taken as it is
    path.write_text("old")
    save_partition(path, partition)
    assert [file.name for file in tmp_path.iterdir()] == ["parts"]
    loaded = load_partition(path, num_nodes=128)
    assert loaded.perm.equal(partition.perm) and loaded.ptr.equal(partition.ptr)
    data = permute(Data(edge_index=ring, num_nodes=128), loaded, log=False)
    assert data.perm.equal(partition.perm)


def test_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    partition = metis(EDGES, 2, log=False, num_nodes=4)
    save_partition(tmp_path / "p.npz", partition)
    before = (tmp_path / "p.npz").read_bytes()

    def full(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space left"):
        save_partition(tmp_path / "p.npz", partition)
    assert [file.name for file in tmp_path.iterdir()] == ["p.npz"]
    assert (tmp_path / "p.npz").read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"perm": [0, 1, 1], "ptr": [0, 3]}, r"perm holds 1 more than once"),
        ({"perm": [0, 1, 3], "ptr": [0, 3]}, r"perm holds 3, outside 0 \.\. 2"),
        ({"perm": [0, 1, 2], "ptr": [0, 2]}, r"ptr must ascend from 0 to the number of nodes, 3"),
        ({"perm": [0, 1, 2], "ptr": [0, 2, 1, 3]}, r"ptr must ascend"),
        ({"perm": [0.0, 1.0], "ptr": [0, 2]}, r"holds no partition"),
        ({"perm": [0, 1, 2]}, r"holds no partition.*save_partition\(\)"),
        ({"perm": [0, 1, 2], "ptr": [0, 3]}, r"is for 3 nodes, but num_nodes is 4"),
        (b"", r"holds no partition"),
        (b"not an archive", r"holds no partition"),
        (b"PK\x03\x04broken", r"holds no partition"),
    ],
)
def test_wrong_file(tmp_path, content, message):
    path = tmp_path / "p.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content)
    with pytest.raises(ValueError, match=message):
        load_partition(path, num_nodes=4)


def test_wrong_file_array(tmp_path):
    np.save(tmp_path / "p.npy", np.arange(3))
    with pytest.raises(ValueError, match="holds no partition"):
        load_partition(tmp_path / "p.npy")
    with pytest.raises(FileNotFoundError, match="missing"):
        load_partition(tmp_path / "missing.npz")


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_damaged_bytes_are_refused_or_change_nothing(tmp_path, write):
    perm, ptr, path = np.random.RandomState(0).permutation(40), np.array([0, 10, 40]), tmp_path / "p.npz"
    write(path, perm=perm, ptr=ptr)
    whole, refused = path.read_bytes(), 0
    for place in range(0, len(whole), 2):
        for bit in (0, 3):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                loaded = load_partition(path)
            except ValueError as error:
                refused += 1
                assert str(path) in str(error)
            else:
                assert np.array_equal(loaded.perm, perm) and np.array_equal(loaded.ptr, ptr)
    assert refused > len(whole) // 2
    for size in range(0, len(whole), 31):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="holds no partition or is damaged"):
            load_partition(path)


def npy(header, data=b""):
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


ARRAYS = {
    "larger than memory": npy("{'descr': '<i8', 'fortran_order': False, 'shape': (2305843009213693,), }"),
    "larger than numbers": npy("{'descr': '<i8', 'fortran_order': False, 'shape': (10000000000000000000000,), }"),
    "a deep header": npy("(" * 5000),
    "an odd escape": npy(r"{'descr': '<i8', 'fortran_order': False, 'shape': '\d'}"),
    "no header": npy("None"),
    "a pickle": npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"\x80\x04N."),
    "fields": npy("{'descr': [('a', '<i8')], 'fortran_order': False, 'shape': (1,), }", bytes(8)),
    "a scalar": npy("{'descr': '<i8', 'fortran_order': False, 'shape': (), }", bytes(8)),
    "times": npy("{'descr': '<M8[s]', 'fortran_order': False, 'shape': (1,), }", bytes(8)),
    "nothing": npy("{'descr': '<i8', 'fortran_order': False, 'shape': (0,), }"),
    "text": b"perm",
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("place", ["perm", "ptr"])
def test_archives_of_other_arrays(tmp_path, name, place):
    right = npy("{'descr': '<i8', 'fortran_order': False, 'shape': (1,), }", bytes(8))
    with zipfile.ZipFile(tmp_path / "p.npz", "w") as archive:
        for each in ("perm", "ptr"):
            archive.writestr(f"{each}.npy", ARRAYS[name] if each == place else right)
    with pytest.raises(ValueError, match=r"load_partition\('.*p\.npz'\): "):
        load_partition(tmp_path / "p.npz")


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is a pipe or a device"):
        load_partition(tmp_path / "pipe")
    with pytest.raises(OSError, match="this is a pipe or a device"):
        save_partition(tmp_path / "pipe", metis(EDGES, 2, log=False, num_nodes=4))
    with pytest.raises(IsADirectoryError):
        load_partition(tmp_path)


@pytest.mark.parametrize("weight", [2**62, 2**63 - 1])
def test_node_weights_beyond_64_bits(weight):
    """Backends that sum them refuse them; those that scale them balance the parts."""
    edges, weights = torch.randint(200, (2, 1500)), torch.full((200,), weight)
    with pytest.raises(
        ValueError, match=r"`node_weight` must hold non-negative numbers whose sum is less than 2\*\*63"
    ):
        metis(edges, 4, log=False, num_nodes=200, backend="stream", node_weight=weights)
    largest = (2**63 - 1) // 200
    for balanced, backend in ((weights, "metis"), (torch.full((200,), largest), "stream")):
        _, ptr = metis(edges, 4, log=False, num_nodes=200, backend=backend, node_weight=balanced)
        assert int(ptr.diff().max()) < 60


@pytest.mark.parametrize("backend", ["metis", "stream"])
def test_edge_weights_with_an_infinite_sum(backend):
    edges = torch.randint(200, (2, 1500))
    weights = torch.full((1500,), 1e308, dtype=torch.float64)
    with pytest.raises(ValueError, match="edge_weight must be finite and not negative, and so must their sum"):
        metis(edges, 4, log=False, num_nodes=200, backend=backend, edge_weight=weights)


def test_graphs_without_edges_or_with_one_part_are_in_any_order():
    data = Data(x=torch.rand(30, 2), edge_index=torch.empty(2, 0, dtype=torch.int64))
    for _ in range(2):
        _, ptr = metis(data, 3, backend="random", log=False)
        assert is_in_order(data, data.edge_index, ptr)
    data.edge_index = torch.randint(30, (2, 90))
    make_partition(torch.randperm(30), torch.tensor([0, 30]), "", edges_of_key(graph_key(data.edge_index, 30)))
    assert is_in_order(data, data.edge_index, torch.tensor([0, 30]))
