"""Node features in a file, for graphs whose features are larger than memory."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from torch_gas import _core
from torch_gas._core.naming import naming
from torch_gas._util.arguments import checked
from torch_gas._util.replace import replacing
from torch_gas.table.codec import Codec
from torch_gas.table.file import FileTable
from torch_gas.table.header import SIZE, Header, type_name

_BLOCK = 2**24  # numbers that are read at a time


class StoredFeatures:
    """Node features [N, C] in a file that :func:`store_features` has written: ``data.x = StoredFeatures(path)``.

    Loaders read the rows of a batch and its halo from the file. Nothing else of the matrix is in memory, beside what the system
    keeps in its page cache.

    Args:
        path: the file.
        dtype: type of the rows that batches get; by default that of the file, or float32 where rows have scales.

    Raises:
        FileNotFoundError: if there is no such file, or its writer was killed.
        ValueError: if the file holds no features, is damaged, or was not completed.
        TypeError: if the file's type cannot become ``dtype``.

    Example:
        >>> import tempfile, torch
        >>> from torch_gas import StoredFeatures, store_features
        >>> path = tempfile.mkdtemp() + "/x.table"
        >>> x = store_features(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), path, perm=torch.tensor([1, 0]))
        >>> x.shape, x[[0]]
        (torch.Size([2, 2]), tensor([[3., 4.]]))
    """

    @checked
    def __init__(self, path: str | os.PathLike[str], dtype: torch.dtype | None = None) -> None:
        self.path = os.path.abspath(path)  # for processes in other folders
        self._table = FileTable.read_only(self.path)
        stored = self._table.dtype
        self.dtype = dtype or Codec(stored).row_dtype(torch.float32)
        self.shape = torch.Size([self._table.shape[0], *_core.row_shape(self._table, self.dtype)])
        self[torch.empty(0, dtype=torch.int64, device="cpu")]  # whether the types convert

    def size(self, dim: int | None = None) -> Any:
        """``shape``, or one of its numbers."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """2."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows in the file."""
        return self._table.nbytes

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Tensor:
        """The rows of some ids, as a tensor [M, C]."""
        ids = index if isinstance(index, Tensor) else torch.as_tensor(index, device="cpu")
        return _core.gather_rows(self._table, ids, self.dtype)

    @checked
    @naming("StoredFeatures.batch_rows")
    def batch_rows(self, offset: Tensor, count: Tensor, halo: Tensor) -> Tensor:
        """The rows of ranges of nodes, and behind them those of ``halo``, [B + S, C]; see :class:`~torch_gas.SubData`."""
        return _core.batch_rows(self._table, offset, count, halo, self.dtype)

    def check_order(self, perm: Tensor, name: str) -> None:
        """Raises ValueError if the rows were stored for another order of the nodes than ``perm``, [N]."""
        if self._table.header.order not in (0, _order(perm)):
            raise ValueError(
                f"{name}: the features in {self.path} were stored for another partition than that of data.perm; store them again "
                "with perm=perm, or permute by the partition that they were stored for"
            )

    def __reduce__(self) -> tuple[Any, ...]:  # other processes open the file themselves
        return StoredFeatures, (self.path, self.dtype)

    def __deepcopy__(self, memo: Any) -> StoredFeatures:
        return self

    def __repr__(self) -> str:
        return f"StoredFeatures({self.path!r}, {list(self.shape)}, dtype={self.dtype})"


@checked
def store_features(
    x: Tensor | np.ndarray[Any, Any],
    path: str | os.PathLike[str],
    *,
    perm: Tensor | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = False,
) -> StoredFeatures:
    """Writes node features to a file, some rows at a time.

    Args:
        x: features, [N, C]. ``numpy.load(file, mmap_mode="r")`` reads them without having them all in memory.
        path: the new file.
        perm: the order of nodes that :func:`torch_gas.metis` gave, [N], if the graph is in that order and ``x`` is not.
        dtype: storage type; that of ``x`` by default, so that rows come back as they were. ``torch.int8`` rounds: it stores each
            row as numbers in -127 .. 127 and a scale, and the eight-bit floats likewise; ``x`` of these types is therefore stored
            as float16, which holds all their numbers, unless ``dtype`` asks for the rounding.
        progress: whether to show a progress bar.

    Returns:
        The features, for ``data.x``.

    Raises:
        FileExistsError: if there is such a file.
        ValueError: if ``x`` is no matrix, or ``perm`` does not have its number of rows.
        OSError: if the disk is full. The file appears when it is complete.
    """
    if len(x.shape) != 2 or 0 in x.shape:
        raise ValueError(f"store_features: x must be [N, C] with at least one element, but has shape {list(x.shape)}")
    num_rows, num_cols = x.shape
    if perm is not None:
        _check_order(perm, num_rows)
    given = _read(x, slice(0, 1)).dtype
    dtype = dtype or (torch.float16 if given in _core.SCALED_TYPES else given)
    if dtype.is_complex:
        raise TypeError(f"store_features: x must hold real numbers, but is {dtype}")
    header = Header(num_rows, _core.stored_width(num_cols, dtype), type_name(dtype), generation=1)
    header.order = 0 if perm is None else _order(perm)
    block = max(1, _BLOCK // num_cols)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, new=True) as file:
        table = _core.FileRows(file.fileno(), SIZE, (num_rows, header.num_cols), dtype)
        for first in tqdm(range(0, num_rows, block), desc="features", leave=False, disable=not progress):
            last = min(first + block, num_rows)
            rows = _read(x, slice(first, last) if perm is None else perm[first:last])
            rows = rows.to(Codec(dtype).row_dtype(torch.float32))
            begin, count = (torch.tensor([number], device="cpu") for number in (first, last - first))
            _core.write_chunks(table, begin, count, rows)
        os.ftruncate(file.fileno(), header.file_size)
        header.write(file.fileno())
    return StoredFeatures(path)


def _check_order(perm: Tensor, num_rows: int) -> None:
    if perm.dtype not in (torch.int64, torch.int32) or perm.dim() != 1 or perm.numel() != num_rows:
        raise ValueError(
            f"store_features: perm must be [{num_rows}], one id of int64 for each row of x, but is {list(perm.shape)} of "
            f"{perm.dtype}"
        )
    inside = perm[(perm >= 0) & (perm < num_rows)]
    if int(inside.bincount(minlength=num_rows).count_nonzero()) < num_rows:
        raise ValueError(f"store_features: perm must hold each id of 0 .. {num_rows - 1} once, as metis() returns it")


def _order(perm: Tensor) -> int:
    """A check sum of an order of nodes that is never 0."""
    return zlib.crc32(perm.cpu().long().numpy().tobytes()) or 1


def _read(x: Tensor | np.ndarray[Any, Any], index: slice | Tensor) -> Tensor:
    """Some rows of ``x``; a copy, if it is no tensor, because that may lie where nobody may write."""
    if isinstance(x, Tensor):
        return x[index]
    return torch.from_numpy(np.array(x[index.numpy() if isinstance(index, Tensor) else index]))
