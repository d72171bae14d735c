"""History: the table of the latest known embeddings of one layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torch_gas import _core
from torch_gas._core import checks
from torch_gas._core.naming import naming
from torch_gas._util.arguments import checked
from torch_gas._util.fitting import fitting
from torch_gas._util.memory import has_memory, why_not
from torch_gas.graph.origin import Origin, key_of, origin_of
from torch_gas.table import FileTable, FileTier, HotSet, Table
from torch_gas.table.codec import FLOATS, STORED, Codec
from torch_gas.table.header import other_code
from torch_gas.table.hot import Hot
from torch_gas.table.memory import MemoryTable
from torch_gas.table.tier import check_tier
from torch_gas.transfer import AsyncIOPool


class History(torch.nn.Module):
    r"""A table :math:`\bar{H}^{(l)}` of historical embeddings (Section 3 of https://arxiv.org/abs/2106.05609).

    The table stays where it was created: on ``device`` if that is a CUDA device, in host memory otherwise. Moving the
    module (``model.to("cuda")``) changes where rows are pulled to and pushed from, and page-locks a table in host memory, where
    it lies, so that the device reads it there. ``model.share_memory()`` moves tables to memory that other
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
        model_dtype: type of the model's numbers, which :meth:`to` tells.
        origin: of which graph the rows are, as batches tell, and the file that they came from.
        table: where the rows live, for those who order transfers themselves.
        pool: what moves rows: its own, or that of the model.

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
    closed: str | None = None  # why nobody may use the table by hand now
    behind = ""  # row-wise code that rows have been through since their convolution, in a model of scale()
    is_scratch = False  # whether rows are zero between two steps, and no part of a checkpoint

    @checked
    @torch.inference_mode(mode=False)  # its tensors are written to in training, wherever it is made
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
        sizes = num_embeddings, embedding_dim
        if min(sizes) < 1:
            raise ValueError(f"History: num_embeddings and embedding_dim must be at least 1, but are {sizes}")
        if dtype is not None and dtype not in STORED:
            raise TypeError(f"History: dtype must be one of {STORED}, but is {dtype}")
        check_tier(tier, device)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self._follows_model = dtype is None and not isinstance(tier, FileTier)  # in its storage type
        self._is_persistent, self.model_dtype = persistent, torch.get_default_dtype()
        self._row_dtype: torch.dtype | None = None  # of the rows that were pushed last
        self.pool, self.origin = AsyncIOPool(), Origin()
        where, dtype = torch.device("cpu" if device is None else device), dtype or self.model_dtype
        pushed_at, clock = None, 0
        with fitting(f"History: num_embeddings={num_embeddings} by embedding_dim={embedding_dim}"):
            if isinstance(tier, FileTier):
                file = FileTable(tier, num_embeddings, Codec(dtype).stored_width(embedding_dim), dtype)
                pushed_at, clock = file.pushed_at, file.header.clock
                self.table: Table = file
                self.origin = origin_of(file, key_of(tier.graph, num_embeddings))
            else:
                memory = MemoryTable.zeros(*sizes, dtype, where, huge_pages=huge_pages, pageable=tier == "host")
                self.register_buffer("emb", memory.storage, persistent=persistent)
                self.table = memory
            if pushed_at is None:
                pushed_at, clock = torch.full((num_embeddings,), -1, dtype=torch.int64, device=where), 0
        self.register_buffer("pushed_at", pushed_at, persistent=persistent)
        self.register_buffer("clock", torch.tensor(clock, device="cpu"), persistent=persistent)
        self.table.use(self.pool)

    def __getattr__(self, name: str) -> Any:
        if name == "emb":
            self._check_open()
            self.settle()
            return self.table.tensor()
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "emb" and "table" in vars(self):
            memory = self.table.base
            if not isinstance(memory, MemoryTable):
                raise AttributeError("History: the table lies in a file; write to it by push(), or by emb[...] = rows")
            self.settle()
            super().__setattr__(name, value)
            memory.storage = value
            if isinstance(self.table, Hot):
                self.table = Hot(memory, self.table.nodes)
        else:
            super().__setattr__(name, value)

    def _check_open(self) -> None:
        if self.closed is not None:
            raise RuntimeError(self.closed)

    def settle(self) -> None:
        """Blocks the host until no transfer of the table is under way: it may then be read and written by the host."""
        self.table.settle()

    # -- where rows live, and where they go ----------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the table lives."""
        return self.table.device

    @property
    def compute_device(self) -> torch.device:
        """Where rows are pulled to and pushed from: the device of the model."""
        return self.pool.device

    @property
    def tier(self) -> str:
        """Where the table lives: ``"device"``, ``"pinned"``, ``"host"`` or ``"file"``."""
        return self.table.tier

    def use(self, pool: AsyncIOPool) -> None:
        """Has rows moved by ``pool``, from and to its device."""
        if pool is self.pool:
            return
        self.settle()
        self.table.use(pool)  # which compares it with the one before
        self.pool = pool

    def keep_hot(self, nodes: HotSet | None) -> None:
        """Keeps the rows of some nodes on the device of the model; see :meth:`ScalableGNN.keep_hot`."""
        if nodes is not None and self.tier == "device":
            raise ValueError(
                "keep_hot: the history lies on a GPU, where all its rows are; create it in host memory or in a file"
            )
        base = self.table.base
        if nodes is not None and isinstance(base, MemoryTable) and base.is_shared:
            raise ValueError(_NOT_SHARED)
        self.table = base if nodes is None else Hot(base, nodes)

    def num_hot(self, n_id: Tensor) -> int:
        """How many of the rows ``n_id`` [S] are hot."""
        return int(self.table.nodes.holds(n_id.cpu()).sum()) if isinstance(self.table, Hot) else 0

    # -- rows ----------------------------------------------------------------------------------------------------------

    @property
    def pull_dtype(self) -> torch.dtype:
        """Type of the rows that :meth:`pull` gives by default: that of the table, or of the model where rows have a scale."""
        return self.table.codec.row_dtype(self.model_dtype)

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
        self._check_open()
        dtype = dtype or (self.pull_dtype if out is None else out.dtype)
        if n_id is None:
            if out is None:
                self.settle()
                return self.table.numbers(dtype).to(self.compute_device)
            n_id = torch.arange(self.num_embeddings, device="cpu")
        if out is None:
            out = torch.empty(n_id.numel(), self.embedding_dim, dtype=dtype, device=self.compute_device)
        self.table.read(n_id, out)
        return out

    @checked
    @torch.no_grad()
    def push(
        self, x: Tensor, n_id: Tensor | None = None, offset: Tensor | None = None, count: Tensor | None = None
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
            IndexError: if a row is out of range.
            OSError: if the disk of a table in a file is full or fails. These rows are then zero and as if never pushed.
        """
        self._check_open()
        self.check_rows(x)
        self.table.wait()
        self.write(x, n_id, offset, count)
        self.table.wait()  # the host may read the table as soon as this call returns

    @naming("History.push", index="n_id", rows="x")
    def write(self, x: Tensor, n_id: Tensor | None, offset: Tensor | None, count: Tensor | None) -> None:
        """As :meth:`push`, of rows that were checked; they may be on their way when it returns."""
        table = self.table
        table.check_usable()
        x = x.detach()
        try:
            if offset is not None and count is not None:
                table.write_ranges(offset, count, x)
            elif offset is not None or count is not None:
                raise ValueError("History.push: offset and count go together; give both or neither")
            elif n_id is not None:
                table.write(n_id, x)
            elif x.size(0) == self.num_embeddings:
                table.fill(x)
            else:
                rows = f"x has {x.size(0)} rows and the table {self.num_embeddings}"
                raise ValueError(f"History.push: {rows}; give n_id, or offset and count, to push some rows")
        except OSError:
            self._mark(-1, n_id, offset, count)
            raise
        vars(self)["_row_dtype"] = x.dtype  # a module takes its time to set an attribute
        self._mark(int(self.clock), n_id, offset, count)

    def request(self, n_id: Tensor) -> None:
        """Says that the rows ``n_id`` [S] will be pulled soon: whoever can, fetches them meanwhile."""
        self.table.request(n_id, self._row_dtype or self.pull_dtype)

    def as_stored(self, x: Tensor) -> Tensor:
        """What the table would give back for rows ``x``, [B, C], in their type."""
        return MemoryTable.of_rows(x, self.table.dtype).numbers(x.dtype)

    def check_rows(self, x: Tensor) -> None:
        """Raises unless ``x`` is a floating-point tensor of this table's width."""
        if not has_memory(x):
            checks.kind("History.push", "x", x, Tensor, "a torch.Tensor")
            raise ValueError(f"History.push: x must be a dense tensor with memory, but {why_not(x)}")
        if x.dtype not in FLOATS:
            raise TypeError(f"History.push: x must be a floating-point tensor, but is {x.dtype}; pass x.float()")
        if x.dim() != 2 or x.size(1) != self.embedding_dim:
            raise ValueError(
                f"History.push: x must be [B, {self.embedding_dim}], but is {list(x.shape)}; "
                "hidden_channels of the model gives the width of its histories, as one number or a list"
            )

    # -- ages ----------------------------------------------------------------------------------------------------------

    @property
    def age(self) -> Tensor:
        """Optimiser steps since each row was pushed, [N]; -1 where it never was."""
        return torch.where(self.pushed_at < 0, self.pushed_at, self.clock.to(self.pushed_at.device) - self.pushed_at)

    def tick(self) -> None:
        """Counts one optimiser step: every row becomes one step older."""
        self.clock.add_(1)

    @checked
    @naming("History.mark", index="n_id")
    def mark(self, n_id: Tensor | None, offset: Tensor | None = None, count: Tensor | None = None) -> None:
        """Notes that rows were pushed now; :meth:`push` calls it, as does whoever fills ``emb`` by other means."""
        now = int(self.clock)
        if n_id is not None and (offset is None or count is None):  # ids that no push has checked
            ids = n_id.to(self.pushed_at.device)
            return _core.scatter_rows(self.pushed_at, ids, torch.full(ids.shape, now, device=ids.device))
        self._mark(now, None, offset, count)

    def _mark(self, now: int, n_id: Tensor | None, offset: Tensor | None, count: Tensor | None) -> None:
        """Of rows that the core has written, and so are there."""
        if offset is not None and count is not None:
            _core.fill_chunks(self.pushed_at, offset, count, now)
        elif n_id is not None:
            self.pushed_at.index_fill_(0, n_id.to(self.pushed_at.device, torch.int64), now)
        else:
            self.pushed_at.fill_(now)

    def commit(self) -> None:
        """Makes all rows of a table in a file survive a crash from now on, with their ages; others are left as they are."""
        self.table.wait()
        self.table.commit(self.pushed_at, int(self.clock), self.origin.key)

    def reset_parameters(self) -> None:
        """Forgets all rows: zeros that were never pushed."""
        self.settle()
        self.table.clear()
        self.pushed_at.fill_(-1)
        self.clock.zero_()
        self.origin = Origin()

    def take_graph(self, key: str) -> None:
        """Notes that rows of the graph ``key`` are exchanged from now on; an error where others are here already."""
        self.origin.take(key, lambda: bool((self.pushed_at >= 0).any()))

    # -- state ---------------------------------------------------------------------------------------------------------

    @torch.inference_mode(mode=False)
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> History:
        # The table does not move, so an empty tensor tells what `fn` does: move or cast.
        gone = self.compute_device.type == "cuda" and not torch.cuda.is_available()  # loaded where there is no GPU
        here = "cpu" if gone else self.compute_device
        probe = fn(torch.empty(0, dtype=self.model_dtype, device=here))
        # `share_memory()` leaves what is on a GPU as it is.
        there = fn(torch.empty(0, device="cpu")) if probe.device.type == "cuda" else probe
        shares = there.device.type == "cpu" and there.is_shared()
        shares = shares or (isinstance(self.table.base, MemoryTable) and self.table.base.is_shared)
        self.model_dtype = probe.dtype
        self.use(AsyncIOPool(device=probe.device, io="serial"))
        if self._follows_model and self.table.dtype != probe.dtype:
            assert isinstance(self.table.base, MemoryTable)
            self.emb = self.table.base.cast(probe.dtype)
        if shares:
            self._share()
        return self

    def _share(self) -> None:
        """Moves table, ages and clock to memory that other processes can map."""
        memory = self.table
        if isinstance(memory, FileTable):
            raise ValueError("History: a table in a file belongs to one process and cannot be shared; leave out tier")
        if not isinstance(memory, MemoryTable):
            raise ValueError(_NOT_SHARED)
        if not memory.is_shared:
            memory.share()
            for buffer in (self.pushed_at, self.clock):
                buffer.share_memory_()

    def __getstate__(self) -> dict[str, Any]:
        self.settle()
        state, table, base = {**self.__dict__, "pool": None}, self.table, self.table.base
        if isinstance(base, FileTable):  # a copy lies in memory
            memory = MemoryTable(base.map().clone(), self.embedding_dim)
            state["_buffers"] = {"emb": memory.storage, **self._buffers}
            state["table"] = Hot(memory, table.nodes) if isinstance(table, Hot) else memory
        return state

    @torch.inference_mode(mode=False)  # in which it may have been copied
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({"origin": Origin(), **state})  # which release 0.1 lacked
        self.pool = AsyncIOPool()
        self.table.use(self.pool)
        for name in [name for name, buffer in self.named_buffers() if buffer.is_inference()]:
            setattr(self, name, getattr(self, name).clone())

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self.settle()
        if "emb" not in self._buffers and self._is_persistent:
            assert isinstance(self.table.base, FileTable)
            destination[f"{prefix}emb"] = self.table.base.map()
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._is_persistent and hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]].update(graph=self.origin.key, behind=self.behind)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], strict: bool, *lists: list[str]
    ) -> None:
        missing_keys, _, error_msgs = lists
        self.settle()
        key = f"{prefix}emb"
        saved = state_dict.get(key)
        width = None if saved is None else _core.row_shape(saved, self.pull_dtype).numel()
        if saved is not None and (saved.size(0), width) != (self.num_embeddings, self.embedding_dim):
            error_msgs.append(
                f"{key} in the checkpoint is a history of {saved.size(0)} nodes and width {width}, but this one has "
                f"{self.num_embeddings} nodes and width {self.embedding_dim}. A history belongs to one graph: create the model "
                f"with num_nodes={saved.size(0)}, or drop the keys that start with '{prefix}' to load the parameters alone "
                "(load_state_dict(..., strict=False))"
            )
            return
        if saved is not None:
            if local_metadata and (differ := other_code(key, local_metadata.get("behind", ""), self.behind)):
                error_msgs.append(differ)
                return
            self.origin = self.origin.loaded(local_metadata)
        in_file = "emb" not in self._buffers
        if saved is not None and (in_file or saved.shape != self.emb.shape):  # or rows of one have a scale
            same = saved.dtype == self.table.dtype
            self.table.fill(saved if same else MemoryTable(saved, self.embedding_dim).numbers(self.pull_dtype))
            self.table.wait()
            state_dict = {**state_dict, key: self._buffers.get("emb")}
        if in_file:  # which is no buffer
            state_dict = {name: value for name, value in state_dict.items() if name != key}
            if saved is None and strict and self._is_persistent:
                missing_keys.append(key)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *lists)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, dtype={self.table.dtype}, tier={self.tier!r}"


_NOT_SHARED = "keep_hot: hot rows cannot follow what other processes write; call keep_hot(None), or share no memory"
