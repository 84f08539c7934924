# Each target builds .venv by itself when it is missing or older than pyproject.toml.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The oldest Python that pyproject.toml allows.
LOWEST_PYTHON ?= python3.10
LOWEST := .venv-lowest

.PHONY: demo test test-lowest coverage dashboard lint format

demo: $(READY)  ## train a small ViT on digits, search its two ratios, print the table
	$(BIN)/python studies/quickstart.py

test: $(READY)
	$(PYTEST)

test-lowest: $(LOWEST)/.ready  ## the tests, those in chaos/ aside, with the oldest releases that pyproject.toml allows: 7 GB
	$(LOWEST)/bin/python -m pip check
	$(LOWEST)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore tests/chaos

coverage: $(READY)  ## the tests in twice the time; fails below 90 %
	$(PYTEST) --cov --cov-report=term

dashboard: $(READY)  ## look at the demo's study
	$(BIN)/vit-ratio-opt dashboard --storage sqlite:///runs/quickstart/study.db

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

$(LOWEST)/.ready: pyproject.toml .ci/lowest.py
	rm -rf $(LOWEST)
	$(LOWEST_PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python .ci/lowest.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(LOWEST)/constraints.txt -e '.[dev]'
	touch $@
