"""The roofline's counts are those worked out by hand, and those of the operators that run; its quick run writes all tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_benchmarks as benchmarks
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from torch_gas import _core

MODELS = ("GCN", "SAGE", "GAT", "APPNP", "GCNII", "GIN", "PNA")
PHASES = ("loader", "forward", "push and pull", "backward", "optimiser")
modules, run = benchmarks.modules, benchmarks.run
pytestmark = benchmarks.pytestmark


def small() -> tuple[Any, Any, Any]:
    """What counts, a batch of two nodes and one behind, and a model of one layer, all of whose rows have four numbers."""
    counts, sides = benchmarks.load("counts"), benchmarks.load("sides")
    sizes = counts.Sizes(rows=2, halo=1, edges=5, inside=4, id_bytes=8, node_bytes=24)
    return counts, sizes, sides.Setting(3, 2.0, 4, num_parts=2, parts_a_batch=1, num_layers=1, num_classes=4)


def test_a_layer_of_gcn_by_hand() -> None:
    counts, sizes, setting = small()
    step = counts.count("GCN", setting, sizes, parameters=4 * 4 + 4)
    # Forward: 5 ids and 3 pointers of 8 bytes, 5 weights, 2 rows of results; 3 rows of 16 bytes, or one for each of 5 edges.
    summed = 8 * 8 + 5 * 4 + 2 * 16
    assert step.total("forward", "aggregation") == counts.Work(2 * 4 * 5, summed + 3 * 16, summed + 5 * 16)
    # 2 rows times a matrix of 4 x 4; a bias that is added reads and writes 2 rows; log_softmax as well.
    assert step.total("forward", "dense layers") == counts.Work(2 * 2 * 16, 128, 128)
    assert step.total("forward") == counts.Work(40 + 64, 164 + 128 + 64 + 64, 196 + 128 + 64 + 64)
    # Features have no gradient: that of weights, of the bias (2 rows are read), and of the loss (8 rows are read or written).
    assert step.total("backward") == counts.Work(64, 128 + 32 + 128, 128 + 32 + 128)
    assert step.total("push and pull") == counts.Work()
    # Pointers of 2 rows twice; ids of 5 edges three times, of 3 nodes once; weights and their places; attributes; the transpose.
    loaded = 2 * 3 * 8 + 15 * 8 + 3 * 8 + 5 * (4 + 4 + 8) + 2 * 3 * 24 + 8 + 8 * (5 + 3) + 4 * (5 + 5 + 4)
    assert step.total("loader") == counts.Work(0, loaded, loaded)
    assert step.total("optimiser") == counts.Work(0, 20 * 28, 20 * 28)
    assert step.total() == counts.Work(168, 420 + 288 + loaded + 560, 452 + 288 + loaded + 560)


def test_a_layer_behind_a_history_by_hand() -> None:
    counts, sizes, setting = small()
    one, two = (counts.count("GCN", setting._replace(num_layers=number), sizes, 0) for number in (1, 2))
    # 2 rows are checked, copied and pushed, one is pulled by its id.
    moved = 16 * (2 * 5 + 2) + 8
    assert two.total("push and pull") == counts.Work(0, moved, moved)
    # The sum's gradient: 4 ids, places and weights, 3 pointers of 4 bytes, 2 rows of results; 2 rows, or one for each of 4 edges.
    others = 4 * (4 + 4 + 4) + 3 * 4 + 2 * 16
    assert one.total("backward", "aggregation") == counts.Work()
    assert two.total("backward", "aggregation") == counts.Work(2 * 4 * 4, others + 2 * 16, others + 4 * 16)
    # SAGE's takes no transpose: 4 ids of 8 bytes and their weights, pointers and ends of 2 rows. They are compared once.
    sage = counts.count("SAGE", setting._replace(num_layers=2), sizes, 0)
    others = 4 * (8 + 4) + (3 + 2) * 8 + 2 * 16
    assert sage.total("backward", "aggregation") == counts.Work(2 * 4 * 4, others + 2 * 16, others + 4 * 16)
    compared = 8 * (5 + 3 + 2) + 4 * 4
    transposed = 8 * (5 + 3) + 4 * (5 + 5 + 4)
    assert sage.total("loader").compulsory - compared == two.total("loader").compulsory - transposed
    # The gradient of weights twice, and once that of 2 rows.
    assert two.total("backward", "dense layers") == counts.Work(3 * 64, 3 * 128, 3 * 128)


class Watch(TorchDispatchMode):
    """Operations of dense products, and bytes that operators of dense tensors read and write.

    Other than FlopCounterMode, it registers no hooks, beside which layers compute gradients of halo rows as well.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops, self.bytes, self.pauses = 0, 0, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        held = [each for each in tree_leaves((args, kwargs, out)) if isinstance(each, torch.Tensor)]
        views = func.is_view or func._schema.name.removesuffix("_strided") in (
            "aten::empty", "aten::new_empty", "aten::equal", "aten::new_ones",
        )  # fmt: skip
        if not (views or self.pauses) and all(each.layout == torch.strided for each in held):
            if func.overloadpacket in flop_registry:
                self.flops += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
            self.bytes += sum(each.nbytes for each in held if each.is_floating_point() and not _is_repeated(each))
        return out


def _is_repeated(tensor: torch.Tensor) -> bool:
    return 0 in tensor.stride() and tensor.numel() > 1


@pytest.mark.parametrize("name", MODELS)
def test_counts_are_those_of_the_operators_that_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counts, sides = benchmarks.load("counts"), benchmarks.load("sides")
    setting = sides.Setting(600, 8.0, 64, num_parts=8, parts_a_batch=4)
    side = sides.Sides(setting, sides.make_graphs(setting), name, 0.0, None).make("csr")
    side.epoch()  # the first call tries some rows out
    side.optimizer.zero_grad()
    batch = next(iter(side.batches))
    summed = 0

    def record(call: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(matrix: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal summed
            ends = matrix.rowptr[1:] if matrix.ends is None else matrix.ends
            summed += 2 * int((ends - matrix.rowptr[:-1]).sum()) * args[0][0].numel()
            return call(matrix, *args, **kwargs)

        return recorded

    for call in ("product", "entry_dots"):
        monkeypatch.setattr(_core, call, record(getattr(_core, call)))
    watch, exchange = Watch(), side.model.push_and_pull

    def unseen(*args: Any) -> Any:
        watch.pauses = True
        out = exchange(*args)
        watch.pauses = False
        return out

    side.model.push_and_pull = unseen
    with watch:
        out, y = side.run(batch)
        torch.nn.functional.cross_entropy(out, y).backward()
    step = counts.count(name, setting, counts.Sizes.of(batch), 0)
    assert step.total(part="dense layers").flops == watch.flops
    assert step.total(part="aggregation").flops == summed
    counted = step.total(part="dense layers") + step.total(part="row-wise code")
    assert counted.compulsory == counted.no_reuse == pytest.approx(watch.bytes, rel=0.02)


def test_quick_run(run: Callable[..., Any], tmp_path: Path) -> None:
    (peaks,), whole, phases, parts = run("roofline", benchmarks.CPU, ())
    assert [row["model"] for row in whole] == [row["model"] for row in parts] == [*MODELS]
    assert [(row["model"], row["phase"]) for row in phases] == [(name, phase) for name in MODELS for phase in PHASES]
    bandwidth = max(value for key, value in peaks.items() if key.endswith("GB/s") and key != "the same, GB/s")
    flops = max(value for key, value in peaks.items() if key.endswith("GFLOP/s"))
    for row in phases:
        for kind in ("no reuse", "compulsory"):
            bound = row[f"{kind}, MB"] / bandwidth + 1e3 * float(row["GFLOP"]) / flops
            assert row[f"{kind}, ms"] == pytest.approx(bound, rel=0.01)
            assert row[f"{kind}, % of time"] == pytest.approx(100 * row[f"{kind}, ms"] / row["time, ms"])
    for i, row in enumerate(whole):
        own, part = phases[5 * i : 5 * i + 5], parts[i]
        assert row["epoch, s"] == pytest.approx(sum(phase["time, ms"] for phase in own) / 1e3)
        assert row["compulsory, s"] < row["no reuse, s"]
        of_rows = {kind: part.pop(f"aggregation, {kind}, s") for kind in ("no reuse", "compulsory")}
        assert part.pop("arithmetic, s") < row["compulsory, s"]
        others = sum(value for key, value in part.items() if key != "model")
        for kind, of_kind in of_rows.items():
            assert row[f"{kind}, s"] == pytest.approx(sum(phase[f"{kind}, ms"] for phase in own) / 1e3)
            assert row[f"{kind}, s"] == pytest.approx(others + of_kind)
            assert row[f"{kind}, % of time"] == pytest.approx(100 * row[f"{kind}, s"] / row["epoch, s"])
    benchmarks.picture(tmp_path / "roofline.png")
