"""Changes that last as long as a call are undone wherever it is interrupted, by the next call at the latest."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import random_graph
from interrupts import interrupt_at
from nets import Net
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch_geometric.nn import GraphSAGE

from torch_gas import EvalSubgraphLoader, SubgraphLoader, scale
from torch_gas.wiring import places, undo
from torch_gas.wiring.places import Handler, Places
from torch_gas.wiring.undo import Undo

N = 60
DATA, PTR = random_graph(N, 300), torch.arange(0, N + 1, 20)
BATCH = next(iter(SubgraphLoader(DATA, PTR)))


def state(module: torch.nn.Module) -> list[dict[str, Any]]:
    return [
        {key: copy.copy(value) if isinstance(value, (dict, list)) else value for key, value in vars(each).items()}
        for each in module.modules()
    ]


def test_changes_are_undone_in_reverse_order() -> None:
    lin = torch.nn.Linear(2, 2)
    before = state(lin)
    with Undo() as log:
        for value in (1, 2):
            log.set(lin, "value", value)
        log.hook_before(lin, lambda lin, args, kwargs: ((args[0] + 1,), kwargs))
        log.hook_after(lin, lambda lin, args, out: out * 2)
        log.hook_after(lin, lambda lin, args, out: out + 1, prepend=True)
        x = torch.ones(1, 2)
        expected = 2 * (torch.nn.functional.linear(x + 1, lin.weight, lin.bias) + 1)
        assert lin.value == 2 and torch.equal(lin(x), expected)
    assert state(lin) == before


def test_an_interrupt_in_any_call_is_undone() -> None:
    model = GraphSAGE(4, 8, 2, 3)
    before = state(model)
    logs: list[Undo] = []

    def work() -> None:
        logs.append(Undo())
        with logs[-1] as log:
            Places(model, Handler(), N).wire(log)
            log.hook_before(model, print)
            log.hook_after(model, print, prepend=True)

    number, left = 1, 0
    while interrupt_at(number, {undo.__file__, places.__file__, torch.utils.hooks.__file__}, work):
        left += state(model) != before
        for log in logs:
            log.finish()  # as the next call does
        assert state(model) == before, number
        assert _get_current_function_mode_stack() == []
        number += 1
    assert number > 60
    assert left <= 1  # where the log was about to be left


def test_an_interrupt_while_the_log_is_left_waits() -> None:
    undone: list[str] = []

    def interrupt() -> None:
        if "interrupt" not in undone:
            undone.append("interrupt")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Undo() as log:
        log.add(undone.append, "first")
        log.add(interrupt)
        log.add(undone.append, "last")
    assert undone == ["last", "interrupt", "first"]


def test_a_mode_that_was_not_entered_is_not_left() -> None:
    other, mode = TorchFunctionMode(), Places(GraphSAGE(4, 8, 2, 3), Handler(), N)
    with other:
        mode.__exit__(None, None, None)
        with mode:
            assert _get_current_function_mode_stack() == [other, mode]
        mode.__exit__(None, None, None)
        assert _get_current_function_mode_stack() == [other]


def make(kind: str) -> Any:
    return scale(GraphSAGE(8, 16, 3, 3), DATA) if kind == "scaled" else Net(N, 16, 3)


def exact(model: Any) -> None:
    model.eval()
    wanted = model(DATA) if hasattr(model, "found") else model(DATA.x, DATA.edge_index)
    torch.testing.assert_close(model(BATCH), wanted[: BATCH.batch_size])


@pytest.mark.parametrize("kind", ["explicit", "scaled"])
@pytest.mark.parametrize("ends", ["call", "inference"])
def test_the_next_call_undoes_what_is_left(kind: str, ends: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, loader = make(kind).eval(), EvalSubgraphLoader(DATA, PTR, prefetch=0)
    plain = state(model)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt), torch.no_grad():
        patched.setattr(Undo, "__exit__", interrupt)
        model(BATCH) if ends == "call" else model(loader=loader)
    assert model._session.call is not None
    for mode in _get_current_function_mode_stack():
        assert isinstance(mode, Places)
    twin = copy.deepcopy(model)
    assert model._session.call is None and model._session.replay is None and _get_current_function_mode_stack() == []
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Undo, "__exit__", interrupt)
        model(BATCH) if ends == "call" else model(loader=loader)
    torch.set_grad_enabled(True)
    exact(model)
    exact(twin)
    with torch.no_grad():
        model(loader=loader)
    after = state(model)
    for was, now in zip(plain, after, strict=True):
        assert was.keys() == now.keys()
        assert was.get("_forward_hooks") == now.get("_forward_hooks")
        assert was.get("_forward_pre_hooks") == now.get("_forward_pre_hooks")


@pytest.mark.parametrize("kind", ["explicit", "scaled"])
def test_a_call_that_is_under_way_is_left_alone(kind: str) -> None:
    model = make(kind).eval()
    plain = model.model if kind == "scaled" else model
    problems: list[str] = []

    def call_again(*_: Any) -> None:
        try:
            model(BATCH)
        except RuntimeError as error:
            problems.append(str(error))

    def in_another_thread(*_: Any) -> None:
        thread = threading.Thread(target=call_again)
        thread.start()
        thread.join()

    for hook in (call_again, in_another_thread):
        handle = plain.convs[1].register_forward_pre_hook(hook)
        model(BATCH)
        handle.remove()
    assert len(problems) == 2
    inside, elsewhere = problems
    assert "was called inside its own forward" in inside and "is in use by another thread" in elsewhere
    exact(model)


@pytest.mark.slow
def test_a_model_is_freed_with_its_last_reference() -> None:
    gc.collect()
    gc.disable()
    try:
        for kind in ("explicit", "scaled"):
            model = make(kind)
            gc.collect()
            model(BATCH).sum().backward()
            model.eval()(loader=EvalSubgraphLoader(DATA, PTR))
            reference = weakref.ref(model)
            del model
            assert reference() is None
    finally:
        gc.enable()


def test_interrupts_in_calls_of_a_step() -> None:
    model = make("scaled")
    package = Path(undo.__file__).parent
    files: set[str | None] = {str(path) for path in package.rglob("*.py")}
    rng = torch.Generator().manual_seed(0)

    def work() -> None:
        model(BATCH).sum().backward()

    interrupted = 0
    for number in torch.randint(1, 1500, (100,), generator=rng).tolist():
        interrupted += interrupt_at(number, files, work)
    assert interrupted > 30
    exact(model)
