# Needs python3 (3.10 or newer), pip and make. `make PYTHON=python3.12 install` chooses another interpreter.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slurm lint format benchmark clean

help:
	@echo "make install    create .venv and install the project with its development tools"
	@echo "make demo       run the smallest experiment: no download, no GPU"
	@echo "make test       run all tests but those on SLURM, without a network"
	@echo "make test-slurm run the batch scripts on a SLURM of two nodes on this machine (slurm-wlm, root)"
	@echo "make lint       ruff and pyright"
	@echo "make format     let ruff rewrite the files"
	@echo "make benchmark  run the timings in tests/benchmarks"
	@echo "make clean      remove caches and build products, keep .venv and runs/"

install: .venv/installed

.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -e ".[dev]"
	touch $@

demo: install
	$(BIN)/python -m lightning_styles fit --config configs/tiny/sms.yaml

# One process a core and one thread a process: the tests are many and small.
test: export OMP_NUM_THREADS = 1
test: install
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# Apart from the others: they wait for real time limits, and a busy machine misses them.
test-slurm: install
	$(BIN)/python -m pytest tests/trust/test_slurm.py -m slurm

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: install
	$(BIN)/python -m pytest tests/benchmarks --benchmark-only

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .benchmarks
	find . -name __pycache__ -not -path "./.venv/*" -prune -exec rm -rf {} +
