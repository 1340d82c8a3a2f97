# Two commands do everything on a machine that has Python 3.11 to 3.14 and make: `make demo` and `make test`.
# `make docs` builds the documentation site, `make dist` the packages; each sets itself up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

BASE := .venv-base
BASE_STAMP := $(BASE)/.installed

DOCS := .venv-docs
DOCS_STAMP := $(DOCS)/.installed
SPHINX := $(DOCS)/bin/python -m sphinx --fail-on-warning --keep-going --quiet

DIST := .venv-dist
CORE := cache evaluation formats fusion metrics selection stack test_likelihood.py test_recipe.py

.PHONY: demo demo-seeds test lint test-base docs linkcheck dist dist-tests clean

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

$(BASE_STAMP): pyproject.toml constraints.txt
	test -x $(BASE)/bin/python || $(PYTHON) -m venv $(BASE)
	$(BASE)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(DOCS_STAMP): pyproject.toml constraints.txt
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
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

docs: $(DOCS_STAMP)
	rm -rf docs/_build/html
	$(SPHINX) --builder html docs docs/_build/html
	@echo 'open docs/_build/html/index.html'

# Asks every site that the pages link to; not for CI, where another site's bad day would be ours.
linkcheck: $(DOCS_STAMP)
	$(SPHINX) --builder linkcheck docs docs/_build/linkcheck

# Builds the wheel and the sdist, and tries each where nothing else is installed.
dist:
	rm -rf dist $(DIST)
	$(PYTHON) -m venv $(DIST)
	$(DIST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt build
	$(DIST)/bin/python -m build --outdir dist
	for package in dist/*; do \
	  $(PYTHON) -m venv --clear $(DIST) && \
	  $(DIST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $$package && \
	  $(DIST)/bin/vidfuse demo --out runs/dist-demo || exit 1; \
	done

# Runs the core's tests, from a folder that holds them alone, against each package that `dist` built. They compare with
# other libraries, so that the environment has the base install and those; torch is not among them.
dist-tests: dist
	for package in dist/*; do \
	  rm -rf $(DIST)-tests && mkdir $(DIST)-tests && \
	  cp -r tests examples pyproject.toml $(DIST)-tests && \
	  $(PYTHON) -m venv --clear $(DIST) && \
	  $(DIST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $$package \
	    pytest hypothesis mpmath pandas polars pyarrow pyyaml matplotlib && \
	  (cd $(DIST)-tests && ../$(DIST)/bin/python -m pytest -q $(CORE:%=tests/%)) || exit 1; \
	done

clean:
	rm -rf $(VENV) $(BASE) $(DOCS) $(DIST) $(DIST)-tests docs/_build dist runs
