"""Rows between tables and the device while layers run: the only package that knows CUDA streams.

A *pull* gathers halo rows of a table into a buffer on the device, a *push* writes batch rows into a table (Section 5, "Fast
historical embeddings", and Figure 2 of https://arxiv.org/abs/2106.05609). On a CUDA device both run on lanes of their own, so
that they overlap with the layers.

Ordering rules, all kept by events and never by waiting on the host:

* a pull of a table waits for the last push to that table;
* a push waits for the lane that computed its rows, and for the last pull of its table;
* the consumer of a pull waits for that pull alone;
* a buffer is filled again only after its consumer has read it.
"""

from torch_gas.transfer.lanes import Event, finish, refuse_capture, send_ids, with_index
from torch_gas.transfer.pool import IO, AsyncIOPool

__all__ = ["IO", "AsyncIOPool", "Event", "finish", "refuse_capture", "send_ids", "with_index"]
