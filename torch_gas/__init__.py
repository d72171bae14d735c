"""Train any message-passing GNN on graphs of any size in constant device memory, by historical embeddings."""

from torch_gas import checkpoint, models, refresh, regularization
from torch_gas.builder import SubData
from torch_gas.datasets import get_data
from torch_gas.history import History
from torch_gas.loader import EvalSubgraphLoader, SubgraphLoader
from torch_gas.monitor import Monitor
from torch_gas.normalize import add_self_loops, gcn_norm, in_degree
from torch_gas.partition import Partition, load_partition, metis, permute, save_partition, unpermute
from torch_gas.planner import Plan, plan
from torch_gas.scalable import ScalableGNN
from torch_gas.scaled import ScaledGNN, scale
from torch_gas.storage import FileTable, FileTier, StoredFeatures, hot_nodes, store_features
from torch_gas.transfer import AsyncIOPool
from torch_gas.utils import compute_micro_f1, dropout, gen_masks

__version__ = "0.1.0"

__all__ = [
    "AsyncIOPool",
    "EvalSubgraphLoader",
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
    "checkpoint",
    "compute_micro_f1",
    "dropout",
    "gcn_norm",
    "gen_masks",
    "get_data",
    "hot_nodes",
    "in_degree",
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
