"""What learns beside a model's parameters: attributes of its graph, such as features, and tensors that are met in passes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from torch_gas.batch.data import SubData
from torch_gas.graph.formats import tensors_of


class Learned:
    """The attributes of ``data`` of which gradients are wanted.

    Attributes:
        names: theirs.
        grads: what has been added up, by attribute.
    """

    def __init__(self, data: Data) -> None:
        self.names: list[str] = []
        self._whole: dict[str, Tensor] = {}
        for name, value in data.to_dict().items():
            if isinstance(value, Tensor) and value.layout == torch.strided:
                if value.requires_grad:
                    self._whole[name] = value
            elif any(tensor.requires_grad for tensor in tensors_of(value)):
                raise ValueError(
                    f"ExactGradient: gradients are wanted of the values of data.{name}; store them as data.edge_weight beside an "
                    "edge_index"
                )
        self.names = sorted(self._whole)
        self.grads: dict[Tensor, Tensor] = {}
        self._given: dict[str, Tensor] = {}  # of the batch under way, as the loader made it

    def leaves(self, batch: SubData) -> SubData:
        """The batch with leaves for attributes that learn."""
        self._given = {name: batch[name] for name in self.names}
        for name, value in self._given.items():
            batch[name] = value.detach().requires_grad_()
        return batch

    def of(self, batch: SubData) -> list[Tensor]:
        """The leaves of a batch."""
        return [batch[name] for name in self.names]

    def add(self, batch: SubData, grads: Sequence[Tensor | None]) -> None:
        """Adds the gradients of the leaves of a batch."""
        for name, grad in zip(self.names, grads, strict=True):
            if grad is None:
                continue
            whole, given = self._whole[name], self._given[name]
            if whole not in self.grads:
                self.grads[whole] = torch.zeros_like(whole, requires_grad=False)
            if given.size(0) == batch.n_id.numel() and whole.size(0) != given.size(0) and batch.data.is_node_attr(name):
                self.grads[whole].index_add_(0, batch.n_id.to(whole.device), grad.to(whole.device))
            else:
                self.grads[whole] += torch.autograd.grad(given, whole, grad, retain_graph=True)[0]


def leaves_of(outputs: Iterable[Tensor]) -> list[Tensor]:
    """The tensors that ``outputs`` were computed from and whose ``.grad`` a backward pass would add to."""
    todo: list[Any] = [each.grad_fn or each.view_as(each).grad_fn for each in outputs]  # a leaf has none
    seen, found = {None}, []
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        todo += [before for before, _ in node.next_functions]
    return found
