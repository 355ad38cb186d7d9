# Two commands: `make run` and `make test`. Both install what they need first; installing again does nothing.
PYTHON ?= python3
# test processes side by side: most tests wait for servers, so one more than the two cores of a small machine
JOBS ?= 3
BIN := .venv/bin

.PHONY: run test lint bench install install-dev lock

run: install
	@$(BIN)/python -m proxy.cli.quickstart

test: install-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/build_prices.py --check
	$(BIN)/python -m scripts.build_docs --check
	$(BIN)/python -m scripts.build_dashboards --check

bench: install-dev
	$(BIN)/python -m bench

install: .venv/installed

install-dev: .venv/installed-dev

.venv/installed: requirements/run.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements/run.lock
	@$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements/build.lock
	@$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(BIN)/python -m compileall -q proxy billing config sandbox
	@touch $@

.venv/installed-dev: .venv/installed requirements/dev.lock requirements/openai2.lock requirements/ecosystem.lock tests/clients/node/package-lock.json tests/browser/node/package-lock.json tests/browser/node/unpack.mjs
	@$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements/dev.lock
	@test -x .venv-openai2/bin/python || $(PYTHON) -m venv .venv-openai2
	@.venv-openai2/bin/pip install -q --disable-pip-version-check --require-hashes -r requirements/openai2.lock
	@test -x .venv-ecosystem/bin/python || $(PYTHON) -m venv .venv-ecosystem
	@.venv-ecosystem/bin/pip install -q --disable-pip-version-check --require-hashes -r requirements/ecosystem.lock
	@if command -v npm >/dev/null; then cd tests/clients/node && npm ci --silent --no-audit --no-fund; fi
	@if command -v npm >/dev/null; then cd tests/browser/node && npm ci --silent --no-audit --no-fund && node unpack.mjs; fi
	@touch $@

lock:
	scripts/lock
