# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
# Installed before anything that depends on torch, which would fetch gigabytes of CUDA packages.
TORCH ?= torch==2.13.0

.DEFAULT_GOAL := help
.PHONY: help setup demo check test bench docs clean

help:
	@echo "make demo   light install, predict LLaMA-7B on an A6000, draw its roofline"
	@echo "make test   install what the tests need, run them all"
	@echo "make check  ruff and mypy"
	@echo "make bench  benchmarks (ratios measured side by side)"
	@echo "make docs   run the commands in README.md and docs/, refresh their output"
	@echo "make setup  everything for development, with pre-commit hooks"
	@echo "make clean  remove environments, caches and output"

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed, found " + sys.version.split()[0] + "; use make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: pyproject.toml | $(VENV)/bin/python
	$(PIP) -e .
	@touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	$(PIP) $(TORCH)
	$(PIP) -e '.[quantizer,dist,bench,parquet,test,lint]'
	@touch $@ $(VENV)/.base

$(VENV)/.peers: $(VENV)/.test
	$(PIP) -e '.[peers]'
	@touch $@

setup: $(VENV)/.test
	$(PY) -m pre_commit install

demo: $(VENV)/.base
	@mkdir -p out
	$(PY) -m perfmodel predict --gpu a6000
	$(PY) -m perfmodel plot roofline --gpu a6000 -o out/roofline.png

check: $(VENV)/.test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist worksteal  # a worker per core, a thread each

bench: $(VENV)/.peers
	$(PY) -m pytest bench --benchmark-disable-gc

docs: $(VENV)/.test
	$(PY) docs/examples.py --write

clean:
	rm -rf $(VENV) out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
