# Each target makes .venv and installs what it needs by itself; nothing to do, nothing done.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
# Processes that run tests: more than 2 processors, for tests also wait; more of them make each other wait.
TESTERS := 3
# Hundreds of processes are started by the tests: none of them is to compile the project anew.
export PYTHONDONTWRITEBYTECODE :=

# Seconds that `make fuzz` gives to each of the readers that it tries.
FUZZ_SECONDS := 60

.PHONY: help demo test faults failpoints fuzz hostile check bench clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

demo: .venv/demo.stamp ## train on handwritten digits with 1 server and 2 workers
	@$(BIN)/psctl train --servers 1 --workers 2

test: .venv/dev.stamp ## the whole test suite
	$(BIN)/pytest -n $(TESTERS) --dist loadgroup

faults: .venv/dev.stamp ## what dies, hangs and breaks, for many seeds: about half an hour
	$(BIN)/pytest tests/faults tests/integration tests/benchmarks tests/deploy -m "long or not long" --timeout 600 \
	  --ignore tests/faults/test_failpoints.py
	$(BIN)/pytest tests/psserver tests/psworker -m long

failpoints: .venv/dev.stamp ## servers that die at each named place, 20 times: about half an hour
	$(BIN)/pytest tests/faults/test_failpoints.py -m long -n 2

fuzz: .venv/fuzz.stamp ## bytes that a reader might trip over, for FUZZ_SECONDS each: ten minutes
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS)

hostile: .venv/dev.stamp ## 10,000 hostile connections, and what they cost a server and its clients
	$(BIN)/python -m benchmarks hostile

check: .venv/dev.stamp ## format, lint, types, import directions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: .venv/dev.stamp ## speed against the ceilings of this machine, and peers where installed
	$(BIN)/python -m benchmarks dense

clean: ## forget what was installed and cached
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "asyncps needs Python 3.11 or later; try: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv .venv

.venv/demo.stamp: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing into .venv (first time only) ..."
	@$(PIP) install -c constraints.txt -e '.[digits]'
	@touch $@

.venv/dev.stamp: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing into .venv (first time only) ..."
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@ .venv/demo.stamp

.venv/fuzz.stamp: .venv/dev.stamp
	@$(PIP) install -c constraints.txt -e '.[dev,fuzz]'
	@touch $@
