# Every target does its own set-up in .venv; `make help` lists them.
#
#   make serve ARGS='--port 9000'                       options for the program
#   make serve PYTHON=python3.12                        another interpreter, for a new .venv
#   make serve TORCH='torch==2.11.0'                    the GPU build of the package index
#   make pull MODEL=llamagen-l-384                      released weights, to be served
#   make serve TORCH='torch==2.13.0+cu130' TORCH_INDEX=https://download.pytorch.org/whl/cu130
#
# A TORCH given by hand stays until another is given or `make clean` removes .venv.

PYTHON ?= python3
GPU_PYTHON ?= python3.12
ARGS ?=
VENV := .venv
GPU_VENV := .venv-gpu
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input

# The CPU build on Linux carries a local version, which no CUDA build can satisfy; macOS has one build.
PINNED_TORCH := $(shell grep '^torch==' constraints.txt)
ifeq ($(shell uname -s),Linux)
DEFAULT_TORCH := $(PINNED_TORCH)+cpu
DEFAULT_INDEX := https://download.pytorch.org/whl/cpu
else
DEFAULT_TORCH := $(PINNED_TORCH)
endif
TORCH ?= $(or $(shell cat $(VENV)/.torch-choice 2>/dev/null),$(DEFAULT_TORCH))
TORCH_INDEX ?= $(if $(filter $(TORCH),$(DEFAULT_TORCH)),$(DEFAULT_INDEX))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help serve pull install test lint format bench mutants gpu-compile clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

serve: $(VENV)/.stamp-worker $(VENV)/.stamp-kernels ## Run the service with the shipped model on http://127.0.0.1:8000
	@$(BIN)/masc serve $(ARGS)

pull: $(VENV)/.stamp-training ## Fetch released weights, MODEL=llamagen-l-384, and make them a model to serve
	@$(BIN)/masc models pull $(MODEL) $(ARGS)

install: $(VENV)/.stamp-evaluation ## Install everything for training and serving into .venv

# One test file at a time on each core; torch's own threads would only fight for them. Bytecode is kept
# whatever the environment says: every process that a test starts would compile all it imports anew.
test: $(VENV)/.stamp-test ## Run the tests
	@PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/.stamp-test ## Check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/.stamp-test ## Rewrite the sources in the project's format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(VENV)/.stamp-test ## Run every benchmark; each prints its table
	@for program in $(filter-out $(wildcard benchmarks/study*.py),$(wildcard benchmarks/*.py)); do \
		echo "== $$program"; $(BIN)/python "$$program" $(ARGS) || exit; \
	done

mutants: $(VENV)/.stamp-mutation ## Count the planted faults that the tests notice
	@$(BIN)/python -m tests.mutation $(ARGS)

gpu-compile: $(GPU_VENV)/.stamp ## Compile what a GPU runs, on a machine without one
	@$(GPU_VENV)/bin/python -m tests.gpu_compile $(ARGS)

clean: ## Remove the environments, build products and caches
	rm -rf $(VENV) $(GPU_VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Set-up. The stamp of an extra is newer than all that decides what it installs.
$(VENV)/.stamp-%: $(VENV)/.stamp-torch pyproject.toml
	@echo "Installing masc[$*] into $(VENV)"
	@$(PIP) install --quiet --no-build-isolation -c $(VENV)/constraints.txt -e '.[$*]'
	@touch $@

# The loops of a step on a CPU, so that the first start does not wait for their compilation.
KERNELS := $(wildcard masc_core/cpu_kernels/*.py) masc_core/numba_jit.py \
	$(patsubst %,masc_core/models/%.py,gemm_microkernel winograd cpu_decoder)
$(VENV)/.stamp-kernels: $(KERNELS) | $(VENV)/.stamp-worker
	@echo "Compiling the CPU's kernels (once)"
	@rm -f masc_core/cpu_kernels/__pycache__/*.nb[ci] masc_core/models/__pycache__/*.nb[ci] # kept by the date of one file, made of several
	@$(BIN)/python -m masc_core.cpu_kernels
	@touch $@

# torch comes first and by itself, or a dependency would pull gigabytes of CUDA. A build that is to
# be replaced goes before: to pip, 2.13.0+cpu is as good as any 2.13.0.
INSTALLED_TORCH := $(shell cat $(VENV)/.stamp-torch 2>/dev/null)
$(VENV)/.stamp-torch: $(VENV)/.stamp-python constraints.txt
	@echo "Installing $(TORCH) into $(VENV) (once; the CPU build is about 200 MB)"
	@rm -f $@ $(VENV)/.torch-choice
	@$(if $(filter-out $(TORCH),$(INSTALLED_TORCH)),$(PIP) uninstall --quiet --yes torch)
	@{ grep -vE '^torch(vision)?==' constraints.txt; echo '$(TORCH)'; } > $(VENV)/constraints.txt
	@$(PIP) install --retries 1 -c $(VENV)/constraints.txt setuptools '$(TORCH)' \
		$(if $(TORCH_INDEX),--extra-index-url '$(TORCH_INDEX)')
	@$(if $(filter $(TORCH),$(DEFAULT_TORCH)),,echo '$(TORCH)' > $(VENV)/.torch-choice)
	@echo '$(TORCH)' > $@
ifneq ($(INSTALLED_TORCH),$(TORCH))
.PHONY: $(VENV)/.stamp-torch
endif

$(VENV)/.stamp-python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "masc needs Python 3.11 or newer, and PYTHON=$(PYTHON) is not; try: make PYTHON=python3.12 ..." >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) lacks the venv module; on Debian or Ubuntu: sudo apt-get install python3-venv" >&2; exit 2; }
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# The CUDA build of torch brings the compilers. Beside it only what is imported on the way.
$(GPU_VENV)/.stamp: constraints.txt
	@$(GPU_PYTHON) -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 12))' || { \
		echo "gpu-compile needs Python 3.12 or newer; try: make gpu-compile GPU_PYTHON=..." >&2; exit 2; }
	@echo "Installing the CUDA build of $(PINNED_TORCH) into $(GPU_VENV) (once; about 5 GB)"
	@$(GPU_PYTHON) -m venv --clear $(GPU_VENV)
	@$(GPU_VENV)/bin/python -m pip --disable-pip-version-check --no-input install --quiet --retries 1 \
		-c constraints.txt torch numba numpy pydantic pytest setuptools
	@touch $@
