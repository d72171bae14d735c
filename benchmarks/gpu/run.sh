#!/usr/bin/env bash
# One call on a machine with an NVIDIA GPU and nvcc: builds the extension for this GPU, runs the CUDA tests (absence of a GPU
# fails), measures, and runs kernels under compute-sanitizer. It ends within seven minutes: stages come in the order of their
# worth, each has its own limit and saves what it has as it goes, and one that fails or is cut loses no other. Needs torch,
# torch_geometric, pybind11, pytest, hypothesis, tqdm and matplotlib in the Python that is used; no network and no METIS.
#
#   OUT=benchmarks/results/gpu bash benchmarks/gpu/run.sh
#
# Writes results.json, results.md, pictures and run.log to the folder OUT, and prints one table of predictions and measurements at
# the end. The exit status is 1 if a stage failed.
set -uo pipefail
out="$(realpath -m "${OUT:-$(dirname "$0")/../results/gpu}")"
cd "$(dirname "$0")/../.." || exit 1
python="${PYTHON:-python3}"
export python PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export PYTHONWARNINGS="ignore:Sparse CSR tensor support"
mkdir -p "$out"
rm -f "$out"/{results.json,results.md,rows.png,step.png,step_others.png,step_timeline.png,memory.png}

deadline=405
summary=()
failed=0

# stage NAME SECONDS COMMAND...: runs the command within its limit and the time that is left, and notes how it went. It is cut by
# an interrupt, upon which pytest says what has failed so far.
stage() {
  local name="$1" limit="$2" start=$SECONDS status=0
  shift 2
  echo "=== $name"
  ((limit > deadline - SECONDS)) && limit=$((deadline - SECONDS))
  if ((limit < 5)); then
    summary+=("FAILED  $name: not started, because no time was left") && failed=1
    return 1
  fi
  timeout --signal=INT --kill-after=5 "$limit" "$@" || status=$?
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

# Plugins and warnings of whatever else is installed there fail no test.
cuda_tests() {
  TORCH_GAS_GPU_LANE=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 exec "$python" -m pytest -q -W default -p no:cacheprovider -m cuda \
    -rfE --tb=short --maxfail=40 --durations=10 -o faulthandler_timeout=60 "$@"
}

model_tests() {
  local files  # others need packages that this script does not
  mapfile -t files < <(grep -rlE 'mark\.cuda' --include='test_*.py' tests | grep -v '_core/test_cuda\.py')
  cuda_tests "${files[@]}"
}

# Kernels under a tool of compute-sanitizer, which looks at those of this project only; 77 where it cannot.
sanitizer() {
  local log status
  if ! command -v compute-sanitizer >/dev/null; then
    echo "compute-sanitizer is not on PATH"
    return 77
  fi
  log="$(mktemp)"
  compute-sanitizer --tool "$1" --error-exitcode 1 --report-api-errors no --kernel-name kns=torch_gas \
    "$python" benchmarks/gpu/sanitized.py 2>&1 | tee "$log"
  status=${PIPESTATUS[0]}
  if grep -q "Device not supported" "$log"; then status=77; fi
  rm -f "$log"
  return "$status"
}

main() {
  export -f build cuda_tests model_tests sanitizer
  if stage "build" 120 bash -c build; then
    stage "kernel tests" 70 bash -c 'cuda_tests tests/_core/test_cuda.py'
    stage "rows" 55 "$python" benchmarks/gpu/rows.py --out "$out"
    stage "step" 75 "$python" benchmarks/gpu/step.py --models GCN --out "$out"
    stage "memory" 55 "$python" benchmarks/gpu/memory.py --out "$out"
    stage "model tests" 70 bash -c model_tests
    stage "beside" 40 "$python" benchmarks/gpu/beside.py --out "$out"
    stage "memcheck" 40 bash -c 'sanitizer memcheck'
    stage "racecheck" 40 bash -c 'sanitizer racecheck'
    stage "small" 30 "$python" benchmarks/gpu/small.py --out "$out"
    stage "step of other models" 150 "$python" benchmarks/gpu/step.py --models GAT GCNII PNA --out "$out"
  else
    echo "nothing was tested or measured, because the extension was not built"
  fi
  echo "=== measured beside predicted"
  "$python" benchmarks/gpu/summary.py "$out"
  echo "=== summary after $SECONDS s"
  printf '%s\n' "${summary[@]}"
  return $failed
}

main 2>&1 | tee "$out/run.log"
exit "${PIPESTATUS[0]}"
