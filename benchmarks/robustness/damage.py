"""Do damaged partition files, tables, features, histories and checkpoints give the documented errors, and change nothing?

Whole files are damaged at random: bits flipped, bytes cut, inserted, doubled or overwritten, fields of a header replaced, entries
of a checkpoint rewritten with the right checksum. Each is opened as a user would. It counts as `documented` if it is refused by
an error that the call documents, and nothing has changed; as `unnoticed` if what was read is as it was; else it is wrong. Rows of
tables and their ages have no checksum, so that of tables only what their header says is compared.
"""

from __future__ import annotations

import argparse
import collections
import copy
import json
import os
import random
import re
import sys
import tempfile
import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torch_gas import (
    FileTier,
    History,
    Partition,
    StoredFeatures,
    checkpoint,
    load_partition,
    save_partition,
    store_features,
)
from torch_gas.checkpoint.file import Saved, write
from torch_gas.models import SAGE

RESULTS = Path(__file__).parents[1] / "results" / "robustness"
N, C = 60, 4
VALUES = ["null", "true", '"x"', "-1", "0", "1.5", "[]", "{}", str(2**40), str(2**70), "NaN"]


def damage(content: bytes, chance: random.Random) -> bytes:
    """The content with one kind of damage, most often near one of its ends, where headers and directories are."""
    raw, size = bytearray(content), len(content)
    place = chance.choice(
        [chance.randrange(size), chance.randrange(min(size, 600)), -1 - chance.randrange(min(size, 600))]
    )
    place, length = place % size, chance.choice([1, 2, 8, 100])
    kind = chance.choice(["flip", "flip", "flip", "cut", "insert", "double", "zero", "noise", "field"])
    if kind == "flip":
        for _ in range(length):
            raw[chance.randrange(place, min(place + 8, size))] ^= 1 << chance.randrange(8)
    elif kind == "cut":
        del raw[place : chance.choice([size, place + length])]
    elif kind == "insert":
        raw[place:place] = chance.randbytes(length)
    elif kind == "double":
        raw[place:place] = raw[place : place + length]
    elif kind == "field":
        fields = list(re.finditer(rb'": ?("[^"]*"|[^,}]+)', content[:4096]))
        if fields:
            start, stop = chance.choice(fields).span(1)
            raw[start:stop] = chance.choice(VALUES).encode().ljust(chance.choice([0, stop - start]))
    else:
        raw[place : place + length] = bytes(length) if kind == "zero" else chance.randbytes(length)
        del raw[size:]
    return bytes(raw)


class Kind(ABC):
    """A kind of file, by default one that is damaged byte by byte.

    Attributes:
        documented: errors that the call documents.
    """

    documented: tuple[type[Exception], ...] = (ValueError,)

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write()
        self.whole = path.read_bytes()
        self.right = self.read()

    @abstractmethod
    def write(self) -> None:
        """Writes a whole file."""

    @abstractmethod
    def read(self) -> Any:
        """What the file holds, in lists and dictionaries of tensors and other values."""

    def state(self) -> Any:
        """What must be as it was after an error."""
        return None

    def spoil(self, chance: random.Random) -> None:
        self.path.write_bytes(damage(self.whole, chance))

    def outcome(self, chance: random.Random) -> str:
        self.spoil(chance)
        before = copy.deepcopy(self.state())
        try:
            read = self.read()
        except Exception as error:  # of any type: those that are not documented are what is looked for
            if not isinstance(error, self.documented):
                return f"{type(error).__name__}: {error}"
            return "documented" if same(self.state(), before) else f"changed before {error}"
        return "unnoticed" if same(read, self.right) else "accepted, and something else"


class PartitionFile(Kind):
    def write(self) -> None:
        perm = torch.randperm(N, generator=torch.Generator().manual_seed(0))
        save_partition(self.path, Partition(perm, torch.tensor([0, 20, 40, N])))

    def read(self) -> list[Tensor]:
        return list(load_partition(self.path))


class TableFile(Kind):
    def write(self) -> None:
        history = History(N, C, tier=FileTier(self.path))
        history.push(torch.ones(N // 2, C), torch.arange(N // 2))
        history.tick()
        history.commit()

    def read(self) -> list[Any]:
        history = History(N, C, tier=FileTier(self.path, reuse=True))
        history.pull(torch.arange(N))
        return [history.age.shape, history.clock, history.table.generation, history.origin.key]


class Features(Kind):
    def write(self) -> None:
        store_features(torch.ones(N, C), self.path, perm=torch.arange(N))

    def read(self) -> list[Any]:
        features = StoredFeatures(self.path)
        return [features.shape, features[torch.arange(N)].shape, features._table.header.order]


class Checkpoint(Kind):
    documented = (ValueError, TypeError)

    def __init__(self, path: Path) -> None:
        torch.manual_seed(0)
        self.model = SAGE(N, C, 8, 2, num_layers=2)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.5)
        self.model.histories[0].push(torch.ones(N, 8))
        super().__init__(path)
        with Saved(path) as saved:
            self.entries = {name: saved.read(name) for name in saved.entries}
            self.texts = {name: text for name, text in saved.texts.items() if not name.startswith("crc32")}

    def write(self) -> None:
        checkpoint.save(self.path, model=self.model, optimizer=self.optimizer, epoch=3)

    def read(self) -> Any:
        return [checkpoint.load(self.path, model=self.model, optimizer=self.optimizer), self.state()]

    def state(self) -> Any:
        return [dict(self.model.state_dict()), self.optimizer.state_dict(), torch.get_rng_state()]


class Histories(Checkpoint):
    documented = (ValueError,)

    def write(self) -> None:
        self.model.save_histories(self.path)

    def read(self) -> Any:
        self.model.load_histories(self.path)
        return self.state()


class Rewritten(Checkpoint):
    """A checkpoint of which one entry that is no table was damaged before it was written, so that its checksum is right."""

    def spoil(self, chance: random.Random) -> None:
        name = chance.choice([name for name in self.entries if not name.startswith("model.")])
        changed = damage(self.entries[name].numpy().tobytes(), chance) or b"\0"
        write(self.path, {**self.entries, name: torch.frombuffer(bytearray(changed), dtype=torch.uint8)}, self.texts)

    def outcome(self, chance: random.Random) -> str:
        found = super().outcome(chance)
        # Whoever writes the checksum anew has written another file, which is right if it can be loaded.
        return "unnoticed" if found == "accepted, and something else" else found


KINDS: dict[str, type[Kind]] = {
    "partition": PartitionFile, "table": TableFile, "features": Features, "histories": Histories, "checkpoint": Checkpoint,
    "rewritten": Rewritten,
}  # fmt: skip


def same(a: Any, b: Any) -> bool:
    """Whether two nested values are the same, bit for bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def attack(kind: str, number: int, seed: int, folder: Path) -> collections.Counter[str]:
    """How many of so many damaged files had which outcome."""
    chance, found = random.Random(f"{kind} {seed}"), collections.Counter[str]()
    random_state = torch.get_rng_state()
    folder.mkdir(exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = KINDS[kind](folder / kind)
        for _ in range(number):
            found[file.outcome(chance)] += 1
    torch.set_rng_state(random_state)
    return found


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=3000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of damage.json")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        found = {kind: dict(attack(kind, args.number, args.seed, Path(folder))) for kind in args.kinds}
        assert sorted(os.listdir(folder)) == sorted(args.kinds)  # nothing else is left behind
    result = {"number": args.number, "seed": args.seed, "outcomes": found}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "damage.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return result


if __name__ == "__main__":
    outcomes = main()["outcomes"]
    sys.exit(any(each.keys() - {"documented", "unnoticed"} for each in outcomes.values()))
