# One word a verb. PYTHON may be set to the interpreter of a virtual environment.
PYTHON ?= python
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-slow check format bench docs

demo:        ## train, prune, share and code LeNet-300-100 on MNIST; leaves demo/
	$(PYTHON) -m prunus demo --out demo

test:        ## the laws, under ten minutes on two cores
	$(PYTHON) -m pytest -m "not slow" -n 2

test-slow:   ## the long ones: fuzzing, kill and resume, every experiment's smoke size
	$(PYTHON) -m pytest -m slow -n 2

check:       ## format, lint, types, links in the docs
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	$(PYTHON) -m pytest tests/house -p no:cacheprovider

format:      ## rewrite to the house format
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

bench:       ## every benchmark; prints the tables of docs/results.md
	$(PYTHON) -m benchmarks

docs:        ## run every code block of README and docs
	$(PYTHON) -m pytest tests/end_to_end/test_documents.py
