# Every target sets up the virtual environment first, once, and again only when its definition changes.
PYTHON ?= $(shell command -v python3.11 || command -v python3 || command -v python)
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test hosts battery lint format docs bench clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(READY) ## Make the virtual environment

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-cache-dir --upgrade -c constraints.txt pip
	$(BIN)/python -m pip install --quiet --no-cache-dir -c constraints.txt --editable ".[lab,ray,slurm,tensorboard,zoo]" --group dev --group docs
	@touch $@

demo: $(READY) ## Train a sick and a healthy network, check both, cure the sick one
	$(BIN)/varshift demo

test: $(READY) ## Run all tests
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

hosts: $(READY) ## Install the hosts of training and run the tests in them
	$(BIN)/python -m pip install --quiet --no-cache-dir -c constraints.txt --group hosts
	$(BIN)/python -m pytest -m hosts tests/integrations

battery: $(READY) ## Inject twenty thousand faults, and check five hundred times in two threads
	VARSHIFT_FAULTS=20000 VARSHIFT_CHECKS=1000 $(BIN)/python -m pytest --numprocesses auto \
		-p no:unraisableexception tests/battery tests/comparison tests/flow/test_agreement.py tests/flow/test_zoo.py \
		tests/moments/test_digits.py tests/probe/test_predicted.py tests/fixes/test_after_surgery.py tests/monitor/test_readings.py

lint: $(READY) ## Check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

format: $(READY) ## Put the code into shape
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(READY) ## Build the documentation strictly
	$(BIN)/sphinx-build -W --keep-going -q docs docs/_build
	@echo "docs/_build/index.html"

bench: $(READY) ## Measure speed against peers and write benchmarks/results/
	$(BIN)/python benchmarks/run.py

clean: ## Remove the virtual environment and everything built
	rm -rf .venv docs/_build docs/rules .pytest_cache .ruff_cache .hypothesis
