# `make demo` and `make test` do everything on a fresh machine; the rest is for developers.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint sparse clean

SOURCES := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu')

# The environment, with the extension built in it; again whenever the build's inputs change.
$(VENV)/.installed: pyproject.toml setup.py $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev,examples]"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py

test: $(VENV)/.installed lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --durations=10

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy torch_gas
	$(BIN)/clang-format --dry-run --Werror $(SOURCES)

# torch-sparse, so that its SparseTensor is tested as well. Built from source where no wheel is at hand.
sparse: $(VENV)/.installed
	$(BIN)/python -c "import torch_sparse" 2>/dev/null || \
	  $(BIN)/python -m pip install --quiet --no-build-isolation torch-scatter torch-sparse

clean:
	rm -rf build dist $(VENV) torch_gas/*.so *.egg-info
