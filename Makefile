# Every target sets up what it needs in .venv; Python 3.11 or newer and make are enough to start.
# Choose another interpreter with `make PYTHON=python3.12 …`.

PYTHON  ?= python3
WORKERS ?= 2

VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet install
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test test-slow nightly lint format types clean

help: ## show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.user ## learn, draw and score handwritten digits (writes demo_output/)
	OMP_NUM_THREADS=1 $(BIN)/python -m scoresde demo

test: $(VENV)/.dev ## run the tests
	$(PYTEST)

test-slow: $(VENV)/.dev ## run the slow tests
	$(PYTEST) -m slow

nightly: $(VENV)/.dev ## run every test, with 1000 Hypothesis examples each
	HYPOTHESIS_PROFILE=nightly $(PYTEST) -m "" --timeout 3600

lint: $(VENV)/.dev ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev ## format the code and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev ## check types
	$(BIN)/mypy
	$(BIN)/basedpyright

clean: ## remove the environment, caches and demo output
	rm -rf $(VENV) build dist demo_output .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find scoresde tests -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the environment: a stamp file per set of packages

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "scoresde needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
	         "Name a newer one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "'$(PYTHON) -m venv' failed (on Debian and Ubuntu it needs the package python3-venv)" >&2; exit 1; }

$(VENV)/.pip: | $(BIN)/python
	@echo "setting up $(VENV): this takes a few minutes, once"
	$(PIP) 'pip>=25.1'
	@touch $@

$(VENV)/.user: $(VENV)/.pip pyproject.toml constraints.txt
	$(PIP) -c constraints.txt -e '.[plots,data]'
	@touch $@

$(VENV)/.dev: $(VENV)/.pip pyproject.toml constraints.txt
	$(PIP) -c constraints.txt -e '.[all]' --group dev
	@touch $(VENV)/.user $@
