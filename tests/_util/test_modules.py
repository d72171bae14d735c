"""Modules of a model are torch's, in torch's order."""

from __future__ import annotations

import torch
from torch.nn import BatchNorm1d, Linear, Module, ModuleDict, ModuleList, ReLU, Sequential

from torch_gas._util.modules import first_parameter, modules_of


class Net(Module):
    """With a module in two places, a place that is empty, and a cycle."""

    def __init__(self) -> None:
        super().__init__()
        shared = Linear(2, 2)
        self.empty = None
        self.late = Sequential(ReLU(), ModuleDict({"inner": Sequential(shared), "norm": BatchNorm1d(2, affine=False)}))
        self.register_module("none", None)
        self.shared = shared
        self.both = ModuleList([shared, shared, Linear(2, 1)])
        self.late.append(self)


def test_order_and_number() -> None:
    for root in (Net(), Linear(1, 1), ModuleList(), torch.jit.script(Sequential(Linear(1, 1), ReLU()))):
        assert modules_of(root) == list(root.modules())


def test_the_first_parameter() -> None:
    bare = Sequential(ReLU(), Linear(2, 2, bias=False))
    bare[1].register_parameter("weight", None)
    for root in (Net(), Sequential(ReLU(), Linear(1, 1)), bare):
        assert first_parameter(root) is next(root.parameters(), None)
