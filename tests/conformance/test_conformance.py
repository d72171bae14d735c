"""Contract 1 for the layers of PyG: exact on batches, or refused; never something else."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_geometric.nn as nn
from graphs import FORMATS
from torch import Tensor
from torch.nn import Linear, Module
from torch_geometric.nn import MessagePassing

from conformance import CASES, EXACT, REFUSED, SCALED, WIRINGS, WITHOUT, Case, class_of, formats, measure
from conformance.__main__ import main
from conformance.graph import N
from conformance.page import Key, counts, page, standing
from torch_gas.extensions.compensation import Compensation
from torch_gas.wiring import refuse

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"
# Inference may find a result read twice that it left out, and compute it: slower, and as exact.
pytestmark = pytest.mark.filterwarnings("ignore:.*inference computes all layers from this sweep on:UserWarning")


def test_every_class_of_pyg_is_in_the_table() -> None:
    named = set(map(class_of, CASES)) | set(WITHOUT)
    unknown = set(nn.conv.__all__) - named
    assert not unknown, f"new in PyG: add {unknown} to tests/conformance/layers.py"
    assert len(CASES) == len(EXACT) + len(SCALED) + len(REFUSED)  # none is in two
    assert not set(WITHOUT) & set(map(class_of, CASES))


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("name", CASES)
def test_explicit(name: str, fmt: str) -> None:
    check("explicit", name, fmt)


@pytest.mark.parametrize("name", CASES)
def test_automatic(name: str) -> None:
    check("automatic", name, "edge_index")


@pytest.mark.parametrize("number", range(len(CASES)), ids=list(CASES))
def test_automatic_in_another_format(number: int) -> None:
    """Formats take turns, for the time it takes; docs/conformance.md has them all."""
    others = [fmt for fmt in formats() if fmt != "edge_index"]
    check("automatic", list(CASES)[number], others[number % len(others)])


def check(wiring: str, name: str, fmt: str) -> None:
    # Some products of PyG over its other formats exist in float32 only.
    takes_turn = fmt == "edge_index" or wiring == "automatic"  # docs/conformance.md has gradients of all formats
    dtype = torch.float64 if fmt == "edge_index" else torch.float32
    result = measure(CASES[name], wiring, fmt, dtype, summed_gradients=takes_turn)
    if result.outcome == "not applicable":
        missing = "ImportError" in result.message
        assert missing or fmt != "edge_index" or name in REFUSED, result.message
        pytest.skip(f"PyG: {result.message.splitlines()[0]}")
    is_exact = name in EXACT or (name in SCALED and wiring == "automatic")
    assert result.outcome == ("exact" if is_exact else "refused"), result
    measured = {"forward", "gradient", "inference"} if is_exact else set()
    if is_exact and takes_turn:
        measured.add("compensated gradient")
        if not (name.startswith("SuperGATConv") and fmt in ("EdgeIndex", "csr")):  # which PyG cannot train with them
            measured.add("exact gradient")
    assert set(result.errors) == measured


@pytest.mark.parametrize("name", [name for name in WITHOUT if name != "MessagePassing" and hasattr(nn, name)])
def test_class_without_a_case_is_refused_by_name(name: str) -> None:
    layer = getattr(nn, name).__new__(getattr(nn, name))
    Module.__init__(layer)  # its own needs packages or graphs of other kinds
    with pytest.raises(ValueError, match=f"{name} cannot be used on a batch: it .*; use "):
        refuse(layer, automatic=True)


# -- what is wrong is found ----------------------------------------------------------------------------------------------


class OverRows(MessagePassing):
    """Counts all rows that it sees, which are more on the whole graph."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = Linear(8, 8)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.propagate(edge_index, x=self.lin(x) / x.size(0))

    def message(self, x_j: Tensor) -> Tensor:
        return x_j


class OwnGradient(MessagePassing):
    """Gives the same rows everywhere, and where a batch has a halo half of the gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = Linear(8, 8)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.lin(x)
        return self.propagate(edge_index, x=x if x.size(0) == N else (x + x.detach()) / 2)

    def message(self, x_j: Tensor) -> Tensor:
        return x_j


@pytest.mark.parametrize("fmt", ["edge_index", "csr"])
def test_layer_that_counts_rows_is_wrong_or_refused(fmt: str) -> None:
    result = measure(Case(OverRows), "explicit", fmt)
    assert result.outcome == "WRONG"
    assert result.errors["forward"] > 0.1 and result.errors["inference"] > 0.1
    assert result.errors["gradient"] > 0.1  # of the last layer, for the batch with a halo
    refused = measure(Case(OverRows), "automatic", fmt)
    assert refused.outcome == "refused" and "_Net cannot be trained with histories" in refused.message


def test_wrong_gradient_is_found() -> None:
    result = measure(Case(OwnGradient), "explicit", "edge_index")
    assert result.outcome == "WRONG"
    assert result.errors["forward"] < 1e-5 and result.errors["inference"] < 1e-5
    assert result.errors["gradient"] == pytest.approx(0.5)
    assert result.errors["exact gradient"] > 0.1 and result.errors["compensated gradient"] > 0.1


@pytest.mark.parametrize("wiring", WIRINGS)
def test_gradient_that_is_not_compensated_is_found(wiring: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(trust: float, **options: Any) -> Compensation:
        return Compensation(0.0, **options)

    monkeypatch.setattr(sys.modules["conformance.measure"], "Compensation", without)
    result = measure(CASES["SAGEConv"], wiring, "edge_index")
    assert result.outcome == "WRONG"
    assert result.errors.pop("compensated gradient") > 0.1 and max(result.errors.values()) < 1e-5


@pytest.mark.parametrize("error", [KeyError("lost"), ValueError("another rule"), NotImplementedError()])
def test_unexpected_error_is_wrong(error: Exception) -> None:
    class Fails(nn.SAGEConv):
        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:  # type: ignore[override]
            if x.size(0) != N:
                raise error
            return super().forward(x, edge_index)

    result = measure(Case(lambda: Fails(8, 8)), "explicit", "edge_index")
    assert result.outcome == "WRONG" and type(error).__name__ in result.message


def test_nan_is_wrong() -> None:
    class Nan(nn.SAGEConv):
        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:  # type: ignore[override]
            out = super().forward(x, edge_index)
            return out if x.size(0) == N or x.abs().max() <= 1 else out / 0 * 0  # the first layer's features are larger

    assert measure(Case(lambda: Nan(8, 8)), "explicit", "edge_index").outcome == "WRONG"


def test_layer_that_fails_by_itself_is_not_applicable() -> None:
    result = measure(Case(lambda: nn.SAGEConv(9, 6)), "automatic", "edge_index")
    assert result.outcome == "not applicable" and result.message.startswith("RuntimeError: ")


@pytest.mark.parametrize(
    ("wiring", "fmt", "rule"), [("manual", "csr", "wiring must be"), ("explicit", "coo", "fmt must")]
)
def test_unknown_choice_is_refused(wiring: str, fmt: str, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        measure(CASES["SAGEConv"], wiring, fmt)


# -- the command and its page --------------------------------------------------------------------------------------------


def test_command_prints_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--layers", "LGConv,WLConv", "--formats", "edge_index,csr"]) == 0
    out = capsys.readouterr().out
    assert (
        "| layer | `edge_index` | `csr` | exact gradient | compensated gradient |\n| --- | ---: | ---: | ---: | ---: |\n"
        in out
    )
    assert out.count("| `LGConv` | `refused` | `refused` | `refused` |") == 1  # in explicit wiring
    assert out.count("| `LGConv` (normalize=False) |") == 2
    assert "| exact with some options | 1 | 0 |" in out
    assert (
        "* `WLConv`: numbers colours in the order in which it meets them over the whole graph. *Instead*: use " in out
    )
    assert "; or leave the wiring to torch_gas.scale(model, data)" in out
    assert "| `GATConv`" not in out and "MessagePassing" not in out
    # Two cases of LGConv and one of WLConv, in two formats and two types.
    assert out.splitlines()[-1] == "24 measurements: 12 exact, 12 refused, 0 not applicable, 0 WRONG"


def test_page_begins_with_an_answer() -> None:
    """Which layers are supported, and what takes the place of others, before any figure."""
    head, *_ = PAGE.read_text(encoding="utf-8").partition("## ")
    exact = re.search(r"\*\*`scale\(model, data\)` takes (\d+) of (\d+)\*\*.*?: (.*)\.$", head, flags=re.MULTILINE)
    assert exact is not None
    named = re.findall(r"`(\w+)`", exact[3])
    assert len(named) == int(exact[1]) and {"GCNConv", "GATv2Conv", "APPNP"} <= set(named)
    refused = {
        name: line for line in head.splitlines() if "*Instead*: use" in line for name in re.findall(r"`(\w+)`", line)
    }
    assert {"GPSConv", "HGTConv", "XConv", "FusedGATConv"} <= set(refused) and not set(refused) & set(named)
    assert f"**{len(refused)} are refused**" in head
    left = re.findall(r"`(\w+)`", head.partition("**Not tried**")[2].partition("\n")[0])
    assert int(exact[2]) == len(named) + len(refused) + len(left)


def test_command_fails_where_anything_is_wrong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(CASES, "Planted", Case(OverRows))
    arguments = ["--layers", "Planted", "--formats", "edge_index", "--output", str(tmp_path / "page.md")]
    assert main(arguments) == 1
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "| `Planted` | **WRONG** | **WRONG** |" in text and "| WRONG | 1 | 0 |" in text
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("WRONG: Planted, explicit, edge_index, torch.float32: {'forward': 0.")
    assert out[-1] == "4 measurements: 0 exact, 2 refused, 0 not applicable, 2 WRONG"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "GCNConv,Gat"], "--layers: Gat is not one of SimpleConv, GCNConv"),
        (["--formats", "coo"], "--formats: coo is not one of edge_index, EdgeIndex"),
    ],
)
def test_command_refuses_unknown_names(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_format_that_is_not_installed_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find: Callable[[str], object] = lambda name: None if name == "torch_sparse" else object()  # noqa: E731
    monkeypatch.setattr("importlib.util.find_spec", find)
    assert formats() == ("edge_index", "EdgeIndex", "csr")
    assert main(["--layers", "WLConv"]) == 0
    out = capsys.readouterr().out
    assert "SparseTensor is left out: torch-sparse was not installed." in out
    assert "| layer | `edge_index` | `EdgeIndex` | `csr` | exact gradient | compensated gradient |\n" in out


def test_page_tells_what_is_not_applicable() -> None:
    names, types = ("MFConv", "ClusterGCNConv"), (torch.float32, torch.float64)
    keys = [Key(w, n, f, t) for w in WIRINGS for n in names for f in ("edge_index", "csr") for t in types]
    results = {key: measure(CASES[key.name], *key[:1], *key[2:]) for key in keys}
    text = page(results, ("edge_index", "csr"))
    assert "`MFConv` with csr\n" in text and "`ClusterGCNConv` with csr in float64" in text
    assert text.count(" | \N{EN DASH} | ") == 2 and text.count(" · \N{EN DASH} | ") == 2
    assert standing(results, "explicit", "MFConv") == "exact"
    assert counts(results) == "16 measurements: 10 exact, 0 refused, 6 not applicable, 0 WRONG"


def test_committed_page_is_of_this_table() -> None:
    """Its figures are of the versions that it names; its rows are the table's."""
    text = PAGE.read_text(encoding="utf-8")
    assert "WRONG**" not in text and ", 0 WRONG" in text
    for name in CASES:
        layer, _, options = name.partition(" ")
        assert text.count(f"| {f'`{layer}` {options}'.strip()} |") == len(WIRINGS), name
    for name in {*nn.conv.__all__, *WITHOUT}:
        assert f"`{name}`" in text, name
