"""What the scripts share: arguments, splits, the best epoch, and the memory of a training step."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from torch_gas import compute_micro_f1
from torch_gas.graph.formats import all_tensors
from torch_gas.planner.meter import metered


def parse_args(description: str | None, epochs: int, **options: Any) -> argparse.Namespace:
    """``--root``, ``--device`` and ``--epochs``, and ``options`` with their defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = os.environ.get("TORCH_GAS_DATA", "data")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--root", default=root, help=f"folder of the data sets (default: {root})")
    parser.add_argument("--device", default=device, help=f"where the model runs (default: {device})")
    for name, default in {"epochs": epochs, **options}.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"default: {default}")
    return parser.parse_args()


def split_of(data: Data, run: int) -> tuple[Tensor, Tensor, Tensor]:
    """Training, validation and test mask [N] of a run, of which each may come as [N, splits]."""
    masks = (data.train_mask, data.val_mask, data.test_mask)
    train, val, test = (mask[:, run % mask.size(1)] if mask.dim() == 2 else mask for mask in masks)
    return train, val, test


class Best:
    """The test score at the epoch of the best validation score."""

    def __init__(self) -> None:
        self.epoch, self.val, self.test = 0, -1.0, -1.0

    def update(self, epoch: int, val: float, test: float) -> None:
        if val > self.val:
            self.epoch, self.val, self.test = epoch, val, test

    def __str__(self) -> str:
        return f"{100 * self.test:.2f} % (validation {100 * self.val:.2f} %, epoch {self.epoch})"


def scores(out: Tensor, y: Tensor, *masks: Tensor) -> list[float]:
    """Accuracy, or micro-F1 where nodes have several labels, of each mask."""
    return [compute_micro_f1(out, y, mask) for mask in masks]


def mean_std(values: list[float]) -> str:
    """Mean and standard deviation of scores in [0, 1], such as ``81.93 ± 0.71 %``."""
    percent = 100 * torch.tensor(values, dtype=torch.float64)
    spread = f" ± {percent.std():.2f}" if len(values) > 1 else ""
    return f"{percent.mean():.2f}{spread} %"


def step_memory(step: Callable[[], Any], inputs: Data, device: str) -> int:
    """Peak bytes of tensors in a training step: those of ``inputs``, and what it allocates on top.

    Parameters and the state of the optimiser do not count once ``step`` has run.
    """
    return tensor_bytes(inputs) + metered(step, torch.device(device)).peak


def tensor_bytes(data: Data) -> int:
    """Bytes of the tensors of a graph or batch."""
    return sum(tensor.nbytes for tensor in all_tensors(data.to_dict()))
