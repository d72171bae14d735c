"""History: the table of the latest known embeddings of one layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from typing import Any, cast

import torch
from torch import Tensor

from torch_gas import _core
from torch_gas._core import checks
from torch_gas._core.naming import naming
from torch_gas._util.arguments import checked
from torch_gas.table import FileTable, FileTier, HotRows, HotSet
from torch_gas.transfer import AsyncIOPool, finish

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
STORAGE_TYPES = (*FLOATS, torch.int8)


class History(torch.nn.Module):
    r"""A table :math:`\bar{H}^{(l)}` of historical embeddings (Section 3 of https://arxiv.org/abs/2106.05609).

    The table stays where it was created: on ``device`` if that is a CUDA device, in host memory otherwise. Moving the
    module (``model.to("cuda")``) changes where rows are pulled to and pushed from, and page-locks a table in host memory, where
    it lies and in its exact size, so that the device reads it there. ``model.share_memory()`` moves tables to memory that other
    processes of this machine map as well.

    Args:
        num_embeddings: number of nodes, N.
        embedding_dim: width of a row, C.
        device: where the table lives. Host memory by default.
        dtype: storage type. By default that of the model, which it follows through ``.double()`` or ``.half()``; a type
            given here stays, and rows are converted on the way. ``torch.int8`` stores C + 4 bytes a row: numbers in -127 .. 127
            and a float32 scale. A row that holds NaN or infinity then reads as NaN.
        persistent: whether ``state_dict`` carries the table and its ages.
        tier: ``"pinned"`` for a table in host memory that is page-locked once the model is on a GPU, as it is by default,
            ``"host"`` for one that stays pageable, whose rows go through pinned buffers, or a :class:`~torch_gas.FileTier` for
            one in a file, which may be larger than memory. A file keeps its storage type.
        huge_pages: whether a table in host memory may lie in huge pages, where the system has them: its rows are found faster.

    Attributes:
        emb: the table, [N, C], or [N, C + 4] of int8: its rows as they are stored, of which :meth:`pull` makes numbers. Reading
            the attribute waits for transfers under way, so that the host sees what was pushed; a reference that is kept over a
            step does not. A table in a file is mapped to memory by it; :meth:`pull` reads some rows without that.
        pushed_at: value of ``clock`` when each row was last pushed, [N]; -1 where it never was.
        clock: optimiser steps so far, a scalar tensor; :meth:`tick` advances it.

    Example:
        >>> import torch
        >>> from torch_gas import History
        >>> history = History(num_embeddings=4, embedding_dim=2)
        >>> history.push(torch.ones(2, 2), n_id=torch.tensor([0, 3]))
        >>> history.pull(torch.tensor([3, 1])).tolist()
        [[1.0, 1.0], [0.0, 0.0]]
        >>> history.tick()
        >>> history.age.tolist()
        [1, -1, -1, 1]
    """

    emb: Tensor
    pushed_at: Tensor
    clock: Tensor

    @checked
    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        device: torch.device | str | int | None = None,
        *,
        dtype: torch.dtype | None = None,
        persistent: bool = True,
        tier: str | FileTier | None = None,
        huge_pages: bool = True,
    ) -> None:
        super().__init__()
        if num_embeddings < 1 or embedding_dim < 1:
            raise ValueError(
                "History: num_embeddings and embedding_dim must be at least 1, but are "
                f"{num_embeddings} and {embedding_dim}"
            )
        if dtype is not None and dtype not in STORAGE_TYPES:
            raise TypeError(f"History: dtype must be one of {STORAGE_TYPES}, but is {dtype}")
        _check_tier(tier, device)
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self._is_persistent = persistent
        self._fixed_dtype = dtype is not None or isinstance(tier, FileTier)
        self._device = torch.device("cpu")
        self._dtype = torch.get_default_dtype()
        self._tier = tier
        self._huge_pages = huge_pages
        self._registration: _core.Registration | None = None  # holds the table page-locked
        self.transfers: AsyncIOPool | None = None  # what moves rows while layers run, if anything does
        self.row_dtype: torch.dtype | None = None  # of the rows that were pushed last
        self._hot: HotRows | None = None
        table_device = torch.device("cpu" if device is None else device)
        dtype = dtype or self._dtype
        shape = (num_embeddings, _core.stored_width(embedding_dim, dtype))
        self._file: FileTable | None = None
        if isinstance(tier, FileTier):
            self._file = FileTable(tier, *shape, dtype)
        else:
            emb = self._new_table(shape, dtype, table_device).zero_()
            self.register_buffer("emb", emb, persistent=persistent)
        pushed_at = torch.full((num_embeddings,), -1, dtype=torch.int64, device=table_device)
        clock = torch.zeros((), dtype=torch.int64, device="cpu")
        if self._file is not None and self._file.pushed_at is not None:
            pushed_at, clock = self._file.pushed_at, clock + self._file.clock
        self.register_buffer("pushed_at", pushed_at, persistent=persistent)
        self.register_buffer("clock", clock, persistent=persistent)

    def _new_table(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        table = torch.empty(shape, dtype=dtype, device=device)
        if self._huge_pages and device.type == "cpu":
            _core.advise_huge_pages(table)  # before anybody writes to it; rows are found without them as well
        return table

    def __getattr__(self, name: str) -> Any:
        if name == "emb":
            self.settle()
            file = vars(self).get("_file")
            if file is not None:
                file.before_write()  # whoever asks may write to it
                return file.map()
        return super().__getattr__(name)

    @property
    def table(self) -> Tensor | FileTable:
        """The table for those who order transfers themselves: the host must not read or write it."""
        return self._memory if self._file is None else self._file

    @property
    def _memory(self) -> Tensor:
        return cast(Tensor, self._buffers["emb"])

    def settle(self) -> None:
        """Blocks the host until no transfer of the table is under way: it may then be read and written by the host."""
        self._wait()
        if self._hot is not None:
            self._hot.forget()

    def _wait(self) -> None:
        if self.transfers is not None:
            self.transfers.settle(self.table)

    @property
    def device(self) -> torch.device:
        """Where rows are pulled to: the device of the model."""
        return self._device

    @device.setter
    def device(self, device: torch.device) -> None:
        self.settle()
        self._go_to(device)
        self.transfers = None
        self.pin()

    def _go_to(self, device: torch.device) -> None:
        if device != self._device:
            self._registration = None  # a device waits for its own work before memory is unlocked
        self._device = device

    @property
    def tier(self) -> str:
        """Where the table lives: ``"device"``, ``"pinned"``, ``"host"`` or ``"file"``."""
        if self._file is not None:
            return "file"
        if self.table.is_cuda:
            return "device"
        return "pinned" if self._device.type == "cuda" and self.table.is_pinned() else "host"

    @property
    def is_remote(self) -> bool:
        """Whether rows cross between host memory and a CUDA device."""
        return self._device.type == "cuda" and not self.table.is_cuda

    @property
    def pull_dtype(self) -> torch.dtype:
        """Type of the rows that :meth:`pull` gives by default: that of the table, or of the model where the table is int8."""
        return self._dtype if self.table.dtype == torch.int8 else self.table.dtype

    @property
    def age(self) -> Tensor:
        """Optimiser steps since each row was pushed, [N]; -1 where it never was."""
        return torch.where(self.pushed_at < 0, self.pushed_at, self.clock.to(self.pushed_at.device) - self.pushed_at)

    def tick(self) -> None:
        """Counts one optimiser step: every row becomes one step older."""
        self.clock += 1

    def reset_parameters(self) -> None:
        """Forgets all rows: zeros that were never pushed."""
        self.settle()
        if self._file is not None:
            self._file.clear()
        else:
            self.emb.zero_()
        self.pushed_at.fill_(-1)
        self.clock.zero_()

    @checked
    @naming("History.pull", index="n_id")
    @torch.no_grad()
    def pull(
        self, n_id: Tensor | None = None, dtype: torch.dtype | None = None, *, out: Tensor | None = None
    ) -> Tensor:
        """A copy of the rows ``n_id``, on the device of the model.

        Args:
            n_id: row ids, [S]; all rows by default.
            dtype: type of the result; that of ``out`` or :attr:`pull_dtype` by default.
            out: where rows are to be written instead of new memory, [S, C], on the device of the model.

        Returns:
            Rows, [S, C].

        Raises:
            IndexError: if an id is negative or not below N.
        """
        dtype = dtype or (self.pull_dtype if out is None else out.dtype)
        if n_id is None:
            self.settle()
            rows = _convert(self.table, dtype).to(self._device, dtype, copy=True)
            return rows if out is None else out.copy_(rows)
        if out is None:
            out = torch.empty(n_id.numel(), self.embedding_dim, dtype=dtype, device=self._device)
        if self._hot is None:
            self._read(n_id, out)
        else:
            self._hot_rows(self._hot).pull(n_id, out, self._read)
        return out

    def _read(self, n_id: Tensor, out: Tensor) -> None:
        """Writes the rows ``n_id`` of the table to ``out``."""
        if self.is_remote and self.transfers is not None:
            self.transfers.pull_now(self.table, n_id.cpu(), out)
            return
        self._wait()
        if self.is_remote and self.tier == "pinned":
            _core.gather_rows(self.table, n_id.to(self._device), out=out)
            finish(self._device)  # the host may write to the table after this call
        elif self.table.device == out.device:
            _core.gather_rows(self.table, n_id.to(out.device), out=out)
        else:
            out.copy_(_core.gather_rows(self.table, n_id.to(self.table.device), out.dtype))

    @checked
    @naming("History.push", index="n_id", rows="x")
    @torch.no_grad()
    def push(
        self,
        x: Tensor,
        n_id: Tensor | None = None,
        offset: Tensor | None = None,
        count: Tensor | None = None,
    ) -> None:
        """Replaces rows of the table by ``x``, all of them or, after an error, none.

        Args:
            x: new rows, [N, C], or [B, C] with ``n_id`` or with ``offset`` and ``count``.
            n_id: row ids, [B], each at most once. Not needed where ``offset`` and ``count`` are given.
            offset: starts of contiguous ranges of rows, [P].
            count: lengths of these ranges, [P], which sum to B.

        Raises:
            ValueError: if ``x`` has another width or number of rows, or rows are given twice.
            TypeError: if ``x`` is no floating-point tensor.
            IndexError: if a row is out of range. On a GPU, ``n_id`` is checked on the device, as torch's own indexing is, and
                rows that are given twice are not noticed.
            OSError: if the disk of a table in a file is full or fails. These rows are then zero and as if never pushed.
        """
        self.check_rows(x)
        self._wait()
        if self._file is not None:
            self._file.check_usable()  # or its rows stay as they are
        try:
            with self.writing(x, n_id):
                self._write(x.detach(), n_id, offset, count)
        except OSError:
            self.forget(n_id, offset, count)
            raise
        if self.is_remote:  # the host may read the table as soon as this call returns
            finish(self._device)
        self.mark(n_id, offset, count)

    def _write(self, x: Tensor, n_id: Tensor | None, offset: Tensor | None, count: Tensor | None) -> None:
        if offset is not None and count is not None:
            _core.write_chunks(self.table, offset, count, self._to_table(x))
        elif offset is not None or count is not None:
            raise ValueError("History.push: offset and count go together; give both or neither")
        elif n_id is not None:
            rows = self._to_table(x)
            _core.scatter_rows(self.table, n_id.to(rows.device), rows)
        elif x.size(0) == self.num_embeddings:
            _fill(self.table, x)
        else:
            raise ValueError(
                f"History.push: x has {x.size(0)} rows and the table {self.num_embeddings}; "
                "give n_id, or offset and count, to push some rows"
            )

    # -- hot rows ------------------------------------------------------------------------------------------------------

    def keep_hot(self, nodes: HotSet | None) -> None:
        """Keeps the rows of some nodes on the device of the model; see :meth:`ScalableGNN.keep_hot`."""
        if nodes is not None and self.table.is_cuda:
            raise ValueError(
                "keep_hot: the history lies on a GPU, where all its rows are; create it in host memory or in a file"
            )
        if nodes is not None and self._file is None and _is_shared(self._memory):
            raise ValueError(_NOT_SHARED)
        self._hot = None if nodes is None else HotRows(nodes)

    @property
    def hot_bytes(self) -> int:
        """Memory that hot rows take on the device of the model, in bytes."""
        return 0 if self._hot is None else self._hot.nodes.n_id.numel() * self.row_bytes

    @property
    def row_bytes(self) -> int:
        """Bytes of a row as the table holds it."""
        return self.table.size(1) * self.table.element_size()

    def num_hot(self, n_id: Tensor) -> int:
        """How many of the rows ``n_id`` [S] are hot."""
        return 0 if self._hot is None else int(self._hot.nodes.holds(n_id.cpu()).sum())

    def cold(self, n_id: Tensor) -> Tensor:
        """Those of ``n_id`` [S] whose rows come from the table, [R]: the same tensor for the same ``n_id``."""
        return n_id if self._hot is None else self._hot.nodes.split(n_id).cold_ids

    def put_together(self, out: Tensor, n_id: Tensor, cold: Tensor) -> None:
        """Writes the rows ``n_id`` to ``out`` [S, C], of which the cold ones, [R, C], came from the table."""
        if self._hot is None:
            out.copy_(cold)
        else:
            self._hot_rows(self._hot).put_together(n_id, out, cold)

    def _hot_rows(self, hot: HotRows) -> HotRows:
        """Hot rows as the table has them."""
        if not hot.are_of(self.table, self._device):
            hot.load(self.table, self._device, self._read)
        return hot

    @contextmanager
    def writing(self, x: Tensor, n_id: Tensor | None) -> Iterator[None]:
        """While entered, the rows ``x`` [B, C] are written to the table at ``n_id`` [B]; hot ones are then written as well."""
        hot = self._hot if self._hot is not None and self._hot.are_of(self.table, self._device) else None
        yield
        if hot is not None and n_id is not None:
            hot.write(x.detach(), n_id)
            hot.note(self.table)

    # -- ages ----------------------------------------------------------------------------------------------------------

    def commit(self) -> None:
        """Makes all rows of a table in a file survive a crash from now on, with their ages; others are left as they are."""
        self._wait()
        if self._file is not None:
            self._file.commit(self.pushed_at, int(self.clock))

    def read_ahead(self, n_id: Tensor) -> None:
        """Asks the system for rows of a table in a file that are pulled soon; others are where they are."""
        if self._file is not None:
            self._file.read_ahead(self.cold(n_id))

    @checked
    @naming("History.mark", index="n_id")
    def mark(self, n_id: Tensor | None, offset: Tensor | None = None, count: Tensor | None = None) -> None:
        """Notes that rows were pushed now; :meth:`push` calls it, as does whoever fills ``emb`` by other means."""
        self._mark(int(self.clock), n_id, offset, count)

    def forget(self, n_id: Tensor | None, offset: Tensor | None = None, count: Tensor | None = None) -> None:
        """Makes rows of a table in a file zero, as if they had never been pushed: the arguments of :meth:`mark`."""
        assert self._file is not None
        self._file.forget(n_id, offset, count)
        self._mark(-1, n_id, offset, count)

    def _mark(self, now: int, n_id: Tensor | None, offset: Tensor | None, count: Tensor | None) -> None:
        if offset is not None and count is not None:
            checks.ranges("mark", "offset", offset, count)
            num_rows = int(count.clamp(0, self.num_embeddings).sum())  # the core refuses what is out of range
            times = torch.full((num_rows,), now, dtype=torch.int64, device=self.pushed_at.device)
            _core.write_chunks(self.pushed_at, offset, count, times)
        elif n_id is not None:
            ids = n_id.to(self.pushed_at.device)
            if self.device.type == "cuda":
                self.pushed_at[ids] = now  # where ids were checked
            else:
                _core.scatter_rows(self.pushed_at, ids, torch.full(ids.shape, now))
        else:
            self.pushed_at.fill_(now)

    def as_stored(self, x: Tensor) -> Tensor:
        """What the table would give back for rows ``x``, [B, C], in their type."""
        table = x.new_empty(len(x), self.table.size(1), dtype=self.table.dtype)
        _fill(table, x)
        return _convert(table, x.dtype).to(x.dtype)

    @checked
    def check_rows(self, x: Tensor) -> None:
        """Raises unless ``x`` is a floating-point tensor of this table's width."""
        if x.dtype not in FLOATS:
            raise TypeError(f"History.push: x must be a floating-point tensor, but is {x.dtype}")
        if x.dim() != 2 or x.size(1) != self.embedding_dim:
            raise ValueError(
                f"History.push: x must be [B, {self.embedding_dim}], but is {list(x.shape)}; "
                "hidden_channels of the model gives the width of its histories, as one number or a list"
            )

    def _to_table(self, x: Tensor) -> Tensor:
        """``x`` where the core can move it to the table."""
        return x.to(self._device if self.is_remote and self.tier == "pinned" else self.table.device)

    def pin(self) -> None:
        """Page-locks a table in host memory that a GPU reads, unless its tier is ``"host"``."""
        if self.is_remote and self._file is None and self._tier != "host" and not self.table.is_pinned():
            self._registration = _core.register(self._memory, self._device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> History:
        # `fn` moves or casts tensors. The table does not move, so an empty tensor tells what `fn` does.
        gone = self._device.type == "cuda" and not torch.cuda.is_available()  # loaded where there is no GPU
        probe = fn(torch.empty(0, dtype=self._dtype, device="cpu" if gone else self._device))
        self.settle()
        self._go_to(probe.device)
        self._dtype, self.transfers = probe.dtype, None
        was_shared = self._file is None and _is_shared(self._memory)
        on_host = fn(torch.empty(0)) if probe.device.type == "cuda" else probe  # share_memory() leaves what is on a GPU
        if not self._fixed_dtype and self.table.dtype != probe.dtype:
            table = self._new_table(self.table.shape, probe.dtype, self.table.device)
            self.emb = table.copy_(self._memory)
        if _is_shared(on_host) or was_shared:
            self._share()
        self.pin()
        return self

    def _share(self) -> None:
        """Moves table, ages and clock to memory that other processes can map."""
        if self._file is not None:
            raise ValueError("History: a table in a file belongs to one process and cannot be shared; leave out tier")
        if self._hot is not None:
            raise ValueError(_NOT_SHARED)
        if self.table.device.type != "cpu":
            raise ValueError("History: a table on a GPU cannot move to shared memory; create it in host memory")
        if not self._memory.is_shared():
            self._registration = None  # of the memory that is left
            for buffer in (self._memory, self.pushed_at, self.clock):
                buffer.share_memory_()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "emb" and vars(self).get("_file") is not None:
            raise AttributeError("History: the table lies in a file; write to it by push(), or by emb[...] = rows")
        if name == "emb" and "_registration" in vars(self):
            self.settle()
            super().__setattr__(name, value)
            self._registration = self.transfers = None  # of the memory that is left
        else:
            super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        self.settle()
        state = {**self.__dict__, "_registration": None, "transfers": None, "_file": None}
        if self._file is not None:  # a copy lies in memory
            state["_buffers"] = {"emb": self._file.map().clone(), **self._buffers}
            state["_tier"] = None
        return state

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self.settle()
        if self._file is not None and self._is_persistent:
            destination[f"{prefix}emb"] = self._file.map()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        self.settle()
        key = f"{prefix}emb"
        saved = state_dict.get(key)
        width = None if saved is None else _core.row_shape(saved, self.pull_dtype).numel()
        if saved is not None and (saved.size(0), width) != (self.num_embeddings, self.embedding_dim):
            error_msgs.append(
                f"{key} in the checkpoint is a history of {saved.size(0)} nodes and width {width}, but this "
                f"one has {self.num_embeddings} nodes and width {self.embedding_dim}. A history belongs to one graph: "
                f"create the model with num_nodes={saved.size(0)}, or drop the keys that start with '{prefix}' to load "
                "the parameters alone (load_state_dict(..., strict=False))"
            )
            return
        if saved is not None and (self._file is not None or saved.shape != self.table.shape):  # or one of them is int8
            _fill(self.table, saved if saved.dtype == self.table.dtype else _convert(saved, self.pull_dtype))
            state_dict = {**state_dict, key: self.table}
        if self._file is not None:  # which is no buffer
            state_dict = {name: value for name, value in state_dict.items() if name != key}
            if saved is None and strict and self._is_persistent:
                missing_keys.append(key)
        before = self.table
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if self.table is not before:  # load_state_dict(assign=True)
            self._registration = self.transfers = None
            self.pin()

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, dtype={self.table.dtype}, tier={self.tier!r}"


_NOT_SHARED = (
    "keep_hot: hot rows cannot follow what other processes write to a table in shared memory; call keep_hot(None), or leave out "
    "share_memory()"
)


def _convert(table: Tensor | FileTable, dtype: torch.dtype) -> Tensor:
    """The rows that a table in a file or of int8 stands for, of type ``dtype``; any other table as it is."""
    if isinstance(table, FileTable) or table.dtype == torch.int8:
        return _core.read_chunks(table, *_whole(table), dtype)
    return table


def _fill(table: Tensor | FileTable, rows: Tensor) -> None:
    """Replaces all rows of a table."""
    if isinstance(table, FileTable) or (table.dtype == torch.int8 and rows.dtype != torch.int8):
        _core.write_chunks(table, *_whole(table), rows.to(table.device))
    else:
        table.copy_(rows)


def _whole(table: Tensor | FileTable) -> tuple[Tensor, Tensor]:
    """All rows of a table as one range."""
    return torch.tensor([0]), torch.tensor([table.size(0)])


def _check_tier(tier: str | FileTier | None, device: torch.device | str | int | None) -> None:
    if not (tier in (None, "pinned", "host") or isinstance(tier, FileTier)):
        raise ValueError(
            f'History: tier must be None, "pinned", "host" or a FileTier, but is {tier!r}; device="cuda" puts the table on a '
            "GPU, and tier=FileTier(path) in a file"
        )
    if tier is not None and torch.device("cpu" if device is None else device).type != "cpu":
        raise ValueError(
            f"History: tier={tier!r} is for a table that does not lie on a GPU, but device is {device}; drop one of them"
        )


def _is_shared(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.is_shared()


def _reduce_for_process(history: History) -> Any:
    if history._registration is not None and not _is_shared(history._memory):
        raise RuntimeError(
            "History: torch.multiprocessing would move a table away from memory that a GPU reads; call model.share_memory() "
            "before, best before .to('cuda')"
        )
    return history.__reduce_ex__(2)


ForkingPickler.register(History, _reduce_for_process)
