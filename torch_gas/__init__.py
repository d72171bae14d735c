"""Train any message-passing GNN on graphs of any size in constant device memory, by historical embeddings."""

from torch_gas.history import History
from torch_gas.loader import EvalSubgraphLoader, SubData, SubgraphLoader
from torch_gas.scalable import ScalableGNN
from torch_gas.transfer import AsyncIOPool

__version__ = "0.1.0"

__all__ = [
    "AsyncIOPool",
    "EvalSubgraphLoader",
    "History",
    "ScalableGNN",
    "SubData",
    "SubgraphLoader",
]
