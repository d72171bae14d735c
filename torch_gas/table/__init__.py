"""Tables larger than memory, and those that outlive a process."""

from torch_gas.table.features import StoredFeatures, store_features
from torch_gas.table.file import FileTable
from torch_gas.table.hot import HotSet
from torch_gas.table.table import Table
from torch_gas.table.tier import FileTier

__all__ = ["FileTable", "FileTier", "HotSet", "StoredFeatures", "Table", "store_features"]
