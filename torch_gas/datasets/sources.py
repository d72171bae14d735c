"""The table of data sets: where raw files lie, who reads them, and the paper's preprocessing of the result."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch_geometric.data import Data, InMemoryDataset
from torch_geometric.datasets import (
    PPI,
    Amazon,
    CitationFull,
    Coauthor,
    Flickr,
    GNNBenchmarkDataset,
    HeterophilousGraphDataset,
    Planetoid,
    Reddit2,
    WikiCS,
    Yelp,
)
from torch_geometric.transforms import NormalizeFeatures
from torch_geometric.utils import to_undirected

from torch_gas.datasets.ogb import URL as OGB_URL
from torch_gas.datasets.ogb import OGBNodes, raw_files
from torch_gas.utils import gen_masks


@dataclass(frozen=True)
class Source:
    """Where the raw files of a data set lie, who reads them, and what is done to the result."""

    folder: str  # below the common root
    raw: str  # below `folder`
    files: list[str]
    url: str
    read: Callable[..., InMemoryDataset]  # (root, force_reload=...), and split=... for sets of graphs
    finish: Callable[[Data], Data]


def find(name: str) -> str:
    """The key of ``name`` in the table."""
    plain = re.sub(r"[-_\s]", "", name.lower())
    plain = {"arxiv": "ogbnarxiv", "products": "ogbnproducts", "reddit2": "reddit"}.get(plain, plain)
    for key in SOURCES:
        if re.sub(r"[-_]", "", key.lower()) == plain:
            return key
    raise ValueError(f"get_data: unknown data set {name!r}; the names are {', '.join(SOURCES)}, synthetic:N")


def _as_is(data: Data) -> Data:
    return data


def _row_normalised(data: Data) -> Data:
    return NormalizeFeatures()(data)  # type: ignore[no-any-return]


def _random_splits(data: Data) -> Data:
    data.train_mask, data.val_mask, data.test_mask = gen_masks(data.y, 20, 30, num_splits=20, seed=12345)
    return data


def _standardised(data: Data) -> Data:
    std = data.x.std(dim=0)
    # In place, because Yelp's features are 0.9 GB; a constant feature becomes 0 and not NaN.
    data.x.sub_(data.x.mean(dim=0)).div_(std.masked_fill(std == 0, 1))
    return data


def _undirected(data: Data) -> Data:
    data.edge_index = to_undirected(data.edge_index, num_nodes=data.num_nodes)
    return data


def _stopping_mask_for_validation(data: Data) -> Data:
    data.val_mask = data.stopping_mask
    del data.stopping_mask
    return data


class _WordNet(Flickr):
    """A graph in Flickr's layout that nobody offers for download."""

    def download(self) -> None:
        raise FileNotFoundError("there is no download")


_SAINT = ["adj_full.npz", "feats.npy", "class_map.json", "role.json"]
_SAINT_URL = "https://github.com/GraphSAINT/GraphSAINT"
_PPI_FILES = [
    f"{split}_{name}"
    for split in ("train", "valid", "test")
    for name in ("feats.npy", "graph_id.npy", "graph.json", "labels.npy")
]


def _planetoid(name: str) -> Source:
    parts = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
    files = [f"ind.{name.lower()}.{part}" for part in parts]
    return Source(
        "planetoid", f"{name}/raw", files, Planetoid.url, partial(Planetoid, name=name), _row_normalised
    )


def _npz(folder: str, raw: str, file: str, reader: Any, name: str, finish: Callable[[Data], Data]) -> Source:
    return Source(folder, f"{raw}/raw", [file], reader.url, partial(reader, name=name), finish)


def _ogb(name: str, finish: Callable[[Data], Data]) -> Source:
    url = f"{OGB_URL}/{name}.zip"
    return Source("ogb", f"ogbn_{name}/raw", raw_files(name), url, partial(OGBNodes, name=name), finish)


SOURCES: dict[str, Source] = {
    "Cora": _planetoid("Cora"),
    "CiteSeer": _planetoid("CiteSeer"),
    "PubMed": _planetoid("PubMed"),
    "Coauthor-CS": _npz("coauthor", "CS", "ms_academic_cs.npz", Coauthor, "CS", _random_splits),
    "Coauthor-Physics": _npz("coauthor", "Physics", "ms_academic_phy.npz", Coauthor, "Physics", _random_splits),
    "Amazon-Computers": _npz(
        "amazon", "Computers", "amazon_electronics_computers.npz", Amazon, "Computers", _random_splits
    ),
    "Amazon-Photo": _npz("amazon", "Photo", "amazon_electronics_photo.npz", Amazon, "Photo", _random_splits),
    "WikiCS": Source(
        "wikics",
        "raw",
        ["data.json"],
        WikiCS.url,
        partial(WikiCS, is_undirected=True),
        _stopping_mask_for_validation,
    ),
    "Reddit": Source("reddit2", "raw", _SAINT, _SAINT_URL, Reddit2, _standardised),
    "PPI": Source("ppi", "raw", _PPI_FILES, PPI.url, PPI, _as_is),
    "Flickr": Source("flickr", "raw", _SAINT, _SAINT_URL, Flickr, _as_is),
    "Yelp": Source("yelp", "raw", _SAINT, _SAINT_URL, Yelp, _standardised),
    "ogbn-arxiv": _ogb("arxiv", _undirected),
    "ogbn-products": _ogb("products", _as_is),
    "CLUSTER": Source(
        "sbm",
        "CLUSTER/raw",
        ["CLUSTER_v2.pt"],
        GNNBenchmarkDataset.urls["CLUSTER"],
        partial(GNNBenchmarkDataset, name="CLUSTER"),
        _as_is,
    ),
    "Cora_ML": _npz("citation_full", "cora_ml", "cora_ml.npz", CitationFull, "Cora_ML", _random_splits),
    "DBLP": _npz("citation_full", "dblp", "dblp.npz", CitationFull, "DBLP", _random_splits),
    "Tolokers": _npz(
        "heterophilous", "tolokers", "tolokers.npz", HeterophilousGraphDataset, "Tolokers", _as_is
    ),
    "Minesweeper": _npz(
        "heterophilous", "minesweeper", "minesweeper.npz", HeterophilousGraphDataset, "Minesweeper", _as_is
    ),
    "WordNet": Source("wordnet", "raw", _SAINT, "https://github.com/globalwordnet/english-wordnet", _WordNet, _as_is),
}
