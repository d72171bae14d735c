"""What of a model draws random numbers, for those who compute a forward pass several times and must get the same each time."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Module
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils import _pytree as pytree

from torch_gas._util.frames import callers
from torch_gas.checkpoint.rng import random_states, set_random_states

T = TypeVar("T")

_DROPOUT = ("torch.nn.functional.dropout", "torch.dropout", "torch.dropout_", "torch_gas.graph.dropout.dropout")
_OTHERS = {
    "torch": "torch's generator",
    "cuda": "torch's generator of CUDA",
    "numpy": "numpy.random",
    "python": "random",
}


def refuse_draws(model: Module, run: Callable[[], T]) -> T:
    """What ``run`` returns, which calls ``model``.

    Generators are those of torch, on the CPU and on GPUs in use, of numpy and of Python, and any that a function of torch
    is given. Others (``numpy.random.default_rng()``) are not seen.

    Raises:
        ValueError: if a generator of random numbers has moved: it names the module and the function that drew first, and says
            what to do. Generators are then as they were before.
    """
    before = random_states()
    watch = _Watch(model, before)
    with watch:
        out = run()
    watch.compare("")
    if watch.found is not None:
        set_random_states(before)
        raise ValueError(watch.found)
    return out


class _Watch(TorchFunctionMode):
    """Notes the first function of torch, or what is called between two, that moves a generator."""

    def __init__(self, model: Module, states: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.states = model, states
        self.found: str | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.found is not None:
            return func(*args, **kwargs)
        self.compare("")
        generator = kwargs.get("generator")
        state = None if generator is None else generator.get_state()
        out = func(*args, **kwargs)
        name = resolve_name(func) or f"{func.__module__}.{func.__qualname__}"
        if state is not None and not torch.equal(state, generator.get_state()):
            self._note(name)
        self.compare(name)
        return out

    def compare(self, name: str) -> None:
        """Notes ``name``, or the generator if that is empty, if a generator has moved."""
        now = random_states()
        moved = [key for key, state in now.items() if not is_same_state(state, self.states[key])]
        self.states = now
        if moved:
            self._note(name or _OTHERS[moved[0]])

    def _note(self, name: str) -> None:
        if self.found is not None:
            return
        names = {module: key for key, module in self.model.named_modules()}
        module, caller = "", ""
        for frame, line in callers():
            code, owner = frame.f_code, frame.f_locals.get("self")
            caller = caller or f", called in {code.co_name} ({os.path.basename(code.co_filename)}:{line})"
            if not module and isinstance(owner, Module) and names.get(owner):
                module = f" in {names[owner]} ({type(owner).__name__})"
        advice = "have it drop by the ids of nodes and edges: model.add_extension(torch_gas.extensions.DropoutById())"
        if name not in _DROPOUT:
            advice = (
                "drop entries by torch.nn.functional.dropout instead, which torch_gas.extensions.DropoutById can repeat, or draw "
                "the numbers before, as an attribute of data"
            )
        self.found = (
            f"{type(self.model).__name__} draws random numbers{module} by {name}{caller}. Exact gradients compute each batch "
            f"several times, each time with other numbers; {advice}, or train with histories, batch by batch"
        )


def is_same_state(left: Any, right: Any) -> bool:
    """Whether two states of generators are the same."""
    pairs = zip(pytree.tree_leaves(left), pytree.tree_leaves(right), strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)
