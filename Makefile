# Nothing but Python >= 3.11 and make is needed. `make help` lists what there is.
PYTHON ?= python3
VENV ?= .venv
# processes that the tests run in
JOBS ?= 2
# what `make test` leaves out; empty runs everything
SLOW ?= -m 'not slow'
# networks that `make fuzz` makes up
N ?= 2000
# the comparisons of section 7 that `make desk` runs (two hours on two cores); empty runs all that there are
CONTRASTS ?= structure pace data weights recovery pattern depth ablation
# arguments for `prunus quickstart` and for pytest:  make quickstart ARGS=--download   make unit ARGS='-k snip'
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# one thread per process: JOBS processes with a thread pool each would fight for the same cores
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quickstart test test-all lint types unit fuzz networks lm desk format docs bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

quickstart: $(VENV)/.core  ## install the core, then prune a real network four ways and write a report
	$(BIN)/prunus quickstart $(ARGS)

test:  ## install the dev extra, then lint, types and all tests but the slow ones
	@$(MAKE) lint
	@$(MAKE) types
	@$(MAKE) unit

test-all:  ## the same with the slow tests: every method on every network, whole searches (an hour or so)
	@$(MAKE) lint
	@$(MAKE) types
	@$(MAKE) unit SLOW=

lint: $(VENV)/.dev  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev  ## mypy --strict over src
	$(BIN)/mypy

unit: $(VENV)/.dev  ## pytest only
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(SLOW) $(ARGS)

fuzz: $(VENV)/.dev  ## prune N random networks and compare (some minutes; prints the seeds that fail)
	$(ONE_THREAD) $(BIN)/python -m tests.graph.fuzz --count $(N) --jobs $(JOBS) $(ARGS)

networks: $(VENV)/.dev  ## prune the listed networks that have no result yet, and compare (ARGS=--again: all, an hour)
	$(ONE_THREAD) $(BIN)/python -m tests.graph.sweep --jobs $(JOBS) $(ARGS)
	$(BIN)/python -m tests.graph.sweep --markdown

lm: $(VENV)/.dev  ## train the small language model that pruning is measured on, to build/lm (some minutes)
	$(BIN)/python benchmarks/lm.py --train $(ARGS)

desk: $(VENV)/.dev  ## make the runs that the survey's comparisons still lack at the desk tier, and report: results/desk
	@mkdir -p results/desk
	@for job in $$(seq $(JOBS)); do \
	  $(ONE_THREAD) $(BIN)/prunus contrast run $(CONTRASTS) --tier desk --store results/desk/runs.db & \
	done; wait
	$(BIN)/prunus contrast report $(CONTRASTS) --tier desk --store results/desk/runs.db --out results/desk
	$(BIN)/prunus runs export results/desk/runs.parquet --store results/desk/runs.db

format: $(VENV)/.dev  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.dev  ## rewrite the generated pages, and run the examples in the docstrings
	$(BIN)/python docs/generate.py
	$(ONE_THREAD) $(BIN)/python -m pytest --doctest-modules src $(ARGS)

bench: $(VENV)/.dev  ## run the benchmarks, which print ratios (leave the machine alone meanwhile)
	@for file in benchmarks/*.py; do echo "== $$file" && $(BIN)/python "$$file" || exit 1; done

# A stamp is touched when an installation is complete, so that the next call does not repeat it.
# Both installations are editable: a change of the source needs no new one.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Prunus needs Python 3.11 or newer, and '$(PYTHON)' is: $$($(PYTHON) --version 2>&1 | head -n 1)." >&2; \
	  echo "Install a newer one, or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.core: pyproject.toml constraints.txt | $(VENV)/.made
	@echo 'Installing Prunus and what its core needs into $(VENV) (once; PyTorch is the large part).'
	$(PIP) install -c constraints.txt -e '.[data]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/.made
	@echo 'Installing Prunus with the dev extra into $(VENV) (once; PyTorch is the large part).'
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $(VENV)/.core $@

clean:  ## remove the environment, builds and caches (not your results)
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
