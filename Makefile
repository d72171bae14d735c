# `make demo` and `make test` do everything on a fresh machine; the rest is for developers. `make check` is what to run after a change.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
# A file of versions to install, such as requirements/ci.txt; the newest that fit by default.
LOCK ?=
BIN := $(VENV)/bin
PIN := $(if $(LOCK),--constraint $(LOCK))
FUZZ_SECONDS ?= 600
SEEDS ?= 20
KERNEL_TESTS := $(patsubst %,tests/_core/test_%.py,rows subgraph order symmetric stream product dropout memory fuzz)

.PHONY: demo test check hooks conformance api oldest lint sparse sanitize emulated faults fuzz audit lock clean

SOURCES := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu')
TEST_SOURCES := $(shell find tests -name '*.h' -o -name '*.cpp') tests/native/emulated_cuda/include/cassert

# The environment, with the extension built in it; again whenever the build's inputs change. The demo needs no tools for developers.
$(VENV)/.installed: EXTRAS := dev,examples
$(VENV)/.examples: EXTRAS := examples
$(VENV)/.installed $(VENV)/.examples: pyproject.toml setup.py $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIN) "$(TORCH)"
	$(BIN)/python -m pip install --quiet $(PIN) --editable ".[$(EXTRAS)]"
	touch $@

# Training on histories beside full batch, on a small graph.
demo: $(VENV)/.examples
	TORCH_CPP_LOG_LEVEL=ERROR $(BIN)/python examples/demo.py

# Lint and all tests.
test: $(VENV)/.installed lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal --durations=10

# Lint and the fast lane of the tests (see tests/conftest.py): whether a change is probably right.
check: $(VENV)/.installed lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal --fast --durations=5

# Lint on each commit and the type check on each push, by the tools of the environment (see .pre-commit-config.yaml).
hooks: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet pre-commit pre-commit-hooks
	$(BIN)/pre-commit install

# The tests with the oldest versions that are supported. The extension is the same for all of them.
oldest:
	$(MAKE) build/oldest/.installed VENV=build/oldest TORCH=torch==2.4.1 LOCK=requirements/oldest.txt
	OMP_NUM_THREADS=1 build/oldest/bin/python -m pytest -q -n auto

# Style and types.
lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy torch_gas
	$(BIN)/clang-format --dry-run --Werror $(SOURCES) $(TEST_SOURCES)

# torch-sparse, so that its SparseTensor is tested as well. Built from source where no wheel is at hand.
sparse: $(VENV)/.installed
	$(BIN)/python -c "import torch_sparse" 2>/dev/null || \
	  $(BIN)/python -m pip install --quiet --no-build-isolation torch-scatter torch-sparse

# Contract 1 for every convolution of PyG, measured again; docs/conformance.md is what it writes.
conformance: $(VENV)/.installed
	cd tests && PYTHONPATH=. ../$(BIN)/python -m conformance --output ../docs/conformance.md

# docs/api.md from the docstrings.
api: $(VENV)/.installed
	$(BIN)/python docs/api.py

# The kernels' tests with AddressSanitizer and UndefinedBehaviorSanitizer in the extension. A preloaded libstdc++ lets errors be raised.
sanitize: $(VENV)/.installed
	TORCH_GAS_SANITIZE=address TORCH_GAS_CUDA=0 $(BIN)/python setup.py -q build --build-base build/sanitize --build-lib build/sanitize/lib
	PYTHONPATH=build/sanitize/lib ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=1 \
	  LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	  $(BIN)/pytest -q -p no:cacheprovider $(KERNEL_TESTS)

# The CUDA code on an emulated device, under sanitizers: needs a C++ compiler, and neither CUDA nor the environment.
emulated:
	$(PYTHON) tests/native/emulated.py --seeds $(SEEDS)

# Which faults that are planted in the CUDA code, in the transfer engine and in what tests on a GPU stand on are found (about an hour).
faults: $(VENV)/.installed
	$(BIN)/python tests/native/faults.py

# What all calls do with odd tensors, and the bindings with arguments that nobody thought of; findings and new inputs lie in build/fuzz.
fuzz: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet atheris
	mkdir -p build/fuzz
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/odd_tensors.py > build/fuzz.txt || { tail -n 3 build/fuzz.txt; false; }
	OMP_NUM_THREADS=1 $(BIN)/python tests/_core/fuzz/run.py -max_total_time=$(FUZZ_SECONDS) -max_len=400 -artifact_prefix=build/fuzz/ \
	  build/fuzz tests/_core/fuzz/corpus

# Known vulnerabilities of what CI installs; needs the network.
audit: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --requirement requirements/ci.txt --no-deps --disable-pip

# The versions that CI installs, from this environment.
lock: $(VENV)/.installed
	{ grep '^#' requirements/ci.txt; $(BIN)/python -m pip freeze --exclude-editable | grep -viE '^torch(==|_scatter|_sparse)| @ '; } > ci.tmp
	mv ci.tmp requirements/ci.txt

# Everything that was built, the environment and the kept objects of the sanitizers' tests included.
clean:
	rm -rf build dist $(VENV) torch_gas/*.so *.egg-info
