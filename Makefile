# One word for each thing one does here. Every target sets the machine up by itself (.venv, pinned by constraints.txt).
#   make demo [SEED=n]     show edited images made by the model in the package
#   make teach             ten pairs of pictures teach the model an edit that it does not know
#   make chat              open the studio in the browser
#   make test [ARGS=...]   run the tests, in WORKERS=2 processes (0: in one, as for a debugger)
#   make test-slow         run the tests that take longer, on a Ray cluster of two as well
#   make test-processors   run parity, determinism and replay tests as other processors would, by environment settings
#   make soak              a real server under broken, impatient and hostile load for a minute
#   make weights           fetch the extractors' weights (about 510 MB, once); tests that need them are skipped without
#   make check             style, types, spelling;  make fix  puts right what can be put right by itself
#   make docs              write the generated parts of docs/
#   make bench             run benchmarks/ and print hardware, command and numbers
# PYTHON=python3.12   use this interpreter.  VENV=path   put the environment elsewhere.
# TORCH_INDEX=address of an extra package index for torch, for example the CPU-only one (pytorch.org, "Get started", CPU).

VENV ?= .venv
SEED ?=
ARGS ?=
WORKERS ?= 2
TORCH_INDEX ?=
# The first interpreter that is new enough.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

BIN := $(VENV)/bin
PIP_INSTALL = $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: demo teach chat test test-slow test-processors soak weights check fix docs bench
.DEFAULT_GOAL := demo

demo: $(VENV)/.core
	$(BIN)/ace demo $(if $(SEED),--seed $(SEED))

teach: $(VENV)/.train
	$(BIN)/python recipes/teach_pairs.py out/teach
	$(BIN)/ace teach out/teach/before out/teach/after --name sepia --output out/teach/sepia

chat: $(VENV)/.web
	$(BIN)/ace chat

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

test-slow: $(VENV)/.dev
	$(PIP_INSTALL) ray
	$(BIN)/python -m pytest -m slow $(ARGS)

test-processors: $(VENV)/.dev
	$(BIN)/python tests/processors.py $(ARGS)

soak: $(VENV)/.dev
	$(BIN)/python benchmarks/soak.py --seconds 60 --requests 0

weights: $(VENV)/.dev
	$(BIN)/ace data setup

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/pyright --pythonpath $(BIN)/python

fix: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.core
	$(BIN)/python docs/generate.py

bench: $(VENV)/.core
	@for script in benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

# Stamp files: an installation is repeated when what it depends on has changed.
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: install it, or name it with PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing ace and what it needs into $(VENV) (once)"
	$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.train $(VENV)/.web: $(VENV)/.%: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing ace and what '$*' needs into $(VENV) (once)"
	$(PIP_INSTALL) -e '.[$*]'
	@touch $@ $(VENV)/.core

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing ace and its development tools into $(VENV) (once)"
	$(PIP_INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.core
