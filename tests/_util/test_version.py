"""Whether somebody has written to a tensor."""

from __future__ import annotations

import torch

from torch_gas._util.version import version


def test_the_version_of_a_tensor() -> None:
    tensor = torch.zeros(2)
    before = version(tensor)
    tensor += 1
    assert version(tensor) != before
    with torch.inference_mode():
        tensor += 1
        assert version(tensor) == before + 2
        assert version(torch.zeros(2)) == 0
