"""Which layers the calls of a model meet that calls ``push_and_pull`` itself: all batches of an epoch the same.

A layer that some batches leave out, such as those without edges, would make their rows another function than the others'.
Training may skip layers at random: whether it does is found out by running a batch again with other random numbers.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import Module
from torch_geometric.data import Data

from torch_gas.batch.data import SubData
from torch_gas.session.rehearsal import Recorded, call_beside
from torch_gas.wiring.places import Place
from torch_gas.wiring.trial.undisturbed import buffers_of_layers, restored

if TYPE_CHECKING:
    from torch_gas.session.base import ScalableGNN
    from torch_gas.session.call import Call

_DRAWS = 64  # of random numbers, to meet a layer that is skipped nine times out of ten, or the other way round


class _Known(NamedTuple):
    """What the first call on a batch of an epoch met.

    Args:
        of: the epoch, and options of ``forward``.
        indices: places in the epoch of the batches that came since.
        met: convolutions, in the order of their calls.
    """

    of: tuple[int | None, list[tuple[str, Any]]]
    indices: set[int]
    met: list[Module]


class MetLayers:
    """What calls on batches have met.

    Attributes:
        registered: the modes, as ``model.training``, in which a call has met modules of the model only.
    """

    def __init__(self) -> None:
        self.registered: set[bool] = set()
        self._known: dict[bool, _Known] = {}  # by mode
        self._at_random: set[str] = set()  # names of layers that training skips at random

    def check(self, model: ScalableGNN, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raises unless ``call`` of ``forward`` with these arguments, which is over, met the layers that others met.

        The others are those of the same epoch, with the same options of ``forward``.
        """
        assert call.met is not None
        training, met = model.training, call.met
        self.registered.add(training)
        epoch, index = (None, None) if call.record is None else (call.record.epoch, call.record.index)
        options = [(key, value) for key, value in kwargs.items() if isinstance(value, (bool, int, str))]
        known = self._known.get(training)
        if known is None or known.of != (epoch, options) or index in known.indices:  # which would be of the next epoch
            self._known[training] = _Known((epoch, options), set() if index is None else {index}, met)
            return
        if index is not None:
            known.indices.add(index)
        if known.met == met or not (names := self._differ(model, known.met, met)):
            return
        if training:
            self._at_random |= _drawn(model, call, args, kwargs, names)
            names -= self._at_random
        if names:
            which_layers = ", ".join(sorted(names))
            raise RuntimeError(
                f"{model._name}: on a batch of {call.batch_size} nodes, forward called {which_layers} more or less often than on "
                "others of the epoch, so that rows of these nodes are another function. Call each layer in each call, whatever a "
                "batch holds: also where it has no edges, few rows, or none of a kind, or an exception is caught. Only training "
                "may skip layers, at random; an option that chooses layers must be an argument of forward"
            )

    def _differ(self, model: Module, one: list[Module], other: list[Module]) -> set[str]:
        """Names of layers that were called in two calls not equally often."""
        left, right = Counter(one), Counter(other)
        names = {name for name, module in model.named_modules() if left[module] != right[module]}
        return names - self._at_random


class _Again(Recorded):
    """A pass that notes which convolutions are called."""

    def __init__(self, batch: SubData) -> None:
        super().__init__(batch)
        self.met: Counter[Module] = Counter()

    def substitute(self, place: Place, module: Module) -> None:
        self.met[module] += 1


def _drawn(model: ScalableGNN, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any], names: set[str]) -> set[str]:
    """Those of the layers ``names`` that the same call meets more or less often, depending on random numbers."""
    assert call.met is not None
    batch, ids = SubData(Data(), *args[2:]), args[2:]
    before, found = Counter(call.met), set()
    with restored(model, buffers_of_layers(model)), torch.no_grad():
        for seed in range(_DRAWS):
            torch.manual_seed(seed)
            again = _Again(batch)
            with suppress(Exception):  # of the user's code
                call_beside(model, args, kwargs, ids, again)
                found |= {name for name in names if again.met[module := model.get_submodule(name)] != before[module]}
            if found == names:
                break
    return found
