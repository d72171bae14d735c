"""Checkpoints: files that a run goes on from bit for bit, and files of histories."""

from torch_gas.checkpoint.run import load, save

__all__ = ["load", "save"]
