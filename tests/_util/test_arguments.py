"""Arguments that a user may hold in other types, and sizes that no memory has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graphs import random_graph
from torch_geometric.data import Data, HeteroData

import torch_gas as gas
from torch_gas import FileTier, History, SubgraphLoader
from torch_gas._util.arguments import checked

N = 60
PTR = torch.tensor([0, 14, 37, N])


@checked
def given(
    number: int = 0,
    fraction: float = 0.0,
    flag: bool = False,
    several: Sequence[int] = (),
    named: Mapping[str, int] = {},
) -> list[Any]:
    return [number, fraction, flag, several, named]


@pytest.mark.parametrize("position", range(5))
@pytest.mark.parametrize("by_name", [False, True])
def test_numbers_of_numpy_arrive_as_those_of_python(position: int, by_name: bool) -> None:
    values = [np.int32(3), np.float32(0.5), np.bool_(True), [np.int64(1), 2], {"a": np.uint8(7)}]
    wanted = [3, 0.5, True, [1, 2], {"a": 7}]
    name = ["number", "fraction", "flag", "several", "named"][position]
    out = given(**{name: values[position]}) if by_name else given(*wanted[:position], values[position])
    assert out[position] == wanted[position]
    leaves = {3: out[3], 4: list(out[4].values())}.get(position, [out[position]])
    assert all(type(leaf) in (int, float, bool) for leaf in leaves)


@pytest.mark.parametrize("bad", [np.float64(1), np.bool_(True), np.uint64(2**63), "1", [1], np.array([1])])
def test_what_is_no_number(bad: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="given: number must be"):
        given(number=bad)


def test_numbers_of_numpy_in_public_calls(tmp_path: Path) -> None:
    data = random_graph(N, 240)
    two = np.int64(2)
    plain = [batch.n_id for batch in SubgraphLoader(data, PTR, 2, shuffle=True, seed=2)]
    assert all(map(torch.equal, plain, (b.n_id for b in SubgraphLoader(data, PTR, two, shuffle=True, seed=two))))
    assert History(np.int64(N), np.int32(4), tier=FileTier(tmp_path / "table")).emb.shape == (N, 4)
    assert gas.metis(data, np.int16(3), seed=np.int64(1), log=False).ptr.numel() == 4


HUGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "history": (lambda path: History(2**62, 4), "num_embeddings=4611686018427387904"),
    "wide history": (lambda path: History(4, 2**61), "embedding_dim"),
    "history that memory might address": (lambda path: History(2**44, 4), "num_embeddings"),
    "history in a file": (lambda path: History(2**62, 4, tier=FileTier(path / "table")), "num_embeddings"),
    "model": (lambda path: gas.models.GCN(2**62, 4, 4, 4, 2), "num_embeddings"),
    "degrees": (lambda path: gas.in_degree(torch.zeros(2, 3, dtype=torch.int64), 2**62), r"in_degree\(\): num_nodes"),
    "parts": (lambda path: gas.metis(random_graph(9, 20), 2**45, log=False), "num_parts must be at most"),
    "nodes": (lambda path: gas.metis(torch.zeros(2, 3, dtype=torch.int64), 4, num_nodes=2**62, log=False), "num_nodes"),
    "normalisation": (
        lambda path: gas.gcn_norm(Data(edge_index=torch.zeros(2, 3, dtype=torch.int64), num_nodes=2**62)),
        r"gcn_norm\(\): num_nodes",
    ),
    "splits": (lambda path: gas.gen_masks(torch.arange(6) % 2, 1, 1, num_splits=2**60), "num_splits"),
    "mask": (lambda path: gas.pygas.index_to_mask(torch.arange(3), 2**62), "size"),
}


@pytest.mark.parametrize("name", HUGE)
def test_sizes_that_no_memory_has(name: str, tmp_path: Path) -> None:
    call, named = HUGE[name]
    with pytest.raises(ValueError, match=named):
        call(tmp_path)


def test_graphs_of_several_types_and_data_sets() -> None:
    hetero = HeteroData()
    for call in (
        lambda: gas.metis(hetero, 3),
        lambda: gas.permute(hetero, torch.arange(3)),
        lambda: SubgraphLoader(hetero, PTR),
        lambda: gas.gcn_norm(hetero),
    ):
        with pytest.raises(TypeError, match=r"HeteroData.*to_homogeneous\(\)"):
            call()


def test_features_in_coordinates() -> None:
    data = random_graph(N, 240)
    data.x = data.x.to_sparse()
    with pytest.raises(ValueError, match=r"data\.x is torch\.sparse_coo.*to_dense\(\), or \.to_sparse_csr\(\)"):
        SubgraphLoader(data, PTR)
    data.x = data.x.to_sparse_csr()
    assert next(iter(SubgraphLoader(data, PTR))).x.layout == torch.sparse_csr


def test_subgraphs_of_permuted_graphs() -> None:
    data = random_graph(N, 240)
    data = gas.permute(data, gas.metis(data, 4, log=False), log=False)
    part = data.subgraph(torch.arange(N) % 3 > 0)
    parts = gas.metis(part, 3, log=False)
    for call in (lambda: gas.permute(part, parts, log=False), lambda: gas.unpermute(part)):
        with pytest.raises(ValueError, match=r"data\.perm.*subgraph of a permuted graph.*`del data\.perm`"):
            call()
    part.original = part.perm
    del part.perm
    part = gas.permute(part, parts, log=False)
    assert sum(batch.batch_size for batch in SubgraphLoader(part, parts.ptr)) == part.num_nodes
    assert torch.equal(part.original.sort().values, data.perm[torch.arange(N) % 3 > 0].sort().values)
