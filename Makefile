# `make audit` and `make test` are each the one command on a bare machine (Python 3.11 or 3.12).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo

.PHONY: setup audit test test-jobs-with-ray test-nights-with-ray test-without-ray test-slow faults lint vulnerabilities clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 12) else f"Python 3.11 or 3.12 is needed, found {v}: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	# torch and torchvision first and unpinned: only so do their builds match
	$(BIN)/python -m pip install --quiet torch torchvision
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

# Two sample dumps (one to learn from, one for the night), a small bundle, the audit.
audit: setup
	$(BIN)/python -m jobs.sample --output-uri $(DEMO)/learn --num-bins 1500 --seed 1 --record-error-rate 0
	$(BIN)/python -m jobs.sample --output-uri $(DEMO)/night --num-bins 400 --seed 2 --record-error-rate 0.05
	$(BIN)/python -m jobs.ingest --images-uri $(DEMO)/learn/bin-images --records-uri $(DEMO)/learn/metadata --manifest-uri $(DEMO)/learn-manifest --replace
	$(BIN)/python -m jobs.ingest --images-uri $(DEMO)/night/bin-images --records-uri $(DEMO)/night/metadata --manifest-uri $(DEMO)/night-manifest --replace
	$(BIN)/python -m jobs.train --manifest-uri $(DEMO)/learn-manifest --bundle-uri $(DEMO)/bundle --architecture resnet18 --weights none --image-size 64 --max-epochs 4
	$(BIN)/python -m jobs.audit --manifest-uri $(DEMO)/night-manifest --bundle-uri $(DEMO)/bundle --output-uri $(DEMO)/audits --report-uri $(DEMO)/report --replace --replace-counted

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: setup
	# what needs Ray waits for its processes most of the time: two clusters and what needs none run side by side
	$(MAKE) --jobs 3 test-jobs-with-ray test-nights-with-ray test-without-ray lint

test-jobs-with-ray: setup
	$(BIN)/pytest tests/jobs -m 'ray and not slow' --timeout 600 --durations 15

# from outside: whole nights, end to end and with a fault, and the endpoint
test-nights-with-ray: setup
	$(BIN)/pytest --ignore tests/jobs -m 'ray and not slow' --timeout 600 --durations 15

test-without-ray: setup
	$(BIN)/pytest -m 'not ray and not slow' --timeout 600 --durations 10

# What `make test` leaves out, but for the faults, which the next target injects.
test-slow: setup
	$(BIN)/pytest --ignore tests/faults -m slow --durations 15

# Every fault as often as its test's `times(…)` says; a table is printed at the end.
faults: setup
	mkdir -p build
	$(BIN)/pytest tests/faults --faults-json build/faults.json

# What is installed against PyPI's list of known vulnerabilities; fails too where a package could not be looked up.
vulnerabilities: setup
	$(PYTHON) -m venv build/pip-audit
	build/pip-audit/bin/python -m pip install --quiet pip-audit
	PIPAPI_PYTHON_LOCATION=$(BIN)/python build/pip-audit/bin/pip-audit --strict --skip-editable

clean:
	rm -rf $(DEMO) build *.egg-info
