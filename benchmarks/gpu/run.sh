#!/usr/bin/env bash
# One call on a machine with an NVIDIA GPU and nvcc: builds the extension, runs the CUDA tests (absence of a GPU fails), then measures.
# Needs torch, torch_geometric, pytest, hypothesis, rich, matplotlib and pymetis in the Python that is used; no network.
#
#   OUT=benchmarks/results/gpu bash benchmarks/gpu/run.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
out="${OUT:-benchmarks/results/gpu}"
python="${PYTHON:-python3}"
mkdir -p "$out"

TORCH_GAS_CUDA=1 "$python" setup.py --quiet build_ext --inplace
TORCH_GAS_GPU_LANE=1 "$python" -m pytest -m cuda -q tests 2>&1 | tee "$out/tests.txt"
"$python" benchmarks/gpu/rows.py --out "$out/rows.json"
"$python" examples/demo.py --device cuda --out "$out/demo" 2>&1 | tee "$out/demo.txt"
