"""Graphs of CLUSTER, as many as wanted: the stochastic block model that they were drawn from."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch_geometric.data import Data

from torch_gas._util.arguments import checked

COMMUNITIES = 6
SIZES = (5, 35)  # nodes of a community, the upper end left out
INSIDE, BETWEEN = 0.55, 0.25  # probability that two nodes of a graph are joined


@checked
def synthetic_cluster(num_graphs: int, seed: int = 0) -> Data:
    r"""Graphs like those of CLUSTER (Dwivedi et al., https://arxiv.org/abs/2003.00982), drawn anew and joined into one.

    Each graph has six communities of 5 to 34 nodes. Two nodes are joined with probability 0.55 in the same community and 0.25
    otherwise. One node of each community tells its class; all others are to be told which community they are in. The
    published data set has 10,000 such graphs for training, of 117 nodes on average.

    Args:
        num_graphs: number of graphs, at least 1.
        seed: the same seed gives the same graphs. The global random state is left alone.

    Returns:
        ``Data`` with ``x`` [N, 7], which is 1 in column c + 1 where a node tells its class c, and in column 0 where it tells
        nothing; ``y`` [N]; and an undirected ``edge_index`` [2, E] sorted by destination, without self-loops.

    Raises:
        ValueError: if ``num_graphs`` is below 1.

    Example:
        >>> from torch_gas.datasets import synthetic_cluster
        >>> data = synthetic_cluster(10)
        >>> data.x.shape[1], data.is_undirected(), int(data.x[:, 1:].sum())
        (7, True, 60)
    """
    if num_graphs < 1:
        raise ValueError(f"synthetic_cluster: num_graphs must be at least 1, but is {num_graphs}")
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(*SIZES, (num_graphs, COMMUNITIES), generator=generator, device="cpu")
    first = torch.cat([sizes.new_zeros(1), sizes.flatten().cumsum(0)])
    y = torch.arange(COMMUNITIES, device="cpu").repeat(num_graphs).repeat_interleave(sizes.flatten())

    told = first[:-1] + (torch.rand(sizes.numel(), generator=generator, device="cpu") * sizes.flatten()).long()
    x = torch.zeros(y.numel(), COMMUNITIES + 1, device="cpu")
    x[:, 0] = 1
    x[told] = torch.eye(COMMUNITIES + 1, device="cpu")[1:].repeat(num_graphs, 1)

    ends = first[::COMMUNITIES].tolist()
    edges = [_edges(y[start:end], generator) + start for start, end in pairwise(ends)]
    return Data(x=x, y=y, edge_index=torch.cat(edges, dim=1))


def _edges(community: Tensor, generator: torch.Generator) -> Tensor:
    """Both directions of the edges of a graph, by destination."""
    probability = torch.where(community == community[:, None], INSIDE, BETWEEN)
    joined = (torch.rand(probability.shape, generator=generator, device="cpu") < probability).triu(1)
    return (joined | joined.t()).nonzero().t().flip(0)
