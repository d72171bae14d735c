"""Every malformed call is refused with the name of its argument, changes nothing, and is forgotten by the next call.

The calls are not written down: rules of ``malformed.py`` make them from the valid ones in ``surface.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from malformed import Malformed, malformed
from surface import LEFT_OUT, MAKERS, offered
from torch import Tensor
from torch_geometric.data import Data

REFUSALS = (TypeError, ValueError, IndexError, RuntimeError, FileNotFoundError)

# Of two arguments that do not fit each other, an error may name the other one.
MISFITS = {
    "one row less", "one row more", "one column less", "one dimension more", "no nodes", "a negative length", "a huge length",
    "integers",
}  # fmt: skip
ALSO_CALLED = {"adj_t": "adjacency"}  # its name in errors, because users know it as edge_index, too

# Calls that are not malformed although a rule says so: (call, argument, kind) and the reason. They must work.
VALID = {
    ("History.pull", "n_id", "an id twice"): "a row may be read twice",
    ("History.mark of ids", "n_id", "one row less"): "any rows may be marked",
    ("History.check_rows", "x", "one row *"): "any number of rows has the right width",
    ("_core.fill_chunks", "value", "negative"): "any number may be written",
    ("AsyncIOPool.pull_now", "src", "one row *"): "a table of another length holds these rows, too",
    ("AsyncIOPool.async_push", "dst", "one row *"): "a table of another length holds these rows, too",
    ("AsyncIOPool.async_pull", "src", "one row *"): "a table of another length holds these rows, too",
    ("AsyncIOPool.async_pull", "index", "one row *"): "any rows may be pulled",
    ("ScalableGNN.__call__*", "adj_t", "one column less"): "a batch may lack an edge",
    ("ScalableGNN.__call__ with ids made by hand", "n_id", "an id twice"): "a halo may hold a node twice",
    ("models.PNA*", "deg", "f*s"): "degrees may be of any type",
    ("models.PNAConv", "deg", "one *"): "only the mean of all degrees counts",
    ("check", "data", "edge_index: an* id*"): "check() looks at features; loaders check edges",
    ("check", "data", "edge_index: a negative id"): "check() looks at features; loaders check edges",
    ("scale", "data", "edge_index: an* id*"): "scale() looks at features; loaders check edges",
    ("scale", "data", "edge_index: a negative id"): "scale() looks at features; loaders check edges",
    ("*", "ptr", "one row more"): "the last part may be empty",
    ("*", "rowptr", "one row more"): "the last row may be empty",
    ("*SubgraphLoader", "seed", "negative"): "torch's generators take negative seeds",
    ("gen_masks", "seed", "negative"): "torch's generators take negative seeds",
    ("datasets.*", "seed", "negative"): "torch's generators take negative seeds",
    ("metis", "edge_weight", "integers"): "weights may be whole numbers",
    ("metis", "node_weight", "flags"): "nodes may count or not",
    ("permute", "data", "no edges"): "nodes alone have an order as well",
    ("permute", "data", "two adjacencies"): "both are reordered",
    ("unpermute", "value", "complex"): "rows may be of any type",
    ("unpermute", "value", "sparse"): "rows may be of any type",
    ("unpermute", "value", "integers"): "rows may be of any type",
    ("unpermute", "value", "without memory"): "rows may be anywhere",
    ("unpermute", "value", "one column less"): "rows may have any width",
    ("save_partition", "path", "an unknown name"): "it becomes the name of a file",
    ("gcn_norm", "data", "no nodes"): "an empty graph has no weights",
    ("add_self_loops", "data", "no nodes"): "an empty graph has no self-loops",
    ("in_degree", "adj", "*id*"): "sources are not counted",
    ("in_degree", "adj", "one column less"): "a graph may lack an edge",
    ("dropout", "adj", "*id*"): "an edge_index does not tell how many nodes there are",
    ("dropout", "adj", "one column less"): "a graph may lack an edge",
    ("compute_micro_f1", "logits", "integers"): "scores may be whole numbers",
    ("gen_masks", "y", "one row *"): "a graph may have any number of nodes",
    ("_core.advise_huge_pages", "tensor", "one *"): "it is about memory of any shape",
    ("_core.advise_huge_pages", "tensor", "a number"): "it is about memory of any shape",
    ("_core.advise_huge_pages", "tensor", "complex"): "it is about memory of any type",
    ("_core.advise_huge_pages", "tensor", "integers"): "it is about memory of any type",
    ("_core.dropout", "x", "one *"): "numbers may have any shape",
    ("_core.dropout", "x", "a number"): "numbers may have any shape",
    ("_core.dropout", "x", "flat"): "numbers may have any shape",
    ("_core.*", "table", "one row *"): "a table of another length holds these rows, too",
    ("AsyncIOPool.async_pull", "src", "one column less"): "rows may have any width",
    ("_core.batch_rows", "table", "one column less"): "rows may have any width",
    ("_core.batch_rows", "table", "flat"): "rows may be single numbers",
    ("_core.batch_rows", "table", "integers"): "rows may be of any type",
    ("_core.batch_rows*", "halo", "one row *"): "a halo may have any size",
    ("FileTier", "path", "an unknown name"): "it becomes the name of a folder",
    ("ScalableGNN.keep_hot", "n_id", "one row less"): "any rows may be hot",
    ("store_features", "path", "an unknown name"): "it becomes the name of a file",
    ("StoredFeatures*", "halo", "one row *"): "a halo may have any size",
    ("store_features", "x", "an array"): "arrays are stored as well",
    ("store_features", "x", "one column less"): "rows may have any width",
    ("store_features", "x", "integers"): "features may be whole numbers",
    ("_core.read_ahead", "index", "one row *"): "any rows may be read ahead",
    ("_core.entry_softmax*", "slope", "negative"): "a slope may be negative",
    ("_core.product", "rows", "one column less"): "rows may have any width",
    ("_core.own_transpose", "col", "*id*"): "it answers that there is no such entry",
    ("_core.row_pointers", "ids", "one row *"): "there may be any number of edges",
    ("_core.reductions", "rows", "one column less"): "rows may have any width",
    ("_core.dropout_rows", "x", "one column less"): "rows may have any width",
    ("labelled_mean", "batch", "*edge*"): "it looks at no edges",
    ("labelled_mean", "batch", "two adjacencies"): "it looks at no edges",
    ("extensions.Important", "importance", "one row *"): "the graph that it is of comes later",
    ("extensions.Important", "importance", "integers"): "importance may be whole numbers",
    ("_core.subgraph", "col", "one row more"): "edges behind the last row belong to nobody",
}  # fmt: skip

# Refused by torch or PyG inside of a layer, which says what it takes better than this library could.
OF_LAYERS = {
    ("ScalableGNN.__call__", "x", "complex"), ("ScalableGNN.__call__", "x", "sparse"),
    ("ScalableGNN.__call__", "x", "one column less"), ("ScalableGNN.__call__", "x", "integers"),
    ("ScalableGNN.__call__", "adj_t", "None"), ("regularization.local_perturbation", "h", "one column less"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some calls write files."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", MAKERS)
def test_refused(name: str) -> None:
    call = MAKERS[name]()
    variants = list(malformed(call))
    before = snapshot((call.arguments, call.state))
    wrong, refused = [], 0
    for variant in variants:
        if reason_of(name, variant) is not None:
            continue
        complaint = complaint_about(name, call, variant)
        if not same(snapshot((call.arguments, call.state)), before):
            complaint = "changed something"
        if complaint is not None:
            wrong.append(f"{name}({variant.argument}: {variant.kind}) {complaint}")
        refused += 1
    print(f"{refused} malformed calls of {name} were refused")
    assert not wrong, "\n".join(wrong)
    assert refused > 0
    call.function(**call.arguments)  # works as if nothing had happened


@pytest.mark.parametrize("name", MAKERS)
def test_exceptions_are_valid(name: str) -> None:
    for variant in malformed(MAKERS[name]()):
        if reason_of(name, variant) is None:
            continue
        call = MAKERS[name]()  # anew, because a valid call may change its tables
        value = next(v.value for v in malformed(call) if v[:2] == variant[:2])
        call.function(**call.arguments | {variant.argument: value})


def test_there_are_many() -> None:
    count = sum(reason_of(name, variant) is None for name, make in MAKERS.items() for variant in malformed(make()))
    print(f"{count} malformed calls of {len(MAKERS)} functions")
    assert count >= 4000


def test_everything_offered_is_called() -> None:
    called = {name.split(" ")[0] for name in MAKERS}
    missing = [name for name in offered() if name not in called and name not in LEFT_OUT]
    assert missing == []
    assert not called & LEFT_OUT.keys()


def reason_of(name: str, variant: Malformed) -> str | None:
    """Why a call is not malformed after all, if it is not."""
    key = (name, variant.argument, variant.kind)
    found = (why for pattern, why in VALID.items() if all(map(fnmatch, key, pattern)))
    return next(found, None) if is_about_value(variant) else None


def is_about_value(variant: Malformed) -> bool:
    """Whether only the value may be wrong, and not the type."""
    of_types = ("a string", "a flag", "a fraction")
    return isinstance(variant.value, (Tensor, Data, np.ndarray, int, float, str)) and variant.kind not in of_types


def complaint_about(name: str, call: Any, variant: Malformed) -> str | None:
    """What is wrong with the answer to a malformed call."""
    try:
        call.function(**call.arguments | {variant.argument: variant.value})
    except FileNotFoundError as error:
        return None if str(variant.value) in str(error) else f"is answered by {error}"
    except REFUSALS as error:
        if (name.removesuffix(" with ids made by hand"), variant.argument, variant.kind) in OF_LAYERS:
            return None
        names = [variant.argument, ALSO_CALLED.get(variant.argument, variant.argument)]
        if variant.kind in MISFITS:
            names += call.arguments
        named = re.search(rf"\b({'|'.join(names)})\b", str(error), re.IGNORECASE)
        return None if named else f"is answered by {type(error).__name__}: {error}"
    except Exception as error:
        return f"failed with {type(error).__name__}: {error}"
    return "was accepted"


def snapshot(value: Any) -> Any:
    """A copy of all numbers in ``value``."""
    return list(numbers(value))


def numbers(value: Any) -> Iterator[Any]:
    if isinstance(value, torch.nn.Module):
        value = value.state_dict()
    if isinstance(value, Data):
        value = value.to_dict()
    if isinstance(value, dict):
        value = list(value.items())
    if isinstance(value, Tensor):
        yield value.to_dense().clone() if value.is_sparse else value.clone()
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, (int, float, str)):
        yield value


def same(left: list[Any], right: list[Any]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(left, right, strict=True)
    )
