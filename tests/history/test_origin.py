"""Histories, and the files that hold them, know of which graph their rows are."""

from __future__ import annotations

import copy
import gc
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import random_graph
from nets import Net
from torch_geometric.data import Data

from torch_gas import EvalSubgraphLoader, FileTier, History, SubgraphLoader, checkpoint, permute
from torch_gas.graph.key import graph_key
from torch_gas.graph.origin import Origin, key_of

N = 60
RAW = random_graph(N, 240, directed=False)
PTR = torch.arange(0, N + 1, 15)
PERM = torch.randperm(N, generator=torch.Generator().manual_seed(0))
DATA = permute(RAW, PERM, log=False)
OTHER_ORDER = permute(RAW, PERM.flip(0), log=False)
OTHER_EDGES = copy.copy(DATA)
OTHER_EDGES.edge_index = DATA.edge_index[:, 2:]
OTHERS = {"order of their nodes": OTHER_ORDER, "edges": OTHER_EDGES}
KEY = graph_key(DATA.edge_index, N, DATA.perm)


def loader(data: Data) -> SubgraphLoader:
    return SubgraphLoader(data, PTR, 2)


def run(model: Net, data: Data = DATA) -> Net:
    for batch in loader(data):
        model(batch)
    return model


def keys(model: Net) -> set[str]:
    return {history.origin.key for history in model.histories}


def from_file(folder: Path) -> Net:
    return Net(N, tier=FileTier(folder / "h", reuse=True))


def from_histories(folder: Path) -> Net:
    model = Net(N)
    model.load_histories(folder / "histories")
    return model


def from_run(folder: Path) -> Net:
    model = Net(N)
    checkpoint.load(folder / "run", model=model)
    return model


def from_state(folder: Path) -> Net:
    model = Net(N)
    model.load_state_dict(torch.load(folder / "state", weights_only=True))
    return model


WAYS: dict[str, Callable[[Path], Net]] = {
    "h/history_0.table": from_file, "histories": from_histories, "run": from_run, "earlier calls": from_state,
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of a model that was called on batches of DATA."""
    folder = tmp_path_factory.mktemp("saved")
    model = run(Net(N, tier=FileTier(folder / "h")))
    model.commit_histories()
    model.save_histories(folder / "histories")
    checkpoint.save(folder / "run", model=model)
    torch.save(model.state_dict(), folder / "state")
    del model
    gc.collect()
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of them, which a test may change."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.mark.parametrize("way", WAYS)
def test_what_was_saved_goes_on_with_its_graph(way: str, folder: Path) -> None:
    model = WAYS[way](folder)
    assert keys(model) == {KEY}
    model(next(iter(loader(DATA))))
    model.eval()(loader=EvalSubgraphLoader(DATA, PTR, 2))
    del model
    gc.collect()


@pytest.mark.parametrize("evaluates", [False, True])
@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("way", WAYS)
def test_what_was_saved_refuses_batches_of_another_graph(way: str, other: str, evaluates: bool, folder: Path) -> None:
    model = WAYS[way](folder)
    before = [history.pull() for history in model.histories]
    with pytest.raises(ValueError, match=rf"(?s){way}.*they differ in (the )?{other}.*reset_parameters"):
        if evaluates:
            model.eval()(loader=EvalSubgraphLoader(OTHERS[other], PTR, 2))
        else:
            run(model, OTHERS[other])
    assert all(map(torch.equal, before, [history.pull() for history in model.histories]))
    for history in model.histories:
        history.reset_parameters()
    assert len(keys(run(model, OTHERS[other])) - {KEY}) == 1
    del model
    gc.collect()


def test_graphs_are_checked_where_they_are_given(folder: Path, tmp_path: Path) -> None:
    for way in ("histories", "run"):
        model = Net(N)
        load: Any = (
            model.load_histories if way == "histories" else lambda p, m=model, **k: checkpoint.load(p, model=m, **k)
        )
        with pytest.raises(ValueError, match=rf"{way} holds embeddings of another graph.*they differ in edges"):
            load(folder / way, graph=OTHER_EDGES)
        assert keys(model) == {""} and bool((model.histories[0].pushed_at < 0).all())
        load(folder / way, graph=DATA)
    with pytest.raises(ValueError, match=r"history_0\.table holds embeddings of another graph"):
        Net(N, tier=FileTier(folder / "h", reuse=True, graph=OTHER_ORDER))
    with pytest.raises(ValueError, match="graph has 59 nodes, but the histories are of 60"):
        Net(N, tier=FileTier(tmp_path, graph=Data(num_nodes=N - 1, edge_index=DATA.edge_index)))
    with pytest.raises(TypeError, match="graph must be"):
        Net(N, tier=FileTier(tmp_path / "new", graph="DATA"))


def test_rows_that_were_pushed_by_hand_need_no_graph(tmp_path: Path) -> None:
    tier = FileTier(tmp_path / "x.table")
    history = History(N, 4, tier=tier)
    history.push(torch.ones(N, 4))
    history.commit()
    del history
    history = History(N, 4, tier=FileTier(tmp_path / "x.table", reuse=True))
    assert bool((history.pull() == 1).all())
    history.push(torch.zeros(1, 4), torch.tensor([3]))
    with pytest.raises(ValueError, match=r"x\.table does not tell"):
        history.take_graph(KEY)

    model = Net(N)  # in memory, nobody knows better than the batches
    model.histories[0].push(torch.ones(N, 16))
    assert keys(run(model)) == {KEY}


def test_files_without_rows_ask_for_nothing(tmp_path: Path) -> None:
    model = Net(N, tier=FileTier(tmp_path / "h"))
    model.commit_histories()
    model.save_histories(tmp_path / "histories")
    del model
    assert keys(run(from_file(tmp_path))) == keys(run(from_histories(tmp_path))) == {KEY}


def test_a_graph_that_is_given_to_a_new_file_holds(tmp_path: Path) -> None:
    model = Net(N, tier=FileTier(tmp_path, graph=DATA.edge_index))
    assert keys(model) == {key_of(DATA.edge_index, N)} != {KEY}
    assert keys(run(model)) == {KEY}  # which tells the order as well


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_know_their_graph(duplicate: Callable[[Net], Net]) -> None:
    model = duplicate(run(Net(N)))
    assert keys(model) == {KEY}
    with pytest.raises(ValueError, match="earlier calls of the model"):
        run(model, OTHER_EDGES)


def test_states_without_metadata_are_of_an_unknown_graph() -> None:
    model, state = Net(N), dict(run(Net(N)).state_dict())
    model.load_state_dict(state)
    assert keys(model) == {""}
    assert keys(run(model, OTHER_EDGES)) == {graph_key(OTHER_EDGES.edge_index, N, DATA.perm)}


def test_models_of_release_0_1_that_were_pickled_know_no_graph() -> None:
    history = History(N, 4)
    state = history.__getstate__()
    del state["origin"]
    other = History(N, 4)
    other.__setstate__(state)
    assert other.origin == Origin()


def test_whole_graphs() -> None:
    model = run(Net(N))
    before = [history.pull() for history in model.histories]
    with torch.no_grad():
        model.eval()(OTHER_EDGES.x, OTHER_EDGES.edge_index)  # another graph of the same size leaves histories alone
        assert keys(model) == {KEY} and all(map(torch.equal, before, [h.pull() for h in model.histories]))
        model(DATA.x, DATA.edge_index)
        assert keys(model) == {KEY}
        model.train()(OTHER_EDGES.x, OTHER_EDGES.edge_index)  # training on it makes the histories its own
    with pytest.raises(ValueError, match="they differ in edges"):
        run(model)
    assert keys(run(model, OTHER_EDGES)) == {graph_key(OTHER_EDGES.edge_index, N, DATA.perm)}


@pytest.mark.parametrize("training", [False, True])
def test_the_first_whole_graph_is_the_models(training: bool) -> None:
    model = Net(N).train(training)
    model(DATA.x, DATA.edge_index)
    assert keys(model) == {key_of(DATA.edge_index, N)}
    before = [history.pull() for history in model.histories]
    model.eval()(OTHER_EDGES.x, OTHER_EDGES.edge_index)
    run(model)
    assert keys(model) == {KEY}
    with torch.no_grad():
        for history, rows in zip(model.histories, before, strict=True):
            torch.testing.assert_close(history.pull(), rows)  # batches went on from exact rows


def test_what_was_evaluated_before_the_first_batch_is_forgotten_where_it_was_another_graph() -> None:
    corrupted = DATA.x.flip(0), DATA.edge_index
    for x, edges in ((OTHER_EDGES.x, OTHER_EDGES.edge_index), corrupted):
        model = Net(N)
        model.eval()(x, edges)
        assert bool((model.histories[0].pushed_at >= 0).all())
        batch = next(iter(loader(DATA)))
        model.train()(batch)
        assert int((model.histories[0].pushed_at >= 0).sum()) == batch.batch_size and keys(model) == {KEY}
        model = Net(N)
        model(OTHER_EDGES.x, OTHER_EDGES.edge_index)  # training is no evaluation
        with pytest.raises(ValueError, match=r"earlier calls of the model.*differ in edges"):
            run(model)
