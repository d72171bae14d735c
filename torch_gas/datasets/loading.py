"""One call for every data set of the paper, with the paper's splits and preprocessing."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from torch_geometric import EdgeIndex
from torch_geometric.data import Batch, Data, InMemoryDataset
from torch_geometric.typing import WITH_TORCH_SPARSE, SparseTensor
from torch_geometric.utils import sort_edge_index

from torch_gas._util.arguments import checked
from torch_gas.datasets.cluster import synthetic_cluster
from torch_gas.datasets.community import synthetic
from torch_gas.datasets.folders import find_home, missing, writable_home
from torch_gas.datasets.sources import SOURCES, find
from torch_gas.graph.format import csr_tensor, row_pointers

LAYOUTS = ("edge_index", "EdgeIndex", "adj_t", "csr", "SparseTensor")
SPLITS = ("train", "val", "test")
SETS_OF_GRAPHS = ("PPI", "CLUSTER", "synthetic-cluster")


@checked
def get_data(
    root: str | os.PathLike[str], name: str, *, split: str = "train", layout: str = "adj_t"
) -> tuple[Data, int, int]:
    """Loads a data set as the paper's experiments use it (section 5), downloading it if need be.

    Upper and lower case, hyphens and underscores in ``name`` do not matter. The processed form is
    kept beside the raw files, or in ``$TORCH_GAS_CACHE`` (``~/.cache/torch_gas``) where they lie in
    a read-only folder.

    Args:
        root: folder of all data sets, or the data set's own folder; docs/datasets.md names both.
        name: a data set of the paper, one of a few more real graphs, ``'synthetic:N'`` for N nodes, or
            ``'synthetic-cluster:G'`` for G training graphs (and a tenth of them each for validation and test) like CLUSTER's.
        split: ``'train'``, ``'val'`` or ``'test'`` graphs of PPI or CLUSTER (or those like it), joined into one graph.
            All other data sets are one graph with masks.
        layout: ``'edge_index'`` or ``'EdgeIndex'`` (in ``data.edge_index``), ``'csr'`` or
            ``'SparseTensor'`` (in ``data.adj_t``, rows are destinations). ``'adj_t'`` is
            ``'SparseTensor'`` where torch-sparse is installed and ``'csr'`` elsewhere, as in PyG's
            ``ToSparseTensor``.

    Returns:
        ``data`` with ``x`` [N, C], ``y`` (ids [N], or floats [N, num_classes] where nodes have
        several labels), one adjacency, and ``train_mask``, ``val_mask``, ``test_mask`` ([N], or
        [N, splits]); PPI and CLUSTER have the mask of their split only. Then the number of features
        and the number of classes.

    Raises:
        ValueError: if ``name``, ``split`` or ``layout`` is unknown.
        FileNotFoundError: if raw files are missing and cannot be downloaded.
        ImportError: if reading the data or building the layout needs a package that is missing.

    Example:
        >>> data, num_features, num_classes = get_data("data", "synthetic:1000")
        >>> data.x.shape, num_features, num_classes
        (torch.Size([1000, 64]), 64, 10)
    """
    for argument, value, valid in (("layout", layout, LAYOUTS), ("split", split, SPLITS)):
        if value not in valid:
            raise ValueError(f"get_data: {argument} must be one of {', '.join(valid)}, but is {value!r}")
    if layout == "adj_t":
        layout = "SparseTensor" if WITH_TORCH_SPARSE else "csr"
    if layout == "SparseTensor" and not WITH_TORCH_SPARSE:
        raise ImportError(
            "get_data: layout='SparseTensor' needs torch-sparse, which is not installed: "
            "pip install torch-sparse, or use layout='csr'"
        )
    made = re.fullmatch(r"(synthetic|synthetic-cluster):(\d+)", name.strip().lower())
    key = made[1] if made else find(name)
    if split != "train" and key not in SETS_OF_GRAPHS:
        raise ValueError(
            f"get_data: split={split!r} is for PPI, CLUSTER and synthetic-cluster; {name} is one graph "
            "with masks: leave split out"
        )
    data = _make(key, int(made[2]), split) if made else _load(root, key, split)
    if key in SETS_OF_GRAPHS:
        data[f"{split}_mask"] = torch.ones(data.num_nodes, dtype=torch.bool, device="cpu")
    if data.y.dim() == 2:
        # Yelp's raw labels are integers, but the loss for several labels takes floats.
        data.y = data.y.float()
        num_classes = data.y.size(1)
    else:
        num_classes = int(data.y.max()) + 1
    return _with_layout(data, layout), data.num_features, num_classes


def _make(key: str, size: int, split: str) -> Data:
    if key == "synthetic":
        return synthetic(size)
    return synthetic_cluster(size if split == "train" else max(size // 10, 1), seed=SPLITS.index(split))


def _load(root: str | os.PathLike[str], key: str, split: str) -> Data:
    source = SOURCES[key]
    home = find_home(root, source.folder, source.raw, source.files)
    home = writable_home(home, source.raw, source.files)
    if key not in SETS_OF_GRAPHS:
        return source.finish(_read(key, str(home), source.read)[0])
    graphs = _read(key, str(home), partial(source.read, split=split))
    joined = Batch.from_data_list(list(graphs))
    return source.finish(Data(x=joined.x, edge_index=joined.edge_index, y=joined.y))


def _read(key: str, home: str, read: Callable[..., InMemoryDataset]) -> InMemoryDataset:
    """Downloads and processes through PyG; where it cannot, one error says what is missing."""
    source = SOURCES[key]
    raw = Path(home, source.raw)
    new_folders = [folder for folder in (raw, *raw.parents) if not folder.exists()]
    try:
        with warnings.catch_warnings():
            # PyGAS kept the same files processed into another format, which is useless here.
            differs = "The `pre_transform` argument differs"
            warnings.filterwarnings("error", differs)
            try:
                return read(home, force_reload=False)
            except UserWarning:
                warnings.filterwarnings("ignore", differs)  # PyG 2.6 says so all the same
                return read(home, force_reload=True)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"get_data: reading {key} needs the package {error.name}, which is not installed: pip install {error.name}"
        ) from None
    except Exception as error:  # of any type: downloads and archives fail in many ways
        absent = missing(raw, source.files)
        if not absent:
            raise
        for folder in new_folders:  # the innermost first
            with suppress(OSError):  # not made, or not empty
                folder.rmdir()
        raise FileNotFoundError(
            f"get_data: {key} is not in {raw} and could not be downloaded ({type(error).__name__}: {error}). Missing "
            f"there: {', '.join(absent)}. Get the files from {source.url} on a machine with internet access and put "
            f"them there, or pass the root under which they lie as {source.folder}/{source.raw}"
        ) from None


def _with_layout(data: Data, layout: str) -> Data:
    """Replaces the plain ``edge_index`` by ``layout``."""
    if layout == "edge_index":
        return data
    size = (data.num_nodes, data.num_nodes)
    edge_index = sort_edge_index(data.edge_index, num_nodes=data.num_nodes, sort_by_row=False)
    if layout == "EdgeIndex":
        data.edge_index = EdgeIndex(edge_index, sparse_size=size, sort_order="col")
        return data
    del data.edge_index
    if layout == "csr":
        src, dst = edge_index
        values = torch.ones(src.numel(), device=src.device)
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "Sparse CSR tensor support is in beta"
            )  # which torch says once in a process
            data.adj_t = csr_tensor(row_pointers(dst, data.num_nodes), src, values, size)
    else:
        data.adj_t = SparseTensor(row=edge_index[1], col=edge_index[0], sparse_sizes=size, is_sorted=True)
    return data
