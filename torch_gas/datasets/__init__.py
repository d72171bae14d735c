"""Every data set of the paper by one call, a few more real graphs, and a synthetic one without download."""

from torch_gas.datasets.loading import get_data
from torch_gas.datasets.community import synthetic

__all__ = ["get_data", "synthetic"]
