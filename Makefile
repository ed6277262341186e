# Each target sets up what it needs, .venv included. PYTHON chooses the interpreter (3.11 or newer);
# PIP_ARGS goes to every pip install, for another PyTorch index, say.
PYTHON ?= python3
PIP_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# Python compiles what is imported; most of what is installed never is, and compiling it all took 50 seconds.
INSTALL = $(BIN)/python -m pip install --no-compile $(PIP_ARGS) --constraint constraints.txt --editable

# Where this is set, every process compiles PyTorch and the like anew, which takes 8 seconds.
unexport PYTHONDONTWRITEBYTECODE

# Where memory has 8 GB to spare, what tests write lies there: a store waits for the disk after every file.
IN_MEMORY := $(shell [ "$$(df -k --output=avail /dev/shm 2>/dev/null | tail -n 1)" -gt 8000000 ] 2>/dev/null && echo TMPDIR=/dev/shm)

.DEFAULT_GOAL := help
.PHONY: help demo test types lint contracts site fuzz zoo slurm node lab notebooks clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/core.stamp ## watch a trait pass through numbers, in minutes
	$(BIN)/sublim run demo

# A third worker on two cores: tests wait at times, for files, servers and processes.
# nbmake would read grammars of web addresses for four seconds in each of them.
# A test that hangs fails after ten minutes, with its stack; the longest takes two.
test: $(VENV)/test.stamp ## lint, types, import contracts, the docs' site, tests
	$(MAKE) -j 2 types lint contracts site
	@touch $(VENV)/checked.stamp
	$(IN_MEMORY) $(BIN)/python -m pytest -n 3 --dist worksteal -p no:nbmake -o tmp_path_retention_policy=failed --timeout 600

types: $(VENV)/test.stamp
	$(BIN)/pyright --pythonpath $(BIN)/python

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .

contracts: $(VENV)/test.stamp
	$(BIN)/lint-imports

site: $(VENV)/test.stamp
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

fuzz: $(VENV)/test.stamp ## ten minutes of the fuzzer, for nightly runs
	SUBLIM_FUZZ=40 $(BIN)/python -m pytest -s --show-capture=no tests/fuzz
	@if $(INSTALL) '.[test,fuzz]'; then $(BIN)/python -m tests.fuzz.guided 30; \
		else echo "make: atheris does not install here, so no coverage guides the fuzzer" >&2; fi

zoo: $(VENV)/test.stamp ## every causal type of transformers, tiny, through all trials: for the night
	SUBLIM_ZOO=whole $(BIN)/python -m pytest -n 2 --dist worksteal tests/zoo tests/pipeline/test_open_models.py

slurm: $(VENV)/test.stamp ## kill nodes, pre-empt, run out of time, on a real SLURM of two nodes: Debian, as root
	SUBLIM_SLURM=1 $(BIN)/python -m pytest -s -p no:cacheprovider tests/slurm

node: $(VENV)/test.stamp ## the shortest part of slurm, for CI: one run, whose node is killed in the middle
	SUBLIM_SLURM=1 $(BIN)/python -m pytest -s -p no:cacheprovider tests/slurm -k dies

lab: $(VENV)/notebooks.stamp ## open the notebooks in JupyterLab, on the demo's store
	SUBLIM_STORE="$${SUBLIM_STORE:-$(CURDIR)/runs}" $(BIN)/jupyter lab notebooks

notebooks: $(VENV)/notebooks.stamp ## run the notebooks again, and keep their outputs
	SUBLIM_STORE="$${SUBLIM_STORE:-$(CURDIR)/runs}" $(BIN)/jupyter nbconvert --to notebook --execute --inplace \
		--ExecutePreprocessor.record_timing=False notebooks/*.ipynb

clean: ## remove .venv, builds and caches; runs/ stays
	rm -rf $(VENV) build dist .hypothesis .import_linter_cache .pytest_cache .ruff_cache
	find sublim_interp tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "make: '$(PYTHON)' is not Python 3.11 or newer; name one: make PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/core.stamp: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) .
	@touch $@

$(VENV)/notebooks.stamp: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) '.[notebooks]'
	@touch $(VENV)/core.stamp $@

$(VENV)/test.stamp: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) '.[test,notebooks,docs]'
	@touch $(VENV)/core.stamp $(VENV)/notebooks.stamp $@
