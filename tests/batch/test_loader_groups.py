"""``regroup=False``: parts that meet in a batch do so in each epoch, and only the order of batches is drawn anew."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import pytest
import torch
from graphs import random_graph, random_parts
from hypothesis import given
from hypothesis import strategies as st
from nets import Net
from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler

from torch_gas import EvalSubgraphLoader, ExactGradient, Monitor, SubgraphLoader, hot_nodes

N = 80
PTR = torch.arange(0, N + 1, 5)  # 16 parts
EPOCHS = 6


def make(batch_size: int = 3, **options: Any) -> SubgraphLoader:
    options = {"shuffle": True, "regroup": False} | options
    return SubgraphLoader(random_graph(N, 200), PTR, batch_size, **options)


def starts(loader: SubgraphLoader) -> list[tuple[int, ...]]:
    """First nodes of the parts of each batch of an epoch."""
    return [tuple(batch.offset.tolist()) for batch in loader]


ORDERS: dict[str, Any] = {
    "global": lambda: {},
    "seed": lambda: {"seed": 3},
    "generator": lambda: {"generator": torch.Generator().manual_seed(3)},
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("options", [{}, {"prefetch": 2}, {"cache_size": 0}, {"drop_last": True}])
def test_groups_stay_and_their_order_does_not(order: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    loader = make(**ORDERS[order](), **options)
    epochs = [starts(loader) for _ in range(EPOCHS)]
    assert len({frozenset(epoch) for epoch in epochs}) == 1
    assert len(set(map(tuple, epochs))) == EPOCHS
    assert all(len(epoch) == len(loader) == (5 if "drop_last" in options else 6) for epoch in epochs)
    places = {tuple(map(len, epoch)).index(min(map(len, epoch))) for epoch in epochs}
    assert "drop_last" in options or len(places) > 1  # the batch of fewer parts comes anywhere
    assert any(b - a > 5 for group in epochs[0] for a, b in itertools.pairwise(sorted(group)))  # drawn at random


@given(num_parts=st.integers(1, 12), batch_size=st.integers(1, 5), seed=st.integers(0, 99))
@pytest.mark.filterwarnings("ignore:.*counts parts")
def test_each_node_once_an_epoch(num_parts: int, batch_size: int, seed: int) -> None:
    data, ptr = random_graph(40, 100), random_parts(40, num_parts, seed)
    loader = SubgraphLoader(data, ptr, batch_size, shuffle=True, regroup=False, seed=seed)
    for _ in range(2):
        ids = torch.cat([batch.n_id[: batch.batch_size] for batch in loader])
        assert ids.sort().values.tolist() == list(range(40))


def test_who_draws_the_groups() -> None:
    torch.manual_seed(0)
    first, other = make(seed=3), make(seed=4)
    torch.manual_seed(1)
    again = make(seed=3)
    assert [starts(first) for _ in "ab"] == [starts(again) for _ in "ab"]
    assert set(starts(first)) != set(starts(other))
    unseeded = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        unseeded.append(set(starts(make())))
    assert unseeded[0] == unseeded[1] != unseeded[2]


def test_without_shuffling_it_changes_nothing() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    loader, plain = make(shuffle=False), make(shuffle=False, regroup=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert starts(loader) == starts(loader) == starts(plain)
    loader.load_state_dict(plain.state_dict())
    evaluation = EvalSubgraphLoader(random_graph(N, 200), PTR, 3, regroup=False)
    assert starts(evaluation) == [(0,), (15,), (30,), (45,), (60,), (75,)]


def test_batches_are_kept() -> None:
    loader = make(seed=0)
    addresses = [
        {batch.offset.tolist()[0]: batch.edge_index.data_ptr() for batch in epoch} for epoch in (loader, loader)
    ]
    assert addresses[0] == addresses[1]
    assert make(regroup=True)._cache.capacity == 0
    loader.data.x[0] += 1
    assert all(torch.equal(batch.x, loader.data.x[batch.n_id]) for batch in loader)


@pytest.mark.parametrize("neighbors", ["in", "both"])
@pytest.mark.parametrize("options", [{}, {"drop_last": True}, {"batch_size": 1}])
def test_halos_are_those_of_the_groups(options: dict[str, Any], neighbors: str) -> None:
    loader = make(seed=2, neighbors=neighbors, **options)
    wanted = sorted(batch.n_id[batch.batch_size :].tolist() for batch in loader)
    assert sorted(halo.tolist() for halo in loader.halos()) == wanted
    assert loader.largest_halo == max(map(len, wanted))
    ids = [i for halo in wanted for i in halo]
    hot = hot_nodes(loader)
    assert [ids.count(i) for i in hot.tolist()] == sorted(map(ids.count, set(ids)), reverse=True)


def test_what_a_loader_tells_of_itself() -> None:
    loader = make(seed=2, drop_last=True)
    assert (loader.batch_size, loader.drop_last, len(loader)) == (3, True, 5)
    assert isinstance(loader.sampler, RandomSampler) and loader.generator is None
    assert {len(group) for group in loader.batch_sampler} == {3}
    assert "batch_size=3" in repr(loader)
    records = [batch.record for batch in loader]
    assert [(each.index, each.num_batches) for each in records] == [(i, 5) for i in range(5)]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda loader: pickle.loads(pickle.dumps(loader))])
def test_copies_have_the_same_groups(duplicate: Any) -> None:
    loader = make(seed=2)
    starts(loader)
    assert starts(duplicate(loader)) == starts(loader)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("options", [{}, {"persistent_workers": True}])
def test_workers_make_the_same_batches(options: dict[str, Any]) -> None:
    loader, plain = make(seed=2, num_workers=2, **options), make(seed=2)
    for _ in range(2):
        for left, right in zip(loader, plain, strict=True):
            assert torch.equal(left.n_id, right.n_id) and torch.equal(left.x, right.x)


# -- states ------------------------------------------------------------------------------------------------------------


def test_a_state_brings_its_groups() -> None:
    """Without a seed each run draws other groups: those of a state are what histories and orders belong to."""
    torch.manual_seed(0)
    loader = make()
    for _, batch in zip("ab", loader, strict=False):
        assert batch.batch_size > 0
    state, random = loader.state_dict(), torch.get_rng_state()
    rest = starts(loader)
    torch.manual_seed(1)
    other = make()
    kept, halo = set(starts(other)), other.largest_halo  # of groups that the state replaces
    assert kept.isdisjoint(rest)
    other.load_state_dict(state)
    assert len(starts(other)) == len(other) - 2
    torch.set_rng_state(random)
    assert starts(other) == rest
    assert other.largest_halo == loader.largest_halo != halo
    assert other._cache._entries.keys() <= {tuple(start // 5 for start in batch) for batch in rest}
    groups = [list(group) for group in other.state_dict()["groups"]]
    loader._epochs.groups[0].reverse()  # which no other loader shares
    assert other.state_dict()["groups"] == groups


def test_states_of_the_first_release_are_of_loaders_that_regroup() -> None:
    old = make(regroup=True, seed=2).state_dict()
    del old["groups"], old["number"], old["loader"]["regroup"]
    make(regroup=True, seed=2).load_state_dict(old)
    with pytest.raises(ValueError, match=r"\(regroup\) are others .*True then, False now"):
        make(seed=2).load_state_dict(old)


def test_measuring_leaves_the_order_alone() -> None:
    torch.manual_seed(0)
    loader, plain = make(seed=2), make(seed=2)
    model = Net(N, 4)
    Monitor(model).errors(loader)
    ExactGradient(model, loader).compute(lambda out, batch: out.sum())
    assert starts(loader) == starts(plain)


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [{}, {"shuffle": True}, {"shuffle": True, "regroup": False}, {"regroup": False}])
@pytest.mark.parametrize("seed", [None, 0])
def test_a_sampler_beside(shuffle: dict[str, Any], seed: int | None) -> None:
    samplers = {
        "sampler": SequentialSampler(range(16)),
        "batch_sampler": BatchSampler(SequentialSampler(range(16)), 3, False),
    }
    for name, sampler in samplers.items():
        options = {"seed": seed, **shuffle, name: sampler}
        if not shuffle:
            assert len(list(SubgraphLoader(random_graph(N, 200), PTR, **options))) > 0
            continue
        which = "shuffle=True" if "shuffle" in shuffle else "regroup=False"
        with pytest.raises(ValueError, match=f"^SubgraphLoader: {name} says .*{which}; leave one of them out"):
            SubgraphLoader(random_graph(N, 200), PTR, **options)


@pytest.mark.filterwarnings("ignore:.*counts parts")
def test_nothing_is_left() -> None:
    with pytest.raises(ValueError, match="drop_last leaves out all of the 16 parts, because batch_size is 17"):
        make(17, drop_last=True)
    with pytest.raises(ValueError, match="batch_size should be a positive integer"):
        make(0)
