"""Every data set of the paper by one call, a few more graphs, and synthetic ones."""

from torch_gas.datasets.cluster import synthetic_cluster
from torch_gas.datasets.community import synthetic
from torch_gas.datasets.loading import get_data

__all__ = ["get_data", "synthetic", "synthetic_cluster"]
