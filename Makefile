# The interpreter for `.venv`: Python 3.11 if it is installed.
PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
# All tests of a file run on one worker, so that they share compiled functions.
PYTEST_FLAGS ?= -n 2 --dist loadfile
# `--jobs 1` runs one page at a time.
DOCS_FLAGS ?=

VENV := .venv
BIN := $(VENV)/bin
# Named after the interpreter, so that another `PYTHON=` rebuilds the environment.
MADE := $(VENV)/.made-by-$(subst /,_,$(PYTHON))
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help demo test test-all both-ends lint bench study docs docs-serve clean
# Targets must not run in parallel, since each may install into the same environment.
.NOTPARALLEL:

help:
	@echo 'make demo   train on the bundled digits, evaluate and sample, in runs/demo'
	@echo 'make test   run all but the slow tests; PYTEST_FLAGS= passes flags to pytest'
	@echo 'make test-all  run all tests'
	@echo 'make both-ends  run make test on Python 3.11 and 3.13, in clones'
	@echo 'make lint   check formatting, style and types'
	@echo 'make bench  run every benchmark with --quick'
	@echo 'make study  run the short form of the studies, in runs/studies'
	@echo 'make docs   build the documentation in build/site, running all of its code'
	@echo 'make docs-serve  build it and serve it on port 8000 of this machine'
	@echo 'make clean  remove the environment'
	@echo 'PYTHON= chooses the interpreter (now $(PYTHON)).'

demo: $(VENV)/.runtime
	rm -rf runs/demo
	$(BIN)/python scripts/train.py --dataset digits --run-dir runs/demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -m 'not slow' $(PYTEST_FLAGS)

test-all: $(VENV)/.dev
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

both-ends:
	$(PYTHON) tests/both_ends.py

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/.dev
	@set -e; for file in $(filter-out benchmarks/_%,$(wildcard benchmarks/*.py)); do \
		echo "$$file"; $(BIN)/python "$$file" --quick; \
	done

study: $(VENV)/.runtime
	$(BIN)/python scripts/study.py benchmarks/studies/densities.toml --short
	$(BIN)/python scripts/study.py benchmarks/studies/digits.toml --short

docs: $(VENV)/.docs
	PYTHONPATH=docs $(BIN)/python -m toolchain build $(DOCS_FLAGS)

docs-serve: $(VENV)/.docs
	PYTHONPATH=docs $(BIN)/python -m toolchain serve $(DOCS_FLAGS)

clean:
	rm -rf $(VENV)

$(MADE):
	$(PYTHON) -m venv --clear $(VENV)
	@# Dependency groups need pip 25.1.
	$(INSTALL) 'pip>=25.1'
	@touch $@

$(VENV)/.runtime: $(MADE) pyproject.toml constraints.txt
	$(INSTALL) --constraint constraints.txt --editable '.[programs]'
	@touch $@

$(VENV)/.dev: $(MADE) pyproject.toml constraints.txt
	$(INSTALL) --constraint constraints.txt --editable '.[programs]' --group dev
	@touch $@

$(VENV)/.docs: $(MADE) pyproject.toml constraints.txt
	$(INSTALL) --constraint constraints.txt --editable '.[programs]' --group docs
	@touch $@
