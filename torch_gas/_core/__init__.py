"""The compiled core: the only caller of `torch_gas._C`.

Every function checks its tensors by argument name and passes addresses on. `_C` checks values (ids,
ranges, row pointers) before it writes anything, releases the GIL and uses `torch.get_num_threads()`
threads; results do not depend on their number. Letters as in docs/design.md; `M` is the number of
rows moved.

The calls that move rows work in three placements: everything on the host; everything on one
CUDA device; or the table in pinned host memory and the rows on a CUDA device. On a device they run
on its current stream and return at once. There ids are checked by the kernel, where a bad one is a
device-side assertion, as it is in torch.

A table in pageable host memory reaches a CUDA device by way of a pinned buffer, `staging`. These calls return at once,
too, and work as if they ran on the current stream of the device. The table and the buffer must live until that stream
has come past them.
"""

from torch_gas._core.build import has_cuda
from torch_gas._core.dropout import dropout, dropout_rows
from torch_gas._core.file import FileRows, Table, clear_rows, forget_failure, noted_failure, read_ahead
from torch_gas._core.fill import fill_chunks
from torch_gas._core.memory import advise_huge_pages, at_page, fingerprint, locked_by, register
from torch_gas._core.order import own_transpose, row_pointers, to_csr, transpose
from torch_gas._core.placement import Staging
from torch_gas._core.product import PRODUCT_TYPES, Sparse, entry_dots, entry_softmax, entry_softmax_backward, product
from torch_gas._core.reductions import Reductions, ReductionsGradient, reductions, reductions_backward
from torch_gas._core.rows import (
    SUM_TYPES,
    add_rows,
    batch_rows,
    batch_rows_into,
    batch_rows_of,
    gather_rows,
    is_table,
    read_chunks,
    scatter_rows,
    stored_copy,
    write_chunks,
)
from torch_gas._core.storage import SCALED_TYPES, row_shape, stored_width
from torch_gas._core.stream import STREAM_PASSES, stream_parts
from torch_gas._core.subgraph import Subgraph, subgraph
from torch_gas._core.symmetric import adjacent_pairs, symmetric

__all__ = [
    "PRODUCT_TYPES", "SCALED_TYPES", "STREAM_PASSES", "SUM_TYPES", "FileRows", "Reductions", "ReductionsGradient", "Sparse",
    "Staging", "Subgraph", "Table", "add_rows", "adjacent_pairs", "advise_huge_pages", "at_page", "batch_rows",
    "batch_rows_into", "batch_rows_of", "clear_rows", "dropout", "dropout_rows", "entry_dots", "entry_softmax",
    "entry_softmax_backward", "fill_chunks", "fingerprint", "forget_failure", "gather_rows", "has_cuda", "is_table",
    "locked_by", "noted_failure", "own_transpose", "product", "read_ahead", "read_chunks", "reductions", "reductions_backward",
    "register", "row_pointers", "row_shape", "scatter_rows", "stored_copy", "stored_width", "stream_parts", "subgraph",
    "symmetric", "to_csr", "transpose", "write_chunks",
]  # fmt: skip
