"""A graph of any size with communities, hubs and labels, made in O(E) from a seed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import Data

from torch_gas import _core
from torch_gas._util.arguments import checked

# Communities have the size of a neighbourhood and not of a class, as in real graphs: were every
# class one community, partitions of a large graph would cut nearly all edges, and no method on
# partitions could work.
NODES_PER_COMMUNITY = 200
FEATURE_ROWS_AT_ONCE = 65_536
EDGES_AT_ONCE = 1 << 20


@checked
def synthetic(
    num_nodes: int,
    num_classes: int = 10,
    num_features: int = 64,
    avg_degree: float = 10.0,
    homophily: float = 0.7,
    noise: float = 8.0,
    seed: int = 0,
) -> Data:
    r"""A degree-corrected community graph with noisy class centroids as features.

    Communities of about 200 nodes each belong to one class. An edge has one end drawn by node
    weight (a heavy tail, so there are hubs) and the other from the same community with probability
    ``homophily``, else from the whole graph. A node's features are its class' centroid, of entries
    :math:`\mathcal{N}(0, 1)`, plus ``noise`` :math:`\cdot\, \mathcal{N}(0, I)`, so that features
    alone say little and neighbours much. Node ids are shuffled: their order says nothing about
    communities. The global random state is left alone.

    Args:
        num_nodes: N, at least ``num_classes``.
        num_classes: number of classes.
        num_features: width of ``x``.
        avg_degree: E / N before self-loops and repeated edges are removed (a few per cent).
        homophily: share of edges drawn inside a community, in [0, 1].
        noise: standard deviation of the features around their centroid.
        seed: the same seed gives the same graph.

    Returns:
        ``Data`` with ``x`` [N, num_features], ``y`` [N], an undirected ``edge_index`` [2, E] sorted
        by destination without self-loops, and ``train_mask``, ``val_mask``, ``test_mask`` [N] of
        50, 25 and 25 %. Some nodes are isolated.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> data = synthetic(1000, num_classes=4, num_features=16)
        >>> data.x.shape, data.is_undirected(), int(data.train_mask.sum())
        (torch.Size([1000, 16]), True, 500)
    """
    if num_classes < 1 or num_features < 1 or num_nodes < num_classes:
        raise ValueError(
            "synthetic: num_classes and num_features must be positive and num_nodes at least num_classes, but are "
            f"num_classes={num_classes}, num_features={num_features}, num_nodes={num_nodes}"
        )
    if not 0 <= homophily <= 1 or not avg_degree >= 0 or not noise >= 0:
        raise ValueError(
            "synthetic: homophily must lie in [0, 1], avg_degree and noise must not be negative, "
            f"but are homophily={homophily}, avg_degree={avg_degree}, noise={noise}"
        )
    generator = torch.Generator().manual_seed(seed)
    num_communities = max(num_classes, num_nodes // NODES_PER_COMMUNITY)
    community = torch.randint(num_communities, (num_nodes,), generator=generator, device="cpu").sort().values
    new_id = torch.randperm(num_nodes, generator=generator, device="cpu")

    edge_index = _edges(community, new_id, avg_degree, homophily, generator)
    y = torch.empty(num_nodes, dtype=torch.long, device="cpu")
    y[new_id] = community % num_classes
    x = torch.randn(num_nodes, num_features, generator=generator, device="cpu").mul_(noise)
    centroid = torch.randn(num_classes, num_features, generator=generator, device="cpu")
    for rows, labels in zip(x.split(FEATURE_ROWS_AT_ONCE), y.split(FEATURE_ROWS_AT_ONCE), strict=True):
        rows += centroid[labels]

    # Node ids are random already, so any range of them is a random sample.
    node = torch.arange(num_nodes, device="cpu")
    train_end, val_end = num_nodes // 2, num_nodes * 3 // 4
    data = Data(x=x, edge_index=edge_index, y=y, train_mask=node < train_end)
    data.val_mask = (node >= train_end) & (node < val_end)
    data.test_mask = node >= val_end
    return data


def _edges(
    community: Tensor, new_id: Tensor, avg_degree: float, homophily: float, generator: torch.Generator
) -> Tensor:
    """Undirected, coalesced edges [2, E] between the new ids of nodes sorted by ``community``."""
    num_nodes, num_draws = community.numel(), int(community.numel() * avg_degree / 2)

    def uniform(size: int) -> Tensor:
        # float64: in float32, sums of weights over millions of nodes could not tell neighbours
        # apart.
        return torch.rand(size, dtype=torch.float64, generator=generator, device="cpu")

    # Drawing a node by weight = a uniform number looked up in the running sum of weights;
    # restricting the number to a community's stretch of that sum restricts the draw to the
    # community.
    weight_sum = (1 - uniform(num_nodes)).pow_(-0.4).cumsum_(0)
    first = torch.searchsorted(community, torch.arange(int(community[-1]) + 2, device="cpu"))
    bound = torch.cat([weight_sum.new_zeros(1), weight_sum])[first]

    def draw(position: Tensor) -> Tensor:
        return torch.searchsorted(weight_sum, position).clamp_(max=num_nodes - 1)

    # A piece at a time, and ids no wider than needed: a graph of 100M edges is made beside little else.
    ids = torch.int32 if max(num_nodes, 2 * num_draws) < 2**31 else torch.int64
    src, dst = torch.empty(2, num_draws, dtype=ids, device="cpu").unbind()
    inside = torch.empty(num_draws, dtype=torch.bool, device="cpu")
    for start in src.split(EDGES_AT_ONCE):
        start.copy_(draw(uniform(start.numel()).mul_(weight_sum[-1])))
    for here in inside.split(EDGES_AT_ONCE):
        torch.lt(uniform(here.numel()), homophily, out=here)
    for start, here, end in zip(*(ends.split(EDGES_AT_ONCE) for ends in (src, inside, dst)), strict=True):
        home = community[start]
        low = torch.where(here, bound[home], 0.0)
        high = torch.where(here, bound[home + 1], weight_sum[-1])
        end.copy_(new_id[draw((high - low).mul_(uniform(end.numel())).add_(low))])
        start.copy_(new_id[start])
    rowptr, col, _ = _core.adjacent_pairs(src, dst, None, num_nodes, dtype=ids)
    del src, dst, inside, start, here, end
    rowptr, col, _ = _core.symmetric(rowptr, col)
    edge_index = torch.empty(2, col.numel(), dtype=torch.int64, device="cpu")
    edge_index[0] = col
    edge_index[1] = torch.repeat_interleave(rowptr.diff(), output_size=col.numel())
    return edge_index
