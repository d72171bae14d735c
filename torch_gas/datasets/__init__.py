"""Every data set of the paper by one call, a few more graphs, and a synthetic one."""

from torch_gas.datasets.community import synthetic
from torch_gas.datasets.loading import get_data

__all__ = ["get_data", "synthetic"]
