"""SubData: a mini-batch, which is a PyG Data and knows where it comes from."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any, ClassVar

from torch import Tensor
from torch_geometric.data import Data

from torch_gas.batch.record import BatchRecord, BatchSize, record_of

_IDS = "_ids_of_batch"  # where batch_size, offset and count lie, outside of what PyG takes for attributes


class SubData(Data):  # type: ignore[misc]  # PyG's classes are not typed
    """One mini-batch: node attributes of B+S rows, edge attributes and adjacency of the E_B edges into the batch.

    It is a PyG ``Data`` (of the class of the graph's as well), so that ``batch.x``, ``batch.to(device)``, transforms and copies
    work as on any, and unpacks as PyGAS's: ``batch, *args = sub_data`` with ``model(batch.x, batch.adj_t, *args)``, where
    ``batch`` is a plain ``Data`` of the same tensors. Models take it whole as well: ``model(sub_data)``.

    Transforms may change its features and edges. One that drops or reorders rows makes it an error to call a model with it.

    Args:
        data: the attributes.
        batch_size: B. That of a loader's batch knows the :attr:`record`; a number does not, and models then take the batch
            with ``check=False`` only.
        n_id: global ids of the B batch and S halo nodes, [B + S]. They stay in host memory, where histories are addressed from.
        offset: global id at which each part of the batch starts, [P], or None.
        count: number of nodes of each part, [P]; sums to B.

    Example:
        >>> import torch
        >>> from torch_gas import SubgraphLoader
        >>> from torch_gas.datasets import synthetic
        >>> data = synthetic(1000)
        >>> batch = next(iter(SubgraphLoader(data, torch.tensor([0, 300, 1000]))))
        >>> batch.x.size(0) == batch.n_id.numel() == batch.batch_size + batch.halo_size
        True
        >>> batch.y[: batch.batch_size].shape
        torch.Size([300])
    """

    n_id: Tensor
    _plain: ClassVar[type[Data]] = Data  # the class of the graph

    def __new__(cls, data: Data | None = None, *args: Any, **kwargs: Any) -> SubData:
        kind: Any = type(data)
        return object.__new__(cls if data is None else _class_for(getattr(kind, "_plain", kind)))

    def __init__(
        self, data: Data, batch_size: int, n_id: Tensor, offset: Tensor | None = None, count: Tensor | None = None
    ) -> None:
        if not isinstance(data, Data):  # PyG's Batch and its DataLoader make one of nothing
            raise TypeError(
                f"SubData: data must be a Data, but is {type(data).__name__}; batches cannot be put together, as by Batch: have "
                "the loader do it, SubgraphLoader(data, ptr, batch_size), or call the model on one after the other"
            )
        self._take(copy.copy(data), batch_size, n_id, offset, count)

    def _take(self, data: Data, batch_size: int, n_id: Tensor, offset: Tensor | None, count: Tensor | None) -> None:
        """Becomes ``data``, which nobody else holds."""
        self.__dict__.update(data.__dict__)
        self.__dict__[_IDS] = (batch_size, offset, count)
        self._store._parent = self
        self._store["n_id"] = n_id

    @classmethod
    def of_record(cls, data: Data, record: BatchRecord, n_id: Tensor) -> SubData:
        """A loader's batch, which takes ``data`` over."""
        batch = cls.__new__(cls, data)
        batch._take(data, BatchSize(record), n_id, record.offset, record.count)
        return batch

    @property
    def record(self) -> BatchRecord | None:
        """What the batch was when the loader made it; None for one made by hand."""
        return record_of(self.batch_size)

    @property
    def batch_size(self) -> int:
        """B."""
        return self.__dict__[_IDS][0]

    @property
    def offset(self) -> Tensor:
        """Global id at which each part of the batch starts, [P]."""
        return self.__dict__[_IDS][1]

    @property
    def count(self) -> Tensor:
        """Number of nodes of each part, [P]."""
        return self.__dict__[_IDS][2]

    @property
    def halo_size(self) -> int:
        """S."""
        return self.n_id.numel() - self.batch_size

    @property
    def data(self) -> Data:
        """A plain ``Data`` of the same attributes: what is set in one is set in both."""
        plain = object.__new__(self._plain)
        plain.__dict__.update(self.__dict__)
        store = copy.copy(self._store)
        store._mapping, store._parent = self._store._mapping, plain
        plain.__dict__["_store"] = store
        return plain

    def with_record(self, record: BatchRecord) -> SubData:
        """The batch of the same tensors with another record."""
        other = copy.copy(self)
        other.__dict__[_IDS] = (BatchSize(record), record.offset, record.count)
        return other

    def hand_out(self, **known: Any) -> SubData:
        """The batch, whose record tells from now on what is only known when it is handed out."""
        _, offset, count = self.__dict__[_IDS]
        assert self.record is not None
        self.__dict__[_IDS] = (BatchSize(self.record.with_fields(**known)), offset, count)
        return self

    def __iter__(self) -> Iterator[Any]:
        batch_size, offset, count = self.__dict__[_IDS]
        return iter((self.data, batch_size, self.n_id, offset, count))

    def __getitem__(self, key: Any) -> Any:
        return tuple(self)[key] if isinstance(key, (int, slice)) else super().__getitem__(key)

    def to(self, *args: Any, **kwargs: Any) -> SubData:
        """A copy elsewhere; the ids stay in host memory."""
        return super(SubData, copy.copy(self)).to(*args, **kwargs)

    def apply(self, func: Any, *args: str) -> SubData:
        """As PyG's, for all attributes but the ids, or those that are named."""
        return super().apply(func, *(args or self._names()))

    def apply_(self, func: Any, *args: str) -> SubData:
        """As PyG's, for all attributes but the ids, or those that are named."""
        return super().apply_(func, *(args or self._names()))

    def _names(self) -> list[str]:
        return [name for name in self._store.keys() if name != "n_id"]  # noqa: SIM118  # a store iterates over more

    def subgraph(self, subset: Tensor) -> Data:
        """As PyG's, of the plain ``Data``."""
        return self.data.subgraph(subset)

    def edge_subgraph(self, subset: Tensor) -> Data:
        """As PyG's, of the plain ``Data``."""
        return self.data.edge_subgraph(subset)

    def __reduce__(self) -> tuple[Any, ...]:
        return _empty, (self._plain,), self.__getstate__()

    def __repr__(self) -> str:
        shown = copy.copy(self.data)
        del shown["n_id"]
        parts = "" if self.count is None else f", parts={len(self.count)}"
        return f"SubData({shown}, batch_size={self.batch_size}, halo_size={self.halo_size}{parts})"


def is_of_batch(data: Any) -> bool:
    """Whether ``data`` is what a batch holds, without its ids."""
    return isinstance(data, Data) and not isinstance(data, SubData) and _IDS in data.__dict__


def record_in(data: Data) -> BatchRecord | None:
    """The record of the batch that ``data`` is or was unpacked from; None where there is none."""
    return record_of(data.__dict__[_IDS][0]) if _IDS in data.__dict__ else None


@functools.cache
def _class_for(kind: Any) -> type[SubData]:
    """The class of the batches of a graph of this class, whose methods they have."""
    return SubData if kind is Data else type("SubData", (SubData, kind), {"_plain": kind})


def _empty(kind: Any) -> SubData:
    """What unpickling fills."""
    return object.__new__(_class_for(kind))
