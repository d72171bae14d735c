"""Arguments of public calls, checked by name against annotations."""

from __future__ import annotations

import collections.abc
import functools
import inspect
import numbers
import types
import typing
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Data

from torch_gas._util.memory import has_memory, is_readable, unreadable, why_not

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T", bound=type)
Admits = Callable[[Any], bool]

# What is asked of values besides their type, and the words of errors for it.
_RULES = {"Tensor": "a dense tensor with memory", "float": "a number", "int": "a number of 64 bits"}


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, which then refuses arguments that its annotations do not admit, and gets NumPy's numbers as Python's.

    NaN is no number, an integer has 64 bits, a string is no sequence, and a tensor is dense and has memory of its own. What an
    annotation names for type checkers only is left to ``function``.

    Raises:
        TypeError: if an argument has none of the types in its annotation.
        ValueError: if a number is NaN or does not fit 64 bits, or a tensor, as an argument or in a graph, is sparse, nested or
            without memory of its own.
    """
    parameters = inspect.signature(function).parameters
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    names = [name for name, p in parameters.items() if p.kind not in variable]
    rules: dict[str, Admits] = {}

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        if not rules:  # at the first call, when everything that annotations name is defined
            rules.update({name: _rule(parameters[name].annotation, function) for name in names})
        for name, value in (*zip(names, args, strict=False), *kwargs.items()):
            if name not in rules or rules[name](value) or value is parameters[name].default:
                continue
            number = _plain(value)
            if not rules[name](number):
                _refuse(name, value, parameters[name].annotation, function, args)
            if name in kwargs:
                kwargs[name] = number
            else:
                args = tuple(number if given is value else given for given in args)  # type: ignore[assignment]
        return function(*args, **kwargs)

    return wrapper


def checked_fields(cls: T) -> T:
    """A dataclass whose fields are checked against their annotations when it is made."""
    cls.__init__ = checked(cls.__init__)  # type: ignore[misc]  # as a dataclass does it
    return cls


def _refuse(name: str, value: Any, annotation: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    error: type[Exception] = TypeError
    rule = str(annotation)
    if isinstance(value, Data):
        key = unreadable(value)
        name, value, rule = (f"{name}.{key}", value[key], "Tensor") if key is not None else (name, value, rule)
    kind = "Tensor" if isinstance(value, Tensor) else type(value).__name__
    if kind in _RULES and kind in rule.split():  # of the right type, so that its value is wrong
        error, rule = ValueError, _RULES[kind]
    call = function.__qualname__
    if function.__name__ == "__init__":
        call = type(args[0]).__name__  # maybe a class that derives from it
    came = repr(value) if value is None or isinstance(value, (str, int, float)) else type(value).__name__
    if error is ValueError and isinstance(value, Tensor):
        came = "is nested" if value.is_nested else why_not(value)
        raise error(f"{call}: {name} must be {rule}, but {came}")
    raise error(f"{call}: {name} must be {rule}, but is {came}{advice_for(value)}")


def advice_for(value: Any) -> str:
    """What to pass instead of something that PyG users hold beside graphs of one type."""
    if type(value).__name__ == "HeteroData":
        return "; histories are for nodes of one type: pass data.to_homogeneous(), whose node_type and edge_type tell types apart"
    return "; pass its graph, dataset[0]" if isinstance(value, Dataset) else ""


def _plain(value: Any) -> Any:
    """Numbers of NumPy and others, also those that a sequence or mapping holds, as Python's."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple)):
        return (list if isinstance(value, list) else tuple)(map(_plain, value))
    if isinstance(value, dict):
        return {key: _plain(held) for key, held in value.items()}
    return int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else value


def _rule(annotation: Any, function: Callable[..., Any]) -> Admits:
    """Tells what a parameter of ``function`` may be."""
    if annotation is inspect.Parameter.empty:
        return _anything
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    try:
        return _admits(typing.get_type_hints(holder, inspect.unwrap(function).__globals__)["it"])
    except NameError:  # defined for type checkers only
        return _anything


def _anything(value: Any) -> bool:
    return True


# Python's own numbers, of which `_plain` makes others; a flag is not a number.
_VALUES: dict[type, Admits] = {
    bool: lambda value: isinstance(value, bool),
    int: lambda value: isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63,
    float: lambda value: (
        isinstance(value, numbers.Real) and not isinstance(value, (bool, np.generic)) and value == value
    ),
    Data: lambda value: isinstance(value, Data) and unreadable(value) is None,
    Tensor: lambda value: has_memory(value) and not value.is_nested,
}


def _any_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) and is_readable(value)


def _admits(hint: Any) -> Admits:
    """Tells what is of a type."""
    if hint in (Any, object):
        return _anything
    if isinstance(hint, TypeVar) and hint.__constraints__:  # given back as it came
        rules = tuple(_any_tensor if kind is Tensor else _admits(kind) for kind in hint.__constraints__)
        return lambda value: any(admits(value) for admits in rules)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        rules = tuple(map(_admits, inner))
        return lambda value: any(admits(value) for admits in rules)
    if origin is typing.Literal:
        return lambda value: isinstance(value, str)  # of which the function knows more
    if origin is collections.abc.Callable:
        return callable
    if origin is collections.abc.Sequence:
        item = _admits(inner[0])
        return lambda value: isinstance(value, origin) and not isinstance(value, (str, bytes)) and all(map(item, value))
    if origin is collections.abc.Mapping:
        key, item = map(_admits, inner)
        return lambda value: isinstance(value, origin) and all(key(k) and item(v) for k, v in value.items())
    if hint in _VALUES:
        return _VALUES[hint]
    kind = origin or hint
    if isinstance(kind, type) and not getattr(kind, "_is_protocol", False):
        return lambda value: isinstance(value, kind)
    return _anything
