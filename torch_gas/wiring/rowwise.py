"""Row-wise code between a convolution and the place where its rows are exchanged.

An activation, or a residual connection, gives a row for each row and reads neither parameters nor random numbers. Behind a
convolution it runs on the batch's rows alone, and the history takes what comes out: halo rows have been through it already, where
their own batch was computed. This is how models that call ``push_and_pull`` themselves are written.

How far such code goes is looked up on a small graph (:class:`Watch`), in evaluation and in training: up to the last rows that
all later code reads. Nobody else sees what lies between, so that inference need not compute it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import nan
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from torch_gas.graph.attributes import first_rows
from torch_gas.graph.halo import own_rows

if TYPE_CHECKING:
    from torch_gas.wiring.places import Place


class Step(NamedTuple):
    """A function of torch on the way from an output to its place, and the shape of a row that it is given."""

    name: str
    shape: tuple[int, ...]


# By the place of an output: the functions between the convolution and the exchange of its rows. None where no later row of the
# batch depends on rows of its halo, so that these are not needed at all.
Steps = Mapping["Place", "tuple[Step, ...] | None"]

_OF_ONE = {
    "relu", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "relu6", "hardtanh", "hardswish", "hardsigmoid",
    "softplus", "softsign", "log_sigmoid", "logsigmoid", "tanhshrink", "softshrink", "hardshrink", "tanh", "sigmoid", "neg",
    "abs", "square", "sqrt", "exp", "clamp", "mul", "div", "add", "sub", "__rsub__", "pow",
}  # fmt: skip
_OF_TWO = {"add", "sub", "mul"}
# Those that read parameters or random numbers.
_LEARNED = {"linear", "batch_norm", "layer_norm", "rms_norm", "prelu"}
_SHAPES = {"view", "reshape", "flatten", "unflatten"}
_RANDOM = {"dropout", "feature_dropout", "alpha_dropout", "rrelu"}
# Those that take rows of several tensors side by side, which must be as many.
_JOINING = {
    "add", "sub", "mul", "div", "cat", "concat", "concatenate", "hstack", "stack", "where", "maximum", "minimum", "max", "min",
    "lerp", "addcmul", "dot", "cosine_similarity",
}  # fmt: skip
_CONCATENATING = {"cat", "concat", "concatenate", "hstack"}
# What may be asked of rows without a look at their number or at what they hold.
_HARMLESS = {
    torch.is_floating_point, Tensor.is_floating_point, Tensor.dim,
    *(getattr(Tensor, name).__get__ for name in ("dtype", "device", "ndim", "layout", "requires_grad", "is_cuda", "grad_fn",
                                                 "is_leaf", "is_sparse")),
}  # fmt: skip
NOT_READ = object()  # what `RowWise.function` gives for others


def _is_harmless(func: Any, args: tuple[Any, ...]) -> bool:
    return func in _HARMLESS or (func is Tensor.size and len(args) == 2 and args[1] not in (0, -args[0].dim()))


def _is_same(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether a function gives the very rows that it is given: what torch hangs backward hooks of modules on."""
    return func is Tensor.view_as and args[0] is args[1]


def _tensors(args: Any, kwargs: Any) -> Iterator[Tensor]:
    """The tensors among arguments and in lists of them."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (each for each in value if isinstance(each, Tensor))


def _writes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a function writes to its argument, or elsewhere than to what it returns."""
    return any(value is True for value in args) or bool(kwargs.get("inplace")) or "out" in kwargs


def _needs_as_many(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], like: Tensor) -> bool:
    """Whether a function fails where others than ``like`` have more rows, so that these are rows of nodes."""
    if name in _CONCATENATING:
        dim = kwargs.get("dim", args[1] if len(args) > 1 else int(name == "hstack" and like.dim() > 1))
        return dim not in (0, -like.dim())
    return like.size(0) > 1 or name == "stack"  # one row is taken for each of the others


class _Known(NamedTuple):
    """Rows, kept alive so that their id stays their own: of which output, and behind how many functions."""

    rows: Tensor
    place: Place
    number: int


class Watch:
    """Follows the rows of outputs on a whole graph, in which all have N rows, and changes nothing.

    Args:
        learned: whether code is followed through parameters, dropout and sums with rows that are no outputs' as well. Behind
            these, histories hold rows of the owner's mask and of parameters as they were, to which no gradient leads.
    """

    def __init__(self, learned: bool = False) -> None:
        self.learned = learned
        self._known: dict[int, _Known] = {}
        self._steps: dict[Place, list[Step]] = {}  # so far, in the order of outputs
        self._has_grad: dict[Place, bool] = {}  # whether autograd records what happens to it
        self._limits: dict[Place, int] = {}  # behind how many of them somebody reads the rows

    def leave(self, place: Place, rows: Tensor) -> None:
        """Told of an output."""
        self._steps[place], self._has_grad[place] = [], torch.is_grad_enabled()
        self._known[id(rows)] = _Known(rows, place, 0)

    def enter(self, given: Any) -> None:
        """Told of what a convolution is given, of which a dense layer inside may go on with the rows."""
        if not self.learned:
            self.use(given)

    def use(self, value: Any) -> None:
        """Told that something reads rows which is no row-wise function."""
        for each in tree_leaves(value):
            known = self._known.get(id(each))
            if known is not None:
                self._read(known)

    def function(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Told of a function of torch, and what it gave."""
        read = [known for each in _tensors(args, kwargs) if (known := self._known.get(id(each))) is not None]
        if not read or _is_harmless(func, args):
            return
        if _is_same(func, args):
            self._known[id(out)] = read[0]._replace(rows=out)
            return
        through = self._through(func, args, kwargs, out, read)
        for known in read:
            if known is not through:
                self._read(known)
        if through is not None:
            self._steps[through.place].append(Step(func.__name__, tuple(through.rows.shape[1:])))
            self._known[id(out)] = _Known(out, through.place, through.number + 1)

    def _through(self, func: Any, args: Any, kwargs: Any, out: Any, read: list[_Known]) -> _Known | None:
        """Those of the rows read that a row-wise function takes on; None where the function is another one."""
        # Not read since, and not inside of a function of autograd, whose backward pass goes by what it was given.
        open_ = [each for each in read if self._has_grad[each.place] == torch.is_grad_enabled()]
        known = [each for each in open_ if each.number == len(self._steps[each.place])]
        if not known or _writes(args, kwargs) or not isinstance(out, Tensor):
            return None
        size, name = known[0].rows.size(0), func.__name__
        rows = [each for each in _tensors(args, kwargs) if id(each) in self._known or each.shape[:1] == (size,)]
        others = [each for each in _tensors(args, kwargs) if not any(each is row for row in rows)]
        if self.learned and name in _LEARNED | _RANDOM:
            fits = len(rows) == 1 and rows[0].dim() == 2 and out.shape[:-1] == (size,)
        elif self.learned and name in _SHAPES:
            fits = len(rows) == 1 and not others and out.shape[:1] == (size,)
        else:
            # What is added must be rows of outputs as well: through others' halo rows, gradients may go to parameters.
            fits = name in (_OF_TWO if rows[1:] else _OF_ONE) and (
                self.learned or all(id(row) in self._known for row in rows)
            )
            fits = fits and not others and all(row.shape == out.shape and row.dtype == out.dtype for row in rows)
        if not fits:
            return None
        order = list(self._steps)
        return max(known, key=lambda each: order.index(each.place))

    def _read(self, known: _Known) -> None:
        self._limits[known.place] = min(known.number, self._limits.get(known.place, known.number))

    @property
    def found(self) -> dict[Place, tuple[Step, ...]]:
        """The functions up to the last rows that all later code reads; none where it reads them in a way that is not seen."""
        found = {place: tuple(steps[: self._limits.get(place, 0)]) for place, steps in self._steps.items()}
        # A table of the input is for what is dear to compute, and no copy of features.
        return {
            place: steps
            for place, steps in found.items()
            if place.kind != "input" or any(step.name in _LEARNED for step in steps)
        }


def common(
    left: Mapping[Place, tuple[Step, ...]], right: Mapping[Place, tuple[Step, ...]]
) -> dict[Place, tuple[Step, ...]]:
    """The functions with which both begin, by place; of a place that only one has met, its own."""
    found = {**right, **left}
    for place in left.keys() & right.keys():
        equal = [a == b for a, b in zip(left[place], right[place], strict=False)]
        found[place] = left[place][: [*equal, False].index(False)]
    return found


class _UnderWay(NamedTuple):
    """Rows of an output or input before their place, and the functions still to come.

    Those that nobody computes are of any value, and functions are not called on them; what is written over at the place is
    ``instead``.
    """

    rows: Tensor
    place: Place
    steps: tuple[Step, ...]
    instead: Tensor | None = None


# Gives the rows to go on with at a place, or None to leave them.
Exchange = Callable[["Place", Tensor], "Tensor | None"]


class RowWise:
    """Runs row-wise code behind outputs on the rows that their layers give, and has rows exchanged behind it.

    Args:
        steps: what was found.
        num_rows: B + S, or N. Rows of that number which such code reads as well are cut to those of the batch.
        rows_of_input: how many rows of the model's input such code reads; None for all.
    """

    def __init__(self, steps: Steps, num_rows: int, rows_of_input: Callable[[], int | None]) -> None:
        self.steps, self.num_rows, self.rows_of_input = steps, num_rows, rows_of_input
        self._under_way: dict[int, _UnderWay] = {}
        self._batch_size: int | None = None  # once there are rows of the batch alone
        self._has_grad = False  # whether autograd recorded these

    def begin(self, place: Place, rows: Tensor) -> None:
        """Told of an input of the model."""
        if steps := self.steps.get(place):
            self._under_way[id(rows)] = _UnderWay(rows, place, steps)

    def is_under_way(self, rows: Tensor) -> bool:
        """Whether rows are before their place."""
        return id(rows) in self._under_way

    def leave(self, place: Place, rows: Tensor, exchange: Exchange, stands_in: bool) -> Tensor | None:
        """What replaces an output; None to leave it.

        Args:
            place: of the output.
            rows: that the layer gave or, where ``stands_in``, rows of the shape that they have at their place, of any value.
            exchange: what is done there.
            stands_in: whether the layer was not computed.
        """
        steps = self.steps.get(place, ())
        if steps is None:
            exchange(place, rows)  # which has nothing to add
            self._batch_size = rows.size(0) if rows.size(0) < self.num_rows else None
            self._has_grad = torch.is_grad_enabled()
            return None
        if not steps:
            return exchange(place, rows)
        under_way = _UnderWay(rows, place, steps)
        if stands_in:
            under_way = _UnderWay(_any_rows(rows, steps[0]), place, steps, rows)
        self._under_way[id(under_way.rows)] = under_way
        return under_way.rows

    def function(self, func: Any, args: Any, kwargs: Any, exchange: Exchange, in_layer: bool = False) -> Any:
        """The result of a function of torch, if it reads rows of an output before their place; NOT_READ if not."""
        if self._under_way:
            read = next((each for each in _tensors(args, kwargs) if id(each) in self._under_way), None)
            if read is not None:
                return self._step(func, args, kwargs, read, exchange)
        is_joined = self._batch_size is not None and not in_layer and func.__name__ in _JOINING
        if is_joined and self._has_grad == torch.is_grad_enabled():  # else inside of a function of autograd
            size = self._batch_size
            like = next((each for each in _tensors(args, kwargs) if each.dim() and each.size(0) == size), None)
            if like is not None and _needs_as_many(func.__name__, args, kwargs, like):
                return func(*self._cut(args, like), **self._cut(kwargs, like))
        return NOT_READ

    def _step(self, func: Any, args: Any, kwargs: Any, read: Tensor, exchange: Exchange) -> Any:
        if _is_harmless(func, args):
            return func(*args, **kwargs)
        under_way = self._under_way.pop(id(read))
        if _is_same(func, args):
            rows = func(*args)
            self._under_way[id(rows)] = under_way._replace(rows=rows)
            return rows
        _, place, (step, *later), instead = under_way
        if func.__name__ != step.name:
            raise RuntimeError(
                f"behind {place}, forward calls {func.__name__} where it called {step.name} when scale() tried it out, so that "
                "histories would hold other rows than before. Do the same in each call, or have histories hold what "
                'convolutions return: scale(model, data, places="outputs")'
            )
        if instead is None:
            rows = read
            if place.kind == "input" and (size := self.rows_of_input()) is not None:
                rows = first_rows(read, size)
                args, kwargs = (
                    tree_map_only(Tensor, lambda x: rows if x is read else x, each) for each in (args, kwargs)
                )
            if step.name not in _LEARNED | _RANDOM:  # which read no other rows: weights may be as many as these
                args, kwargs = self._cut(args, rows), self._cut(kwargs, rows)
            out = func(*args, **kwargs)
        else:
            out = _any_rows(instead, later[0]) if later else instead
        if later:
            self._under_way[id(out)] = _UnderWay(out, place, tuple(later), instead)
            return out
        exchanged = exchange(place, out)
        return out if exchanged is None else exchanged

    def _cut(self, value: Any, like: Tensor) -> Any:
        """Arguments of which those with a row for each node of batch and halo have as many as ``like``."""
        size, dim = like.size(0), like.dim()
        if size == self.num_rows:
            return value

        def cut(each: Tensor) -> Tensor:
            if each.dim() != dim or each.size(0) != self.num_rows:
                return each
            return own_rows(each, size)

        return tree_map_only(Tensor, cut, value)


def _any_rows(rows: Tensor, step: Step) -> Tensor:
    """As many rows as ``rows`` of the shape that a function is given, in the memory of one number."""
    return rows.new_full((), nan, requires_grad=False).expand(rows.size(0), *step.shape)
