# QLoRA Workbench. `make lab` and `make test` are all most people need; both make the environment first when it is missing.
PYTHON ?= python3
VENV   ?= .venv
COLAB  ?= .venv-colab
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
JOBS   ?= 2
MARKS  ?= not slow and not smollm2 and not colab
LONG   := 00_workbench 06_paged_optimizers 07_train_an_adapter 08_claims 09_what_it_costs# run in slow tests, and with Colab's versions
SHOTS  ?= docs/img/views
DIST   ?= dist
DOCS   ?= build/docs
SMOLLM2 ?= .models/SmolLM2-135M-Instruct

.DEFAULT_GOAL := help
.PHONY: help env lab app test test-all test-colab lint docs dist bench notebooks screens fuzz kills smollm2 gpu-check

help: ## This list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

env: $(STAMP) ## Create .venv with everything for development (PYTHON=python3.12 picks another Python)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 or newer is needed; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true)."; \
	  echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "This Python cannot make virtual environments. Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): some minutes the first time."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

lab: env ## Open JupyterLab on notebooks/00_workbench.ipynb
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks/00_workbench.ipynb

app: env ## Serve the app as a web page, at the address with a token that it prints; &theme=dark makes it dark
	$(BIN)/voila notebooks/00_workbench.ipynb --token --TagRemovePreprocessor.enabled=True \
	  --TagRemovePreprocessor.remove_cell_tags=notebook-only $(APP)

test: env ## Test every module, the notebooks and one journey in a browser, in minutes (MARKS=slow: what it leaves out)
	@$(BIN)/python -m tests.helpers.chromium
	$(BIN)/python -m pytest -m "$(MARKS)" --numprocesses $(JOBS) --durations 25 $(LONG:%=--ignore=notebooks/%.ipynb)

test-all: env ## Run every test, and those that could differ again with Colab's package versions
	@failed=0; \
	$(MAKE) --no-print-directory test || failed=1; \
	$(MAKE) --no-print-directory test MARKS=slow || failed=1; \
	$(MAKE) --no-print-directory test-colab || failed=1; \
	exit $$failed

test-colab: env $(COLAB)/.installed ## Run the notebooks, the tests that could differ and a page like Colab's with its package versions
	NUMBA_CACHE_DIR=$(abspath $(COLAB))/numba $(COLAB)/bin/python -m pytest -m "$(MARKS)" -p tests.helpers.colab --numprocesses $(JOBS) --durations 25
	$(BIN)/python -m pytest --numprocesses $(JOBS) --durations 10 tests/browser/colab

$(COLAB)/.installed: pyproject.toml constraints.txt tests/colab.txt tests/helpers/colab.py
	@echo "Installing Colab's versions into $(COLAB): some minutes the first time."
	@$(PYTHON) -m tests.helpers.colab $(COLAB)
	@touch $@

lint: env ## ruff, mypy, the layers of the packages, and TypeScript's check of the JavaScript where npm is there
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	@if command -v npx >/dev/null; then echo npx tsc --project jsconfig.json; \
	  npx --yes --package typescript@5.9.3 tsc --project jsconfig.json; \
	else echo "npm is not there: the JavaScript was not checked."; fi

notebooks: env ## Run the notebooks anew in JupyterLab and put pictures where widgets were
	$(BIN)/python -m tests.browser.notebooks

screens: env ## Take a picture of every view, light and dark, into docs/img/views (SHOTS=…)
	WORKBENCH_SHOTS=$(abspath $(SHOTS)) $(BIN)/python -m pytest --quiet tests/browser/test_screens.py \
	  tests/browser/test_cost.py tests/browser/test_app.py::test_the_committed_notebook_does_the_whole_job \
	  tests/browser/test_one_screen.py::test_a_run_is_on_one_screen_from_launch_to_its_result

docs: env ## Build the documentation into build/docs (DOCS=…): offline, and with every warning an error
	@$(BIN)/python -m sphinx --quiet --fresh-env --write-all --fail-on-warning --keep-going docs $(DOCS)
	@echo "$(DOCS)/index.html"

dist: env ## Build the wheel and the sdist into dist/ (DIST=…)
	$(BIN)/python -m hatchling build -d $(DIST)

bench: env ## Run the benchmarks
	@for script in benchmarks/*.py; do \
	  test -e "$$script" || { echo "There are no benchmarks here."; exit 0; }; \
	  echo "$$script"; $(BIN)/python "$$script" || exit 1; done

fuzz: env ## Mutate real model files 100,000 times, or FUZZ_CASES times, from FUZZ_SEED
	FUZZ_CASES=$(or $(FUZZ_CASES),100000) $(BIN)/python -m pytest --numprocesses $(JOBS) --dist load \
	  --override-ini faulthandler_timeout=0 tests/sources/test_fuzz.py

kills: env ## Kill training runs with -9 at 20 random points, or KILLS, from KILLS_SEED: they must end as if nothing happened
	KILLS=$(or $(KILLS),20) $(BIN)/python -m pytest --override-ini faulthandler_timeout=0 tests/training/test_kills.py

smollm2: env ## Make a real model, SmolLM2-135M, in SMOLLM2 (.models/…), and run the tests that need it
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt gguf
	@$(BIN)/python -m tests.helpers.smollm2 $(SMOLLM2)
	SMOLLM2=$(SMOLLM2) $(BIN)/python -m pytest -m smollm2 tests/test_smollm2.py

gpu-check: env ## On a CUDA machine: run what was never run on one, and print a report for an issue (STEPS="run half")
	@$(BIN)/python -m pytest --verbose --no-header -rN -n0 -m gpu tests/gpu -k "$(subst $() , or ,$(strip $(STEPS)))"
