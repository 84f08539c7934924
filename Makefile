# Each target builds .venv by itself when it is missing or older than pyproject.toml.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What a user needs, and what developers need beside it.
USER := $(VENV)/.user
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Two files of tests at once; each test keeps to one thread.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The oldest Python that pyproject.toml allows.
LOWEST_PYTHON ?= python3.10
LOWEST := .venv-lowest

# The files of `make test-chaos`.
CHAOS ?= tests/chaos

.PHONY: demo test test-chaos test-lowest coverage dashboard lint format

demo: $(USER)  ## search the two ratios of a small ViT on digits, beside one fixed ratio
	$(BIN)/vit-ratio-opt demo

test: $(READY)  ## the tests, without those in chaos/
	$(PYTEST) --ignore tests/chaos

test-chaos: $(READY)  ## killed processes, frozen databases, full disks, a Ray cluster
	$(PYTEST) $(CHAOS)

test-lowest: $(LOWEST)/.ready  ## the tests with the oldest releases that pyproject.toml allows: 7 GB
	$(LOWEST)/bin/python -m pip check
	$(LOWEST)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore tests/chaos

coverage: $(READY)  ## all tests; fails below 93 %
	$(PYTEST) --cov --cov-report=term

dashboard: $(USER)  ## look at the demo's study
	$(BIN)/vit-ratio-opt dashboard --storage sqlite:///runs/demo/study.db

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(USER): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	touch $@

$(READY): $(USER)
	$(PIP) -e '.[dev]'
	touch $@

$(LOWEST)/.ready: pyproject.toml .ci/lowest.py
	rm -rf $(LOWEST)
	$(LOWEST_PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python .ci/lowest.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(LOWEST)/constraints.txt -e '.[dev]'
	touch $@
