# Two commands do everything: `make demo` runs the main job, `make test` passes the checks.
# Each makes .venv, installs what is needed, and runs; a second call reuses it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test check clean

help:
	@echo "make demo   learn a prompt with 4 simulated clients and show what it gained (1 to 5 minutes)"
	@echo "make test   lint, types and all tests"
	@echo "make check  lint and types alone"
	@echo "make clean  remove the virtual environment"

demo: $(INSTALLED)
	$(BIN)/feddtpt-flwr simulate $(ARGS)

# Three workers for two cores: the longest tests wait for other processes most of the time.
test: check
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(INSTALLED): pyproject.toml requirements-embedded.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip  # the one that Python brings resolves slowly
	$(BIN)/python -m pip install --editable '.[dev]'
	$(BIN)/python -m pip install --no-deps --require-hashes -r requirements-embedded.txt
	touch $@

clean:
	rm -rf $(VENV)
