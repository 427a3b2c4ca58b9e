# run: try the router   test: the tests   check: all that must hold before a change goes in
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= etc/router.ini
PYTEST_ARGS ?=

# The rows that need neither reactor nor socket: their branch coverage is a gate.
PURE := wsrouter/config/*,wsrouter/policy/*,wsrouter/sniff/*,wsrouter/wire/*
define BRANCH_GATE
import json, sys
t = json.load(sys.stdin)["totals"]
share = 100 * t["covered_branches"] / t["num_branches"]
print("branches of the pure rows that were taken: %.1f %% (more than 95 %% is expected)" % share)
sys.exit(share <= 95)
endef
export BRANCH_GATE

.DEFAULT_GOAL := help
.PHONY: help run test compiled test-compiled scenarios soak conformance lint check bench dist clean python

help:
	@echo "make run          make $(VENV) and run the router with $(CONFIG) (CONFIG=... for another)"
	@echo "make test         make $(VENV) and run the tests (PYTEST_ARGS=... for some of them)"
	@echo "make compiled      make build/compiled: the router with its data path compiled (needs a C compiler; minutes)"
	@echo "make test-compiled the tests on that"
	@echo "make scenarios    the tests that kill backends and workers, throw bombs and hold 1,000 sessions, at full size: minutes"
	@echo "make conformance  all of the Autobahn test suite through the router, both ways (see conformance/)"
	@echo "make soak         100 reloads under load, a third of them broken"
	@echo "make check        lint, types, import contracts, tests with coverage"
	@echo "make bench        measure for 25 minutes; BENCH_ARGS=--quick for a look (see bench/)"
	@echo "make dist         wheel and source archive in dist/"
	@echo "make clean        remove what these have made"

# Each stamp is remade when pyproject.toml changes; pip then installs only what is missing.
$(VENV)/.run: pyproject.toml | python
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "no virtual environment: on Debian, apt-get install python3-venv"; rm -rf $(VENV); exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

python:
	@command -v $(PYTHON) >/dev/null || { echo "wsrouter needs Python 3.11 or later, and there is no $(PYTHON): set PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("wsrouter needs Python 3.11 or later, but $(PYTHON) is %d.%d: set PYTHON=..." % v[:2])'

run: $(VENV)/.run
	exec $(BIN)/twistd -n wsrouter --config $(CONFIG)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --dist loadfile $(PYTEST_ARGS)

# The same files with extension modules beside them, where nothing else looks for them; see docs/compiled.md.
COMPILED := build/compiled/.made-$(shell $(BIN)/python -c 'import sys; print(sys.implementation.cache_tag)' 2>/dev/null)
compiled: $(COMPILED)

$(COMPILED): pyproject.toml hatch_build.py $(shell find wsrouter twisted -name '*.py') | $(VENV)/.dev
	rm -rf build/compiled
	mkdir -p build/compiled
	HATCH_BUILD_HOOK_ENABLE_CUSTOM=1 $(BIN)/python -m build --wheel --no-isolation --outdir build/compiled
	$(BIN)/python -m zipfile -e build/compiled/*.whl build/compiled
	@touch $@

COPIED := tests docs etc bench conformance Makefile README.md CHANGELOG.md pyproject.toml
test-compiled: compiled
	cd build/compiled && rm -rf $(COPIED)
	cp -r $(COPIED) build/compiled/
	cd build/compiled && $(CURDIR)/$(BIN)/python -c 'import sys, wsrouter.wire.frames as m; sys.exit(m.__file__.endswith(".py") and "not compiled: make clean, and once more")'
	cd build/compiled && PYTHONPATH=$$PWD $(CURDIR)/$(BIN)/python -m pytest -n auto --dist loadfile --ignore tests/test_packaging.py $(PYTEST_ARGS)

scenarios: $(VENV)/.dev
	SCENARIOS=full $(BIN)/python -m pytest tests/scenarios $(PYTEST_ARGS)

conformance: $(VENV)/.dev
	$(BIN)/python -m conformance $(CONFORMANCE_ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The tests run once: this is `make test` with coverage switched on.
check: lint
	$(MAKE) --no-print-directory test PYTEST_ARGS="--cov --cov-report= $(PYTEST_ARGS)"
	$(BIN)/coverage report --skip-covered
	@$(BIN)/coverage json -q -o - --include='$(PURE)' | $(BIN)/python -c "$$BRANCH_GATE"

bench: $(VENV)/.dev
	$(BIN)/python -m bench $(BENCH_ARGS)

soak: $(VENV)/.dev
	RELOADS=100 $(BIN)/python -m pytest -q -s tests/integration/test_reload_storm.py

dist: $(VENV)/.dev
	rm -rf dist
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) build dist conformance/build .coverage htmlcov .mypy_cache .ruff_cache .hypothesis .import_linter_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f twisted/plugins/dropin.cache
