# `make demo` and `make test` need only Python 3.11 or newer, make and a package index: the first call builds .venv.
#
#   BASE_PYTHON=python3.12     the Python that .venv is made from (default: python3)
#   TORCH_INDEX=URL            the package index that torch comes from (default: the configured index)
#   PYTHON=path/to/python      an interpreter that has prunus installed, used instead of .venv
BASE_PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check -c constraints.txt

ifdef PYTHON
ENVIRONMENT := check-python
else
PYTHON := $(VENV)/bin/python
ENVIRONMENT := $(VENV)/installed
endif

export OMP_NUM_THREADS ?= 1

.DELETE_ON_ERROR:
.PHONY: demo test test-slow check format bench docs results venv check-python

demo: $(ENVIRONMENT)       ## Train, prune, quantize and code LeNet-300-100 on MNIST; the results are in demo/.
	$(PYTHON) -m prunus demo --out demo

test: $(ENVIRONMENT)       ## Run the tests that take under ten minutes on two cores.
	$(PYTHON) -m pytest -m "not slow" -n 2

test-slow: $(ENVIRONMENT)  ## Run the long tests: fuzzing, kill and resume, the smoke size of every experiment.
	$(PYTHON) -m pytest -m slow -n 2

check: $(ENVIRONMENT)      ## Check format, lint, types and the repository conventions.
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	$(PYTHON) -m pytest tests/conventions -p no:cacheprovider

format: $(ENVIRONMENT)     ## Reformat the code.
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

bench: $(ENVIRONMENT)      ## Run every benchmark and print the tables of docs/benchmarks.md.
	$(PYTHON) -m benchmarks

docs: $(ENVIRONMENT)       ## Run every code block of the README and of docs/.
	$(PYTHON) -m pytest tests/end_to_end/test_documents.py

results: $(ENVIRONMENT)    ## Make docs/results/ from the rows in docs/evidence/.
	$(PYTHON) docs/make_results.py

venv: $(ENVIRONMENT)       ## Only build .venv.

# torch is installed first and alone, so that the range of another package cannot replace the pinned build.
$(VENV)/installed: pyproject.toml constraints.txt
	@command -v $(BASE_PYTHON) > /dev/null || \
	  { echo 'error: there is no $(BASE_PYTHON) on PATH; install Python 3.11 or newer.'; exit 1; }
	@$(BASE_PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'error: prunus needs Python 3.11 or newer, but $(BASE_PYTHON) is older; name a newer one: make BASE_PYTHON=python3.12'; exit 1; }
	@$(BASE_PYTHON) -c 'import ensurepip, venv' 2> /dev/null || \
	  { echo 'error: $(BASE_PYTHON) has no venv module; install it (Debian, Ubuntu: apt-get install python3-venv).'; exit 1; }
	@echo 'Building $(VENV); the download of torch may be large.'
	@$(BASE_PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python $(PIP_INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@$(VENV)/bin/python $(PIP_INSTALL) --editable '.[dev]'
	@touch $@

check-python:
	@command -v $(PYTHON) > /dev/null || { echo 'error: there is no PYTHON=$(PYTHON).'; exit 1; }
	@$(PYTHON) -c 'import prunus, torch, typer' 2> /dev/null || \
	  { echo 'error: PYTHON=$(PYTHON) has no prunus installed; to build .venv from another Python, set BASE_PYTHON instead.'; exit 1; }
