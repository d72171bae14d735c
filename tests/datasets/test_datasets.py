"""Loaders on real files where they are at hand, and on tiny files in the same raw layout."""

from __future__ import annotations

import errno
import gzip
import json
import logging
import os
import pickle
import re
import shutil
import socket
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.datasets import Flickr
from torch_geometric.transforms import BaseTransform
from torch_geometric.utils import contains_self_loops, is_undirected

from torch_gas import datasets
from torch_gas.datasets import community, loading, ogb, synthetic, synthetic_cluster
from torch_gas.datasets.sources import SOURCES
from torch_gas.graph.formats import is_csr, is_matrix

get_data = partial(datasets.get_data, layout="edge_index")

# torch warns once per process that its sparse matrices are in beta and unchecked.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse (CS|invariant):UserWarning")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENETUNREACH, "the network is denied in tests")

    monkeypatch.setattr(socket.socket, "connect", deny)
    monkeypatch.setattr(socket, "getaddrinfo", deny)


# --- Tiny raw files -------------------------------------------------------------------------------


def random_adj(rng: np.random.Generator, num_nodes: int, num_edges: int) -> sp.csr_matrix:
    row, col = rng.integers(0, num_nodes, (2, num_edges))
    keep = row != col
    ones = np.ones(int(keep.sum()), dtype=np.float32)
    adj = sp.csr_matrix((ones, (row[keep], col[keep])), shape=(num_nodes, num_nodes))
    adj.data[:] = 1
    return adj


def write_planetoid(home: Path, name: str) -> None:
    """20 training, 500 validation and 30 test nodes; CiteSeer lacks one test node, as in truth."""
    raw = home / name / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    num_nodes, num_features, num_classes = 550, 12, 3
    features = sp.csr_matrix(rng.integers(0, 2, (num_nodes, num_features)).astype(np.float32))
    labels = np.eye(num_classes, dtype=np.int32)[np.arange(num_nodes) % num_classes]
    test = rng.permutation(np.arange(520, num_nodes))
    if name == "CiteSeer":
        test = test[test != 530]
    parts = {
        "x": features[:20],
        "y": labels[:20],
        "allx": features[:520],
        "ally": labels[:520],
        "tx": features[test],
        "ty": labels[test],
        "graph": {i: [(i + 1) % num_nodes, (i - 1) % num_nodes] for i in range(num_nodes)},
    }
    for key, value in parts.items():
        (raw / f"ind.{name.lower()}.{key}").write_bytes(pickle.dumps(value, protocol=2))
    (raw / f"ind.{name.lower()}.test.index").write_text("".join(f"{i}\n" for i in test))


def write_npz(home: Path, name: str, file: str) -> None:
    """Coauthor, Amazon, CitationFull: 3 classes of 60 nodes."""
    raw = home / name / "raw"
    raw.mkdir(parents=True)
    num_nodes = 180
    adj = random_adj(np.random.default_rng(1), num_nodes, 600)
    attr = sp.random(num_nodes, 8, 0.5, format="csr", random_state=1)
    np.savez(
        raw / file,
        adj_data=adj.data,
        adj_indices=adj.indices,
        adj_indptr=adj.indptr,
        adj_shape=adj.shape,
        attr_data=attr.data,
        attr_indices=attr.indices,
        attr_indptr=attr.indptr,
        attr_shape=attr.shape,
        labels=np.arange(num_nodes) % 3,
    )


def write_heterophilous(home: Path, name: str) -> None:
    raw = home / name / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(2)
    third = np.stack([rng.permutation(60) % 3 for _ in range(10)])
    np.savez(
        raw / f"{name}.npz",
        node_features=rng.normal(size=(60, 4)).astype(np.float32),
        node_labels=np.arange(60) % 2,
        edges=np.stack([np.arange(59), np.arange(1, 60)], axis=1),
        train_masks=third == 0,
        val_masks=third == 1,
        test_masks=third == 2,
    )


def write_wikics(home: Path) -> None:
    (home / "raw").mkdir(parents=True)
    rng = np.random.default_rng(3)
    test = np.arange(40) < 10
    part = np.where(test, -1, np.stack([rng.permutation(40) % 3 for _ in range(20)]))
    content = {
        "features": rng.normal(size=(40, 5)).tolist(),
        "labels": (np.arange(40) % 4).tolist(),
        "links": [[(i + 1) % 40, (i + 7) % 40] for i in range(40)],  # one direction only
        "train_masks": (part == 0).tolist(),
        "val_masks": (part == 1).tolist(),
        "stopping_masks": (part == 2).tolist(),
        "test_mask": test.tolist(),
    }
    (home / "raw" / "data.json").write_text(json.dumps(content))


def write_saint(home: Path, several_labels: bool = False) -> None:
    """Reddit2, Flickr, Yelp, WordNet: the layout of GraphSAINT."""
    raw = home / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(4)
    num_nodes = 50
    adj = random_adj(rng, num_nodes, 100)
    adj = sp.csr_matrix(((adj + adj.T) > 0).astype(np.float32))
    x = rng.normal(3.0, 2.0, (num_nodes, 6))
    x[:, 5] = 7.0  # a constant feature
    np.savez(
        raw / "adj_full.npz",
        data=adj.data,
        indices=adj.indices,
        indptr=adj.indptr,
        shape=adj.shape,
    )
    np.save(raw / "feats.npy", x)
    labels = rng.integers(0, 2, (num_nodes, 5)) if several_labels else np.arange(num_nodes) % 5
    classes = {str(i): label for i, label in enumerate(labels.tolist())}
    (raw / "class_map.json").write_text(json.dumps(classes))
    role = {"tr": list(range(25)), "va": list(range(25, 37)), "te": list(range(37, 50))}
    (raw / "role.json").write_text(json.dumps(role))


def write_ppi(home: Path) -> None:
    """Two graphs of 8 nodes in each split; the 121 labels shrunk to 4."""
    raw = home / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(5)
    for split in ("train", "valid", "test"):
        graph = nx.disjoint_union(nx.cycle_graph(8), nx.cycle_graph(8)).to_directed()
        nodes = [{"id": node} for node in graph]
        links = [{"source": source, "target": target} for source, target in graph.edges]
        content = {"directed": True, "multigraph": False, "graph": {}, "nodes": nodes, "links": links}
        (raw / f"{split}_graph.json").write_text(json.dumps(content))
        np.save(raw / f"{split}_feats.npy", rng.normal(size=(16, 3)))
        np.save(raw / f"{split}_labels.npy", rng.integers(0, 2, (16, 4)))
        np.save(raw / f"{split}_graph_id.npy", np.repeat([1, 2], 8))


def write_ogb(home: Path, name: str) -> None:
    folder = home / f"ogbn_{name}"
    split = folder / "split" / ogb.SPLIT[name]
    (folder / "raw").mkdir(parents=True)
    split.mkdir(parents=True)
    rng = np.random.default_rng(6)
    tables = {
        folder / "raw" / "edge": np.stack([np.arange(29), np.arange(1, 30)], axis=1),
        folder / "raw" / "node-feat": rng.normal(size=(30, 4)),
        folder / "raw" / "node-label": np.arange(30).reshape(-1, 1) % 3,
        split / "train": np.arange(15).reshape(-1, 1),
        split / "valid": np.arange(15, 22).reshape(-1, 1),
        split / "test": np.arange(22, 30).reshape(-1, 1),
    }
    for path, table in tables.items():
        with gzip.open(f"{path}.csv.gz", "wt") as file:
            file.writelines(",".join(map(str, row)) + "\n" for row in table.tolist())


def write_cluster(home: Path) -> None:
    raw = home / "CLUSTER" / "raw"
    raw.mkdir(parents=True)
    ring = torch.stack([torch.arange(6), (torch.arange(6) + 1) % 6])
    graph = {
        "x": torch.eye(7)[:6],
        "edge_index": torch.cat([ring, ring.flip(0)], dim=1),
        "y": torch.arange(6),
    }
    torch.save([[graph] * count for count in (4, 2, 3)], raw / "CLUSTER_v2.pt")


WRITERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "Cora": ("planetoid", lambda home: write_planetoid(home, "Cora")),
    "CiteSeer": ("planetoid", lambda home: write_planetoid(home, "CiteSeer")),
    "PubMed": ("planetoid", lambda home: write_planetoid(home, "PubMed")),
    "Coauthor-CS": ("coauthor", lambda home: write_npz(home, "CS", "ms_academic_cs.npz")),
    "Coauthor-Physics": (
        "coauthor",
        lambda home: write_npz(home, "Physics", "ms_academic_phy.npz"),
    ),
    "Amazon-Computers": (
        "amazon",
        lambda home: write_npz(home, "Computers", "amazon_electronics_computers.npz"),
    ),
    "Amazon-Photo": (
        "amazon",
        lambda home: write_npz(home, "Photo", "amazon_electronics_photo.npz"),
    ),
    "WikiCS": ("wikics", write_wikics),
    "Reddit": ("reddit2", write_saint),
    "PPI": ("ppi", write_ppi),
    "Flickr": ("flickr", write_saint),
    "Yelp": ("yelp", lambda home: write_saint(home, several_labels=True)),
    "ogbn-arxiv": ("ogb", lambda home: write_ogb(home, "arxiv")),
    "ogbn-products": ("ogb", lambda home: write_ogb(home, "products")),
    "CLUSTER": ("sbm", write_cluster),
    "Cora_ML": ("citation_full", lambda home: write_npz(home, "cora_ml", "cora_ml.npz")),
    "DBLP": ("citation_full", lambda home: write_npz(home, "dblp", "dblp.npz")),
    "Tolokers": ("heterophilous", lambda home: write_heterophilous(home, "tolokers")),
    "Minesweeper": ("heterophilous", lambda home: write_heterophilous(home, "minesweeper")),
    "WordNet": ("wordnet", write_saint),
}
RANDOM_SPLITS = [name for name in WRITERS if name.startswith(("Co", "Amazon", "DBLP")) and name != "Cora"]


def write(root: Path, name: str) -> Path:
    folder, writer = WRITERS[name]
    writer(root / folder)
    return root


def snapshot(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# --- Every loader on tiny files -------------------------------------------------------------------


def test_every_data_set_has_tiny_files() -> None:
    assert set(WRITERS) == set(SOURCES)


@pytest.mark.parametrize("name", list(WRITERS))
def test_loads_from_raw_files(name: str, tmp_path: Path) -> None:
    root = write(tmp_path, name)
    state = torch.get_rng_state()
    data, num_features, num_classes = get_data(root, name)
    assert torch.equal(torch.get_rng_state(), state)

    assert data.x.dtype == torch.float32
    assert data.x.shape == (data.num_nodes, num_features)
    assert data.x.isfinite().all()
    assert data.y.size(0) == data.num_nodes
    if data.y.dim() == 1:
        assert data.y.dtype == torch.int64
        assert int(data.y.max()) + 1 == num_classes
    else:
        assert data.y.dtype == torch.float32
        assert data.y.size(1) == num_classes
    assert data.edge_index.dtype == torch.int64
    assert is_undirected(data.edge_index, num_nodes=data.num_nodes)
    assert "adj_t" not in data

    masks = [data[key] for key in ("train_mask", "val_mask", "test_mask") if key in data]
    if name in ("PPI", "CLUSTER"):
        assert len(masks) == 1
        assert masks[0].all()
    else:
        train, val, test = (mask if mask.dim() == 2 else mask.unsqueeze(1) for mask in masks)
        assert all(mask.dtype == torch.bool for mask in masks)
        assert (train.int() + val + test <= 1).all()
        assert train.any(dim=0).all() and val.any(dim=0).all() and test.any(dim=0).all()

    again, _, _ = get_data(root, name)  # from the processed file
    assert torch.equal(again.x, data.x)
    assert torch.equal(again.edge_index, data.edge_index)


@pytest.mark.parametrize("name", ["Cora", "CiteSeer", "PubMed"])
def test_planetoid_is_row_normalised_with_the_public_split(name: str, tmp_path: Path) -> None:
    data, _, _ = get_data(write(tmp_path, name), name)
    sums = data.x.sum(dim=1)
    filled = sums > 0
    assert filled.sum() > 500
    torch.testing.assert_close(sums[filled], torch.ones(int(filled.sum())))
    num_test = 29 if name == "CiteSeer" else 30
    sizes = [int(mask.sum()) for mask in (data.train_mask, data.val_mask, data.test_mask)]
    assert sizes == [20, 500, num_test]


@pytest.mark.parametrize("name", RANDOM_SPLITS)
def test_random_splits(name: str, tmp_path: Path) -> None:
    data, _, num_classes = get_data(write(tmp_path, name), name)
    assert data.train_mask.shape == (180, 20)
    for label in range(num_classes):
        of_class = data.y == label
        assert (data.train_mask[of_class].sum(dim=0) == 20).all()
        assert (data.val_mask[of_class].sum(dim=0) == 30).all()
    assert (data.train_mask | data.val_mask | data.test_mask).all()
    torch.testing.assert_close(data.train_mask, pygas_train_mask(data.y))


def pygas_train_mask(y: Tensor) -> Tensor:
    """The draws of PyGAS after ``torch.manual_seed(12345)``, written out one by one."""
    state = torch.get_rng_state()
    torch.manual_seed(12345)
    mask = torch.zeros(y.numel(), 20, dtype=torch.bool)
    for label in range(int(y.max()) + 1):
        nodes = torch.tensor([i for i, value in enumerate(y.tolist()) if value == label])
        for split in range(20):
            mask[nodes[torch.randperm(nodes.numel())[:20]], split] = True
    torch.set_rng_state(state)
    return mask


def test_wikics_validates_on_the_stopping_mask(tmp_path: Path) -> None:
    root = write(tmp_path, "WikiCS")
    content = json.loads((root / "wikics" / "raw" / "data.json").read_text())
    data, _, _ = get_data(root, "WikiCS")
    assert torch.equal(data.val_mask, torch.tensor(content["stopping_masks"]).t())
    assert "stopping_mask" not in data
    assert data.test_mask.shape == (40,)
    assert data.num_edges == 160


@pytest.mark.parametrize("name", ["Reddit", "Yelp"])
def test_standardised(name: str, tmp_path: Path) -> None:
    data, _, _ = get_data(write(tmp_path, name), name)
    torch.testing.assert_close(data.x.mean(dim=0), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(data.x[:, :5].std(dim=0), torch.ones(5))
    assert (data.x[:, 5] == 0).all()  # a constant feature


@pytest.mark.parametrize("name", ["Flickr", "WordNet"])
def test_not_standardised(name: str, tmp_path: Path) -> None:
    data, _, _ = get_data(write(tmp_path, name), name)
    assert (data.x[:, 5] == 7).all()
    assert [int(data[f"{split}_mask"].sum()) for split in ("train", "val", "test")] == [25, 12, 13]


def test_ppi_joins_the_graphs_of_a_split(tmp_path: Path) -> None:
    root = write(tmp_path, "PPI")
    seen = []
    for split in ("train", "val", "test"):
        data, num_features, num_classes = get_data(root, "PPI", split=split)
        assert (num_features, num_classes) == (3, 4)
        assert set(data.keys()) == {"x", "edge_index", "y", f"{split}_mask"}
        assert (data.num_nodes, data.num_edges) == (16, 32)
        assert ((data.edge_index[0] < 8) == (data.edge_index[1] < 8)).all()  # two components
        seen.append(data.x)
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


@pytest.mark.parametrize(("split", "num_graphs"), [("train", 4), ("val", 2), ("test", 3)])
def test_cluster_joins_the_graphs_of_a_split(split: str, num_graphs: int, tmp_path: Path) -> None:
    data, num_features, num_classes = get_data(write(tmp_path, "CLUSTER"), "CLUSTER", split=split)
    assert (num_features, num_classes) == (7, 6)
    assert (data.num_nodes, data.num_edges) == (6 * num_graphs, 12 * num_graphs)
    assert data[f"{split}_mask"].all()


@pytest.mark.parametrize("name", ["arxiv", "products"])
def test_ogb_reads_raw_tables_and_the_official_split(name: str, tmp_path: Path) -> None:
    data, num_features, num_classes = get_data(write(tmp_path, f"ogbn-{name}"), name)
    assert (num_features, num_classes) == (4, 3)
    assert data.y.tolist() == [i % 3 for i in range(30)]
    assert data.num_edges == 58
    assert data.train_mask.nonzero().view(-1).tolist() == list(range(15))
    assert data.val_mask.nonzero().view(-1).tolist() == list(range(15, 22))
    assert data.test_mask.nonzero().view(-1).tolist() == list(range(22, 30))


def test_ogb_download_unpacks_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_ogb(tmp_path / "made", "arxiv")
    made = tmp_path / "made" / "ogbn_arxiv"

    def download(url: str, folder: str) -> str:
        assert url == "http://snap.stanford.edu/ogb/data/nodeproppred/arxiv.zip"
        path = Path(folder) / "arxiv.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in made.rglob("*.gz"):
                archive.write(file, f"arxiv/{file.relative_to(made)}")
        return str(path)

    monkeypatch.setattr(ogb, "download_url", download)
    monkeypatch.setattr("builtins.print", lambda *args, **kwargs: None)
    data, _, _ = get_data(tmp_path / "root", "ogbn-arxiv")
    assert data.num_nodes == 30
    assert {path.name for path in (tmp_path / "root" / "ogb" / "ogbn_arxiv").iterdir()} == {
        "raw",
        "split",
        "processed",
    }


# --- Names, roots, layouts ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("CORA", "Cora"),
        ("coauthorcs", "Coauthor-CS"),
        ("Coauthor_CS", "Coauthor-CS"),
        ("amazon-photo", "Amazon-Photo"),
        ("wiki-cs", "WikiCS"),
        ("reddit2", "Reddit"),
        ("ogbn_arxiv", "ogbn-arxiv"),
        ("products", "ogbn-products"),
        ("coraml", "Cora_ML"),
    ],
)
def test_spellings(spelling: str, name: str, tmp_path: Path) -> None:
    root = write(tmp_path, name)
    data, _, _ = get_data(str(root), spelling)
    expected, _, _ = get_data(root, name)
    assert torch.equal(data.x, expected.x)


@pytest.mark.parametrize("name", ["coral", "", "synthetic", "synthetic:", "synthetic:1e6"])
def test_unknown_name_lists_the_names(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown data set .*Cora, .*ogbn-products, .*synthetic:N"):
        get_data(tmp_path, name)


@pytest.mark.parametrize("name", ["Cora", "Reddit", "Amazon-Photo", "ogbn-arxiv", "CLUSTER"])
def test_root_may_be_the_folder_itself(name: str, tmp_path: Path) -> None:
    write(tmp_path, name)
    data, _, _ = get_data(tmp_path / WRITERS[name][0], name)
    assert data.num_nodes > 0


@pytest.mark.parametrize(("name", "pygas"), [("Cora", "Planetoid"), ("WikiCS", "WIKICS"), ("ogbn-arxiv", "OGB")])
def test_folders_of_pygas_are_found(name: str, pygas: str, tmp_path: Path) -> None:
    write(tmp_path, name)
    (tmp_path / WRITERS[name][0]).rename(tmp_path / pygas)
    assert get_data(tmp_path, name)[0].num_nodes > 0
    assert [path.name for path in tmp_path.iterdir()] == [pygas]


def test_files_of_another_data_set_are_not_taken(tmp_path: Path) -> None:
    write(tmp_path, "Flickr")  # Yelp's files have the same names
    with pytest.raises(FileNotFoundError, match=r"Yelp is not in .*flickr.yelp.raw"):
        get_data(tmp_path / "flickr", "Yelp")


class Foreign(BaseTransform):
    """Stands for the pre_transform of PyGAS, which left no edge_index in the processed file."""

    def forward(self, data: object) -> object:
        del data.edge_index  # type: ignore[attr-defined]
        return data


def test_processed_files_of_pygas_are_renewed(tmp_path: Path) -> None:
    write(tmp_path, "Flickr")
    assert "edge_index" not in Flickr(str(tmp_path / "flickr"), pre_transform=Foreign())[0]
    assert "edge_index" in get_data(tmp_path, "Flickr")[0]
    assert "edge_index" in get_data(tmp_path, "Flickr")[0]


@pytest.fixture
def read_only() -> Iterator[Callable[[Path], None]]:
    locked: list[Path] = []

    def lock(root: Path) -> None:
        for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
            folder.chmod(0o555)
            locked.append(folder)

    yield lock
    for folder in locked:
        folder.chmod(0o755)


@pytest.mark.parametrize("name", ["Cora", "WordNet", "ogbn-arxiv"])
def test_read_only_root_is_processed_in_the_cache(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    read_only: Callable[[Path], None],
) -> None:
    monkeypatch.setenv("TORCH_GAS_CACHE", str(tmp_path / "cache"))
    root = write(tmp_path / "root", name)
    read_only(root)
    before = snapshot(root)
    with caplog.at_level(logging.WARNING, logger="torch_gas"):
        data, _, _ = get_data(root, name)
        again, _, _ = get_data(root, name)
    assert torch.equal(data.x, again.x)
    assert snapshot(root) == before
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert re.search("is read-only: processed files go to .*cache", caplog.text)
    assert list((tmp_path / "cache").rglob("processed"))


@pytest.mark.parametrize("layout", ["EdgeIndex", "csr", "SparseTensor"])
def test_layouts_hold_the_same_edges(layout: str, tmp_path: Path) -> None:
    if layout == "SparseTensor":
        pytest.importorskip("torch_sparse")
    root = write(tmp_path, "Coauthor-CS")
    plain = get_data(root, "Coauthor-CS")[0].edge_index
    data, num_features, _ = get_data(root, "Coauthor-CS", layout=layout)
    assert num_features == 8
    assert ("adj_t" in data) != ("edge_index" in data)
    if layout == "EdgeIndex":
        assert isinstance(data.edge_index, EdgeIndex)
        data.edge_index.validate()
        assert data.edge_index.sparse_size() == (180, 180)
        src, dst = data.edge_index.as_tensor()
    elif layout == "csr":
        assert data.adj_t.layout == torch.sparse_csr
        dst, src = data.adj_t.to_sparse_coo().indices()
        assert (data.adj_t.values() == 1).all()
    else:
        dst, src, value = data.adj_t.coo()
        assert value is None
        assert data.adj_t.sizes() == [180, 180]
    assert set(zip(src.tolist(), dst.tolist(), strict=True)) == set(zip(*plain.tolist(), strict=True))
    assert src.numel() == plain.size(1)


def test_rows_of_adj_t_are_destinations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def directed(num_nodes: int) -> object:
        data = synthetic(num_nodes)
        data.edge_index = torch.tensor([[0, 2, 1], [3, 3, 0]])
        return data

    monkeypatch.setattr(loading, "synthetic", directed)
    data, _, _ = get_data(tmp_path, "synthetic:10", layout="csr")
    dense = data.adj_t.to_dense()
    assert dense.nonzero().tolist() == [[0, 1], [3, 0], [3, 2]]


@pytest.mark.parametrize("installed", [True, False])
def test_default_layout_is_that_of_to_sparse_tensor(
    installed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if installed:
        pytest.importorskip("torch_sparse")
    else:
        monkeypatch.setattr(loading, "WITH_TORCH_SPARSE", False)
    data, _, _ = datasets.get_data(tmp_path, "synthetic:100")
    assert "edge_index" not in data
    assert (is_matrix(data.adj_t) and not is_csr(data.adj_t)) == installed and is_csr(data.adj_t) != installed


def test_layout_without_torch_sparse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "WITH_TORCH_SPARSE", False)
    with pytest.raises(ImportError, match="pip install torch-sparse, or use layout='csr'"):
        get_data(tmp_path, "synthetic:100", layout="SparseTensor")


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"layout must be one of edge_index.*'coo'"):
        get_data(tmp_path, "synthetic:100", layout="coo")
    with pytest.raises(ValueError, match="split must be one of train, val, test, but is 'valid'"):
        get_data(tmp_path, "PPI", split="valid")
    with pytest.raises(ValueError, match="split='val' is for PPI, CLUSTER and synthetic-cluster; cora is one graph"):
        get_data(tmp_path, "cora", split="val")


# --- What is missing ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(SOURCES))
def test_missing_files_give_one_clear_error(name: str, tmp_path: Path) -> None:
    source = SOURCES[name]
    start = time.perf_counter()
    with pytest.raises(FileNotFoundError) as caught:
        get_data(tmp_path / "root", name)
    assert time.perf_counter() - start < 10
    message = str(caught.value)
    assert message.startswith(f"get_data: {name} is not in {tmp_path}")
    assert all(file in message for file in source.files)
    assert source.url in message
    assert ("offered nowhere" if name == "WordNet" else "network is denied") in message
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert snapshot(tmp_path) == set()  # no empty folders left behind


def test_missing_names_only_what_is_missing(tmp_path: Path) -> None:
    root = write(tmp_path, "Flickr")
    (root / "flickr" / "raw" / "role.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"Missing there: role\.json\. Get the files"):
        get_data(root, "Flickr")
    assert (root / "flickr" / "raw" / "feats.npy").exists()


def test_broken_files_are_not_called_missing(tmp_path: Path) -> None:
    root = write(tmp_path, "Flickr")
    (root / "flickr" / "raw" / "role.json").write_text("{")
    with pytest.raises(json.JSONDecodeError, match="Expecting property name"):
        get_data(root, "Flickr")


@pytest.mark.parametrize(("name", "package"), [("PPI", "networkx"), ("ogbn-arxiv", "pandas")])
def test_missing_reader_package(name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path, name)
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(ImportError, match=f"reading {name} needs .*pip install {package}"):
        get_data(root, name)


# --- Real files -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "folder", "facts"),
    [
        ("Cora", "planetoid/Cora", (2708, 10556, 1433, 7)),
        ("CiteSeer", "planetoid/CiteSeer", (3327, 9104, 3703, 6)),
        ("Coauthor-CS", "coauthor/CS", (18333, 163788, 6805, 15)),
        ("Amazon-Computers", "amazon/Computers", (13752, 491722, 767, 10)),
        ("Cora_ML", "citation_full/cora_ml", (2995, 16316, 2879, 7)),
        ("DBLP", "citation_full/dblp", (17716, 105734, 1639, 4)),
        ("Tolokers", "heterophilous/tolokers", (11758, 1038000, 10, 2)),
        ("Minesweeper", "heterophilous/minesweeper", (10000, 78804, 7, 2)),
        ("WordNet", "wordnet", (107525, 326108, 500, 45)),
    ],
)
def test_real_data(name: str, folder: str, facts: tuple[int, int, int, int], tmp_path: Path) -> None:
    shared = os.environ.get("TORCH_GAS_DATA")
    if not shared or not (Path(shared) / folder / "raw").is_dir():
        pytest.skip(f"TORCH_GAS_DATA is unset or holds no {folder}")
    shutil.copytree(Path(shared) / folder / "raw", tmp_path / folder / "raw")
    (tmp_path / folder).chmod(0o755)
    data, num_features, num_classes = get_data(tmp_path, name)
    assert (data.num_nodes, data.num_edges, num_features, num_classes) == facts
    assert is_undirected(data.edge_index, num_nodes=data.num_nodes)
    if folder.startswith("planetoid"):
        sizes = [int(data[f"{split}_mask"].sum()) for split in ("train", "val", "test")]
        assert sizes == [20 * num_classes, 500, 1000]
        sums = data.x.sum(dim=1)
        filled = sums > 0
        assert int(filled.sum()) == {"Cora": 2708, "CiteSeer": 3312}[name]
        torch.testing.assert_close(sums[filled], torch.ones(int(filled.sum())))
    if name in RANDOM_SPLITS:
        assert (data.train_mask.sum(dim=0) == 20 * num_classes).all()
        assert (data.val_mask.sum(dim=0) == 30 * num_classes).all()


# --- The synthetic graph --------------------------------------------------------------------------


def test_synthetic_facts() -> None:
    state = torch.get_rng_state()
    data = synthetic(5000, num_classes=8, num_features=16, avg_degree=12)
    assert torch.equal(torch.get_rng_state(), state)
    assert data.x.shape == (5000, 16)
    assert data.y.unique().tolist() == list(range(8))
    assert is_undirected(data.edge_index, num_nodes=5000)
    assert not contains_self_loops(data.edge_index)
    assert data.edge_index.unique(dim=1).size(1) == data.num_edges
    assert (data.edge_index[1].diff() >= 0).all()
    assert 0.93 < data.num_edges / (12 * 5000) <= 1
    masks = data.train_mask.int() + data.val_mask.int() + data.test_mask.int()
    assert (masks == 1).all()
    assert (int(data.train_mask.sum()), int(data.val_mask.sum())) == (2500, 1250)
    degree = data.edge_index[1].bincount(minlength=5000)
    assert degree.max() > 5 * degree.float().mean()  # hubs
    same = (data.y[data.edge_index[0]] == data.y[data.edge_index[1]]).float().mean()
    assert 0.7 < same < 0.8  # 0.7 inside communities, 1/8 of the others by chance


def test_synthetic_is_deterministic_by_seed() -> None:
    first, second, other = synthetic(500, seed=3), synthetic(500, seed=3), synthetic(500, seed=4)
    for key in first.to_dict():
        assert torch.equal(first[key], second[key])
    assert not torch.equal(first.edge_index, other.edge_index)


def test_synthetic_cluster_has_the_probabilities_of_its_model() -> None:
    state = torch.get_rng_state()
    data = synthetic_cluster(60)
    assert torch.equal(torch.get_rng_state(), state)
    src, dst = data.edge_index
    assert is_undirected(data.edge_index, num_nodes=data.num_nodes) and not contains_self_loops(data.edge_index)
    assert ((dst.diff() > 0) | ((dst.diff() == 0) & (src.diff() > 0))).all()  # sorted, each edge once

    starts = torch.cat([torch.tensor([True]), data.y.diff() != 0]).nonzero().view(-1)
    sizes = torch.cat([starts, torch.tensor([data.num_nodes])]).diff().view(60, 6)
    assert sizes.min() >= 5 and sizes.max() <= 34 and sizes.unique().numel() > 20
    graph = torch.arange(60).repeat_interleave(sizes.sum(1))
    assert torch.equal(graph[src], graph[dst])
    same = data.y[src] == data.y[dst]
    pairs_inside, pairs = (sizes * (sizes - 1)).sum(), (sizes.sum(1) * (sizes.sum(1) - 1)).sum()
    assert float(same.sum() / pairs_inside) == pytest.approx(0.55, abs=0.02)
    assert float((~same).sum() / (pairs - pairs_inside)) == pytest.approx(0.25, abs=0.01)

    told = data.x[:, 1:].any(1)
    assert torch.equal(data.x.sum(1), torch.ones(data.num_nodes))
    assert torch.equal(data.x[told, 1:].argmax(1), data.y[told])
    assert torch.equal((6 * graph + data.y)[told], torch.arange(360))  # one of each community


def test_synthetic_cluster_is_deterministic_by_seed_and_has_splits(tmp_path: Path) -> None:
    first, second, other = (synthetic_cluster(20, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.edge_index, second.edge_index) and not torch.equal(first.x, other.x)
    splits = {split: get_data(tmp_path, "synthetic-cluster:20", split=split) for split in ("train", "val", "test")}
    for split, (data, num_features, num_classes) in splits.items():
        assert (num_features, num_classes) == (7, 6) and data[f"{split}_mask"].all()
        assert int(data.x[:, 1:].sum()) == 6 * (20 if split == "train" else 2)
    assert splits["val"][0].num_nodes != splits["test"][0].num_nodes
    with pytest.raises(ValueError, match="num_graphs must be at least 1, but is 0"):
        get_data(tmp_path, "synthetic-cluster:0")


def test_synthetic_is_made_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = synthetic(500, seed=3)
    monkeypatch.setattr(community, "EDGES_AT_ONCE", 100)
    assert torch.equal(synthetic(500, seed=3).edge_index, whole.edge_index)


def test_synthetic_order_is_not_a_partition() -> None:
    data = synthetic(10_000)
    near = (data.edge_index[0] - data.edge_index[1]).abs() < 200
    assert near.float().mean() < 0.08  # 4 % of all pairs are that near


def test_synthetic_neighbours_tell_what_features_do_not() -> None:
    """The share of nodes whose nearest class mean is their own, alone and after two mean hops."""
    data = synthetic(5000)
    src, dst = data.edge_index

    def score(x: Tensor) -> float:
        means = torch.stack([x[data.train_mask & (data.y == c)].mean(dim=0) for c in range(10)])
        nearest = torch.cdist(x[data.test_mask], means).argmin(dim=1)
        return float((nearest == data.y[data.test_mask]).float().mean())

    degree = dst.bincount(minlength=5000).clamp(min=1).view(-1, 1)
    hops = data.x
    for _ in range(2):
        hops = (hops + torch.zeros_like(hops).index_add_(0, dst, hops[src])) / (degree + 1)
    alone, with_neighbours = score(data.x), score(hops)
    assert 0.2 < alone < 0.4
    assert with_neighbours > alone + 0.4


def test_synthetic_by_name(tmp_path: Path) -> None:
    data, num_features, num_classes = get_data(tmp_path, "Synthetic:300")
    assert (data.num_nodes, num_features, num_classes) == (300, 64, 10)
    assert torch.equal(data.edge_index, synthetic(300).edge_index)


def test_synthetic_extremes() -> None:
    assert synthetic(10, avg_degree=0).num_edges == 0
    assert synthetic(1, num_classes=1).num_edges == 0
    data = synthetic(2000, homophily=1.0)
    assert (data.y[data.edge_index[0]] == data.y[data.edge_index[1]]).all()


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"num_nodes": 5}, "num_nodes at least num_classes.*num_nodes=5"),
        ({"num_nodes": 100, "num_classes": 0}, "must be positive.*num_classes=0"),
        ({"num_nodes": 100, "num_features": 0}, "must be positive.*num_features=0"),
        ({"num_nodes": 100, "homophily": 1.5}, r"homophily must lie in \[0, 1\].*1.5"),
        ({"num_nodes": 100, "avg_degree": -1}, "must not be negative.*avg_degree=-1"),
        ({"num_nodes": 100, "noise": float("nan")}, "noise must be a number, but is nan"),
    ],
)
def test_synthetic_bad_arguments(kwargs: dict[str, float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        synthetic(**kwargs)  # type: ignore[arg-type]
