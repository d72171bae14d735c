"""What tests of compiled code share: which versions of torch they take, and a backend that counts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.registry import lookup_backend

from torch_gas.wiring.compiled import OLDEST

MARKS = [
    pytest.mark.skipif(torch.__version__ < OLDEST, reason=f"needs torch {OLDEST}"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch"),
    # torch.compile reads .grad of all tensors that come into a piece of code.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


def forgotten() -> Iterator[None]:
    """A fixture, before and behind which there is no compiled code."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Graphs:
    """A backend that counts what it compiles."""

    def __init__(self, backend: str = "eager") -> None:
        self.backend, self.number = lookup_backend(backend), 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        self.number += 1
        return self.backend(graph, inputs)
