"""What `torch.compile` makes of a model: `forward` becomes a graph, and the exchange of rows an operator in it.

What surrounds `forward` (checks, transfers, hooks) is Python that no graph should hold, so it runs as it is. Operators find the
model by the thread, because only tensors and numbers can be given to them.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from torch_gas._util.modules import modules_of
from torch_gas.wiring.undo import Undo

OLDEST = "2.11"  # torch that compiles a forward with hooks once, and not for each call

_thread = threading.local()


def run_in_thread(undo: Undo, model: Any) -> None:
    """Says to operators in compiled code that they are called by ``model``."""
    undo.set(_thread, "model", model)


def eager() -> AbstractContextManager[Any]:
    """While entered, compiled code runs as it was written; there is none before torch 2.6."""
    return torch.compiler.set_stance("force_eager") if hasattr(torch.compiler, "set_stance") else nullcontext()


def is_called_compiled() -> bool:
    """Whether this call comes from what `torch.compile(model)` returned."""
    frame = sys._getframe(1)
    while frame is not None:
        is_call = frame.f_code.co_name in ("__call__", "_call_impl")  # its own; before torch 2.8, that of all modules
        if is_call and type(frame.f_locals.get("self")).__name__ == "OptimizedModule":
            return True
        frame = frame.f_back  # type: ignore[assignment]  # None ends the loop
    return False


def is_compiled(module: Module) -> bool:
    """Whether calls of ``module`` run compiled code of its own."""
    forward = vars(module).get("forward")
    return module._compiled_call_impl is not None or hasattr(forward, "_torchdynamo_orig_callable")


def compiled_modules(model: Module) -> list[Module]:
    """The modules below ``model`` that run compiled code of their own."""
    return [module for module in modules_of(model)[1:] if is_compiled(module)]


def hide_compiled(undo: Undo, model: Module, told: Callable[[Any], None]) -> None:
    """Has modules that were compiled run out of sight of modes of torch's functions, with code for batches of any size.

    What such a mode does to a function would become part of the code, with the sizes of one batch. The sizes that norms look up
    (see :class:`~torch_gas.wiring.batch.Batch`) lie in modules of torch, which it takes for constants unless told.

    Args:
        undo: puts that back.
        model: the model.
        told: called with the arguments of such a module before it runs.
    """
    for module in compiled_modules(model):
        name = "forward" if module._compiled_call_impl is None else "_compiled_call_impl"
        undo.set(module, name, functools.partial(_run_hidden, getattr(module, name), told))


def _run_hidden(function: Callable[..., Any], told: Callable[[Any], None], *args: Any, **kwargs: Any) -> Any:
    told((args, kwargs))
    any_size = torch._dynamo.config.patch(force_nn_module_property_static_shapes=False)
    with torch._C.DisableTorchFunction(), any_size:
        return function(*args, **kwargs)


def prepare(name: str) -> None:
    """What compiled code of a model needs before it is made: operators, and a torch that can.

    Args:
        name: the model's, for the error.

    Raises:
        RuntimeError: where this torch cannot compile models that exchange rows.
    """
    if torch.__version__ < OLDEST:
        raise RuntimeError(
            f"{name}: to compile a model with histories takes torch {OLDEST} or later, but this is {torch.__version__}; update "
            "torch, or call the model as it is"
        )
    _register_operators()


def push_and_pull(model: Any, layer: int, x: Tensor, batch_size: int | None, n_id: Tensor | None) -> Tensor:
    """:meth:`ScalableGNN.push_and_pull` as the graph has it."""
    if n_id is not None:
        num_rows = n_id.size(0)
        if batch_size is None:
            batch_size = num_rows
        if x.size(0) != batch_size and x.size(0) != num_rows:
            raise ValueError("number of rows")  # ends the compilation: the code as it was written gives the message
        x = x[:batch_size]
        if batch_size != num_rows:
            return torch.ops.torch_gas.push_and_pull(x, num_rows, layer)
    torch.ops.torch_gas.push(model._written, x.detach(), layer)
    return x


def _under_way() -> tuple[Any, Any]:
    """The model whose compiled code runs, and its call."""
    model: Any = getattr(_thread, "model", None)
    call = None if model is None else model._session.call
    if call is None:
        raise RuntimeError("push_and_pull can only be called inside forward, by calling the model itself")
    return model, call


@functools.cache
def _register_operators() -> None:
    """Makes ``torch.ops.torch_gas``. Not on import, because torch takes long to look where operators come from."""
    # Transfers are issued by the host, so no CUDA graph can hold them; where torch knows this tag, it splits the graph there.
    tags: dict[str, Any] = {"tags": (torch.Tag.cudagraph_unsafe,)} if hasattr(torch.Tag, "cudagraph_unsafe") else {}
    # `written` stands for the histories: an operator without a result is dropped from a graph unless it writes to a tensor.
    # Schemas are stated, because torch 2.4 reads no annotations that are strings.
    torch.library.custom_op(
        "torch_gas::push",
        _push,
        mutates_args=("written",),
        schema="(Tensor(a!) written, Tensor x, SymInt layer) -> ()",
        **tags,
    )
    push_and_pull = torch.library.custom_op(
        "torch_gas::push_and_pull",
        _push_and_pull,
        mutates_args=(),
        schema="(Tensor x, SymInt num_rows, SymInt layer) -> Tensor",
        **tags,
    )
    push_and_pull.register_fake(lambda x, num_rows, layer: x.new_empty(num_rows, x.size(1)))
    push_and_pull.register_autograd(_backward, setup_context=_note_rows)


def _push(written: Tensor, x: Tensor, layer: int) -> None:
    model, call = _under_way()
    has_halo = call.n_id is not None and call.n_id.numel() != call.batch_size
    # With a halo, forward has not passed on the ids, which is an error.
    ids = () if has_halo else (call.batch_size, call.n_id, call.offset, call.count)
    model.push_and_pull(model.histories[layer], x, *ids)


def _push_and_pull(x: Tensor, num_rows: int, layer: int) -> Tensor:
    model, call = _under_way()
    out: Tensor = model.push_and_pull(model.histories[layer], x, call.batch_size, call.n_id, call.offset, call.count)
    return out


def _note_rows(ctx: Any, inputs: tuple[Tensor, int, int], output: Tensor) -> None:
    ctx.batch_size = inputs[0].size(0)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return grad[: ctx.batch_size], None, None
