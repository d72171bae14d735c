"""The core's own partition: when it ends, what it reports, and every refusal. Its quality is measured in test_partition.py."""

from __future__ import annotations

import pytest
import torch
import twins

from torch_gas import _core

STREAM = {"rowptr": torch.tensor([0, 1, 2]), "col": torch.tensor([1, 0]), "num_parts": 2, "seed": 0, "report": print}


def test_stream_parts_end_when_the_report_raises() -> None:
    rowptr, col = twins.random_graph(torch.Generator().manual_seed(0), 200, 2000)
    shares: list[float] = []

    def report(share: float) -> None:
        shares.append(share)
        if len(shares) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _core.stream_parts(rowptr, col, 4, 0, report)
    assert len(shares) == 3
    part = _core.stream_parts(rowptr, col, 4, 0, shares.append)
    assert 6 < len(shares) - 3 <= _core.STREAM_PASSES
    row = torch.arange(200).repeat_interleave(rowptr.diff())
    # Each pass sees nodes move while it goes, and the last moves few.
    assert shares[-1] == pytest.approx(float((part[row] != part[col]).double().mean()), abs=0.06)
    assert part.bincount(minlength=4).max() <= 52
    weight = torch.ones(2000, dtype=torch.float64), torch.ones(200, dtype=torch.int64)
    assert torch.equal(_core.stream_parts(rowptr.int(), col.int(), 4, 0, shares.append, *weight), part)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rowptr": torch.tensor([0, 1, 1])}, ValueError, "goes from 0 to 1"),
        ({"col": torch.tensor([1, 2])}, IndexError, r"`col` must be in \[0, 2\), but col\[1\] is 2"),
        ({"num_parts": 0}, ValueError, r"`num_parts` must lie in 1 \.\. 2\*\*31 - 1, but is 0"),
        ({"seed": -1}, ValueError, "`seed` must not be negative"),
        ({"edge_weight": torch.ones(3).double()}, ValueError, "`edge_weight` must have 2 elements"),
        ({"node_weight": torch.ones(2)}, TypeError, "`node_weight` must be one of int64"),
    ],
)
def test_stream_parts_refuses(changes: dict[str, object], error: type, message: str) -> None:
    with pytest.raises(error, match=f"^stream_parts: .*{message}"):
        _core.stream_parts(**{**STREAM, **changes})
