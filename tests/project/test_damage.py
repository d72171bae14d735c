"""The attacks on files of benchmarks/robustness, with few seeds, and that they can fail."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType

import pytest

from torch_gas.table.file import FileTable
from torch_gas.table.header import Header

ROBUSTNESS = Path(__file__).parents[2] / "benchmarks" / "robustness"
KINDS = ("partition", "table", "features", "histories", "checkpoint", "rewritten")
SCENARIOS = (
    "new_table", "new_model", "old_table", "torn_table", "commit", "stored", "features_read", "partition", "saving",
    "loading", "loading_histories",
)  # fmt: skip


@pytest.fixture
def damage(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROBUSTNESS))
    return importlib.import_module("damage")


@pytest.fixture
def ctrl_c(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROBUSTNESS))
    return importlib.import_module("ctrl_c")


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_give_documented_errors(damage: ModuleType, tmp_path: Path, kind: str) -> None:
    found = damage.attack(kind, 40, 0, tmp_path)
    assert found.keys() <= {"documented", "unnoticed"} and found["documented"] > 10
    assert tuple(damage.KINDS) == KINDS and os.listdir(tmp_path) == [kind]


def test_what_is_wrong_is_noticed(damage: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(damage, "damage", lambda content, chance: content.replace(b'"clock": 1', b'"clock": 7'))
    assert damage.attack("table", 1, 0, tmp_path) == {"documented": 1}
    with monkeypatch.context() as patch:
        patch.setattr(Header, "_check", lambda self: None)
        assert damage.attack("table", 1, 0, tmp_path / "b") == {"accepted, and something else": 1}
    monkeypatch.setattr(damage.TableFile, "documented", (KeyError,))
    (name,) = damage.attack("table", 1, 0, tmp_path / "c")
    assert name.startswith("ValueError: ") and "cannot be read" in name


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # where Python closes what Ctrl-C has lost
@pytest.mark.parametrize("name", SCENARIOS)
def test_ctrl_c_at_some_operations(ctrl_c: ModuleType, tmp_path: Path, name: str) -> None:
    found = ctrl_c.attack(name, 12, 0, tmp_path)
    assert found["wrong"] == 0, found["what"]
    assert found["moments"] > 6 and tuple(ctrl_c.SCENARIOS) == SCENARIOS


def test_a_lock_that_lasts_is_noticed(ctrl_c: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[FileTable] = []
    begin = FileTable._begin
    monkeypatch.setattr(FileTable, "_begin", lambda self, *args: (begin(self, *args), kept.append(self)))
    _, _, wrong = ctrl_c.moment(ctrl_c.old_table, 0, tmp_path)
    assert "is in use by another table of this process" in wrong
