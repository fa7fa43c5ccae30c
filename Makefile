# `make quickstart` from a fresh clone: text in, a small model that talks out. `make test` runs every check.

# The first interpreter that the pinned packages have wheels for.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
# Where torch (the benchmark's rival) is taken from. On Linux, PyPI's brings 3 GB of CUDA; to do without them:
#   make test TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
WORKERS ?= 2
UV := uv==0.13.9
# The environment that everything runs in. Another Python has another one: make test PYTHON=python3.13 VENV=.venv-3.13
VENV ?= .venv
bin := $(VENV)/bin
# The tests to run: files or folders.
TESTS ?= tests

# Compiled Python is kept even where the user's shell says not to: starting takes a third of the time.
export PYTHONDONTWRITEBYTECODE =

.PHONY: quickstart chatbot test test-slow test-light test-colab test-gpu lint format bench constraints clean
.DELETE_ON_ERROR:

quickstart: $(VENV)/runtime
	@$(bin)/python -m llm_jax train quickstart --workdir=runs/quickstart

# The stages of a chatbot, one after another, and a report card of them. A stage that was stopped goes on.
STAGES := pretrain instruct reward align
chatbot: $(VENV)/runtime
	@$(bin)/pip install -qq -c constraints.txt -e ".[corpora]"
	@set -e; for stage in $(STAGES); do \
		echo "== $$stage"; $(bin)/python -m llm_jax train chatbot/$$stage --workdir=runs/chatbot/$$stage; done
	@$(bin)/python -m llm_jax.reports.card --to=runs/chatbot/card.html $(STAGES:%=runs/chatbot/%)
	@echo "talk to it: $(bin)/python -m llm_jax chat --workdir=runs/chatbot/align"

test: lint
	@$(bin)/python -m pytest -q -n $(WORKERS) -m "not slow" $(TESTS)

test-slow: $(VENV)/test
	@$(bin)/python -m pytest -q -m slow -o timeout=3600 $(TESTS)

# The tests that need none of the packages that results are compared with (torch and its kin are gigabytes).
REFERENCES := torch,transformers,peft,trl,lm_eval
LIGHT := ".[test,interop,gpt2,corpora,metrics]"
test-light: $(VENV)/light
	@TEST_WITHOUT=$(REFERENCES) $(bin)/python -m pytest -q -rfE -n $(WORKERS) -m "not slow" $(TESTS)

# The same with exactly the packages that Colab's runtimes have. Installing llm_jax there must replace none of them.
PYTHON_COLAB ?= $(shell for p in python3.13 $(wildcard $(HOME)/.pyenv/versions/3.13.*/bin/python3.13); do \
	$$p -c '' 2>/dev/null && echo $$p && break; done)
test-colab: .venv-colab/test
	@TEST_WITHOUT=$(REFERENCES) .venv-colab/bin/python -m pytest -q -rfE -n $(WORKERS) -m "not slow" $(TESTS)

# The attention kernels on this machine's GPU (first: .venv/bin/pip install -e ".[cuda]"); all else is tested on CPUs.
test-gpu: $(VENV)/test
	@TEST_PLATFORMS=cuda,cpu JAX_DEFAULT_MATMUL_PRECISION=highest $(bin)/python -m pytest -q \
		tests/contracts/test_kernels.py tests/layers/test_kernels.py

lint: $(VENV)/test
	@$(bin)/ruff check --quiet --output-format=concise
	@$(bin)/ruff format --check --quiet || { echo "some files are not formatted: run make format"; exit 1; }
	@$(bin)/lint-imports --no-logo
	@$(bin)/pyright --pythonpath $(bin)/python

format: $(VENV)/test
	@$(bin)/ruff check --fix --quiet
	@$(bin)/ruff format

bench: $(VENV)/test
	@$(bin)/python -m benchmarks.bench

# Resolves again within pyproject.toml; what is pinned stays, unless UPGRADE names it: make constraints UPGRADE="jax jaxlib"
constraints: $(VENV)/runtime
	@$(bin)/pip install -qq $(UV)
	@$(bin)/uv pip compile -q pyproject.toml --universal --python-version 3.11 --extra test --extra references --extra interop --extra gpt2 --extra corpora --extra metrics --extra harness --no-annotate \
		--custom-compile-command "make constraints" $(addprefix --upgrade-package ,$(UPGRADE)) -o constraints.txt

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "llm_jax needs Python 3.11, 3.12 or 3.13: none was found (say make PYTHON=...)"; exit 2; }
	@$(PYTHON) -m venv $(VENV)

# uv takes a fifth of pip's time, but knows nothing of pip's settings (a mirror, a proxy's certificates): pip is next.
install = $(1)/bin/pip install -qq $(UV) && $(1)/bin/uv pip install -q --python $(1) $(2) \
	|| { echo "uv could not: installing with pip"; $(1)/bin/pip install -qq $(2); }

$(VENV)/runtime: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing the pinned packages into $(VENV) ..."
	@$(call install,$(VENV),-c constraints.txt -e .)
	@touch $@

$(VENV)/light: $(VENV)/runtime
	@echo "installing what the tests need ..."
	@$(call install,$(VENV),-c constraints.txt -e $(LIGHT))
	@touch $@

# pip, since torch may come from an index of its own.
$(VENV)/test: $(VENV)/runtime
	@echo "installing what the tests need ..."
	@$(bin)/pip install -qq -c constraints.txt -e ".[test,references,interop,gpt2,corpora,metrics,harness]" $(addprefix --extra-index-url ,$(TORCH_INDEX))
	@touch $@

.venv-colab/test: pyproject.toml constraints-colab.txt
	@test -n "$(PYTHON_COLAB)" || { echo "Colab has Python 3.13: none was found (say make PYTHON_COLAB=...)"; exit 2; }
	@echo "installing Colab's packages into .venv-colab ..."
	@$(PYTHON_COLAB) -m venv --clear .venv-colab
	@$(call install,.venv-colab,--no-deps -r constraints-colab.txt)
	@.venv-colab/bin/pip freeze --exclude-editable > .venv-colab/before
	@$(call install,.venv-colab,-e .)
	@.venv-colab/bin/pip freeze --exclude-editable | diff .venv-colab/before - \
		|| { echo "installing llm_jax changes these of Colab's packages"; exit 1; }
	@touch $@

clean:
	rm -rf .venv .venv-* .pytest_cache .ruff_cache .hypothesis .import_linter_cache
