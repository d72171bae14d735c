"""plan(): the number of parts and the size of batches that fit the device, with what training will then take."""

from torch_gas.planner.choice import plan
from torch_gas.planner.record import Plan, Prediction

__all__ = ["Plan", "Prediction", "plan"]
