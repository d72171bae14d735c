"""Node-level OGB data sets read from OGB's own raw files, without the ``ogb`` package.

``ogb`` opens its processed file with a bare ``torch.load``, which current torch refuses, asks
questions on stdin and looks for updates on import. Its raw layout is a handful of tables, so they
are read here.
"""

from __future__ import annotations

import os.path as osp
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data, InMemoryDataset, download_url, extract_zip

from torch_gas.datasets.masks import index_to_mask

OGB_URL = "http://snap.stanford.edu/ogb/data/nodeproppred"
SPLIT = {"arxiv": "time", "products": "sales_ranking"}


class OGBNodes(InMemoryDataset):  # type: ignore[misc]  # PyG has no types
    """ogbn-arxiv or ogbn-products as defined by OGB (Hu et al., 2020, arXiv:2005.00687).

    The folder is OGB's: ``root/ogbn_arxiv/raw`` and ``root/ogbn_arxiv/split``. ogbn-arxiv is
    directed; ogbn-products has every edge in both directions.

    Args:
        root: folder that holds ``ogbn_arxiv`` or ``ogbn_products``.
        name: ``'arxiv'`` or ``'products'``.
        force_reload: process the raw files again.
    """

    def __init__(self, root: str, name: str, force_reload: bool = False) -> None:
        self.name = name
        self.home = osp.join(root, f"ogbn_{name}")
        super().__init__(self.home, force_reload=force_reload)
        self.load(self.processed_paths[0])

    @property
    def raw_file_names(self) -> list[str]:
        return raw_files(self.name)

    @property
    def processed_file_names(self) -> str:
        # A name of its own: ogb keeps another format beside it, as geometric_data_processed.pt.
        return "torch_gas.pt"

    def download(self) -> None:
        folder = Path(self.home)
        extract_zip(download_url(f"{OGB_URL}/{self.name}.zip", self.home), self.home)
        # The archive holds one folder with raw/, split/ and more; PyG made an empty raw/ already.
        shutil.copytree(folder / self.name, folder, dirs_exist_ok=True)
        shutil.rmtree(folder / self.name)
        (folder / f"{self.name}.zip").unlink()

    def process(self) -> None:
        edge_index = self._table("edge", np.int64).t().contiguous()
        if self.name == "products":
            edge_index = torch.cat([edge_index, edge_index.flip(0)], dim=1)
        x = self._table("node-feat", np.float32)
        data = Data(x=x, edge_index=edge_index, y=self._table("node-label", np.int64).view(-1))
        for split, key in [("train", "train"), ("valid", "val"), ("test", "test")]:
            index = self._table(f"../split/{SPLIT[self.name]}/{split}", np.int64).view(-1)
            data[f"{key}_mask"] = index_to_mask(index, x.size(0))
        self.save([data], self.processed_paths[0])

    def _table(self, name: str, dtype: type[np.generic]) -> Tensor:
        import pandas

        path = osp.join(self.raw_dir, f"{name}.csv.gz")
        return torch.from_numpy(pandas.read_csv(path, header=None, dtype=dtype).to_numpy())


def raw_files(name: str) -> list[str]:
    """The files that ``OGBNodes`` reads, relative to its ``raw`` folder."""
    splits = [f"../split/{SPLIT[name]}/{split}" for split in ("train", "valid", "test")]
    return [f"{table}.csv.gz" for table in ["edge", "node-feat", "node-label", *splits]]
