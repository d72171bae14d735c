"""The table of data sets: where raw files lie, who reads them, and the paper's preprocessing."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch_geometric import datasets as pyg
from torch_geometric.data import Data, InMemoryDataset
from torch_geometric.transforms import NormalizeFeatures, ToUndirected

from torch_gas.datasets.masks import gen_masks
from torch_gas.datasets.ogb import OGB_URL, OGBNodes, raw_files


@dataclass(frozen=True)
class Source:
    """One data set.

    Args:
        folder: its family's folder below the common root, in lower case.
        raw: the folder of its raw files below ``folder``.
        files: names of the raw files.
        url: where a person can get them.
        read: makes the PyG data set from ``(root, force_reload=...)``; sets of graphs take
            ``split`` as well.
        finish: the paper's preprocessing.
    """

    folder: str
    raw: str
    files: list[str]
    url: str
    read: Callable[..., InMemoryDataset]
    finish: Callable[[Data], Data]


def find(name: str) -> str:
    """The key of ``name`` in the table.

    Raises:
        ValueError: if there is none.
    """
    keys = {_plain(key): key for key in SOURCES} | ALIASES
    if _plain(name) not in keys:
        raise ValueError(
            f"get_data: unknown data set {name!r}; the names are {', '.join(SOURCES)} and "
            "synthetic:N with a number of nodes N"
        )
    return keys[_plain(name)]


def _plain(name: str) -> str:
    return re.sub(r"[-_\s]", "", name.lower())


def _as_is(data: Data) -> Data:
    return data


def _random_splits(data: Data) -> Data:
    masks = gen_masks(data.y, train_per_class=20, val_per_class=30, num_splits=20, seed=12345)
    data.train_mask, data.val_mask, data.test_mask = masks
    return data


def _standardised(data: Data) -> Data:
    # In place, because Yelp's features take 0.9 GB. A constant feature becomes 0, not NaN.
    std = data.x.std(dim=0)
    data.x.sub_(data.x.mean(dim=0)).div_(std.masked_fill(std == 0, 1))
    return data


def _stopping_mask(data: Data) -> Data:
    """Validates on the mask that WikiCS gives for early stopping."""
    data.val_mask = data.stopping_mask
    del data.stopping_mask
    return data


class WordNet(pyg.Flickr):  # type: ignore[misc]  # PyG has no types
    """A graph in Flickr's layout that nobody offers for download."""

    def download(self) -> None:
        raise FileNotFoundError("it is built locally and offered nowhere")


def _planetoid(name: str) -> Source:
    parts = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
    files = [f"ind.{name.lower()}.{part}" for part in parts]
    read = partial(pyg.Planetoid, name=name)
    return Source("planetoid", f"{name}/raw", files, pyg.Planetoid.url, read, NormalizeFeatures())


def _npz(reader: Any, folder: str, name: str, file: str, finish: Callable[[Data], Data] = _random_splits) -> Source:
    url = reader.url if "{}" in reader.url else f"{reader.url.rstrip('/')}/{file}"
    return Source(folder, f"{name}/raw", [file], url.format(name), partial(reader, name=name), finish)


def _saint(reader: Any, folder: str, finish: Callable[[Data], Data], url: str = "") -> Source:
    files = ["adj_full.npz", "feats.npy", "class_map.json", "role.json"]
    return Source(folder, "raw", files, url or "https://github.com/GraphSAINT/GraphSAINT", reader, finish)


def _ogb(name: str, finish: Callable[[Data], Data]) -> Source:
    read = partial(OGBNodes, name=name)
    return Source("ogb", f"ogbn_{name}/raw", raw_files(name), f"{OGB_URL}/{name}.zip", read, finish)


def _ppi() -> Source:
    parts = ("feats.npy", "graph_id.npy", "graph.json", "labels.npy")
    files = [f"{split}_{part}" for split in ("train", "valid", "test") for part in parts]
    return Source("ppi", "raw", files, pyg.PPI.url, pyg.PPI, _as_is)


def _cluster() -> Source:
    reader = pyg.GNNBenchmarkDataset
    url, read = reader.urls["CLUSTER"], partial(reader, name="CLUSTER")
    return Source("sbm", "CLUSTER/raw", ["CLUSTER_v2.pt"], url, read, _as_is)


ALIASES = {"arxiv": "ogbn-arxiv", "products": "ogbn-products", "reddit2": "Reddit"}

SOURCES: dict[str, Source] = {
    "Cora": _planetoid("Cora"),
    "CiteSeer": _planetoid("CiteSeer"),
    "PubMed": _planetoid("PubMed"),
    "Coauthor-CS": _npz(pyg.Coauthor, "coauthor", "CS", "ms_academic_cs.npz"),
    "Coauthor-Physics": _npz(pyg.Coauthor, "coauthor", "Physics", "ms_academic_phy.npz"),
    "Amazon-Computers": _npz(pyg.Amazon, "amazon", "Computers", "amazon_electronics_computers.npz"),
    "Amazon-Photo": _npz(pyg.Amazon, "amazon", "Photo", "amazon_electronics_photo.npz"),
    "WikiCS": Source(
        "wikics", "raw", ["data.json"], pyg.WikiCS.url, partial(pyg.WikiCS, is_undirected=True), _stopping_mask
    ),
    "Reddit": _saint(pyg.Reddit2, "reddit2", _standardised),
    "PPI": _ppi(),
    "Flickr": _saint(pyg.Flickr, "flickr", _as_is),
    "Yelp": _saint(pyg.Yelp, "yelp", _standardised),
    "ogbn-arxiv": _ogb("arxiv", ToUndirected()),
    "ogbn-products": _ogb("products", _as_is),
    "CLUSTER": _cluster(),
    "Cora_ML": _npz(pyg.CitationFull, "citation_full", "cora_ml", "cora_ml.npz"),
    "DBLP": _npz(pyg.CitationFull, "citation_full", "dblp", "dblp.npz"),
    "Tolokers": _npz(pyg.HeterophilousGraphDataset, "heterophilous", "tolokers", "tolokers.npz", _as_is),
    "Minesweeper": _npz(pyg.HeterophilousGraphDataset, "heterophilous", "minesweeper", "minesweeper.npz", _as_is),
    "WordNet": _saint(WordNet, "wordnet", _as_is, "https://github.com/globalwordnet/english-wordnet"),
}
