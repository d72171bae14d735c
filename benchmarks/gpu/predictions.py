"""What the benchmarks of this folder are expected to measure on one H200 behind PCIe 5, from data sheets and counts of bytes.

A library, and no measurement: nothing here has seen a GPU. docs/gpu.md has the formulas in words. A figure that comes out far
from its prediction tells which term is wrong. Seconds and bytes throughout; rates are bytes a second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """Constants of the formulas; the first four are of data sheets, the others are assumed.

    Args:
        lanes: of the link.
        lane_rate: bytes a second of a lane, 32 GT/s in 130 bits for 128.
        memory_rate: of device memory, as large kernels reach it: 70 % of 4.8 TB/s.
        flops: float32 operations a second of matrix products: two thirds of 67 TFLOP/s.
        link_share: of the link that data packets get, beside acknowledgements and credits.
        packet: bytes of data in a packet of a copy.
        header: bytes of a packet beside its data.
        line: most bytes of a request of a kernel, which has its address as a multiple of it.
        requests: of kernels to host memory that are under way at a time.
        latency: of such a request.
        operator: host's time for an operator of torch, its share of Python and autograd included.
        launch: host's time for one more kernel or copy, and the device's between two of them.
        miss: time of a host thread for a row that no cache holds.
        threads: of the host that gather.
        host_rate: at which all of them move bytes to pinned memory.
        edge: time of one thread of the loader for an edge of a batch.
        team: how much faster all threads of the loader make the edges of a batch than one does.
        thread_copy: rate at which one thread copies edges and ids to pinned memory.
        sort_rate: keys a second of a sort of 64-bit keys with values, on the device.
    """

    lanes: int = 16
    lane_rate: float = 32e9 / 8 * 128 / 130
    memory_rate: float = 0.7 * 4.8e12
    flops: float = 45e12
    link_share: float = 0.96
    packet: int = 256
    header: int = 24
    line: int = 128
    requests: int = 640
    latency: float = 1.45e-6
    operator: float = 15e-6
    launch: float = 4e-6
    miss: float = 88e-9
    threads: int = 16
    host_rate: float = 26e9
    edge: float = 14e-9
    team: float = 5
    thread_copy: float = 7e9
    sort_rate: float = 2.6e9


PYGAS = "PyGAS's way"

# -- rows --------------------------------------------------------------------------------------------------------------


def link_rate(m: Machine) -> float:
    """Of a large copy in one direction: the lanes' rate without headers."""
    return m.lanes * m.lane_rate * m.link_share * m.packet / (m.packet + m.header)


def lines_of_row(row_bytes: int, start: int, line: int) -> float:
    """Lines that a row of a table touches which begins ``start`` bytes behind a line, on average over its rows."""
    number = line // math.gcd(line, row_bytes)  # rows until places in a line come again
    firsts = [start + row * row_bytes for row in range(number)]
    return sum((first + row_bytes - 1) // line - first // line + 1 for first in firsts) / number


def pull_rate(row_bytes: int, m: Machine, start: int = 0) -> float:
    """Of a kernel that reads scattered rows of page-locked host memory: bound by headers, or by requests under way."""
    lines = lines_of_row(row_bytes, start, m.line)
    link = m.lanes * m.lane_rate * m.link_share * row_bytes / (row_bytes + lines * m.header)
    return min(link, m.requests * row_bytes / (lines * m.latency))


def gather_rate(row_bytes: int, m: Machine) -> float:
    """Of host threads that gather scattered rows into pinned memory."""
    return row_bytes / (m.miss / m.threads + row_bytes / m.host_rate)


def rows_rate(way: str, row_bytes: int, pull: bool, moved_bytes: int, m: Machine) -> float:
    """Of one of the ways of rows.py to move ``moved_bytes``, scattered rows to the device or ranges of rows to the host."""
    if way == "copy":
        return moved_bytes / (moved_bytes / link_rate(m) + m.launch)
    if not pull:
        by_link = moved_bytes / link_rate(m)
        by_host = moved_bytes / m.host_rate
        seconds = {"staged": max(by_link, by_host), "torch": by_link + by_host}.get(way, by_link)
        return moved_bytes / (
            seconds + 2 * moved_bytes / m.memory_rate + 2 * m.launch
        )  # rows are copied on the device first
    if way == "staged":  # halves of the buffer: gathering and copying overlap
        return min(gather_rate(row_bytes, m), link_rate(m))
    if way == "torch":
        return 1 / (1 / gather_rate(row_bytes, m) + 1 / link_rate(m))
    return pull_rate(row_bytes, m, start=64 if way == "64 bytes behind" else 0)


# -- steps -------------------------------------------------------------------------------------------------------------

# Operators of torch in a step of four layers without histories, counted on the CPU (tests/project/test_predictions.py), and
# those that each history adds.
OPERATORS = {"GCN": 231, "GAT": 399, "GCNII": 274, "PNA": 554}
OF_A_HISTORY = 2
# How often a layer reads or writes a number for each edge and channel, forward and backward.
PASSES = {"GCN": (1, 1), "GCNII": (1, 1), "GAT": (6, 7), "PNA": (5, 6)}
# Models whose layers are sparse products over edges that are sorted by source once a batch, whatever their layout. Backward
# passes then take only the edges that start in the batch.
PRODUCTS = ("GCN", "GCNII")
# Matrix products of a layer: (B + S) x C x C each.
DENSE = {"GCN": 1, "GCNII": 2, "GAT": 1, "PNA": 4}


@dataclass(frozen=True)
class Step:
    """A training step on a batch.

    Args:
        model: a key of ``OPERATORS``.
        batch: nodes of the batch, B.
        halo: nodes of the halo, S.
        edges: of the batch, E.
        features: F.
        widths: of the hidden layers that have a history, C each.
        classes: numbers of the last layer.
        csr: whether edges are a CSR matrix; else they are an edge_index, and messages of layers that are no products are tensors.
    """

    model: str
    batch: int
    halo: int
    edges: int
    features: int
    widths: tuple[int, ...]
    classes: int
    csr: bool = True

    @property
    def pulled(self) -> int:
        """Bytes of halo rows that a step reads."""
        return self.halo * 4 * sum(self.widths)

    @property
    def pushed(self) -> int:
        """Bytes of rows that a step writes."""
        return self.batch * 4 * sum(self.widths)

    @property
    def batch_bytes(self) -> int:
        """Bytes of a batch: features and labels, columns and values, row pointers."""
        rows = self.batch + self.halo
        return rows * (4 * self.features + 8) + 12 * self.edges + 8 * rows

    @property
    def passes(self) -> tuple[int, int]:
        """Of :data:`PASSES`, and more where messages are tensors."""
        forward, backward = PASSES[self.model]
        return (forward, backward) if self.csr or self.is_product else (forward + 4, backward + 5)

    @property
    def inner(self) -> float:
        """Edges that start in the batch, if rows of batch and halo have as many each."""
        return self.edges * self.batch / (self.batch + self.halo)

    @property
    def is_product(self) -> bool:
        """Whether layers are sparse products."""
        return self.model in PRODUCTS


def layer_seconds(step: Step, m: Machine) -> tuple[float, float]:
    """The device's time in forward and backward passes."""
    forward, backward = 0.0, step.edges / m.sort_rate if step.is_product else 0.0
    rows, before = step.batch + step.halo, step.features
    for layer, width in enumerate((*step.widths, step.classes)):
        narrow = min(before, width)  # a layer gathers the narrower of its input and its output
        edge_bytes = step.edges * (4 * narrow + 12) / m.memory_rate
        product = 2 * rows * before * width * DENSE[step.model] / m.flops
        # Activation and exchange read and write all rows twice; backward and the batch's own steps are for B rows, eight times.
        elementwise = 4 * width / m.memory_rate
        forward += step.passes[0] * edge_bytes + product + 4 * rows * elementwise
        backward += product + 8 * step.batch * elementwise
        if layer > 0:  # features need no gradient
            read = step.inner / step.edges if step.is_product else 1.0
            backward += step.passes[1] * edge_bytes * read + product * step.batch / rows
        before = width
    return forward, backward


def host_seconds(step: Step, m: Machine, histories: bool = True) -> float:
    """The host's time to queue a step."""
    layers = (len(step.widths) + 1) / 4
    return m.operator * (OPERATORS[step.model] * layers + OF_A_HISTORY * len(step.widths) * histories)


def place_seconds(step: Step, m: Machine) -> dict[str, float]:
    """Seconds of a step with histories in each of the places of step.py.

    What runs beside each other takes as long as the longest of it, what runs one behind the other the sum.
    """
    forward, backward = layer_seconds(step, m)
    layers, host = forward + backward, host_seconds(step, m)
    row_bytes = max(4 * width for width in step.widths)
    link = link_rate(m)
    pull, push, batch = step.pulled / pull_rate(row_bytes, m), step.pushed / link, step.batch_bytes / link
    gather = step.pulled / gather_rate(row_bytes, m)
    staged = gather + step.pushed / m.host_rate  # one thread runs all host functions
    on_device = 2 * (step.pulled + step.pushed) / m.memory_rate
    first = gather / len(step.widths)  # the first gather hides behind nothing, later ones behind the forward pass
    return {
        "no histories": max(layers, batch, host_seconds(step, m, histories=False)),
        "on the GPU": max(layers + on_device, batch, host),
        "concurrent": max(layers, pull + batch, push, host),
        "serial": max(layers + pull + push, host),
        "pageable": max(layers, staged, batch, host),
        PYGAS: max(max(gather + pull, first + forward) + max(backward, push), host),
    }


def loader_seconds(step: Step, m: Machine) -> float:
    """To make a batch in pinned memory: features are gathered there, all else is copied."""
    features = 4 * step.features * (step.batch + step.halo)
    return m.edge * step.edges / m.team + features / m.host_rate + (step.batch_bytes - features) / m.thread_copy


# -- memory ------------------------------------------------------------------------------------------------------------


def full_batch_bytes(num_nodes: int, num_edges: int, features: int, hidden: int, num_layers: int) -> int:
    """Of a GCN's step on the whole graph: the graph, three tensors [N, C] for each hidden layer, and two at work."""
    graph = num_nodes * (4 * features + 16) + 12 * num_edges
    return graph + 4 * num_nodes * hidden * (3 * (num_layers - 1) + 2)


def growth(way: str, num_nodes: int, least_nodes: int) -> float:
    """Memory of a step by that on the smallest graph: all of a full batch grows, nothing of a batch that keeps its size."""
    return num_nodes / least_nodes if way == "full batch" else 1.0


# -- the tables of docs/gpu.md -----------------------------------------------------------------------------------------


def halo_ratio(ratio: float, num_parts: int, parts_a_batch: int) -> float:
    """S / B of batches of random parts, each with a random halo of ``ratio`` times its nodes outside of it."""
    in_halo = 1 - (1 - ratio / (num_parts - 1)) ** parts_a_batch
    return in_halo * (num_parts - parts_a_batch) / parts_a_batch


def step_of_run(model: str, ratio: float, csr: bool = True) -> Step:
    """A step of step.py on its large sizes."""
    batch = 32_768
    halo = round(batch * halo_ratio(ratio, num_parts=32, parts_a_batch=4))
    return Step(model, batch, halo, round(20 * batch * (1 + ratio)), 64, (256,) * 3, 32, csr)


def rows_table(m: Machine) -> list[dict[str, str]]:
    """GB/s of the ways of rows.py, by bytes of a row."""
    ways = {"pull, page-locked": "registered", "pull, 64 bytes behind a page": "64 bytes behind"}
    ways |= {"pull, staged": "staged", "pull, torch on the host": "torch"}
    found = []
    for row_bytes in (64, 128, 256, 512, 1024, 4096):
        rates = {title: rows_rate(way, row_bytes, True, 2**27, m) for title, way in ways.items()}
        rates["push, page-locked"] = rows_rate("registered", row_bytes, False, 2**27, m)
        found.append({"bytes a row": f"{row_bytes:,}"} | {title: f"{rate / 1e9:.0f}" for title, rate in rates.items()})
    return found


def steps_table(m: Machine) -> list[dict[str, str]]:
    """Bytes and times of a step, by model and halo."""
    found = []
    for model, ratio in [("GCN", 0.25), ("GCN", 0.5), ("GCN", 1), ("GCN", 2), ("GAT", 1), ("GCNII", 1), ("PNA", 1)]:
        step = step_of_run(model, ratio)
        sizes = [step.pulled, step.pushed, step.batch_bytes]
        times = {"layers": sum(layer_seconds(step, m)), "host": host_seconds(step, m), **place_seconds(step, m)}
        row = {"model": model, "S / B": f"{step.halo / step.batch:.2f}"}
        row["MB pulled, pushed, batch"] = ", ".join(f"{size / 1e6:.0f}" for size in sizes)
        found.append(row | {f"{title}, ms": f"{1e3 * seconds:.1f}" for title, seconds in times.items()})
    return found


def markdown(rows: list[dict[str, str]]) -> str:
    """Rows as a table."""
    head = [f"| {' | '.join(rows[0])} |", f"|{'---|' * len(rows[0])}"]
    return "\n".join(head + [f"| {' | '.join(row.values())} |" for row in rows])


def sentences(m: Machine) -> list[str]:
    """What the page says beside its tables."""
    step, messages = step_of_run("GCN", 1), step_of_run("PNA", 1, csr=False)
    full = Step("GCN", 8 * step.batch, 0, 8 * step.edges, step.features, step.widths, step.classes)
    epoch = max(sum(layer_seconds(full, m)), host_seconds(full, m, histories=False))
    places, small = place_seconds(step, m), Step("GCN", 512, 512, 5000, 500, (64,) * 3, 7)
    on_gpu = [1e3 * place_seconds(each, m)["on the GPU"] for each in (step, messages)]
    return [
        f"{link_rate(m) / 1e9:.0f} GB/s each way",
        f"{1e3 * epoch:.0f} ms for one step",
        f"making the eight batches takes {8e3 * loader_seconds(step, m):.0f} ms",
        f"{8e3 * places['concurrent']:.0f} ms, and in PyGAS's way {8e3 * places[PYGAS]:.0f} ms",
        f"takes {on_gpu[0]:.1f} ms over CSR and over an `edge_index`, one of PNA over an `edge_index` {on_gpu[1]:.1f} ms",
        f"the host decides: {1e3 * place_seconds(small, m)['concurrent']:.1f} ms a step",
    ]


if __name__ == "__main__":
    machine = Machine()
    print(*sentences(machine), markdown(rows_table(machine)), markdown(steps_table(machine)), sep="\n\n")
