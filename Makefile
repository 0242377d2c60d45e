# `make demo` and `make test` do all the set-up they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# `make setup LOCK=1` installs the exact versions with which the published results were made; `make lock` writes them.
LOCKED := constraints/lock-3.11.txt
ifdef LOCK
STAMP := $(VENV)/.installed-locked
CONSTRAINTS := $(LOCKED)
CHECK := import sys; assert sys.version_info[:2] == (3, 11), "$(LOCKED) is of Python 3.11; choose it: make PYTHON=python3.11 LOCK=1 $(MAKECMDGOALS)"
else
CONSTRAINTS := constraints/cpu.txt
CHECK := import sys; assert (3, 10) <= sys.version_info[:2] <= (3, 13), "ChatGym needs Python 3.10 to 3.13; choose one: make PYTHON=python3.12 $(MAKECMDGOALS)"
endif

# Type checkers follow a folder on Python's path, which `compat` sets, but not the import hook of other modes.
EDITABLE := --config-settings editable_mode=compat --editable

# `make mutants` plants faults and shows that the tests notice each of them.
.PHONY: setup lock demo test lint docs mutants bench

setup: $(STAMP)

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c '$(CHECK)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c '$(CHECK)'
	@echo "Installing ChatGym into $(VENV) (the first time takes some minutes) ..."
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@ln -sfn agents chatgym_agents
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) $(EDITABLE) '.[dev]'
	@echo "Compiling the scenarios (about a minute) ..."
	@$(BIN)/chatgym scenarios --compile
	@touch $(VENV)/.installed $(STAMP)

lock: setup
	@echo "# The exact versions of the tested environment: Python 3.11, Linux, CPU. Written by \`make lock\`." > $(LOCKED)
	@$(BIN)/python -m pip freeze --all --exclude-editable --exclude pip | sed 's/+cpu$$//' >> $(LOCKED)

demo: setup
	$(BIN)/python examples/demo.py

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --durations 30

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
