# Targets a newcomer would guess; `make help` lists them. Nothing here needs root except `make e2e` on a bare machine.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help install lint format test e2e faults bench demo lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## make .venv with everything pinned in requirements-dev.lock

$(VENV)/.installed: requirements-dev.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "python3 (3.11 or newer) is needed"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

lint: install ## ruff, pyright (strict), import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --warnings
	$(BIN)/lint-imports

format: install ## let ruff sort and lay out the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: install ## unit, contract and sandbox tests: real git, builds, registry, containers; no cluster
	$(BIN)/python -m tests.tools
	$(BIN)/python -m tests $(ARGS)

e2e: install ## the promises on a real Kubernetes in a network namespace of its own
	$(BIN)/python -m tests.e2e $(ARGS)

faults: install ## of make e2e, those with processes killed and the network cut
	$(BIN)/python -m tests.e2e tests/faults $(ARGS)

bench: install ## benchmarks as ratios against peers, into reports/
	$(BIN)/python -m benchmarks $(ARGS)

demo: install ## see `git push` deploy something, in a sandbox on this machine
	$(BIN)/python -m tests.tools demo
	$(BIN)/gitsync demo $(ARGS)

lock: ## write the lock files anew (names, versions and hashes only)
	uv pip compile pyproject.toml --quiet --upgrade --universal --generate-hashes --no-annotate --no-header \
	  -o requirements.lock
	uv pip compile pyproject.toml --quiet --upgrade --universal --generate-hashes --no-annotate --no-header \
	  --extra dev -o requirements-dev.lock

clean: ## remove what the targets above made in the tree
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache reports/*
