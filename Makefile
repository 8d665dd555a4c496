# Everything from a bare clone: make run, make test. Needs Python 3.11+ and a package registry.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m recexp
FUZZ ?= 100000

.PHONY: help setup run test test-all fuzz bench versus lint clean mutations

help:  ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.installed  ## build the environment in .venv

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "recexp needs Python 3.11 or newer; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

run: setup  ## train and evaluate BERT-ITE-Si on the simulated shop (ARGS="model=ite ..." for anything else)
	$(RUN) $(ARGS)

test: setup  ## the tests CI runs
	$(VENV)/bin/python -m pytest

test-all: setup  ## the slow ones too
	$(VENV)/bin/python -m pytest -m ''

fuzz: setup  ## generated raw files, spoilt, for every reader and the preparation behind it (FUZZ=100000 inputs, JOBS=processes)
	$(VENV)/bin/python -m tests.fuzz --inputs $(FUZZ) $(if $(JOBS),--jobs $(JOBS))

bench: setup  ## our speed against this machine's floor: a table and bench.json (RECEXP_DATA: on ML-1M itself)
	$(VENV)/bin/python tests/perf/bench.py $(ARGS)

versus: setup  ## beside RecBole and RecTools, each in an environment of its own (RAW=path/to/ml-1m)
	$(VENV)/bin/python tests/perf/versus_peers.py --raw-dir $(RAW) $(ARGS)

mutations: setup  ## take the guards out one by one and see whether tests notice (an hour)
	$(VENV)/bin/python -m tests.mutations

lint: setup  ## style
	$(VENV)/bin/ruff check recexp tests

clean:  ## remove caches and simulated data, never results
	rm -rf cache data .pytest_cache .ruff_cache build
