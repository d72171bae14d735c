"""Writes results down as Markdown."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch_geometric
from torch.nn import Module

from conformance.layers import CASES, WITHOUT, class_of
from conformance.measure import TOLERANCE, WIRINGS, Result
from torch_gas.wiring import refuse

DTYPES = tuple(TOLERANCE)


class Key(NamedTuple):
    """What a result is of."""

    wiring: str
    name: str
    fmt: str
    dtype: torch.dtype


Results = dict[Key, Result]
_Reason = TypeVar("_Reason", str, tuple[str, str])

_NONE = "\u2013"
_OVER_FORMATS = ("exact gradient", "compensated gradient")  # errors that have a column over all formats
_STANDINGS = ("exact", "exact with some options", "refused", "not applicable", "WRONG")

_HEAD = """\
# Supported layers

What follows is for the layers of `torch_geometric.nn.conv`, as measured with {versions} ([how](#how-it-is-measured)).
"""

_OWN = """\
**A layer of your own**, or of another package, needs no entry here. `scale()` tries it out and raises an error where a batch
would give other rows than the whole graph. `check(model, data)` does so for a model that derives from `ScalableGNN`, whose
layers must read, for each node, no more than its incoming edges and their sources ([wiring.md](wiring.md))."""

_INTRODUCTION = """\
## How it is measured

```bash
make conformance
```

measures all layers again and writes this page. Options
`--layers GCNConv,GATConv` and `--formats edge_index,csr` select some. The command fails if a result is WRONG.

Each measurement takes a model of two layers, with a linear map before and another with tanh between, on a directed graph
of 48 nodes with self-loops and isolated nodes. It compares the model with itself without histories:

* **forward**: with exact histories, the rows of batches of one part, and of shuffled unions of parts;
* **gradient**: that of all parameters, for a batch of all parts; and that of the last layer's, for a batch with a halo,
  where this layer reads one hop;
* **inference**: the output of `model(loader=...)`;
* **exact gradient**: that of all parameters by `ExactGradient` from batches of one part, in training mode, where dropout
  draws its masks by ids;
* **compensated gradient**: that of all parameters with `Compensation(1.0)`, summed over batches of one part in a fixed order,
  with exact histories and gradient tables, without dropout, and with batch norm by its running statistics; the larger
  difference of both schedules.

The last two have a column of their own, over all formats.

A cell holds the largest difference in these, relative to the largest value, in float32 · float64:

* **exact** is what differs by at most {float32:.0e} · {float64:.0e}, as another order of summation does;
* **`refused`** is what `torch_gas` raises an error for, which names the layer and says what to do instead;
* **{none}** stands where PyG itself cannot run the layer on this format or type, histories or not.
"""

_WIRINGS = """\
In **explicit** wiring the model derives from `ScalableGNN` and calls `push_and_pull` between its layers. In **automatic**
wiring it is a plain model, and `torch_gas.scale(model, data)` does the rest."""


def page(results: Results, formats: Sequence[str], missing: Sequence[str] = ()) -> str:
    """All of it.

    Args:
        results: of the same cases in each wiring, format and type.
        formats: the columns.
        missing: formats that are not installed.
    """
    names = sorted({key.name for key in results}, key=str.lower)
    versions = f"torch {torch.__version__.partition('+')[0]} and torch_geometric {torch_geometric.__version__}"
    limits = {"float32": TOLERANCE[torch.float32], "float64": TOLERANCE[torch.float64]}
    sections = [_HEAD.format(versions=versions).rstrip(), *_answer(results, names), _OWN]
    sections += ["## What to change in explicit wiring", _explicit_refusals(results, names)]
    sections.append(_INTRODUCTION.format(none=_NONE, **limits).rstrip())
    if missing:
        sections.append(f"{', '.join(missing)} is left out: torch-sparse was not installed.")
    sections += [_WIRINGS, "## Counts", _summary(results)]
    for wiring in WIRINGS:
        table = _table(results, wiring, names, formats)
        sections += [
            f"## {wiring.capitalize()} wiring",
            f"<details><summary>Figures</summary>\n\n{table}\n\n</details>",
        ]
    sections += ["## What is not applicable", _not_applicable(results, names, formats)]
    return "\n\n".join(sections) + "\n"


def counts(results: Results) -> str:
    """The counts of all measurements, in one line."""
    number = Counter(result.outcome for result in results.values())
    parts = [f"{number[outcome]} {outcome}" for outcome in ("exact", "refused", "not applicable", "WRONG")]
    return f"{len(results)} measurements: {', '.join(parts)}"


def standing(results: Results, wiring: str, layer: str) -> str:
    """How a class fares in a wiring, over its cases, formats and types."""
    mine = (key for key in results if key.wiring == wiring and class_of(key.name) == layer)
    outcomes = {results[key].outcome for key in mine} - {"not applicable"}
    if outcomes == {"exact", "refused"}:
        return "exact with some options"
    return "WRONG" if "WRONG" in outcomes else outcomes.pop() if outcomes else "not applicable"


def _summary(results: Results) -> str:
    layers = {class_of(key.name) for key in results}
    number = {wiring: Counter(standing(results, wiring, layer) for layer in layers) for wiring in WIRINGS}
    rows = [
        [name, *(str(number[wiring][name]) for wiring in WIRINGS)]
        for name in _STANDINGS
        if any(count[name] for count in number.values())
    ]
    return (
        f"Of the {len(layers)} classes that are measured:\n\n{_markdown(['', *WIRINGS], rows)}\n\n"
        "A class is exact with some options if it is refused with others, and not applicable if it needs a package that was "
        f"not installed. All in all there are {counts(results)}."
    )


def _table(results: Results, wiring: str, names: Sequence[str], formats: Sequence[str]) -> str:
    rows = []
    for name in names:
        found = [[results[Key(wiring, name, fmt, dtype)] for dtype in DTYPES] for fmt in formats]
        over = [_cell([_in_all(each, of) for each in zip(*found, strict=True)]) for of in _OVER_FORMATS]
        rows.append([_title(name), *map(_cell, map(_others, found)), *over])
    return _markdown(["layer", *(f"`{fmt}`" for fmt in formats), *_OVER_FORMATS], rows)


def _in_all(results: Sequence[Result], of: str) -> Result:
    """What holds for an error in all formats."""
    worst = max(
        results, key=lambda each: (each.outcome == "WRONG", each.errors.get(of, -1), each.outcome != "not applicable")
    )
    return worst._replace(errors={of: worst.errors[of]} if of in worst.errors else {})


def _others(results: Sequence[Result]) -> list[Result]:
    return [
        each._replace(errors={of: error for of, error in each.errors.items() if of not in _OVER_FORMATS})
        for each in results
    ]


def _cell(results: Sequence[Result]) -> str:
    outcomes = {result.outcome for result in results}
    if "WRONG" in outcomes:
        return "**WRONG**"
    if "refused" in outcomes:
        return "`refused`"
    if outcomes == {"not applicable"}:
        return _NONE
    return " · ".join(_number(max(result.errors.values())) if result.errors else _NONE for result in results)


def _number(error: float) -> str:
    return "0" if error == 0 else f"{error:.0e}"


def _title(name: str) -> str:
    """A case's name, with the class as code."""
    layer, _, options = name.partition(" ")
    return f"`{layer}` {options}".strip()


def _answer(results: Results, names: Sequence[str]) -> Iterable[str]:
    """Whether each class is supported, in a few lines."""
    layers = list(dict.fromkeys(map(class_of, names)))
    every = sorted([*layers, *(WITHOUT if set(names) == set(CASES) else ())], key=str.lower)
    explicit, automatic = ({layer: standing(results, wiring, layer) for layer in layers} for wiring in WIRINGS)
    exact = [layer for layer in layers if automatic[layer] == "exact"]
    yield (
        f"**`scale(model, data)` takes {len(exact)} of {len(every)}**, in every adjacency format in which PyG runs them: "
        f"{_listed(exact)}."
    )
    as_they_are = [layer for layer in exact if explicit[layer] == "exact"]
    refused = {
        outcome: [x for x in exact if explicit[x] == outcome] for outcome in ("exact with some options", "refused")
    }
    yield (
        f"**A `ScalableGNN` takes {len(as_they_are)} of these as they are.** The others raise an error there, which says "
        "[what to change](#what-to-change-in-explicit-wiring):"
    )
    yield "\n".join(
        f"* {when}: {_listed(found)}"
        for when, found in zip(("with some options", "always"), refused.values(), strict=True)
        if found
    )
    never = [(why, layer) for layer in every if layer not in exact and (why := _refusal(layer))]
    yield f"**{len(never)} are refused** in both, by an error that says why and what to use instead:"
    yield _instead((_split(why), f"`{layer}`") for why, layer in never)
    absent = [x for x in layers if automatic[x] == "not applicable" and not _refusal(x)]
    left = [f"`{layer}` (its package was not installed)" for layer in absent]
    left += [f"`{layer}` ({WITHOUT[layer]})" for layer in every if layer in WITHOUT and not _refusal(layer)]
    if left:
        yield f"**Not tried**: {', '.join(left)}."


def _listed(layers: Iterable[str]) -> str:
    return ", ".join(f"`{layer}`" for layer in layers)


def _refusal(layer: str) -> str:
    """The error by which a class is refused in both wirings, by its name; empty where it is not."""
    cls: Any = type(layer, (Module,), {"__module__": "torch_geometric.nn"})  # the class itself may need a package
    try:
        refuse(cls(), automatic=True)
    except ValueError as error:
        return str(error)
    return ""


def _explicit_refusals(results: Results, names: Sequence[str]) -> str:
    """What is refused there and exact in automatic wiring."""
    found = {
        key.name: result.message
        for key, result in results.items()
        if (key.wiring, result.outcome) == (WIRINGS[0], "refused")
    }
    return _instead((_split(found[n]), _title(n)) for n in names if n in found and not _refusal(class_of(n)))


def _instead(pairs: Iterable[tuple[tuple[str, str], str]]) -> str:
    """A line for each reason of a refusal, with the alternative, from pairs of these and what is refused."""
    groups = _group(pairs).items()
    return "\n".join(f"* {', '.join(of)}: {why}. *Instead*: {instead}." for (why, instead), of in groups) or "Nothing."


def _split(message: str) -> tuple[str, str]:
    """The reason and the alternative of a refusal."""
    reason = re.sub(r"^\w+ cannot be used on a batch: (it )?", "", message)
    why, _, instead = re.sub(r"; (?=(use|create|write) )", "\0", reason, count=1).partition("\0")
    return why, instead


def _not_applicable(results: Results, names: Sequence[str], formats: Sequence[str]) -> str:
    found: dict[tuple[str, str], list[Key]] = {}
    for key, result in results.items():
        if key.wiring == WIRINGS[0] and result.outcome == "not applicable":
            found.setdefault((key.name, _first_sentence(result.message)), []).append(key)
    pairs = sorted(found.items(), key=lambda item: names.index(item[0][0]))
    groups = _group((message, _title(name) + _where(keys, formats)) for (name, message), keys in pairs)
    return "\n".join(f"* `{message}`: {', '.join(titles)}" for message, titles in groups.items()) or "Nothing."


def _where(keys: Sequence[Key], formats: Sequence[str]) -> str:
    """The formats of ``keys`` unless all, with the type where it is not either."""
    if len(keys) == len(formats) * len(DTYPES):
        return ""
    found: dict[str, list[torch.dtype]] = {}
    for key in keys:
        found.setdefault(key.fmt, []).append(key.dtype)
    return " with " + " and ".join(
        fmt if len(dtypes) == len(DTYPES) else f"{fmt} in {str(dtypes[0]).removeprefix('torch.')}"
        for fmt, dtypes in found.items()
    )


def _first_sentence(message: str) -> str:
    return message.splitlines()[0].replace("`", "'").partition(". ")[0].rstrip(".")


def _group(pairs: Iterable[tuple[_Reason, str]]) -> dict[_Reason, list[str]]:
    groups: dict[_Reason, list[str]] = {}
    for key, name in pairs:
        groups.setdefault(key, []).append(name)
    return groups


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
