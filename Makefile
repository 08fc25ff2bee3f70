# What a person types. Everything runs in .venv, from the versions pinned in constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TRL_VERSION := 1.16.0
# Held-out data for the benchmarks; `make proof DATA=folder` points elsewhere.
DATA ?= ../shared/data

.PHONY: quickstart test check proof clean

quickstart: $(VENV)/.installed
	$(BIN)/plaudit quickstart

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

# Too long for CI: prints its figures. Timings want a machine that does nothing else.
proof: $(VENV)/.installed-test .interop/trl-$(TRL_VERSION)
	$(BIN)/python benchmarks/quickstart_seeds.py
	PYTHONPATH=.interop/trl-$(TRL_VERSION) $(BIN)/python benchmarks/parity_trl.py $(DATA)/hh_harmless_transcripts.jsonl.gz
	PYTHONPATH=.interop/trl-$(TRL_VERSION) $(BIN)/python benchmarks/evaluation_trl.py
	PYTHONPATH=.interop/trl-$(TRL_VERSION) $(BIN)/python benchmarks/tokenize_speed.py $(DATA)/hh_harmless_transcripts.jsonl.gz

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Plaudit needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

# torch first and pinned: the CPU build, not gigabytes of CUDA. A machine with a GPU has its own torch: see the README.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test,check]'
	touch $@

.interop/trl-$(TRL_VERSION): | $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@ trl==$(TRL_VERSION)

clean:
	rm -rf $(VENV) .interop .mypy_cache .pytest_cache .ruff_cache .hypothesis
