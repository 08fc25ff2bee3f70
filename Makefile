# The commands of the project (CONTRIBUTING.md describes them). All of them run in .venv, with the versions that
# constraints.txt pins.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TRL_VERSION := 1.16.0
# The last version with a PPO trainer.
TRL_PPO_VERSION := 1.12.0
TRL_PPO := .interop/trl-$(TRL_PPO_VERSION)
DEEPSPEED_VERSION := 0.19.8
RAY_VERSION := 2.60.0
RAY := .interop/ray-$(RAY_VERSION)
DEEPSPEED := .interop/deepspeed-$(DEEPSPEED_VERSION)
# Further options for pip, such as the index of torch's CPU builds: make quickstart PIP_ARGS='--extra-index-url URL'
PIP_ARGS ?=
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)
# The folder of public preference data that the benchmarks read: make proof DATA=folder
DATA ?= ../shared/data

.PHONY: setup quickstart rl ensembles check docs test proof clean

# Everything that development needs. `make test` adds DeepSpeed and Ray.
setup: $(VENV)/.installed-test $(VENV)/.installed-docs .interop/trl-$(TRL_VERSION)

quickstart: $(VENV)/.installed
	$(BIN)/plaudit quickstart

# Train a policy on a reward model with TRL's GRPO, and plot the learnt and the true reward.
rl: $(VENV)/.installed-test .interop/trl-$(TRL_VERSION)
	OMP_NUM_THREADS=1 PYTHONPATH=.interop/trl-$(TRL_VERSION) $(BIN)/python examples/grpo_true_reward.py

# Does an uncertainty of rewards help? The results, and the pictures and tables that are drawn from them, in FOLDER.
# A part that is there already stays: ENSEMBLES='--parts choice' runs one part, ENSEMBLES=--short tiny sizes.
ENSEMBLES ?= --data $(DATA)
ENSEMBLES_FOLDER ?= ensembles
ensembles: $(VENV)/.installed-test .interop/trl-$(TRL_VERSION)
	mkdir -p $(ENSEMBLES_FOLDER)
	OMP_NUM_THREADS=1 PYTHONPATH=.interop/trl-$(TRL_VERSION) $(BIN)/python benchmarks/ensembles.py $(ENSEMBLES) \
		--folder $(ENSEMBLES_FOLDER)/models --output $(ENSEMBLES_FOLDER)/results.json
	$(BIN)/python benchmarks/draw_ensembles.py $(ENSEMBLES_FOLDER)/results.json $(ENSEMBLES_FOLDER)

# Two workers of one thread each: with more threads than cores, the workers slow each other down.
# TRL is installed beside the environment and not in it: only the interop tests, the benchmarks and `make rl` import it.
# So are the TRL with PPO, DeepSpeed and Ray. Their tests find them by PLAUDIT_TRL_PPO, PLAUDIT_DEEPSPEED and PLAUDIT_RAY;
# where such a variable is set and the package is missing, the tests fail rather than being skipped.
# The tests of the report run in Chromium, which is installed from Debian's packages where it is missing; PLAUDIT_CHROMIUM
# names another one.
# One file: make test TESTS=tests/losses. PYTEST_ARGS takes further options.
TESTS ?=
PLAUDIT_CHROMIUM ?= /usr/bin/chromium
PYTEST_ARGS ?= -n 2 --dist loadfile --durations 15
test: $(VENV)/.installed-test .interop/trl-$(TRL_VERSION) $(TRL_PPO) $(DEEPSPEED)/.installed $(RAY)/.installed $(PLAUDIT_CHROMIUM)
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR)/.interop/trl-$(TRL_VERSION) PLAUDIT_TRL_PPO=$(CURDIR)/$(TRL_PPO) \
		PLAUDIT_DEEPSPEED=$(CURDIR)/$(DEEPSPEED) PLAUDIT_RAY=$(CURDIR)/$(RAY) \
		PLAUDIT_CHROMIUM=$(PLAUDIT_CHROMIUM) \
		$(BIN)/python -m pytest $(PYTEST_ARGS) $(TESTS)

check: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

# The site in site/. A link, an anchor or a name that cannot be resolved is an error.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Every measurement that takes too long for CI, in about an hour. The figures are in proof/results.md and results.json.
# Timings need an otherwise idle machine. PROOF takes options: --resume, --short, '--only scoring serving'.
PROOF ?=
proof: $(VENV)/.installed-test .interop/trl-$(TRL_VERSION)
	PYTHONPATH=.interop/trl-$(TRL_VERSION) $(BIN)/python benchmarks/proof.py --data $(DATA) $(PROOF)

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Plaudit needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

# torch first, at the tested version: the resolver alone would take the newest.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --constraint constraints.txt torch
	$(PIP) --constraint constraints.txt --editable '.[report,serve]'
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) --constraint constraints.txt --editable '.[test,check]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) --constraint constraints.txt --editable '.[docs]'
	touch $@

.interop/trl-%: | $(VENV)/.installed
	$(PIP) --no-deps --target $@ trl==$*

# Built from source, without its kernels, with the build tools that are installed into the same folder.
$(DEEPSPEED)/.installed: constraints.txt | $(VENV)/.installed-test
	rm -rf $(DEEPSPEED)
	$(PIP) --constraint constraints.txt --no-deps --target $(DEEPSPEED) einops hjson msgpack ninja py-cpuinfo wheel
	DS_BUILD_OPS=0 PYTHONPATH=$(DEEPSPEED) $(PIP) --no-deps --no-build-isolation --upgrade --target $(DEEPSPEED) \
		deepspeed==$(DEEPSPEED_VERSION)
	touch $@

# Ray with those of its dependencies that the tested environment lacks. (Users install `plaudit[ray]`, or `ray[serve]`.)
$(RAY)/.installed: constraints.txt | $(VENV)/.installed-test
	rm -rf $(RAY)
	$(PIP) --constraint constraints.txt --no-deps --target $(RAY) ray==$(RAY_VERSION) attrs certifi charset-normalizer \
		grpcio grpcio-reflection jsonschema jsonschema-specifications msgpack protobuf referencing requests rpds-py urllib3
	touch $@

/usr/bin/chromium:
	sudo=$$(command -v sudo || true); \
		$$sudo apt-get update -qq && $$sudo apt-get install -y -qq --no-install-recommends chromium

clean:
	rm -rf $(VENV) .interop build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
