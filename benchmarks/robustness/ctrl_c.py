"""Does Ctrl-C at any operation of opening, writing and loading files leave no lock, no half file and no half-loaded model?

Each scenario runs again and again, and is interrupted before its first operation of Python (an opcode) in the files concerned,
before its second, and so on. Then the next try must work, and what was there must be as it was or as it would be at the end. A
moment counts as `wrong` otherwise. Frames of `contextlib` are left out: Python 3.11 itself loses references there where a tracer
raises an error while `StopIteration` is handled.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import json
import random
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from damage import same

from torch_gas import (
    FileTable,
    FileTier,
    History,
    Partition,
    StoredFeatures,
    checkpoint,
    load_partition,
    save_partition,
    store_features,
)
from torch_gas._util import replace
from torch_gas.checkpoint import file, header, histories, rng, rows, run
from torch_gas.models import SAGE
from torch_gas.partition import parts, record
from torch_gas.table import features, tier
from torch_gas.table import file as table_file
from torch_gas.table import header as table_header

RESULTS = Path(__file__).parents[1] / "results" / "robustness"
MODULES = (
    replace, file, header, histories, rng, rows, run, parts, record, features, tier, table_file,
    table_header,
)  # fmt: skip
FILES = {module.__file__ for module in MODULES}
N, C = 20, 4
Work = Callable[[], Any]
Scenario = Callable[
    [Path], tuple[Work, Callable[[], None]]
]  # makes what is needed, and gives what is done, and then checked


def interrupt_at(number: int, work: Work) -> tuple[bool, int]:
    """Interrupts ``work`` before its operation of this number; whether it came so far, and how many there were."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename not in FILES:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            count += 1
            if count == number:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        return True, count
    finally:
        sys.settrace(None)
    return False, count


def table(path: Path, reuse: bool = False) -> FileTable:
    return FileTable(FileTier(path, reuse=reuse), N, C, torch.float32)


def committed(path: Path) -> History:
    history = History(N, C, tier=FileTier(path))
    history.push(torch.ones(N, C))
    history.commit()
    return history


def new_table(folder: Path) -> tuple[Work, Callable[[], None]]:
    return lambda: table(folder / "table"), lambda: table(folder / "table").close()


def new_model(folder: Path) -> tuple[Work, Callable[[], None]]:
    def make() -> Any:
        return SAGE(N, C, C, 2, num_layers=3, tier=FileTier(folder / "tables"))

    def check() -> None:
        assert len(make().histories) == 2

    return make, check


def old_table(folder: Path) -> tuple[Work, Callable[[], None]]:
    committed(folder / "table").table.close()

    def check() -> None:
        history = History(N, C, tier=FileTier(folder / "table", reuse=True))
        assert history.pull().all() and history.table.generation == 1 and not history.table.torn

    return lambda: History(N, C, tier=FileTier(folder / "table", reuse=True)), check


def torn_table(folder: Path) -> tuple[Work, Callable[[], None]]:
    history = committed(folder / "table")
    history.push(torch.ones(N, C))
    history.table.close()

    def check() -> None:
        history = History(N, C, tier=FileTier(folder / "table", reuse=True))
        assert history.table.torn and not history.pull().any() and (history.age == -1).all()

    return lambda: table(folder / "table", reuse=True), check


def commit(folder: Path) -> tuple[Work, Callable[[], None]]:
    history = committed(folder / "table")
    history.push(torch.ones(N, C))

    def check() -> None:
        """Rows that are written now are not said to be committed."""
        history.push(torch.zeros(N, C))
        assert not table_header.Header.read(history.table.file, "").committed
        history.commit()
        history.table.close()

    return history.commit, check


def stored(folder: Path) -> tuple[Work, Callable[[], None]]:
    def check() -> None:
        if not (folder / "x").exists():
            store_features(torch.ones(N, C), folder / "x")
        assert StoredFeatures(folder / "x")[torch.arange(N)].all()

    return lambda: store_features(torch.ones(N, C), folder / "x"), check


def features_read(folder: Path) -> tuple[Work, Callable[[], None]]:
    store_features(torch.ones(N, C), folder / "x")
    return lambda: StoredFeatures(folder / "x"), lambda: table(
        folder / "x", reuse=True
    ).close()  # which no reader locks


def partition(folder: Path) -> tuple[Work, Callable[[], None]]:
    ptr, new = torch.tensor([0, N]), torch.arange(N).flip(0)
    save_partition(folder / "p", Partition(torch.arange(N), ptr))

    def check() -> None:
        assert any(torch.equal(load_partition(folder / "p").perm, each) for each in (torch.arange(N), new))

    return lambda: (save_partition(folder / "p", Partition(new, ptr)), load_partition(folder / "p")), check


class Run:
    """A model, one history of which lies in a file and one in memory, and its optimiser."""

    def __init__(self, folder: Path, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = torch.nn.Linear(C, 1, bias=False)
        self.model.histories = torch.nn.ModuleList(
            [History(N, C, tier=FileTier(folder / f"{seed}.table")), History(N, C)]
        )
        for history in self.model.histories:
            history.push(torch.rand(N, C))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.5 + seed)

    def state(self) -> Any:
        state = {name: value.clone() for name, value in self.model.state_dict().items()}
        return [state, copy.deepcopy(self.optimizer.state_dict()), torch.get_rng_state()]


def saving(folder: Path) -> tuple[Work, Callable[[], None]]:
    one = Run(folder, 1)
    checkpoint.save(folder / "c", model=one.model, epoch=0)

    def check() -> None:
        assert checkpoint.load(folder / "c", model=one.model)["epoch"] in (0, 1)

    return lambda: checkpoint.save(folder / "c", model=one.model, epoch=1), check


def loading(folder: Path) -> tuple[Work, Callable[[], None]]:
    one, other = Run(folder, 1), Run(folder, 2)
    checkpoint.save(folder / "c", model=one.model, optimizer=one.optimizer)
    after = one.state()
    torch.manual_seed(5)
    before, after[2] = other.state(), after[2]

    def check() -> None:
        found = other.state()
        assert same(found, before) or same(found, after)

    return lambda: checkpoint.load(folder / "c", model=other.model, optimizer=other.optimizer), check


def loading_histories(folder: Path) -> tuple[Work, Callable[[], None]]:
    one, other = Run(folder, 1), Run(folder, 2)
    histories.save_histories(one.model, folder / "h")
    states = [{name: v for name, v in each.state()[0].items() if "histories" in name} for each in (one, other)]

    def check() -> None:
        found = {name: v for name, v in other.state()[0].items() if "histories" in name}
        assert any(same(found, each) for each in states)

    return lambda: histories.load_histories(other.model, folder / "h"), check


SCENARIOS: dict[str, Scenario] = {
    each.__name__: each
    for each in (
        new_table, new_model, old_table, torn_table, commit, stored, features_read, partition, saving, loading,
        loading_histories,
    )
}  # fmt: skip


def moment(scenario: Scenario, number: int, folder: Path) -> tuple[bool, int, str]:
    """Whether the interrupt came, how many operations there were, and what was wrong then."""
    files = open_files()
    work, check = scenario(folder)
    came, count = interrupt_at(number, work)
    try:
        check()
        del work, check
        left = [path.name for path in folder.rglob("*.part")]
        assert not left, f"{left} left behind"
        gc.collect(0)
        assert open_files() <= files, "a file is still open"
    except Exception as error:  # of any type: whatever was left half done may raise it
        return came, count, f"{type(error).__name__}: {error}"
    return came, count, ""


def open_files() -> int:
    """Number of descriptors, those of folders aside, which have no locks."""
    folder = Path("/proc/self/fd")
    return sum(not each.is_dir() for each in folder.iterdir()) if folder.exists() else 0


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without warnings, and without what Python reports of interrupts in finalizers, upon which it goes on."""
    hook, state = sys.unraisablehook, torch.get_rng_state()
    sys.unraisablehook = lambda failure: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.unraisablehook = hook
        torch.set_rng_state(state)


def attack(name: str, number: int, seed: int, folder: Path) -> dict[str, Any]:
    """Interrupts a scenario at so many moments, drawn at random, or at each if ``number`` is 0."""
    result: dict[str, Any] = {"operations": 0, "moments": 0, "wrong": 0, "what": {}}
    with quiet():
        for warm_up in range(2):  # what is computed once is computed
            (folder / f"warm_up_{warm_up}").mkdir()
            _, result["operations"], _ = moment(SCENARIOS[name], 0, folder / f"warm_up_{warm_up}")
        all_moments: Iterable[int] = range(1, result["operations"] + 1)
        if number:
            all_moments = random.Random(f"{name} {seed}").sample(all_moments, min(number, result["operations"]))
        for each in all_moments:
            with tempfile.TemporaryDirectory(dir=folder) as place:
                came, _, wrong = moment(SCENARIOS[name], each, Path(place))
            result["moments"] += came
            if wrong:
                result["wrong"] += 1
                result["what"].setdefault(wrong.replace(place, "")[:200], each)
    return result


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=0, help="moments of each scenario; all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenarios", nargs="*", default=list(SCENARIOS), choices=list(SCENARIOS))
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of ctrl_c.json")
    args = parser.parse_args(arguments)
    found = {}
    for name in args.scenarios:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = attack(name, args.number, args.seed, Path(folder))
        print(name, found[name], flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "ctrl_c.json").write_text(json.dumps(found, indent=1) + "\n")
    return found


if __name__ == "__main__":
    sys.exit(any(each["wrong"] for each in main().values()))
