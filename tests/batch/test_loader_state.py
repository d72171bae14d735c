"""A loader goes on from its state with the very next batch, and later epochs follow as they would have."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from graphs import random_graph
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, RandomSampler, Sampler

from torch_gas import EvalSubgraphLoader, SubgraphLoader

PTR = torch.tensor([0, 4, 9, 13, 13, 20, 26, 31, 37, 44, 50])  # one part is empty
EPOCHS = 3
ORDERS = ("none", "seed", "generator", "global")


def make(order: str = "seed", batch_size: int = 2, **options: Any) -> SubgraphLoader:
    if order == "generator":
        options["generator"] = torch.Generator().manual_seed(5)
    if order == "seed":
        options["seed"] = 5
    return SubgraphLoader(random_graph(50, 200), PTR, batch_size, shuffle=order != "none", **options)


def steps(loader: SubgraphLoader, epochs: int) -> Iterator[tuple[list[int], int]]:
    """Ids of each batch, and a number that training draws between two."""
    for _ in range(epochs):
        for batch in loader:
            yield batch.n_id.tolist(), int(torch.randint(10**9, ()))


def through_file(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def resumed(stop: int, **options: Any) -> list[tuple[list[int], int]]:
    """What a run gives that is stopped after ``stop`` batches, and goes on in another loader."""
    torch.manual_seed(1)
    run, before = steps(loader := make(**options), EPOCHS), []
    for _ in range(stop):
        before.append(next(run))
    state, random = through_file(loader.state_dict()), torch.get_rng_state()
    torch.manual_seed(99)
    loader = make(**options)
    loader.load_state_dict(state)
    torch.set_rng_state(random)
    finished = stop // len(loader) if stop % len(loader) else max(stop // len(loader) - 1, 0)
    return before + list(steps(loader, EPOCHS - finished))


def uninterrupted(**options: Any) -> list[tuple[list[int], int]]:
    torch.manual_seed(1)
    return list(steps(make(**options), EPOCHS))


@given(
    order=st.sampled_from(ORDERS),
    batch_size=st.integers(1, 4),
    prefetch=st.integers(0, 3),
    drop_last=st.booleans(),
    regroup=st.booleans(),
    data=st.data(),
)
def test_a_run_goes_on_where_it_stopped(data: st.DataObject, **options: Any) -> None:
    stop = data.draw(st.integers(0, EPOCHS * len(make(**options))))
    assert resumed(stop, **options) == uninterrupted(**options)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("regroup", [False, True])
@pytest.mark.parametrize("order", ["seed", "global", "generator"])
def test_with_workers(order: str, regroup: bool, persistent: bool) -> None:
    """Workers take batches from the order long before they are handed out."""
    plain: dict[str, Any] = {"order": order, "regroup": regroup}
    options: dict[str, Any] = {**plain, "num_workers": 2, "persistent_workers": persistent}
    expected = uninterrupted(**options)
    assert expected == uninterrupted(**plain)
    for stop in (0, 3, 5):
        assert resumed(stop, **options) == expected


def test_between_two_epochs() -> None:
    loader, other = make("global"), make("global")
    torch.manual_seed(3)
    first = [batch.n_id.tolist() for batch in loader]
    state = loader.state_dict()
    assert state["given"] == 0 and state["rest"] is None
    random = torch.get_rng_state()
    second = [batch.n_id.tolist() for batch in loader]
    assert first != second
    other.load_state_dict(state)
    torch.set_rng_state(random)
    assert [batch.n_id.tolist() for batch in other] == second


def test_the_state_is_that_of_the_epoch_under_way() -> None:
    loader = make(batch_size=1)
    inside = iter(loader)
    next(inside), next(inside)
    assert len(list(loader)) == 9  # an evaluation on the same loader, say
    assert loader.state_dict()["given"] == 2
    next(iter(loader))  # a look at a batch
    assert loader.state_dict()["given"] == 2
    forgotten = iter(loader)
    next(forgotten)
    next(inside)
    assert loader.state_dict()["given"] == 3
    del forgotten
    rest = [batch.n_id.tolist() for batch in inside]
    assert len(rest) == 6
    assert loader.state_dict()["rest"] is None


def test_an_epoch_that_was_broken_off_goes_on_until_the_next_begins() -> None:
    loader = make(batch_size=1)
    for _ in loader:
        break
    assert loader.state_dict()["given"] == 1
    for _ in loader:
        assert loader.state_dict()["given"] == 1
        break
    assert len(list(loader)) == 9
    assert loader.state_dict()["given"] == 0


def test_at_the_end_of_an_epoch_comes_the_next() -> None:
    orders = [[batch.n_id.tolist() for batch in epoch] for loader in [make()] for epoch in [loader, loader]]
    loader = make()
    for _ in loader:
        inside = loader.state_dict()
    other = make()
    other.load_state_dict(through_file(loader.state_dict()))
    assert [batch.n_id.tolist() for batch in other] == orders[1]
    other.load_state_dict(through_file(inside))  # in the body of the last step, what follows the loop is still to come
    assert list(other) == []
    assert [batch.n_id.tolist() for batch in other] == orders[1]


def test_a_state_that_was_loaded_is_the_state() -> None:
    loader, other = make(), make()
    run = iter(loader)
    next(run)
    state = loader.state_dict()
    other.load_state_dict(state)
    again = other.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(again.pop("generators"), state.pop("generators"), strict=True))
    assert again == state
    assert len(list(other)) == len(other) - 1
    assert len(list(other)) == len(other)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda loader: pickle.loads(pickle.dumps(loader))])
def test_a_copy_begins_a_new_epoch(duplicate: Any) -> None:
    loader = make()
    run = iter(loader)
    next(run)
    assert duplicate(loader).state_dict()["rest"] is None
    assert len(list(duplicate(loader))) == len(loader)
    assert len(list(run)) == len(loader) - 1


def test_evaluation_loaders_have_a_state_as_well() -> None:
    loader, other = (EvalSubgraphLoader(random_graph(50, 200), PTR, 2) for _ in range(2))
    run = iter(loader)
    next(run)
    other.load_state_dict(loader.state_dict())
    assert [batch.n_id.tolist() for batch in other] == [batch.n_id.tolist() for batch in run]


# -- refused -----------------------------------------------------------------------------------------------------------


def other_order() -> SubgraphLoader:
    data = random_graph(50, 200)
    data.perm = torch.arange(50).flip(0)
    return SubgraphLoader(data, PTR, 2, shuffle=True, seed=5)


OTHERS = {
    "another batch size": (
        lambda: make(batch_size=3),
        r"\(batch_size\) are others .*\(2 then, 3 now\); make the loader as it",
    ),
    "drop_last": (lambda: make(drop_last=True), r"the batches of an epoch \(drop_last\) are others"),
    "another graph": (
        lambda: SubgraphLoader(random_graph(60, 200), torch.tensor([0, 60])),
        r"nodes of the graph are others than when the state was saved \(50 then, 60 now\)",
    ),
    "other parts": (
        lambda: SubgraphLoader(random_graph(50, 200), PTR[[0, 1, 10]], 2),
        r"parts of the partition are others .*save_partition\(\)",
    ),
    "shifted parts": (
        lambda: SubgraphLoader(random_graph(50, 200), PTR + (PTR == 31).long(), 2, shuffle=True, seed=5),
        r"\(checksums of ptr\) are others .*save_partition\(\)",
    ),
    "another order of nodes": (other_order, r"data\.perm\) are others .*save_partition\(\)"),
    "no shuffling": (
        lambda: make("none"),
        r"sampler \(shuffle\) are others .*RandomSampler then, SequentialSampler now",
    ),
    "groups that stay": (
        lambda: make(regroup=False),
        r"rules by which parts are grouped \(regroup\) are others .*\(True then, False now\)",
    ),
    "no seed": (lambda: make("global"), r"random numbers \(seed, generator\) are others .*1 then, 0 now"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_states_of_other_loaders_are_refused(name: str) -> None:
    other, message = OTHERS[name]
    loader = other()
    torch.manual_seed(0)
    expected = [batch.n_id.tolist() for batch in loader]
    loader = other()
    run = iter(make())
    next(run)
    state = make().state_dict()
    with pytest.raises(ValueError, match=message):
        loader.load_state_dict(state)
    torch.manual_seed(0)
    assert [batch.n_id.tolist() for batch in loader] == expected


@pytest.mark.parametrize("state", [{}, None, {"given": 1}, {"state": {}, "param_groups": []}])
def test_what_is_no_state_is_refused(state: Any) -> None:
    with pytest.raises(ValueError, match=r"this is not what state_dict\(\) of a loader returned"):
        make().load_state_dict(state)


class Reversed(Sampler[int]):
    """Indices in falling order, from another start in each epoch."""

    def __init__(self, number: int) -> None:
        self.number, self.epoch = number, 0

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[int]:
        self.epoch += 1
        return iter([(self.epoch - i) % self.number for i in range(self.number)])


class Remembered(Reversed):
    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch = state["epoch"]


def with_sampler(**options: Any) -> SubgraphLoader:
    return SubgraphLoader(random_graph(50, 200), PTR, **options)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_sampler_without_a_state_works_but_cannot_be_saved(num_workers: int) -> None:
    for options in ({"sampler": Reversed(9)}, {"batch_sampler": BatchSampler(Reversed(9), 2, False)}):
        loader = with_sampler(**options, num_workers=num_workers)  # type: ignore[arg-type]
        assert sum(batch.batch_size for batch in loader) == 50
        with pytest.raises(TypeError, match="comes from a Reversed, whose state is not known; give it state_dict"):
            loader.state_dict()
        with pytest.raises(TypeError, match="comes from a Reversed"):
            loader.load_state_dict(make().state_dict())


def test_a_sampler_with_a_state_is_saved() -> None:
    expected = [
        batch.n_id.tolist() for loader in [with_sampler(sampler=Remembered(9))] for _ in "abc" for batch in loader
    ]
    loader = with_sampler(sampler=Remembered(9))
    got = [batch.n_id.tolist() for batch in loader]
    for batch in loader:
        got.append(batch.n_id.tolist())
        if len(got) == 13:
            break
    state = through_file(loader.state_dict())
    loader = with_sampler(sampler=Remembered(9))
    loader.load_state_dict(state)
    assert got + [batch.n_id.tolist() for _ in "bc" for batch in loader] == expected


def test_a_batch_sampler_of_torchs_samplers_is_saved() -> None:
    def loader() -> SubgraphLoader:
        sampler = RandomSampler(range(9), generator=torch.Generator().manual_seed(3))
        return with_sampler(batch_sampler=BatchSampler(sampler, 2, False))

    expected = [batch.n_id.tolist() for each in [loader()] for _ in "ab" for batch in each]
    first = loader()
    got = [batch.n_id.tolist() for _, batch in zip("ab", first, strict=False)]
    second = loader()
    second.load_state_dict(first.state_dict())
    assert len(got) == 2
    rest = [batch.n_id.tolist() for _ in "ab" for batch in second]
    assert rest[-5:] == expected[-5:]
