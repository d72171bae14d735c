"""Runs every benchmark of a suite, each in a process of its own, and collects their results in one folder.

A benchmark that fails loses no other, and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
SUITES = {
    "cpu": (
        "step",
        "roofline",
        "scaled",
        "releases",
        "host",
        "kernels",
        "partition",
        "loader",
        "threads",
        "scaling",
        "products",
        "tiers",
        "hot",
        "accuracy",
        "places",
        "inference",
        "exact",
        "compensation",
        "gradients",
        "plan",
    ),
    "gpu": ("rows", "step", "memory", "beside", "small"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=SUITES, required=True, help="what to measure: the CPU or a GPU")
    parser.add_argument("--out", type=Path, help="folder of the results (default: benchmarks/results/SUITE)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes on the CPU, whose figures say nothing")
    parser.add_argument("--pygas", type=Path, help="root of a local build of PyGAS, for step.py of the CPU suite")
    parser.add_argument(
        "--other", type=Path, help="root of another release, built in place, for releases.py (else left out)"
    )
    args = parser.parse_args()
    if (args.pygas or args.other) and args.suite != "cpu":
        parser.error("--pygas, --other: PyGAS is measured by the CPU suite only, and so is another release")

    out = (args.out or HERE / "results" / args.suite).resolve()
    (out / "results.json").unlink(missing_ok=True)  # of another run, whose sections would stay
    options = ["--out", str(out)]
    options += ["--quick"] if args.quick else []
    options += ["--device", "cpu"] if args.suite == "gpu" and args.quick else []
    root = str(HERE.parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    summary = []
    further = {"step": ("--pygas", args.pygas), "releases": ("--other", args.other)}
    for name in SUITES[args.suite]:
        option, path = further.get(name, ("", None))
        if name == "releases" and path is None:
            continue
        extra = [] if path is None else [option, str(path.resolve())]
        start = time.monotonic()
        done = subprocess.run([sys.executable, HERE / args.suite / f"{name}.py", *options, *extra], env=environment)
        summary.append(
            (done.returncode, f"{name}: exit status {done.returncode} after {time.monotonic() - start:.0f} s")
        )
    print("\n".join(["=== summary", *(line for _, line in summary), f"results: {out / 'results.md'}"]))
    sys.exit(any(status for status, _ in summary))


if __name__ == "__main__":
    main()
