# Every target prepares what it needs: the first call creates $(VENV) and installs varax into it.
#   PYTHON   the interpreter that creates the environment   make test PYTHON=python3.12 VENV=.venv312
#   VENV     the environment's folder
#   JOBS     parallel test processes                        make test JOBS=4
#   ARGS     further arguments of the command               make test ARGS="-k seed -x"

SHELL  := /bin/bash
PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
ARGS   ?=
BIN    := $(VENV)/bin

NATIVE := kernels/native/build.py $(wildcard kernels/native/src/*)

BENCHMARKS := $(patsubst benchmarks/%.py,bench-%,$(filter-out benchmarks/_%,$(wildcard benchmarks/*.py)))

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-all lint format notebooks bench clean distclean

help:  ## show this list
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## /  \1|/' | \
	  awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'

demo: $(VENV)/.installed-models  ## train a variational autoencoder (varax run vae)
	$(BIN)/varax run vae $(ARGS)

test: $(VENV)/.installed-test  ## run the tests, without the slow ones, compiled quickly
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(BIN)/pytest -n $(JOBS) --dist worksteal -m "not slow" $(ARGS)

test-all: $(VENV)/.installed-test $(VENV)-aot/.installed  ## run all tests, compile for TPUs and GPUs too
	$(BIN)/pytest -n $(JOBS) --dist worksteal $(ARGS)
	$(VENV)-aot/bin/python -m pytest -q tests/test_kernels_pallas_aot.py

lint: $(VENV)/.installed-lint  ## check style (ruff) and types (pyright)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p .cache/typing && ln -sfn ../.. .cache/typing/varax
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.installed-lint  ## put the code into the style that lint checks
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

notebooks: $(VENV)/.installed-notebooks  ## make notebooks/*.ipynb from their text
	$(BIN)/jupytext --sync notebooks/*.py

bench: $(BENCHMARKS)  ## run the benchmarks, text into benchmarks/results/ (one: make bench-import_time)

bench-%: benchmarks/%.py $(VENV)/.installed-models
	@mkdir -p .cache/bench benchmarks/results
	set -o pipefail; $(BIN)/python $< $(ARGS) | tee .cache/bench/$*.txt
	@mv .cache/bench/$*.txt benchmarks/results/$*.txt

clean:  ## remove caches and build products
	rm -rf .cache build dist *.egg-info out .pytest_cache .ruff_cache .coverage
	find . -path './.venv*' -prune -o -type d -name __pycache__ -exec rm -rf {} +

distclean: clean  ## remove the environment too
	rm -rf $(VENV) $(VENV)-aot

# The environment. A stamp says with which extra varax was installed since pyproject.toml or the
# native kernels changed.
$(VENV)/.installed-%: pyproject.toml setup.py $(NATIVE) | $(BIN)/python
	@echo "installing varax[$*] into $(VENV)"
	@VARAX_NATIVE_OBJECTS=$(CURDIR)/.cache/native $(BIN)/python -m pip install --quiet --editable ".[$*]"
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "varax needs Python 3.11 to 3.13: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The compilers of TPUs and GPUs have an environment of their own: where they are installed, JAX looks
# for the devices. The CUDA plugin is that of the JAX that was chosen.
$(VENV)-aot/.installed: pyproject.toml setup.py | $(BIN)/python
	$(PYTHON) -m venv $(VENV)-aot
	@VARAX_NATIVE_OBJECTS=$(CURDIR)/.cache/native $(VENV)-aot/bin/python -m pip install --quiet --editable ".[aot]"
	@$(VENV)-aot/bin/python -m pip install --quiet \
	  "jax-cuda12-plugin==$$($(VENV)-aot/bin/python -c 'import jax; print(jax.__version__)')"
	@touch $@

.PRECIOUS: $(VENV)/.installed-%
