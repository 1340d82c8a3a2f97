# Two commands do everything on a machine that has Python 3.11 to 3.14 and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

BASE := .venv-base
BASE_STAMP := $(BASE)/.installed

.PHONY: demo demo-seeds test lint test-base clean

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

$(BASE_STAMP): pyproject.toml constraints.txt
	test -x $(BASE)/bin/python || $(PYTHON) -m venv $(BASE)
	$(BASE)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

demo: $(STAMP)
	$(BIN)/python examples/vipriors_kinetics.py --out runs/demo

demo-seeds: $(STAMP)
	$(BIN)/python examples/vipriors_kinetics.py --out runs/demo --seeds 3

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The base install must work where torch is not: the demo that needs none runs in an environment that has none.
test-base: $(BASE_STAMP)
	! $(BASE)/bin/python -c 'import torch' 2>/dev/null
	$(BASE)/bin/vidfuse demo --out runs/base-demo

# One thread a worker: two workers whose threads wait for each other keep two cores busy with waiting.
test: lint test-base
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

clean:
	rm -rf $(VENV) $(BASE) runs
