"""What watches training or takes part in it, and what a model does not need to know."""

from torch_gas.exact.dropout import DropoutById
from torch_gas.extensions.age import AgeWeights
from torch_gas.extensions.compensation import Compensation
from torch_gas.extensions.importance import Important
from torch_gas.extensions.momentum import Momentum
from torch_gas.extensions.waves import Waves
from torch_gas.session.extension import Extension

__all__ = ["AgeWeights", "Compensation", "DropoutById", "Extension", "Important", "Momentum", "Waves"]
