"""What layers of PyG warn of on a GPU, with tensors that only say that they are there."""

from __future__ import annotations

import pytest
import torch
import torch_geometric


class OnGPU(torch.Tensor):
    """Says that it lies on a GPU."""

    is_cuda = True  # type: ignore[assignment]  # a property there


def test_advice_to_install_torch_scatter_fails_no_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyG warns on a GPU, for the largest messages, and warnings are errors here."""
    monkeypatch.setattr(torch_geometric.typing, "WITH_TORCH_SCATTER", False)
    messages = torch.arange(6.0).view(3, 2).as_subclass(OnGPU).requires_grad_()
    largest = torch_geometric.utils.scatter(messages, torch.tensor([0, 1, 0]), reduce="max")
    assert largest.tolist() == [[4, 5], [2, 3]]
