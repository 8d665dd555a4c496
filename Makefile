# Everything from a bare clone: make run, make test. Needs Python 3.11+ and a package registry.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python -m recexp
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
CODE := recexp tests docs
RUFF_FLAGS ?=
FUZZ ?= 100000
# Tests run in several processes, as many as there are cores but at most 8; JOBS=1 for one.
PYTEST := $(BIN)/python -m pytest -n $(or $(JOBS),auto) --maxprocesses 8 --dist worksteal

.PHONY: help setup run test test-all lint style types format docs notebooks fuzz bench versus mutations clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.installed  ## build the environment in .venv

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "recexp needs Python 3.11 or newer; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch
	$(INSTALL) -e '.[dev]'
	touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(INSTALL) -e '.[dev,docs]'
	touch $@

run: setup  ## train and evaluate the default experiment on the simulated shop (ARGS="model=ite ..." for anything else)
	$(RUN) $(ARGS)

test: setup  ## the tests that CI runs (JOBS=processes)
	$(PYTEST)

test-all: setup  ## the slow tests too
	$(PYTEST) -m ''

lint: style types  ## ruff and mypy

style: setup  ## ruff check and ruff format --check (RUFF_FLAGS=...)
	$(BIN)/ruff check $(RUFF_FLAGS) $(CODE)
	$(BIN)/ruff format --check $(CODE)

types: setup  ## mypy, by the settings in pyproject.toml
	$(BIN)/mypy

format: setup  ## rewrite the code in the project's format
	$(BIN)/ruff check --fix --exit-zero $(CODE)
	$(BIN)/ruff format $(CODE)

notebooks: $(VENV)/.docs  ## run the notebooks of docs/examples
	$(BIN)/python docs/examples/execute.py

docs: $(VENV)/.docs  ## the documentation as HTML in build/docs, without network
	$(BIN)/mkdocs build --strict --quiet -f docs/site/mkdocs.yml

fuzz: setup  ## generated and damaged raw files for every reader (FUZZ=100000 inputs, JOBS=processes)
	$(BIN)/python -m tests.fuzz --inputs $(FUZZ) $(if $(JOBS),--jobs $(JOBS))

bench: setup  ## training speed beside this machine's floor: a table and bench.json (RECEXP_DATA: on ML-1M)
	$(BIN)/python tests/perf/bench.py $(ARGS)

versus: setup  ## speed beside RecBole, RecTools and implicit, each in its own environment (RAW=path/to/ml-1m)
	$(BIN)/python tests/perf/versus_peers.py --raw-dir $(RAW) $(ARGS)

mutations: setup  ## remove the guards one by one and check that tests fail (an hour)
	$(BIN)/python -m tests.mutations

clean:  ## remove caches, the built documentation and simulated data, never results
	rm -rf cache data .pytest_cache .ruff_cache .mypy_cache build
