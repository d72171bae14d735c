"""BatchRecord: the facts about a batch that a model checks and plans by, wherever the batch has been."""

from __future__ import annotations

import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from torch_gas.graph.sample import Samples

if TYPE_CHECKING:
    from torch_gas._util.thread import Task
    from torch_gas.batch.builder import Builder
    from torch_gas.batch.data import SubData
    from torch_gas.batch.loader import SubgraphLoader


class Lookahead:
    """What a loader knows beyond a batch. It keeps no loader alive, and copies of a batch have none."""

    def __init__(self, loader: SubgraphLoader, ahead: deque[Task[Any]]) -> None:
        self._loader, self._ahead = weakref.ref(loader), ahead  # which may keep the batch

    @property
    def next(self) -> SubData | None:
        """The batch that comes next, where it is there already."""
        made = self._ahead[0].value if self._ahead else None
        return None if made is None else cast("SubData", made[0])

    @property
    def builder(self) -> Builder | None:
        """What makes the loader's batches."""
        loader = self._loader()
        return None if loader is None else loader.builder

    @property
    def largest_halo(self) -> int | None:
        """As :attr:`SubgraphLoader.largest_halo`."""
        loader = self._loader()
        return None if loader is None else loader.largest_halo


@dataclass(frozen=True, eq=False)
class BatchRecord:
    """What a batch was when the loader made it.

    Args:
        key: of the graph and the order of its nodes; see :func:`torch_gas.graph.key.graph_key`.
        num_nodes: N.
        offset: global id at which each part of the batch starts, [P].
        count: number of nodes of each part, [P]; sums to B.
        batch_size: B.
        halo_size: S.
        num_edges: of the batch, E_B. A batch whose edges were changed since has others.
        digest: of ``n_id``; see :func:`torch_gas.graph.key.digest`.
        neighbors: which edges the batch holds: ``"in"`` for those into its nodes, ``"both"`` for those out of them as well.
        epoch: of the loader, counted from 0; None where the batch is of none.
        index: place of the batch in its epoch, counted from 0.
        num_batches: of the epoch; None where a sampler decides on the way.
        samples: of the features, edges and edge attributes that it was made with; see :func:`torch_gas.graph.sample.of_batch`.
        features: samples of the features of the graph and of the weights of its edges, by name.
        mask_rows: how many of the batch's own nodes are in each mask (a boolean attribute with an entry for each node), by name.
        mask_sizes: how many nodes of the graph are.
        lookahead: what comes next, or None.
    """

    key: str
    num_nodes: int
    offset: Tensor = field(repr=False)
    count: Tensor = field(repr=False)
    batch_size: int
    halo_size: int
    num_edges: int
    digest: int
    neighbors: str
    epoch: int | None = None
    index: int | None = None
    num_batches: int | None = None
    samples: Samples = field(default_factory=dict, repr=False)
    features: Samples = field(default_factory=dict, repr=False)
    mask_rows: dict[str, int] = field(default_factory=dict, repr=False)
    mask_sizes: dict[str, int] = field(default_factory=dict, repr=False)
    lookahead: Lookahead | None = field(default=None, repr=False)

    @property
    def num_rows(self) -> int:
        """B + S."""
        return self.batch_size + self.halo_size

    @property
    def completes_epoch(self) -> bool:
        """Whether it is the last batch of its epoch."""
        return self.index is not None and self.num_batches == self.index + 1

    def with_fields(self, **fields: Any) -> BatchRecord:
        """A record with some other fields; as :func:`dataclasses.replace`, in a tenth of the time."""
        other = object.__new__(BatchRecord)
        other.__dict__.update(self.__dict__, **fields)
        return other

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "lookahead": None}


class BatchSize(int):
    """B, an ``int`` that carries the record of its batch; what is computed from it are plain ints.

    Code that torch.compile makes is made anew for each of its values. Pass ``int(batch_size)`` to functions that are compiled
    on their own; models compile well as they are.
    """

    record: BatchRecord

    def __new__(cls, record: BatchRecord) -> BatchSize:
        size = super().__new__(cls, record.batch_size)
        size.record = record
        return size

    def __reduce__(self) -> tuple[type[BatchSize], tuple[BatchRecord]]:
        return BatchSize, (self.record,)


def record_of(batch_size: Any) -> BatchRecord | None:
    """The record that came with a batch's ids; None where they were made by hand."""
    return batch_size.record if isinstance(batch_size, BatchSize) else None
