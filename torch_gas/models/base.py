"""What the shipped models share: resetting, parameter groups and the check of edge weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import BatchNorm1d, Identity, ModuleList
from torch_geometric.nn.inits import reset

from torch_gas.graph.formats import is_matrix
from torch_gas.session.base import ScalableGNN


class Model(ScalableGNN):
    """A :class:`~torch_gas.ScalableGNN` whose parameters form two groups for weight decay.

    Subclasses say which modules belong to which group. Each parameter belongs to exactly one.
    """

    @property
    def reg_modules(self) -> ModuleList:
        """The modules with weight decay: all but the last layer."""
        raise NotImplementedError

    @property
    def nonreg_modules(self) -> ModuleList:
        """The modules whose weight decay is given apart: the last layer."""
        raise NotImplementedError

    def parameter_groups(self, weight_decay: float, last_weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """All parameters in two groups, as the paper's small graphs are trained.

        Args:
            weight_decay: that of ``reg_modules``.
            last_weight_decay: that of ``nonreg_modules``.

        Returns:
            What optimisers take in place of parameters.

        Example:
            >>> from torch.optim import Adam
            >>> from torch_gas.models import GCN
            >>> model = GCN(100, in_channels=8, hidden_channels=16, out_channels=4, num_layers=2)
            >>> optimizer = Adam(model.parameter_groups(5e-4), lr=0.01)
            >>> [group["weight_decay"] for group in optimizer.param_groups]
            [0.0005, 0.0]
        """
        return [
            {"params": list(self.reg_modules.parameters()), "weight_decay": weight_decay},
            {"params": list(self.nonreg_modules.parameters()), "weight_decay": last_weight_decay},
        ]

    def reset_parameters(self) -> None:
        """Draws all parameters anew, and forgets batch statistics and histories."""
        super().reset_parameters()
        for name, child in self.named_children():
            if name != "histories":
                reset(child)

    def check_sizes(self, dropout: float, **sizes: int) -> None:
        """Raises ValueError unless ``dropout`` is a probability and each of ``sizes`` positive."""
        self.check_share(dropout=dropout)
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{type(self).__name__}: {name} must be at least 1, but is {size}")

    def check_share(self, **shares: float) -> None:
        """Raises ValueError unless each of ``shares`` lies in [0, 1]."""
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{type(self).__name__}: {name} must lie in [0, 1], but is {share}")

    def check_edge_weight(self, adj_t: Any, edge_weight: Tensor | None) -> None:
        """Raises ValueError where weights come twice: layers would use those of the matrix only."""
        if edge_weight is not None and is_matrix(adj_t):
            raise ValueError(
                f"{type(self).__name__}: edge_weight was given beside a sparse matrix, whose "
                "values are the weights; put them there, or pass an edge_index"
            )


def batch_norms(enabled: bool, channels: int, number: int) -> ModuleList:
    """``number`` batch norms, or as many layers that do nothing."""
    return ModuleList(BatchNorm1d(channels) if enabled else Identity() for _ in range(number))
