"""How old and how wrong the histories of a model are: counted while it trains, measured on request."""

from torch_gas.extensions.monitor.bound import LayerBound
from torch_gas.extensions.monitor.counts import LayerStatistics
from torch_gas.extensions.monitor.errors import GradientError, LayerError
from torch_gas.extensions.monitor.gains import Gain, gains, lipschitz
from torch_gas.extensions.monitor.monitor import Limits, Monitor
from torch_gas.extensions.monitor.report import bound_table, errors_table

__all__ = [
    "Gain",
    "GradientError",
    "LayerBound",
    "LayerError",
    "LayerStatistics",
    "Limits",
    "Monitor",
    "bound_table",
    "errors_table",
    "gains",
    "lipschitz",
]
