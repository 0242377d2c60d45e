# `make demo` and `make test` do all the set-up they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# `make mutants` plants faults and shows that the tests notice each of them.
.PHONY: setup demo test lint docs mutants bench

setup: $(STAMP)

$(STAMP): pyproject.toml constraints/cpu.txt
	@$(PYTHON) -c 'import sys; assert (3, 10) <= sys.version_info[:2] <= (3, 13), "ChatGym needs Python 3.10 to 3.13; choose one: make PYTHON=python3.12 $(MAKECMDGOALS)"'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing ChatGym into $(VENV) (the first time takes some minutes) ..."
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --constraint constraints/cpu.txt --editable '.[dev]'
	@echo "Compiling the scenarios (about a minute) ..."
	@$(BIN)/chatgym scenarios --compile
	@touch $(STAMP)

demo: setup
	$(BIN)/python examples/demo.py

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy chatgym agents
	$(BIN)/lint-imports

docs: setup
	$(BIN)/python docs/make_cli.py
	$(BIN)/python docs/make_failures.py

mutants: setup
	$(BIN)/python tests/mutants.py

bench: setup
	$(BIN)/python -m pip install --quiet --constraint constraints/cpu.txt ".[bench]"
	taskset -c 0 $(BIN)/python benchmarks/env_speed.py --write
