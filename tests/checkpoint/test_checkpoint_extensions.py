"""Checkpoints hold the states and tables of a model's extensions."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import random_graph
from nets import Net

from torch_gas import SubgraphLoader, checkpoint
from torch_gas.extensions import Extension

N = 40
DATA = random_graph(N, 160, directed=False)
PTR = torch.arange(0, N + 1, 10)


class Counter(Extension):
    """Counts exchanges."""

    def __init__(self, start: int = 0) -> None:
        self.number = start

    def exchange(self, call: Any, history: Any, rows: Any, pulled: Any) -> None:
        self.number += 1

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.number}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["number"] < 0:
            raise ValueError("there is no such number")
        self.number = state["number"]


class Momenta(Extension):
    """Has tables, and no state."""

    tables = ("momenta",)


def net(*extensions: Extension) -> Net:
    torch.manual_seed(0)
    model = Net(N)
    for extension in extensions:
        model.add_extension(extension)
    return model


def run(model: Net) -> Net:
    for batch in SubgraphLoader(DATA, PTR, 2):
        model(batch)
    return model


def test_states_come_back_in_their_order(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "run", model=run(net(Counter(), Momenta(), Counter(100))))
    first, second = Counter(7), Counter(7)
    assert checkpoint.load(tmp_path / "run", model=net(first, Momenta(), second)) == {}
    assert (first.number, second.number) == (4, 104)


def test_one_that_is_given_by_name_is_saved_once(tmp_path: Path) -> None:
    counter = Counter()
    checkpoint.save(tmp_path / "run", model=run(net(counter)), counter=counter)
    with pytest.raises(ValueError, match="holds the state of 'counter', which was not given"):
        checkpoint.load(tmp_path / "run", model=net(Counter()))
    counter = Counter()
    checkpoint.load(tmp_path / "run", model=net(counter), counter=counter)
    assert counter.number == 4


def test_one_that_is_missing_is_an_error(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "run", model=run(net(Counter(), Momenta())))
    with pytest.raises(ValueError, match=r"the extension 'Counter\.0', which the model does not have.*add_extension"):
        checkpoint.load(tmp_path / "run", model=net(Momenta()))
    with pytest.raises(ValueError, match=r"extension_tables\.momenta.*add the extension that has these tables"):
        checkpoint.load(tmp_path / "run", model=net(Counter()))


def test_one_that_is_new_begins_anew(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "run", model=run(net()))
    counter, model = Counter(7), net(Momenta())
    model.add_extension(counter)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint.load(tmp_path / "run", model=model)
    assert counter.number == 7
    table = model.extension_tables["momenta"][0]
    table.push(torch.ones(N, 16))
    with pytest.warns(UserWarning, match=r"no rows of extension_tables\.momenta\.0.*forgotten"):
        checkpoint.load(tmp_path / "run", model=model)
    assert not bool(table.pull().any()) and bool((table.age < 0).all())


def test_one_that_refuses_its_state_changes_nothing(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "run", model=run(net(Counter(), Counter(-100))))
    first, second = Counter(7), Counter(8)
    model = net(first, second)
    before = [history.pull() for history in model.histories]
    with pytest.raises(
        ValueError, match=r"Counter\.1 refuses its state, and nothing was changed: there is no such number"
    ):
        checkpoint.load(tmp_path / "run", model=model)
    assert (first.number, second.number) == (7, 8)
    assert all(map(torch.equal, before, [history.pull() for history in model.histories]))


def test_another_class_of_the_same_name_is_refused(tmp_path: Path) -> None:
    class Other(Counter):
        pass

    Other.__qualname__ = "Counter"
    Other.__module__ = "elsewhere"
    checkpoint.save(tmp_path / "run", model=run(net(Counter())))
    with pytest.raises(
        TypeError, match=r"holds the state of a .*test_checkpoint_extensions\.Counter.*elsewhere\.Counter"
    ):
        checkpoint.load(tmp_path / "run", model=net(Other()))
