"""What plan() returns: predictions of what training takes, and the one that was chosen."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch_gas._util.text_table import text_table
from torch_gas._util.units import format_bytes
from torch_gas.planner.memory import StepMemory
from torch_gas.planner.tiers import Storage


@dataclass(frozen=True)
class Prediction:
    """What training will take with a number of parts, of which some random ones make a batch.

    Args:
        num_parts: parts of the graph, for :func:`torch_gas.metis`.
        batch_size: parts in a batch, for :class:`torch_gas.SubgraphLoader`.
        steps: batches an epoch, and so optimiser steps.
        batch_nodes: B, on average.
        halo_ratio: S / B, of all batches together.
        peak_memory: device memory at the peak of a step, in bytes, of the largest batch that was looked at.
        pushed_bytes: rows that a step writes to histories, in bytes, on average.
        pulled_bytes: rows that a step reads from them, in bytes, on average.
        fits: whether ``peak_memory`` leaves the margin free.
    """

    num_parts: int
    batch_size: int
    steps: int
    batch_nodes: float
    halo_ratio: float
    peak_memory: int
    pushed_bytes: float
    pulled_bytes: float
    fits: bool

    @property
    def is_full_batch(self) -> bool:
        """Whether one batch is the whole graph."""
        return self.steps == 1


@dataclass(frozen=True)
class Plan(Prediction):
    """The prediction that :func:`torch_gas.plan` chose, which is printed with all that it considered.

    Args:
        device_memory: what the device has for training, in bytes.
        margin: the share of it, and of host memory, that is left free.
        rooms: what histories may take in each tier, in bytes, the fastest first.
        storages: histories as they are and, where these take less, in narrower storage types, with the tier in which they belong.
        step_memory: how ``peak_memory`` follows from the size of a batch.
        candidates: all predictions in the order in which they were made, the one that was chosen last.
    """

    device_memory: int
    margin: float
    rooms: dict[str, int] = field(hash=False)
    storages: tuple[Storage, ...]
    step_memory: StepMemory
    candidates: tuple[Prediction, ...] = field(repr=False)

    @property
    def history_bytes(self) -> int:
        """All histories and tables of the model with the ages of their rows, in bytes, wherever they live."""
        return self.storages[0].nbytes

    @property
    def tier(self) -> str:
        """Where histories belong: ``"device"``, ``"pinned"``, ``"host"`` or ``"file"``."""
        return self.storages[0].tier

    @property
    def placement(self) -> str:
        """Where histories belong, why, and which storage type would take them to a faster tier."""
        rooms = " and ".join(f"{format_bytes(room)} {_FREE[tier]}" for tier, room in self.rooms.items())
        text = f"They belong {_PLACES[self.tier]}: {rooms} are free for them."
        for dtype, nbytes, tier in self.storages[1:]:
            if tier != self.tier:
                return f"{text} With history_dtype={dtype} ({format_bytes(nbytes)}) they would fit {_PLACES[tier]}."
        return text

    @property
    def reason(self) -> str:
        """Why this one was chosen."""
        share = 1 - self.margin
        limit = f"{format_bytes(share * self.device_memory)}, {share:.0%} of {format_bytes(self.device_memory)}"
        if self.is_full_batch:
            return f"The whole graph fits in {limit}: train on it as one batch. No row is stale then, and no history needed."
        text = f"The largest batches that fit in {limit}: the fewest steps an epoch, so the youngest histories."
        if self.batch_size == 1:
            return text
        return f"{text} The {self.batch_size} parts of a batch are drawn anew in each epoch, so that neighbours meet."

    def __str__(self) -> str:
        terms = [f"{format_bytes(term)} {of}" for term, of in zip(self.step_memory, _TERMS, strict=True)]
        return f"""\
metis(data, num_parts={self.num_parts}), SubgraphLoader(data, ptr, batch_size={self.batch_size}, shuffle=True)

{text_table(_HEAD, map(_row, self.candidates))}

{self.reason}
Peak memory of a step: {", ".join(terms)}.
Histories: {format_bytes(self.history_bytes)}, of which a step writes {format_bytes(self.pushed_bytes)} \
and reads {format_bytes(self.pulled_bytes)}. {self.placement}"""


_PLACES = {
    "device": 'on the GPU (device="cuda")',
    "pinned": 'in page-locked host memory (tier="pinned")',
    "host": "in host memory",
    "file": "in files (tier=FileTier(folder))",
}
_FREE = {"device": "on the GPU", "pinned": "in host memory", "host": "in host memory"}
_TERMS = ("in any case", "a row of the batch", "a row of the halo", "an edge")
_HEAD = ("parts", "in a batch", "steps", "nodes", "S / B", "peak memory", "written", "read", "")


def _row(each: Prediction) -> tuple[str, ...]:
    counts = [f"{number:,.0f}" for number in (each.num_parts, each.batch_size, each.steps, each.batch_nodes)]
    sizes = map(format_bytes, (each.peak_memory, each.pushed_bytes, each.pulled_bytes))
    return (*counts, f"{each.halo_ratio:.2f}", *sizes, "chosen" if each.fits else "does not fit")
