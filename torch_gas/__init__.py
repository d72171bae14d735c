"""Train PyG models on graphs that do not fit on a GPU, using every edge, by historical embeddings."""

from torch_gas import checkpoint, models
from torch_gas._util.moved import keep_old_paths
from torch_gas.batch.data import SubData
from torch_gas.batch.hot_nodes import hot_nodes
from torch_gas.batch.labels import labelled_mean
from torch_gas.batch.loader import EvalSubgraphLoader, SubgraphLoader
from torch_gas.datasets import get_data
from torch_gas.datasets.masks import gen_masks
from torch_gas.exact import DropoutById, ExactGradient
from torch_gas.extensions import refresh, regularization
from torch_gas.extensions.monitor import Monitor
from torch_gas.graph.normalize import add_self_loops, gcn_norm, in_degree
from torch_gas.history import History
from torch_gas.partition import Partition, load_partition, metis, permute, save_partition, unpermute
from torch_gas.planner import Plan, plan
from torch_gas.pygas import compute_micro_f1, dropout
from torch_gas.session.base import ScalableGNN
from torch_gas.session.check import check
from torch_gas.session.scale import scale
from torch_gas.session.scaled import ScaledGNN
from torch_gas.table import FileTable, FileTier, StoredFeatures, store_features
from torch_gas.transfer import AsyncIOPool

__version__ = "0.2.0.dev0"

keep_old_paths()

__all__ = [
    "AsyncIOPool",
    "DropoutById",
    "EvalSubgraphLoader",
    "ExactGradient",
    "FileTable",
    "FileTier",
    "History",
    "Monitor",
    "Partition",
    "Plan",
    "ScalableGNN",
    "ScaledGNN",
    "StoredFeatures",
    "SubData",
    "SubgraphLoader",
    "add_self_loops",
    "check",
    "checkpoint",
    "compute_micro_f1",
    "dropout",
    "gcn_norm",
    "gen_masks",
    "get_data",
    "hot_nodes",
    "in_degree",
    "labelled_mean",
    "load_partition",
    "metis",
    "models",
    "permute",
    "plan",
    "refresh",
    "regularization",
    "save_partition",
    "scale",
    "store_features",
    "unpermute",
]
