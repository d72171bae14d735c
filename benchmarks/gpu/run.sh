#!/usr/bin/env bash
# One call on a machine with an NVIDIA GPU and nvcc: builds the extension for this GPU, runs the CUDA tests (absence of a GPU fails),
# measures, and runs kernel tests under compute-sanitizer. It ends within eight minutes: each stage has its own limit, and a stage that
# fails loses no other. Needs torch, torch_geometric, pybind11, pytest, hypothesis, tqdm and matplotlib in the Python that is used;
# no network and no METIS.
#
#   OUT=benchmarks/results/gpu bash benchmarks/gpu/run.sh
#
# Writes results.json, results.md, four pictures and run.log to the folder OUT. The exit status is 1 if a stage failed.
set -uo pipefail
out="$(realpath -m "${OUT:-$(dirname "$0")/../results/gpu}")"
cd "$(dirname "$0")/../.." || exit 1
python="${PYTHON:-python3}"
export python PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export PYTHONWARNINGS="ignore:Sparse CSR tensor support"
mkdir -p "$out"
rm -f "$out"/{results.json,results.md,rows.png,step.png,step_timeline.png,memory.png}

deadline=465
summary=()
failed=0

# stage NAME SECONDS COMMAND...: runs the command within its limit and the time that is left, and notes how it went.
stage() {
  local name="$1" limit="$2" start=$SECONDS status=0
  shift 2
  echo "=== $name"
  ((limit > deadline - SECONDS)) && limit=$((deadline - SECONDS))
  if ((limit < 5)); then
    summary+=("FAILED  $name: not started, because no time was left") && failed=1
    return 1
  fi
  timeout --kill-after=5 "$limit" "$@" || status=$?
  case $status in
    0) summary+=("ok      $name: $((SECONDS - start)) s") ;;
    77) summary+=("absent  $name: see above") ;;
    124 | 137) summary+=("FAILED  $name: not done after $limit s") && failed=1 ;;
    *) summary+=("FAILED  $name: exit status $status after $((SECONDS - start)) s") && failed=1 ;;
  esac
  return "$status"
}

build() {
  local capability
  capability="$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')" || return 1
  TORCH_GAS_CUDA=1 TORCH_GAS_CUDA_ARCHS="${TORCH_GAS_CUDA_ARCHS:-$capability}" "$python" setup.py --quiet build_ext --inplace
}

cuda_tests() {
  local files
  mapfile -t files < <(grep -rlE 'mark\.cuda' --include='test_*.py' tests)  # others need packages that this script does not
  TORCH_GAS_GPU_LANE=1 "$python" -m pytest -q -p no:cacheprovider -m cuda "${files[@]}"
}

# A few tests of kernels under a tool of compute-sanitizer, which looks at the kernels of this project only; 77 where it cannot.
sanitizer() {
  local log status
  if ! command -v compute-sanitizer >/dev/null; then
    echo "compute-sanitizer is not on PATH"
    return 77
  fi
  log="$(mktemp)"
  compute-sanitizer --tool "$1" --error-exitcode 1 --report-api-errors no --kernel-name kns=torch_gas \
    "$python" -m pytest -q -x -p no:cacheprovider tests/_core/test_cuda.py \
    -k "test_chunks or test_nothing_to_move or test_tables_that_start_anywhere" 2>&1 | tee "$log"
  status=${PIPESTATUS[0]}
  if grep -q "Device not supported" "$log"; then status=77; fi
  rm -f "$log"
  return "$status"
}

main() {
  export -f build cuda_tests sanitizer
  if stage "build" 120 bash -c build; then
    stage "CUDA tests" 100 bash -c cuda_tests
    stage "rows" 60 "$python" benchmarks/gpu/rows.py --out "$out"
    stage "step" 150 "$python" benchmarks/gpu/step.py --out "$out"
    stage "memory" 60 "$python" benchmarks/gpu/memory.py --out "$out"
    stage "small" 40 "$python" benchmarks/gpu/small.py --out "$out"
    stage "memcheck" 40 bash -c 'sanitizer memcheck'
    stage "racecheck" 40 bash -c 'sanitizer racecheck'
  else
    echo "nothing was tested or measured, because the extension was not built"
  fi
  echo "=== summary after $SECONDS s"
  printf '%s\n' "${summary[@]}"
  return $failed
}

main 2>&1 | tee "$out/run.log"
exit "${PIPESTATUS[0]}"
