"""Writes docs/api.md from the docstrings: ``python docs/api.py``, or ``make api``."""

from __future__ import annotations

import functools
import inspect
import operator
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch_gas
import torch_gas.extensions.monitor

# What users meet, by task; names are below torch_gas.
GROUPS = {
    "Cut and renumber a graph": "metis permute unpermute Partition save_partition load_partition",
    "Make batches": "SubgraphLoader EvalSubgraphLoader SubData labelled_mean hot_nodes",
    "Train a model that you have": "scale ScaledGNN ScaledGNN.__call__",
    "Train by exact gradients": "ExactGradient ExactGradient.backward ExactGradient.remove DropoutById",
    "Write a model": """ScalableGNN ScalableGNN.__call__ ScalableGNN.push_and_pull ScalableGNN.keep_hot check History dropout
        AsyncIOPool""",
    "Models of the paper": """models models.base.Model models.GCN models.SAGE models.GAT models.APPNP models.GCN2 models.GIN
        models.PNA models.PNA_JK""",
    "Prepare a graph": "get_data datasets.synthetic gcn_norm add_self_loops in_degree gen_masks compute_micro_f1",
    "Choose parts and batches": "plan Plan",
    "Watch": """Monitor Monitor.errors Monitor.gradient_error Monitor.bound extensions.monitor.errors_table
        extensions.monitor.bound_table extensions.Extension""",
    "Refresh histories": """refresh refresh.Refresher refresh.BeforeTraining refresh.EveryEpochs refresh.EverySteps refresh.Never
        refresh.Exact refresh.Sweep refresh.Stalest extensions.Important extensions.Waves""",
    "Weigh and move stale rows": "extensions.AgeWeights extensions.Momentum",
    "Regularise": """regularization regularization.LocalPerturbation regularization.local_perturbation
        regularization.parameter_groups regularization.spectral_norm""",
    "Save a run": "checkpoint checkpoint.save checkpoint.load",
    "Exceed memory": "FileTier FileTable store_features StoredFeatures",
}

_VALUES = {name: operator.attrgetter(name)(torch_gas) for names in GROUPS.values() for name in names.split()}
_CLASSES = {value: name for name, value in _VALUES.items() if inspect.isclass(value)}

_HEAD = """\
# API

Signatures and arguments of what `torch_gas` offers, from its docstrings: `make api` writes this page. `help(torch_gas.scale)` and
so on show the same with examples. N is the number of nodes of the graph, B that of a batch, S that of its halo, E of edges, C of
channels.
"""
_SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Example", "Yields")


def page() -> str:
    """All of it."""
    anchors: list[str] = []
    contents, sections = ["| to | names |", "|---|---|"], []
    for title, names in GROUPS.items():
        links = []
        for name in names.split():
            again = "-1" if _anchor(name) in anchors else ""  # as GitHub names the second of two equal ones
            anchors.append(_anchor(name))
            links.append(f"[`{name}`](#{_anchor(name)}{again})")
        contents.append(f"| {title.lower()} | {', '.join(links)} |")
        sections += [f"## {title}", *map(_entry, names.split())]
    return "\n\n".join([_HEAD.strip(), "\n".join(contents), *sections]) + "\n"


def _anchor(name: str) -> str:
    return name.replace(".", "").lower()


def _entry(name: str) -> str:
    value = _VALUES[name]
    parts = [f"### `{name}`"]
    if not inspect.ismodule(value):
        parts.append(f"```py\n{_signature(name, value)}\n```")
    parts += _text(inspect.getdoc(value) or "")
    if inspect.isclass(value):
        lines, base = _methods(value)
        more = f" (and those of [`{base}`](#{_anchor(base)}))" if base else ""
        parts += [f"**Methods and properties**{more}", "\n".join(lines)] if lines else []
    return "\n\n".join(filter(None, parts))


def _signature(name: str, value: Any) -> str:
    function = value.__init__ if inspect.isclass(value) and inspect.isfunction(value.__init__) else value
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    kinds, texts = [p.kind for p in parameters], [_parameter(p) for p in parameters]
    if inspect.Parameter.VAR_POSITIONAL not in kinds and inspect.Parameter.KEYWORD_ONLY in kinds:
        texts.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    line = f"{name}({', '.join(texts)})"
    return line if len(line) <= 110 else f"{name}(\n" + "".join(f"    {text},\n" for text in texts) + ")"


def _parameter(parameter: inspect.Parameter) -> str:
    kind = parameter.annotation
    if kind is parameter.empty:
        return str(parameter)
    name, _, default = str(parameter.replace(annotation=parameter.empty)).partition("=")
    text = kind if isinstance(kind, str) else getattr(kind, "__forward_arg__", None) or inspect.formatannotation(kind)
    return f"{name}: {text} = {default}" if default else f"{name}: {text}"


def _methods(kind: type) -> tuple[list[str], str]:
    """A line for each that this package documents for users, and the first base class that has its own entry."""
    lines: dict[str, str] = {}
    for owner in kind.__mro__:
        if owner is not kind and owner in _CLASSES:
            return list(lines.values()), _CLASSES[owner]
        for name, value in vars(owner).items() if owner.__module__.startswith("torch_gas") else ():
            is_public = not name.startswith("_") and name not in (*lines, "forward") and not inspect.isclass(value)
            doc = inspect.cleandoc(value.__doc__ or "")
            function = getattr(value, "__func__", value)  # of a class method
            if is_public and doc and callable(function):
                given = [p for p in inspect.signature(function).parameters.values() if p.name not in ("self", "cls")]
                names = [str(p.replace(annotation=p.empty, default=p.empty)) for p in given]
                lines[name] = f"* `{name}({', '.join(names)})`: {_summary(doc)}"
            elif is_public and doc and isinstance(value, (property, functools.cached_property)):
                lines[name] = f"* `{name}`: {_summary(doc)}"
    return list(lines.values()), ""


def _text(doc: str) -> Iterator[str]:
    """A docstring as paragraphs of Markdown, without its examples."""
    for section in re.split(rf"\n+(?=(?:{'|'.join(_SECTIONS)}):\n)", doc):
        title, _, rest = section.partition(":\n")
        if title not in _SECTIONS:
            yield from map(_paragraph, re.split(r"\n\n(?! )", section))
        elif title == "Returns":
            yield f"**Returns**: {_inline(rest)}"
        elif title != "Example":
            entries = re.split(r"\n+(?=    \S)", rest.rstrip())
            lines = [re.sub(r"^([^:]+):", r"`\1`:", _inline(entry), count=1) for entry in entries]
            yield f"**{title}**\n\n" + "\n".join(f"* {line}" for line in lines)


def _summary(doc: str) -> str:
    return _inline(doc.partition("\n\n")[0])


def _paragraph(text: str) -> str:
    if ".. math::" in text:
        before, _, formula = text.partition(".. math::")
        return "\n\n".join(filter(None, [_inline(before), f"$${' '.join(formula.split())}$$"]))
    if re.match(r"[*-] ", text):
        return "\n".join("* " + _inline(item) for item in re.split(r"(?:^|\n)[*-] ", text)[1:])
    return _inline(text)


def _inline(text: str) -> str:
    """In one line, with code and names of the package as Markdown has them."""
    text = re.sub(r":\w+:`~(?:\w+\.)*(\w+)`", r"`\1`", " ".join(text.split()))
    return re.sub(r":\w+:(`[^`]+`)", r"\1", text).replace("``", "`")


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(page(), encoding="utf-8")
