# Two commands: `make demo` (hear it) and `make test` (trust it). Both set everything up first.
PYTHON ?= python3
# The pin matters: a looser torch requirement would fetch several gigabytes of CUDA on a machine without a GPU
# driver's wheel at hand. Another build: make TORCH="torch==2.8.0".
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python -m

.PHONY: help bench demo test test-long test-slurm lint type imports check clean dist

help: ## Show what can be made
	@grep -hE '^[a-z.-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.venv: $(VENV)/.ready ## Set everything up (once; again when the requirements change)

$(VENV)/.ready: pyproject.toml setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(RUN) pip install --disable-pip-version-check -q "$(TORCH)"
	$(RUN) pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	$(RUN) pip install --disable-pip-version-check -q --no-deps audiocraft==1.3.0
	@touch $@

demo: $(VENV)/.ready ## Make sounds, train a codec and an LM on them, generate four clips, write demo/index.html
	$(BIN)/micro-musicgen demo --out demo

test: $(VENV)/.ready ## Lint, types, import direction and the quick tests, with coverage
	$(MAKE) check
	$(RUN) pytest -q -n 2 --dist loadfile -m "not slow and not slurm" --cov --cov-report=term

test-long: $(VENV)/.ready ## The tests that take minutes: whole runs, wheels, audiocraft's own suite
	$(RUN) pytest -q -n 2 --dist loadfile -m "slow and not slurm"

test-slurm: $(VENV)/.ready ## Grids on a real Slurm of one machine; installs it where apt and root allow
	sh tests/slurm/run.sh $(BIN)/python

check: lint type imports ## Everything that reads the code without running it

lint: $(VENV)/.ready ## ruff
	$(RUN) ruff check .
	$(RUN) ruff format --check .

type: $(VENV)/.ready ## mypy
	$(RUN) mypy

imports: $(VENV)/.ready ## import-linter: one direction, one door to audiocraft
	$(BIN)/lint-imports

bench: $(VENV)/.ready ## How fast, in five minutes; all of it: python bench/speed.py --prepare, then without
	$(BIN)/python bench/speed.py --quick
	$(BIN)/python bench/size.py

dist: $(VENV)/.ready ## A wheel and an sdist in dist/
	rm -rf build dist
	$(RUN) build

clean: ## Remove what can be made again (never your runs)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage
