"""Compensation: gradients of a batch that do not end at rows of histories."""

from torch_gas.extensions.compensation.compensation import Compensation

__all__ = ["Compensation"]
