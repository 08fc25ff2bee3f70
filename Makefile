# What a person types. Everything runs in .venv, from the versions pinned in constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TRL_VERSION := 1.16.0
# The last one with a PPO trainer.
TRL_PPO_VERSION := 1.12.0
TRL_PPO := .interop/trl-$(TRL_PPO_VERSION)
DEEPSPEED_VERSION := 0.19.8
RAY_VERSION := 2.60.0
RAY := .interop/ray-$(RAY_VERSION)
DEEPSPEED := .interop/deepspeed-$(DEEPSPEED_VERSION)
# More for pip, such as the index of torch's CPU builds: make quickstart PIP_ARGS='--extra-index-url URL'
PIP_ARGS ?=
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)
# Held-out data for the benchmarks; `make proof DATA=folder` points elsewhere.
DATA ?= ../shared/data

.PHONY: quickstart rl test check proof clean

quickstart: $(VENV)/.installed
	$(BIN)/plaudit quickstart

# A policy against a reward model, by TRL's GRPO, with a plot of learnt and true reward.
rl: $(VENV)/.installed-test .interop/trl-$(TRL_VERSION)
	OMP_NUM_THREADS=1 PYTHONPATH=.interop/trl-$(TRL_VERSION) $(BIN)/python examples/grpo_true_reward.py

# Two workers of one thread each: more threads than cores make each other wait.
# TRL lies beside the environment, never in it: only the interop tests, the benchmarks and `make rl` import it. The TRL
# with PPO, DeepSpeed and Ray too: their tests find them by PLAUDIT_TRL_PPO, PLAUDIT_DEEPSPEED and PLAUDIT_RAY, and where
# these are set they fail without.
test: $(VENV)/.installed-test .interop/trl-$(TRL_VERSION) $(TRL_PPO) $(DEEPSPEED)/.installed $(RAY)/.installed
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR)/.interop/trl-$(TRL_VERSION) PLAUDIT_TRL_PPO=$(CURDIR)/$(TRL_PPO) \
		PLAUDIT_DEEPSPEED=$(CURDIR)/$(DEEPSPEED) PLAUDIT_RAY=$(CURDIR)/$(RAY) \
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
	PYTHONPATH=.interop/trl-$(TRL_VERSION) $(BIN)/python benchmarks/train_speed.py --data $(DATA) --all
	PYTHONPATH=.interop/trl-$(TRL_VERSION) $(BIN)/python benchmarks/train_speed.py --data $(DATA) --checkpointing
	$(BIN)/python benchmarks/train_speed.py --data $(DATA) --growth
	$(BIN)/python benchmarks/sharing_cost.py
	$(BIN)/python benchmarks/checkpoint_parity.py $(DATA)/hh_harmless.jsonl.gz
	$(BIN)/python benchmarks/faults.py --kills 20
	$(BIN)/python benchmarks/launched_exits.py
	PYTHONPATH=.interop/trl-$(TRL_VERSION) $(BIN)/python benchmarks/score_speed.py --data $(DATA)
	$(BIN)/python benchmarks/score_kills.py --rows 100000

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Plaudit needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

# torch first, at the version that was tested; left to the resolver, it takes the newest.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --constraint constraints.txt torch
	$(PIP) --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) --constraint constraints.txt --editable '.[test,check]'
	touch $@

.interop/trl-%: | $(VENV)/.installed
	$(PIP) --no-deps --target $@ trl==$*

# Built from source, without its kernels, by what lies in the same folder.
$(DEEPSPEED)/.installed: constraints.txt | $(VENV)/.installed-test
	rm -rf $(DEEPSPEED)
	$(PIP) --constraint constraints.txt --no-deps --target $(DEEPSPEED) einops hjson msgpack ninja py-cpuinfo wheel
	DS_BUILD_OPS=0 PYTHONPATH=$(DEEPSPEED) $(PIP) --no-deps --no-build-isolation --upgrade --target $(DEEPSPEED) \
		deepspeed==$(DEEPSPEED_VERSION)
	touch $@

# Ray, and what it needs beside the tested environment; the whole of `plaudit[ray]` is for a user's own.
$(RAY)/.installed: constraints.txt | $(VENV)/.installed-test
	rm -rf $(RAY)
	$(PIP) --constraint constraints.txt --no-deps --target $(RAY) ray==$(RAY_VERSION) attrs certifi charset-normalizer \
		jsonschema jsonschema-specifications msgpack protobuf referencing requests rpds-py urllib3
	touch $@

clean:
	rm -rf $(VENV) .interop .mypy_cache .pytest_cache .ruff_cache .hypothesis
