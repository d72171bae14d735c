"""What the shipped models share: options, the loop over layers, parameter groups."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from torch import Tensor
from torch.nn import BatchNorm1d, Identity, Linear, Module, ModuleList
from torch_geometric.nn.inits import reset

from torch_gas.graph.dropout import dropout
from torch_gas.graph.formats import is_matrix
from torch_gas.graph.halo import own_rows
from torch_gas.session.base import ScalableGNN


class Model(ScalableGNN):
    r"""A :class:`~torch_gas.ScalableGNN` with the options and the loop of the shipped models.

    .. math::
        H^{(l)} = \mathrm{dropout}\Big(\sigma\big(\mathrm{norm}^{(l)}(\mathrm{conv}^{(l)}(H^{(l-1)})) + H^{(l-1)}\big)\Big)

    The result of each layer but the last goes through its history before dropout. The last layer is a convolution alone or,
    in models with linear layers, one like the others, which a linear layer follows.

    A model calls :meth:`add_linear` if it has linear layers, and then passes its convolutions to :meth:`add_layers`. It overrides
    what it does in another way: :meth:`first_input`, :meth:`activation`, or :meth:`run_layers` as a whole.

    Args:
        num_nodes: N.
        in_channels: width of ``x``.
        hidden_channels: width of histories.
        out_channels: width of the output.
        num_layers: number of convolutions, L.
        dropout: probability of dropping an entry of a layer's input in training (:func:`torch_gas.dropout` drops edges).
        **kwargs: ``pool_size``, ``buffer_size``, ``device`` and others of :class:`torch_gas.ScalableGNN`.

    Raises:
        ValueError: if a size is not positive, or ``dropout`` is no probability.
    """

    hidden_channels: int

    def __init__(
        self,
        num_nodes: int,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int,
        dropout: float,
        **kwargs: Any,
    ) -> None:
        # Before the base, which would speak of hidden_channels where APPNP's histories, of out_channels, have no width.
        self.check_sizes(in_channels=in_channels, out_channels=out_channels)
        self.check_share(dropout=dropout)
        super().__init__(num_nodes, hidden_channels, num_layers, **kwargs)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.dropout = dropout
        self.lins = ModuleList()

    @property
    def linear(self) -> bool:
        """Whether a linear layer precedes the convolutions and another follows them."""
        return len(self.lins) > 0

    @property
    def widths(self) -> Iterable[tuple[int, int]]:
        """Widths of the input and the output of each convolution."""
        hidden = [self.hidden_channels] * (self.num_layers - 1)
        ends = [self.hidden_channels] * 2 if self.linear else [self.in_channels, self.out_channels]
        return pairwise([ends[0], *hidden, ends[1]])

    def add_linear(self) -> None:
        """Adds a linear layer that precedes the first convolution and another that follows the last."""
        hidden = self.hidden_channels
        self.lins.extend([Linear(self.in_channels, hidden), Linear(hidden, self.out_channels)])

    def add_layers(
        self, convs: Iterable[Module], batch_norm: bool = False, drop_input: bool = True, residual: bool = False
    ) -> None:
        """Adds L convolutions, after the linear layers of a model that has these.

        Args:
            convs: the convolutions.
            batch_norm: whether a norm follows each that is not the last layer of the model.
            drop_input: whether dropout applies to ``x`` as well.
            residual: whether a layer's input is added to its output where widths agree, except in a last convolution alone.
        """
        self.drop_input = drop_input
        self.residual = residual
        self.convs = ModuleList(convs)
        number = self.num_layers - (not self.linear)
        self.bns = ModuleList(norm(batch_norm, self.hidden_channels) for _ in range(number))

    @property
    def reg_modules(self) -> ModuleList:
        """The modules with weight decay: batch norms and all convolutions, without the last where no linear layer follows it."""
        return ModuleList([*(self.convs if self.linear else self.convs[:-1]), *self.bns])

    @property
    def nonreg_modules(self) -> ModuleList:
        """The modules whose weight decay is given apart: the linear layers or, without them, the last convolution."""
        return self.lins if self.linear else self.convs[-1:]

    def forward(self, x: Tensor, adj_t: Any, *args: Any) -> Tensor:
        """Rows of the batch [B, out_channels] from those of batch and halo [B + S, in_channels]."""
        return self.run_layers(x, args, adj_t)

    def run_layers(self, x: Tensor, ids: tuple[Any, ...], *conv_args: Any) -> Tensor:
        """``forward`` of a batch with these ``ids``; ``conv_args`` are what convolutions take after ``x``."""
        if self.drop_input:
            x = self.drop(x)
        x, conv_args = self.first_input(x, *conv_args)
        for i in range(self.num_layers - 1):
            x = self.push_and_pull(self.histories[i], self.layer(i, x, *conv_args), *ids)
            x = self.drop(x)
        if not self.linear:
            return self.convs[-1](x, *conv_args)
        x = self.drop(self.layer(self.num_layers - 1, x, *conv_args))
        return self.lins[1](x)

    def first_input(self, x: Tensor, *conv_args: Any) -> tuple[Tensor, tuple[Any, ...]]:
        """The input of the first convolution, and what all of them take after theirs."""
        return (self.drop(self.lins[0](x).relu()) if self.linear else x), conv_args

    def layer(self, i: int, x: Tensor, *conv_args: Any) -> Tensor:
        """Convolution, batch norm, residual connection and activation: [B, C] from [B + S, C]."""
        h = self.bns[i](self.convs[i](x, *conv_args))
        if self.residual and h.size(1) == x.size(1):
            h = h + own_rows(x, h.size(0))
        return self.activation(h)

    def activation(self, x: Tensor) -> Tensor:
        """The last step of :meth:`layer`."""
        return x.relu()

    def drop(self, x: Tensor) -> Tensor:
        """``x`` with entries dropped in training."""
        return dropout(x, self.dropout, self.training)

    def parameter_groups(self, weight_decay: float, last_weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """All parameters in two groups, as the paper's small graphs are trained. Each parameter belongs to exactly one.

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

    def check_sizes(self, **sizes: int) -> None:
        """Raises ValueError unless each of ``sizes`` is positive."""
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{type(self).__name__}: {name} must be at least 1, but is {size}")

    def check_share(self, **shares: float) -> None:
        """Raises ValueError unless each of ``shares`` lies in [0, 1]."""
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{type(self).__name__}: {name} must lie in [0, 1], but is {share}")


class WeightedModel(Model):
    """A :class:`Model` whose convolutions take edge weights."""

    def forward(self, x: Tensor, adj_t: Any, *args: Any, edge_weight: Tensor | None = None) -> Tensor:
        """Rows of the batch [B, out_channels] from those of batch and halo [B + S, in_channels].

        Raises:
            ValueError: if weights come twice; layers would use those of the matrix only.
        """
        if edge_weight is not None and is_matrix(adj_t):
            raise ValueError(
                f"{type(self).__name__}: edge_weight was given beside a sparse matrix, whose "
                "values are the weights; put them there, or pass an edge_index"
            )
        return self.run_layers(x, args, adj_t, edge_weight)


def norm(batch_norm: bool, channels: int) -> Module:
    """A batch norm, or a layer that does nothing."""
    return BatchNorm1d(channels) if batch_norm else Identity()
