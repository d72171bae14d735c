"""The epochs of a loader: the order of their batches, how far each has come, and a state from which they go on.

An order is drawn as a whole when its epoch begins. What is left of it, and what draws the next one, is then all that there is to
save, whoever makes batches ahead.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler

from torch_gas.batch.groups import Groups

_KEYS = {"loader", "given", "rest", "generators", "sampler"}
_LATER_KEYS = {"number", "groups"}  # which states of 0.1 do not have


class Epoch:
    """The batches of an epoch, as lists of indices.

    Args:
        batches: those that are left, or None while they have not been drawn.
        given: how many were handed out before those.
        number: of the epoch, counted from 0.

    Attributes:
        taken: how many of ``batches`` were handed out.
    """

    def __init__(self, batches: Sequence[Sequence[int]] | None = None, given: int = 0, number: int = 0) -> None:
        self.batches, self.given, self.number, self.taken = batches, given, number, 0
        self.is_stopped = False  # nobody takes its batches any more


class Epochs:
    """The epochs of a loader, of which iterating gives the one that began last: workers draw from it.

    Args:
        batch_sampler: what draws an order.
        generator: what workers draw their seed from; the global random state if it is None.
    """

    def __init__(self, batch_sampler: Any, generator: torch.Generator | None) -> None:
        self.batch_sampler = batch_sampler
        is_known = type(batch_sampler) in (BatchSampler, Groups)
        self.sampler: Any = batch_sampler.sampler if is_known else batch_sampler
        generators = [getattr(self.sampler, "generator", None), generator]
        self.generators = list({id(each): each for each in generators if isinstance(each, torch.Generator)}.values())
        self._latest = Epoch()
        self._number = 0  # of the next epoch
        self._under_way: list[Epoch] = []  # the one that handed out a batch last is the last
        self._loaded: Epoch | None = None  # which comes next
        self._has_state = hasattr(self.sampler, "state_dict") and hasattr(self.sampler, "load_state_dict")
        # Whether the state of what draws the order can be saved.
        self._is_known = type(self.sampler) in (RandomSampler, SequentialSampler) or self._has_state

    def __len__(self) -> int:
        return len(self.batch_sampler)

    @property
    def groups(self) -> list[list[int]] | None:
        """The parts that stay together while the order of batches is shuffled; None where none do."""
        return self.batch_sampler.groups if isinstance(self.batch_sampler, Groups) else None

    def __iter__(self) -> Iterator[Sequence[int]]:
        return iter(self.batch_sampler if self._latest.batches is None else self._latest.batches)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_under_way": []}  # nobody asks a copy for the rest of them

    @contextmanager
    def begin(self) -> Iterator[Epoch]:
        """The next epoch, while its batches are handed out."""
        epoch, self._loaded = self._loaded or Epoch(number=self._number), None
        self._number = epoch.number + 1
        self._forget_stopped()
        self._under_way.append(epoch)
        self._latest = epoch
        try:
            yield epoch
        finally:
            epoch.is_stopped = True
        self._forget_stopped()  # one that was left early counts until another begins or ends

    def _forget_stopped(self) -> None:
        self._under_way = [each for each in self._under_way if not each.is_stopped]

    def hand_out(self, epoch: Epoch) -> dict[str, int | None]:
        """Counts a batch, and returns its place as its record has it."""
        self._under_way.sort(key=lambda each: each is epoch)
        place = epoch.given + epoch.taken
        epoch.taken += 1
        number = None if epoch.batches is None else epoch.given + len(epoch.batches)
        return {"epoch": epoch.number, "index": place, "num_batches": number}

    @contextmanager
    def drawn(self, epoch: Epoch) -> Iterator[None]:
        """Draws the order of ``epoch``. Workers who start meanwhile draw a seed, which nothing needs, and change no random state.

        With a sampler of the user's that has no state, it is drawn batch by batch, and workers are left alone.
        """
        if not self._is_known:
            yield
            return
        # Torch's samplers draw on the default device. Its context has all calls of torch go through Python, so only where needed.
        with nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu"):
            if epoch.batches is None:
                epoch.batches = list(self.batch_sampler)
            states = [generator.get_state() for generator in self.generators]
            with torch.random.fork_rng(devices=[]):
                yield
        for generator, state in zip(self.generators, states, strict=True):
            generator.set_state(state)

    # -- state ---------------------------------------------------------------------------------------------------------

    def _check_known(self) -> None:
        if not self._is_known:
            kind = type(self.sampler).__name__
            advice = "give it state_dict() and load_state_dict(), or use shuffle=True"
            raise TypeError(f"SubgraphLoader: the order comes from a {kind}, whose state is not known; {advice}")

    def state_dict(self, loader: dict[str, Any]) -> dict[str, Any]:
        """What is left of the epoch under way, and what draws the next.

        Args:
            loader: what must be the same where the state is loaded.
        """
        self._check_known()
        epochs = [each for each in self._under_way if not each.is_stopped] or self._under_way
        epoch = self._loaded or (epochs[-1] if epochs else Epoch(number=self._number))
        rest = None if epoch.batches is None else epoch.batches[epoch.taken :]
        return {
            "loader": self._facts(loader),
            "number": epoch.number,
            "given": epoch.given + epoch.taken,
            "rest": None if rest is None else [[int(index) for index in batch] for batch in rest],
            "generators": [generator.get_state() for generator in self.generators],
            "sampler": self.sampler.state_dict() if self._has_state else None,
            "groups": None if self.groups is None else [list(group) for group in self.groups],
        }

    def _facts(self, loader: dict[str, Any]) -> dict[str, Any]:
        """What must be the same where a state is loaded."""
        kind, is_regrouped = type(self.sampler).__name__, self.groups is None
        return {**loader, "sampler": kind, "generators": len(self.generators), "regroup": is_regrouped}

    def load_state_dict(self, state: dict[str, Any], loader: dict[str, Any]) -> None:
        """Goes on from ``state``; epochs under way are forgotten."""
        self._check_known()
        if not isinstance(state, dict) or state.keys() - _LATER_KEYS != _KEYS:
            raise ValueError("SubgraphLoader.load_state_dict: this is not what state_dict() of a loader returned")
        for name, value in self._facts(loader).items():
            saved = state["loader"].get(name, True if name == "regroup" else None)
            if saved != value:
                came = f"{_WHAT[name]} are others than when the state was saved ({saved} then, {value} now)"
                advice = _ADVICE.get(name, "make the loader as it was")
                raise ValueError(f"SubgraphLoader.load_state_dict: {came}; {advice}")
        number = state.get("number", 0)
        loaded = None if state["rest"] is None else Epoch(state["rest"], state["given"], number)
        pairs = list(zip(self.generators, state["generators"], strict=True))
        groups = [[int(index) for index in group] for group in state.get("groups") or []]
        for generator, saved in pairs:
            torch.Generator(generator.device).set_state(saved)  # before anything changes, as it may be refused
        if self._has_state:
            self.sampler.load_state_dict(state["sampler"])
        for generator, saved in pairs:
            generator.set_state(saved)
        if self.groups is not None:
            self.batch_sampler.groups = groups
        self._under_way, self._number, self._loaded = [], number, loaded


_WHAT = {
    "num_nodes": "nodes of the graph",
    "num_parts": "parts of the partition",
    "batch_size": "parts in a batch (batch_size)",
    "drop_last": "the batches of an epoch (drop_last)",
    "ptr": "the parts (checksums of ptr)",
    "perm": "the nodes of the parts (checksums of data.perm)",
    "sampler": "the sampler (shuffle)",
    "generators": "the sources of random numbers (seed, generator)",
    "regroup": "the rules by which parts are grouped (regroup)",
}
_SAVED = "partition once, and keep the result with save_partition() and load_partition()"
_ADVICE = {"num_parts": _SAVED, "ptr": _SAVED, "perm": _SAVED}


def checksum(ids: Tensor | None) -> int | None:
    """A number that tells apart tensors of ids, whatever their type."""
    return None if ids is None else zlib.crc32(ids.to("cpu", torch.int64).contiguous().numpy().data)
