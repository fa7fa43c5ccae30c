# `make quickstart` from a fresh clone: text in, a small model that talks out. `make test` runs every check.

# The first interpreter that the pinned packages have wheels for.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
# Where torch (the benchmark's rival) is taken from. On Linux, PyPI's brings 3 GB of CUDA; to do without them:
#   make test TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
WORKERS ?= 2
UV := uv==0.13.9
bin := .venv/bin

# Compiled Python is kept even where the user's shell says not to: starting takes a third of the time.
export PYTHONDONTWRITEBYTECODE =

.PHONY: quickstart chatbot test test-slow test-gpu lint format bench constraints clean
.DELETE_ON_ERROR:

quickstart: .venv/runtime
	@$(bin)/python -m llm_jax train quickstart --workdir=runs/quickstart

# The stages of a chatbot, one after another, and a report card of them. A stage that was stopped goes on.
STAGES := pretrain instruct reward align
chatbot: .venv/runtime
	@$(bin)/pip install -qq -c constraints.txt -e ".[corpora]"
	@set -e; for stage in $(STAGES); do \
		echo "== $$stage"; $(bin)/python -m llm_jax train chatbot/$$stage --workdir=runs/chatbot/$$stage; done
	@$(bin)/python -m llm_jax.analysis.card --to=runs/chatbot/card.html $(STAGES:%=runs/chatbot/%)
	@echo "talk to it: $(bin)/python -m llm_jax chat --workdir=runs/chatbot/align"

test: lint
	@$(bin)/python -m pytest -q -n $(WORKERS) -m "not slow"

test-slow: .venv/test
	@$(bin)/python -m pytest -q -m slow -o timeout=3600

# The attention kernels on this machine's GPU (first: .venv/bin/pip install -e ".[cuda]"); all else is tested on CPUs.
test-gpu: .venv/test
	@TEST_PLATFORMS=cuda,cpu JAX_DEFAULT_MATMUL_PRECISION=highest $(bin)/python -m pytest -q \
		tests/contracts/test_kernels.py tests/layers/test_kernels.py

lint: .venv/test
	@$(bin)/ruff check --quiet --output-format=concise
	@$(bin)/ruff format --check --quiet || { echo "some files are not formatted: run make format"; exit 1; }
	@$(bin)/lint-imports --no-logo
	@$(bin)/pyright

format: .venv/test
	@$(bin)/ruff check --fix --quiet
	@$(bin)/ruff format

bench: .venv/test
	@$(bin)/python -m llm_jax.analysis.bench

# Resolves again within pyproject.toml; what is pinned stays, unless UPGRADE names it: make constraints UPGRADE="jax jaxlib"
constraints: .venv/runtime
	@$(bin)/pip install -qq $(UV)
	@$(bin)/uv pip compile -q pyproject.toml --universal --python-version 3.11 --extra test --extra interop --extra corpora --extra metrics --extra harness --no-annotate \
		--custom-compile-command "make constraints" $(addprefix --upgrade-package ,$(UPGRADE)) -o constraints.txt

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "llm_jax needs Python 3.11, 3.12 or 3.13: none was found (say make PYTHON=...)"; exit 2; }
	@$(PYTHON) -m venv .venv

# uv takes a fifth of pip's time, but knows nothing of pip's settings (a mirror, a proxy's certificates): pip is next.
.venv/runtime: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing the pinned packages into .venv ..."
	@$(bin)/pip install -qq $(UV) && $(bin)/uv pip install -q --python .venv -c constraints.txt -e . \
		|| { echo "uv could not: installing with pip"; $(bin)/pip install -qq -c constraints.txt -e .; }
	@touch $@

# pip, since torch may come from an index of its own.
.venv/test: .venv/runtime
	@echo "installing what the tests need ..."
	@$(bin)/pip install -qq -c constraints.txt -e ".[test,interop,corpora,metrics,harness]" $(addprefix --extra-index-url ,$(TORCH_INDEX))
	@touch $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis .import_linter_cache
