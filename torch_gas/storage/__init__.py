"""Tables larger than memory, and those that outlive a process."""

from torch_gas.storage.features import StoredFeatures, store_features
from torch_gas.storage.file import FileTable
from torch_gas.storage.hot import HotRows, HotSet, hot_nodes
from torch_gas.storage.tier import FileTier

__all__ = ["FileTable", "FileTier", "HotRows", "HotSet", "StoredFeatures", "hot_nodes", "store_features"]
