"""Fuzzes the bindings, with libFuzzer's options: `python tests/_core/fuzz/run.py -max_total_time=600 FOLDER`; needs atheris."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

with atheris.instrument_imports(include=["torch_gas._core", "target"]):
    import target


def one_input(data: bytes) -> None:
    target.one_input(data)


atheris.Setup(sys.argv, one_input)
atheris.Fuzz()
