"""The work of a training step for ``roofline.py``: bytes and floating-point operations, counted by hand from sizes.

Each operator reads its inputs and writes its results once, in float32, as the layers over CSR call it, without dropout. Vectors
with one number for each row, such as degrees, are left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from sides import Setting

FLOAT = 4  # bytes
SOURCE_ID = 4  # bytes of an id of edges by source
HEADS = 8  # of GAT's hidden layers
FORWARD, BACKWARD, EXCHANGE, LOADER, OPTIMISER = "forward", "backward", "push and pull", "loader", "optimiser"
AGGREGATION, DENSE, ROWS = "aggregation", "dense layers", "row-wise code"
PARTS = (AGGREGATION, DENSE, ROWS, EXCHANGE, LOADER, OPTIMISER)


class Sizes(NamedTuple):
    """Sizes of a batch.

    Attributes:
        rows: B.
        halo: S.
        edges: E, those into the batch.
        inside: those that start in the batch as well.
        id_bytes: bytes of an id of its matrix.
        node_bytes: bytes of all attributes of a node.
    """

    rows: int
    halo: int
    edges: int
    inside: int
    id_bytes: int
    node_bytes: int

    @property
    def all_rows(self) -> int:
        """B + S."""
        return self.rows + self.halo

    @classmethod
    def of(cls, batch: Any) -> Sizes:
        """Those of a batch of a loader."""
        data, rows = batch.data, batch.batch_size
        col = data.adj_t.col_indices()
        held = [data[key] for key in data.keys() if key not in ("adj_t", "n_id") and data.is_node_attr(key)]  # noqa: SIM118
        node_bytes = sum(value[:1].nbytes for value in held)
        inside = int(torch.count_nonzero(col < rows))
        return cls(rows, data.num_nodes - rows, col.numel(), inside, col.element_size(), node_bytes)


@dataclass(frozen=True)
class Work:
    """Operations, and bytes in two ways: each distinct row is read once, or each edge reads its row from memory."""

    flops: float = 0.0
    compulsory: float = 0.0
    no_reuse: float = 0.0

    def __add__(self, other: Work) -> Work:
        no_reuse = self.no_reuse + other.no_reuse
        return Work(self.flops + other.flops, self.compulsory + other.compulsory, no_reuse)


class Step:
    """The work of a step on one batch, by phase and part.

    ``grads`` says of how many first rows of an input a gradient is wanted: of none of the features, of B rows behind a history
    and of all B + S where none is between.
    """

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.work: dict[tuple[str, str], Work] = defaultdict(Work)

    def add(self, phase: str, part: str, num_bytes: float, flops: float = 0.0, by_edge: float | None = None) -> None:
        """Adds to a part of a phase; ``by_edge`` are its bytes without reuse, where they differ."""
        self.work[phase, part] += Work(flops, num_bytes, num_bytes if by_edge is None else by_edge)

    def total(self, phase: str | None = None, part: str | None = None) -> Work:
        """The sum over phases or parts, or of one."""
        chosen = (each for key, each in self.work.items() if phase in (None, key[0]) and part in (None, key[1]))
        return sum(chosen, Work())

    # -- layers --------------------------------------------------------------------------------------------------------

    def product(self, width: int, grads: int, weights: int = 1, mirrored: bool = False) -> None:
        """A sum over edges of rows of ``width`` numbers, with so many weights an edge, and the gradient of ``grads`` rows.

        It is summed up by the transpose, or, ``mirrored``, by the rows of the matrix up to where the halo begins in each.
        """
        rows, edges, id_bytes = self.sizes.rows, self.sizes.edges, self.sizes.id_bytes
        self._gather(FORWARD, width, edges, self.sizes.all_rows, rows, weights, id_bytes * (edges + rows + 1))
        if grads > 0:
            edges = edges if grads > rows else self.sizes.inside
            ids = SOURCE_ID * (edges + grads + 1 + (edges if weights > 0 else 0))  # with the places of weights
            ids = id_bytes * (edges + 2 * rows + 1) if mirrored else ids
            self._gather(BACKWARD, width, edges, rows, grads, weights, ids)

    def _gather(self, phase: str, width: int, edges: int, sources: int, results: int, weights: int, ids: int) -> None:
        others = FLOAT * (width * results + weights * edges) + ids
        row = FLOAT * width
        self.add(phase, AGGREGATION, row * sources + others, 2 * width * edges, row * edges + others)

    def transpose(self, phase: str, part: str) -> None:
        """The edges by source: ids are read, and pointers, ids and places written."""
        written = 2 * self.sizes.edges + self.sizes.all_rows + 1
        self.add(phase, part, self.sizes.id_bytes * (self.sizes.edges + self.sizes.rows + 1) + SOURCE_ID * written)

    def compare(self, phase: str, part: str) -> None:
        """Edges of the batch and their weights, each read once, and where they end in each row."""
        ids = self.sizes.edges + 2 * self.sizes.rows + 1
        self.add(phase, part, self.sizes.id_bytes * ids + FLOAT * self.sizes.inside)

    def attention(self, heads: int, width: int) -> None:
        """GAT's coefficients from scores, the sum of rows [heads * width] by them, and gradients of all of these."""
        rows, edges, id_bytes = self.sizes.rows, self.sizes.edges, self.sizes.id_bytes
        ids = id_bytes * (edges + rows + 1)
        given, row = FLOAT * heads, FLOAT * heads * width
        others = given * (rows + edges) + ids  # scores of destinations; results
        self.add(FORWARD, AGGREGATION, given * self.sizes.all_rows + others, by_edge=given * edges + others)
        self.product(heads * width, self.sizes.all_rows, heads)
        others = row * rows + given * edges + ids  # dot products of the rows that an edge connects
        self.add(
            BACKWARD,
            AGGREGATION,
            row * self.sizes.all_rows + others,
            2 * heads * width * edges,
            row * edges + others,
        )
        others = given * (2 * rows + 3 * edges) + ids  # gradients of scores, for each edge and destination
        self.add(BACKWARD, AGGREGATION, given * self.sizes.all_rows + others, by_edge=given * edges + others)
        ids = id_bytes * (edges + self.sizes.all_rows + 1)  # their sum for each source
        self.add(BACKWARD, AGGREGATION, given * (edges + self.sizes.all_rows) + ids, 2 * heads * edges)

    def dense(self, rows: int, width: int, out: int, grads: int, bias: bool = True) -> None:
        """A linear layer, the gradients of its parameters and of ``grads`` rows of its input."""
        weight = width * out
        numbers = rows * width + weight + rows * out + bias * out
        self.add(FORWARD, DENSE, FLOAT * numbers, 2 * rows * weight)
        numbers = rows * out + rows * width + weight + bias * (rows * out + out)
        self.add(BACKWARD, DENSE, FLOAT * numbers, 2 * rows * weight)
        if grads > 0:
            self.add(BACKWARD, DENSE, FLOAT * (grads * out + weight + grads * width), 2 * grads * weight)

    def weights_again(self, rows: int, width: int, out: int) -> None:
        """What some rows of a linear layer's results, which are used once more, add to the gradient of its weights."""
        self.add(BACKWARD, DENSE, FLOAT * (rows * (width + out) + width * out), 2 * rows * width * out)
        self.add(BACKWARD, ROWS, FLOAT * 3 * width * out)

    def rowwise(self, rows: int, width: int, forward: int, backward: int) -> None:
        """Code that reads and writes so many tensors of this size, in both passes."""
        for phase, tensors in ((FORWARD, forward), (BACKWARD, backward)):
            self.add(phase, ROWS, FLOAT * rows * width * tensors)

    def gate(self, rows: int, width: int) -> None:
        """What a sum's gradient reads to be that of a ReLU in front of it."""
        self.add(BACKWARD, AGGREGATION, FLOAT * rows * width)

    def bias(self, rows: int, width: int) -> None:
        """A bias by itself."""
        self.rowwise(rows, width, 2, 1)

    def activation(self, rows: int, width: int) -> None:
        """ReLU or ELU."""
        self.rowwise(rows, width, 2, 3)

    def scale(self, rows: int, width: int) -> None:
        """A factor for all rows, or one for each."""
        self.rowwise(rows, width, 2, 2)

    def sum(self, rows: int, width: int) -> None:
        """The sum of two tensors."""
        self.rowwise(rows, width, 3, 0)

    def uses(self, rows: int, width: int, number: int = 2) -> None:
        """What several operators use, so that their gradients are summed up."""
        self.rowwise(rows, width, 0, 3 * (number - 1))

    def first_rows(self, width: int) -> None:
        """The first B of all rows: zeros are put behind their gradient."""
        self.rowwise(self.sizes.rows + self.sizes.all_rows, width, 0, 1)

    def loss(self, classes: int) -> None:
        """Cross-entropy."""
        self.rowwise(self.sizes.rows, classes, 2, 4)

    def exchange(self, width: int) -> None:
        """A history: the batch's rows are checked, pushed and copied beside those of the halo, which are pulled."""
        numbers = self.sizes.rows * width * (1 + 2 + 2) + self.sizes.halo * width * 2
        self.add(EXCHANGE, EXCHANGE, FLOAT * numbers + 8 * self.sizes.halo)

    # -- what surrounds the model --------------------------------------------------------------------------------------

    def load(self) -> None:
        """Makes the batch: its edges, their weights and the rows of all attributes of its nodes."""
        rows, all_rows, edges, id_bytes = self.sizes.rows, self.sizes.all_rows, self.sizes.edges, self.sizes.id_bytes
        pointers = 2 * id_bytes * (rows + 1)
        ids = id_bytes * edges * 3 + 8 * all_rows  # read; written with the places of edges
        weights = (id_bytes + 2 * FLOAT) * edges
        attributes = 2 * self.sizes.node_bytes * all_rows + 8 * self.sizes.halo
        self.add(LOADER, LOADER, pointers + ids + weights + attributes)

    def adam(self, parameters: int) -> None:
        """Adam: parameters, gradients and two moments are read, all but gradients written."""
        self.add(OPTIMISER, OPTIMISER, 7 * FLOAT * parameters)


# -- models ------------------------------------------------------------------------------------------------------------


def _layers(step: Step, setting: Setting) -> Iterable[tuple[int, int, int, bool]]:
    """Width, width of the result and rows that need a gradient of each layer's input, and whether it is the last."""
    for i in range(setting.num_layers):
        last = i == setting.num_layers - 1
        yield (
            setting.channels,
            setting.num_classes if last else setting.channels,
            step.sizes.rows if i > 0 else 0,
            last,
        )


def _hidden(step: Step, width: int, last: bool) -> None:
    """The end of a layer: activation and history, unless it is the last."""
    if not last:
        step.activation(step.sizes.rows, width)
        step.exchange(width)


def _gcn(step: Step, setting: Setting) -> None:
    rows, all_rows = step.sizes.rows, step.sizes.all_rows
    for width, out, grads, last in _layers(step, setting):
        if width > out:  # the weights first, where that makes rows narrower
            step.dense(all_rows, width, out, grads, bias=False)
            step.product(out, all_rows)
        else:
            step.product(width, grads)
            step.dense(rows, width, out, grads, bias=False)
        step.bias(rows, out)
        _hidden(step, out, last)


def _sage(step: Step, setting: Setting) -> None:
    rows = step.sizes.rows
    for width, out, grads, last in _layers(step, setting):
        step.product(width, grads, mirrored=True)
        step.rowwise(rows, width, 0, 2 if grads else 0)  # of the mean, whose sums are divided where they are made
        step.dense(rows, width, out, grads)
        step.dense(rows, width, out, grads, bias=False)
        step.sum(rows, out)
        if grads:
            step.uses(rows, width)
        _hidden(step, out, last)


def _gat(step: Step, setting: Setting) -> None:
    rows, all_rows = step.sizes.rows, step.sizes.all_rows
    for width, out, grads, last in _layers(step, setting):
        heads = 1 if last else HEADS
        step.dense(all_rows, width, out, grads, bias=False)
        step.weights_again(rows, width, out)  # by the destinations, which are the first of the sources
        if grads:
            step.uses(rows, out)
        for number in (all_rows, rows):  # sources and destinations
            step.rowwise(number, out, 3, 4)  # scores: rows times a vector, and the sum of each head
            step.rowwise(number, heads, 1, 2)
        step.uses(all_rows, out)
        step.attention(heads, out // heads)
        if last:
            step.scale(rows, out)  # the mean of heads
        step.bias(rows, out)
        _hidden(step, out, last)


def _appnp(step: Step, setting: Setting) -> None:
    rows, all_rows = step.sizes.rows, step.sizes.all_rows
    width, out = setting.channels, setting.num_classes
    step.dense(all_rows, width, width, 0)
    step.activation(all_rows, width)
    step.dense(all_rows, width, out, all_rows)
    step.uses(rows, out, setting.num_layers)
    step.first_rows(out)  # of all rows, which the first sum takes
    step.uses(all_rows, out)
    for i in range(setting.num_layers):
        step.product(out, rows if i > 0 else all_rows)
        step.scale(rows, out)
        step.scale(rows, out)
        step.sum(rows, out)
        if i < setting.num_layers - 1:
            step.exchange(out)


def _gcnii(step: Step, setting: Setting) -> None:
    rows, all_rows, width = step.sizes.rows, step.sizes.all_rows, setting.channels
    step.dense(all_rows, width, width, 0)
    step.activation(all_rows, width)
    step.uses(all_rows, width, setting.num_layers + 1)
    for i in range(setting.num_layers):
        step.product(width, rows if i > 0 else all_rows)
        step.scale(rows, width)
        step.first_rows(width)
        step.scale(rows, width)
        step.sum(rows, width)
        step.dense(rows, width, width, rows, bias=False)
        step.rowwise(rows, width, 1, 4)  # what the product of weights is added to
        step.uses(rows, width)
        step.activation(rows, width)
        if i < setting.num_layers - 1:
            step.exchange(width)
    step.dense(rows, width, setting.num_classes, rows)


def _gin(step: Step, setting: Setting) -> None:
    rows, all_rows, width = step.sizes.rows, step.sizes.all_rows, setting.channels
    step.dense(all_rows, width, width, 0)
    step.activation(all_rows, width)
    for i in range(setting.num_layers):
        step.product(width, rows if i > 0 else all_rows)
        step.rowwise(rows, width, 2, 2 + 4)  # 1 + epsilon times rows, which gets a gradient itself
        step.sum(rows, width)
        step.dense(rows, width, width, rows)
        step.activation(rows, width)  # batch norm: it reads and writes as much
        step.activation(rows, width)
        step.dense(rows, width, width, rows)
        step.activation(rows, width)
        step.sum(rows, width)  # the residual connection
        step.uses(rows, width, 3)
        if i < setting.num_layers - 1:
            step.exchange(width)
    step.dense(rows, width, setting.num_classes, rows)


def _pna(step: Step, setting: Setting) -> None:
    rows, all_rows = step.sizes.rows, step.sizes.all_rows
    for width, out, grads, last in _layers(step, setting):
        step.dense(rows, width, out, grads)
        step.dense(all_rows, width, 2 * out, grads)  # for both scalers at once
        step.rowwise(all_rows, 2 * out, 2, 0)  # ReLU, whose gradient the sum's has seen to
        step.rowwise(step.sizes.edges, 2, 2, 0)  # scalers and shares of the mean, which are weights
        step.product(2 * out, all_rows, weights=2)
        step.gate(all_rows, 2 * out)
        for parts, inner in (
            (2, 0),
            (2 * out, rows),
        ):  # biases by their scalers, and both parts, on top of what there is
            step.dense(rows, parts, out, inner, bias=False)
            step.rowwise(rows, out, 1, 0)
        step.rowwise(
            2 * out, width + out, 2, 3
        )  # weights of both parts side by side, and their gradients by themselves
        if grads:
            step.uses(rows, width)
        _hidden(step, out, last)


COUNTS: dict[str, Callable[[Step, Setting], None]] = {
    "GCN": _gcn,
    "SAGE": _sage,
    "GAT": _gat,
    "APPNP": _appnp,
    "GCNII": _gcnii,
    "GIN": _gin,
    "PNA": _pna,
}


def count(name: str, setting: Setting, sizes: Sizes, parameters: int) -> Step:
    """The work of a step of a model on a batch."""
    step = Step(sizes)
    step.load()
    if name == "SAGE":  # the only one that takes no gradient of halo rows; the graph is undirected
        step.compare(LOADER, LOADER)
    else:
        step.transpose(LOADER, LOADER)
    COUNTS[name](step, setting)
    step.loss(setting.num_classes)
    step.adam(parameters)
    return step
