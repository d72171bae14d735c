"""Trains models whose rows travel by the CUDA code on the emulated device, beside ones that move them at once on the host.

`python tests/native/engine.py MODULE` with the core that emulated.py has built. on_device.py has the models.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]


def load(name: str, path: str) -> Any:
    """A module of the library at ``path``, which has several."""
    loader = importlib.machinery.ExtensionFileLoader(name, path)
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", help="the core, built with the emulated runtime")
    parser.add_argument("--seeds", type=int, default=3, help="schedules of each model (default: 3)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--package", default=TESTS.parent, help="folder that torch_gas is in (default: this tree)")
    parser.add_argument("--cases", nargs="+", help="names of cases (default: all)")
    args = parser.parse_args()
    sys.path[:0] = map(str, (args.package, TESTS, TESTS / "transfer", TESTS / "datasets"))
    sys.modules["_emulated"] = load("_emulated", args.module)
    sys.modules["torch_gas._C"] = load("torch_gas._C", args.module)  # before torch_gas looks for its own
    import on_device

    for name in args.cases or on_device.CASES:
        on_device.compare(name, range(args.first, args.first + args.seeds))
        print(f"{name}: {args.seeds} schedules", flush=True)
    print("device and host agree")


if __name__ == "__main__":
    main()
