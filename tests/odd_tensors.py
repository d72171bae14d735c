"""Tensors of every odd kind on every public call: none ends the process, and what is accepted gives what plain tensors give.

``python tests/odd_tensors.py`` makes all calls, ``python tests/odd_tensors.py NUMBER SEED...`` as many for each seed. Calls are
those of ``surface.py``. A line on standard output comes before each, so that it names the one that ends the process.
"""

from __future__ import annotations

import copy
import os
import random
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from surface import MAKERS, Call
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.masked import masked_tensor
from torch_geometric import EdgeIndex, Index
from torch_geometric.data import Data

from torch_gas._util.memory import has_memory

DOCUMENTED = (TypeError, ValueError, IndexError, RuntimeError, FileNotFoundError)


class Plain(Tensor):
    """A subclass that leaves all to torch."""


class Watching(Tensor):
    """A subclass whose functions are its own, though they do what torch's do."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_function__(func, types, args, kwargs)


class Outside(Tensor):
    """A subclass that holds its numbers in another tensor."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Outside:
        made = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args = [each.inner if isinstance(each, Outside) else each for each in args]
        return func(*args, **(kwargs or {}))


def resized(value: Tensor, bytes_left: int, view: bool = False) -> Tensor:
    """The tensor, or a view of twice as much that ends with it, whose storage has lost its memory or some of it."""
    whole = torch.cat([value, value])[len(value) :] if view else value.clone()
    whole.untyped_storage().resize_(bytes_left)
    return whole


def read_only(value: Tensor) -> Tensor:
    array = value.detach().numpy().copy()
    array.flags.writeable = False
    return torch.from_numpy(array)


def inference(value: Tensor) -> Tensor:
    with torch.inference_mode():
        return value.clone()


def floats(make: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    return lambda value: make(value) if value.is_floating_point() else None


# What a tensor becomes; None where it cannot.
ODD: dict[str, Callable[[Tensor], Any]] = {
    "Index": lambda value: Index(value.clone()) if value.dim() == 1 and value.dtype == torch.int64 else None,
    "EdgeIndex": lambda value: EdgeIndex(value.clone()) if value.shape[:1] == (2,) and value.dtype == torch.int64 else None,
    "fake": lambda value: FakeTensorMode().from_tensor(value),
    "without memory": lambda value: value.to("meta"),
    "freed": lambda value: resized(value, 0),
    "freed, a view": lambda value: resized(value, 0, view=True),
    "shrunk": lambda value: resized(value, value.element_size()),
    "shrunk, a view": lambda value: resized(value, value.nbytes, view=True),
    "zeros without memory": lambda value: torch._efficientzerotensor(value.shape, dtype=value.dtype),
    "sparse": lambda value: value.to_sparse(),
    "sparse rows": lambda value: value.to_sparse_csr() if value.dim() == 2 else None,
    "mkldnn": floats(lambda value: value.float().to_mkldnn()),
    "quantised": floats(lambda value: torch.quantize_per_tensor(value.float(), 0.5, 3, torch.quint8)),
    "nested": lambda value: torch.nested.nested_tensor(list(value)) if value.dim() > 1 else None,
    "jagged": floats(lambda value: torch.nested.nested_tensor(list(value), layout=torch.jagged) if value.dim() > 1 else None),
    "masked": lambda value: masked_tensor(value.clone(), torch.ones_like(value, dtype=torch.bool)),
    "held outside": Outside,
    "subclass": lambda value: value.clone().as_subclass(Plain),
    "subclass with functions": lambda value: value.clone().as_subclass(Watching),
    "subclass with gradient": floats(lambda value: value.clone().as_subclass(Plain).requires_grad_()),
    "parameter": lambda value: torch.nn.Parameter(value.clone(), requires_grad=value.is_floating_point()),
    "no parameter yet": floats(lambda value: torch.nn.UninitializedParameter()),
    "result with gradient": floats(lambda value: value.clone().requires_grad_() * 1),
    "negative bit": floats(lambda value: torch._neg_view(-value)),
    "imaginary part": floats(lambda value: torch.complex(torch.zeros_like(value), -value).conj().imag),
    "conjugate bit": lambda value: value.to(torch.complex64).conj(),
    "expanded": lambda value: value[:1].expand_as(value),
    "with gaps": lambda value: torch.stack([value, value], -1)[..., 0],
    "backwards": lambda value: value.t().contiguous().t() if value.dim() == 2 else None,
    "of inference mode": inference,
    "read-only": read_only,
    "shared": lambda value: value.clone().share_memory_(),
}  # fmt: skip
NOT_THE_SAME = {"zeros without memory", "quantised", "conjugate bit", "expanded"}  # other numbers than the tensor
BY_POSITION = "regularization.local_perturbation", "backwards"  # its random numbers come by place in memory

# Around a call.
MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "in FakeTensorMode": lambda: FakeTensorMode(allow_non_fake_inputs=True),
    "under torch.device": lambda: torch.device("meta"),
    "in inference mode": torch.inference_mode,
}


def inside(transform: Callable[..., Any]) -> Callable[[Callable[[Tensor], Any], Tensor], Any]:
    """Makes a call inside of a transform of ``torch.func``, by which its argument is wrapped."""

    def make(call: Callable[[Tensor], Any], value: Tensor) -> Any:
        results = []

        def function(wrapped: Tensor) -> Tensor:
            results.append(call(wrapped))
            return wrapped.sum()

        transform(function, value)
        return results[0]

    return make


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Any], Tensor], Any]] = {
    "vmap": inside(lambda function, value: torch.func.vmap(function)(torch.stack([value, value]))),
    "grad": inside(lambda function, value: torch.func.grad(function)(value)),
    "jvp": inside(lambda function, value: torch.func.jvp(function, (value,), (value,))),
    "functionalize": inside(lambda function, value: torch.func.functionalize(function)(value)),
}


class Attack(NamedTuple):
    """One argument of a call, or one attribute of a graph that is an argument, and what becomes of it."""

    call: str
    kind: str
    argument: str = ""
    key: str = ""


def made(name: str) -> Call:
    torch.manual_seed(0)
    return MAKERS[name]()


def attacks(names: Iterable[str]) -> Iterator[Attack]:
    """All attacks on some calls."""
    for name in names:
        yield from (Attack(name, mode) for mode in MODES)
        for argument, value in made(name).arguments.items():
            keys = (
                [key for key, each in value.to_dict().items() if isinstance(each, Tensor)]
                if isinstance(value, Data)
                else []
            )
            for key in [""] if isinstance(value, Tensor) else keys:
                yield from (Attack(name, kind, argument, key) for kind in (*ODD, *TRANSFORMS))


def outcome(call: Call, arguments: Mapping[str, Any], state: Sequence[Any]) -> list[Any]:
    """The numbers of what a call returns and of what it may change."""
    return list(numbers((call.function(**arguments), list(state))))


def numbers(value: Any) -> Iterator[Any]:
    if isinstance(value, torch.nn.Module):
        value = value.state_dict()
    if isinstance(value, Data):
        value = value.to_dict()
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Iterator | torch.utils.data.DataLoader | list | tuple):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, int | float | str):
        yield value


def answer(attack: Attack) -> list[Any]:
    """What the attacked call gives.

    Raises:
        One of DOCUMENTED, if it is refused.
    """
    call = made(attack.call)
    if attack.kind in MODES:
        with MODES[attack.kind]():
            return outcome(call, call.arguments, call.state)
    whole = call.arguments[attack.argument]
    value = getattr(whole, attack.key) if attack.key else whole

    def call_with(odd: Any) -> list[Any]:
        if attack.key:
            changed = copy.copy(whole)
            setattr(changed, attack.key, odd)
        else:
            changed = odd
        state = [changed if each is whole else each for each in call.state]
        return outcome(call, {**call.arguments, attack.argument: changed}, state)

    if attack.kind in TRANSFORMS:
        return TRANSFORMS[attack.kind](call_with, value)
    odd = ODD[attack.kind](value)
    if odd is None:
        raise ValueError("the tensor cannot be of this kind")
    return call_with(odd)


def complaint(attack: Attack) -> str | None:
    """What is wrong with the answer to an attack."""
    try:
        given = answer(attack)
    except DOCUMENTED:
        return None
    except Exception as error:  # of any type: those that are not documented are what is looked for
        return f"failed with {type(error).__name__}: {error}"
    if attack.kind in NOT_THE_SAME or (attack.call, attack.kind) == BY_POSITION:
        return None
    call = made(attack.call)
    wanted = outcome(call, call.arguments, call.state)
    return None if all(map(same, given, wanted)) and len(given) == len(wanted) else "gave something else"


def same(given: Any, wanted: Any) -> bool:
    if not isinstance(given, Tensor):
        return bool(given == wanted)
    if isinstance(given, Index | EdgeIndex):
        given = given.as_tensor()
    if not has_memory(given):  # of a kind that was asked for, as `unpermute` gives back what it got
        return True
    return given.shape == wanted.shape and torch.allclose(given.double(), wanted.double(), equal_nan=True)


def main(chosen: list[Attack]) -> int:
    warnings.simplefilter("ignore")
    wrong = 0
    for attack in chosen:
        print(*attack, flush=True)
        text = complaint(attack)
        if text is not None:
            wrong += 1
            print("WRONG", *attack, text, flush=True)
    print(f"{len(chosen)} calls with odd tensors, {wrong} wrong answers")
    return int(wrong > 0)


def sample(seed: int, number: int) -> list[Attack]:
    """Attacks on a few calls."""
    draw = random.Random(seed)
    return draw.sample(list(attacks(draw.sample(list(MAKERS), 12))), number)


if __name__ == "__main__":
    os.chdir(tempfile.mkdtemp())  # some calls write files
    number, seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 0, map(int, sys.argv[2:])
    sys.exit(main([each for seed in seeds for each in sample(seed, number)] if number else list(attacks(MAKERS))))
