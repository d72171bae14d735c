"""Exact mode: the gradient of the whole graph, and masks of dropout that each computation of a batch finds again."""

from torch_gas.exact.dropout import DropoutById
from torch_gas.exact.gradient import ExactGradient

__all__ = ["DropoutById", "ExactGradient"]
