# `make` alone lists what there is. Everything runs from .venv; only `make parts` touches anything else.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
# The newest one there is: every lock holds wheels for all of them. Override with `make PYTHON=python3.12 ...`.
PYTHON ?= $(firstword $(foreach p,python3.14 python3.13 python3.12 python3.11 python3,$(shell $(p) -c 'import sys; sys.version_info >= (3, 11) and print("$(p)")' 2>/dev/null)))

.DEFAULT_GOAL := help
.PHONY: help install parts debian-parts demo test check chaos soak sabotage bench pictures log-events contract docs sbom release lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(VENV)/.installed ## create .venv with exactly what the lock file says

$(VENV)/.installed: requirements/dev.lock requirements/axe.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer was found on PATH: install one, or run 'make PYTHON=/path/to/python3.12 ...'."; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@# Only its file axe.min.js is used, byte for byte npm's axe-core, so neither what it needs nor its Python matters.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --ignore-requires-python --require-hashes \
	  --target $(VENV)/axe -r requirements/axe.lock
	@touch $@

# Programs that no wheel brings. Tests without theirs are left out, and the run says so at its end.
DEBIAN_PARTS := chromium chromium-driver iproute2 nginx pgbouncer prometheus redis-sentinel sqlite3 wget $(if $(shell command -v npm),,nodejs npm)
DEBIAN := $(if $(shell command -v apt-get),debian-parts)
# What the tests in Node use, exactly as the lock files say; no package runs a script of its own.
NODE_PARTS := $(foreach each,docs/examples/node tests/node,$(each)/node_modules/.package-lock.json)
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo)
parts: $(DEBIAN) $(NODE_PARTS) ## install what the tests use and no wheel brings (Debian, Ubuntu): the one target that changes the machine
	@command -v apt-get >/dev/null || { echo "Install these by hand, this is no Debian: $(DEBIAN_PARTS)."; exit 1; }

debian-parts:
	@dpkg-query --show --showformat '$${Status}\n' $(DEBIAN_PARTS) 2>/dev/null | grep -c '^install ok installed' | grep -qx $(words $(DEBIAN_PARTS)) \
	  || { $(AS_ROOT) apt-get -qq update \
	    && $(AS_ROOT) env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -qq install --no-install-recommends $(DEBIAN_PARTS) >/dev/null; }

$(NODE_PARTS): %/node_modules/.package-lock.json: %/package-lock.json | $(DEBIAN)
	@cd $* && npm_config_update_notifier=false npm ci --ignore-scripts --no-audit --no-fund --loglevel=error && touch node_modules/.package-lock.json

demo: install ## the whole thing in a minute: Redis, SQLite, a local Trackstar, the worker and Flower
	@$(BIN)/cancel-worker demo

# What the tests run of `worker/`, in percent of lines and branches; it may rise.
COVERAGE_FLOOR := 98
test: install ## every test: unit, integration (Redis, PostgreSQL, SQLite), end to end (real processes)
	@rm -rf .coverage-data
	$(BIN)/coverage run -m pytest tests/unit
	$(BIN)/coverage run -m pytest tests/integration tests/e2e -n 4
	@$(BIN)/coverage combine --quiet && $(BIN)/coverage report --fail-under=$(COVERAGE_FLOOR)

chaos: install ## everything that kills and breaks, on both ledgers, each part away for a minute
	CHAOS=1 CHAOS_OUTAGE_SECONDS=$${CHAOS_OUTAGE_SECONDS:-60} $(BIN)/python -m pytest tests/e2e -n 4 --timeout 600

soak: install ## random faults for MINUTES (3) or until JOBS have ended, from a SEED; LEDGER=sqlite for the other kind
	PYTHONPATH=tests $(BIN)/python -m soak --minutes $(or $(MINUTES),3) --jobs $(or $(JOBS),0) --ledger $(or $(LEDGER),postgresql) $(if $(SEED),--seed $(SEED))

sabotage: install ## break each promise on purpose and see that a test turns red
	$(BIN)/python tests/sabotage

# CHART=1 measures what the chart shows, and draws it.
PARTS ?= $(if $(CHART),throughput latency,pace flood urgent outage ticks throughput latency slow enqueue intake flat people idle sqlite metrics proof)
# These need no peer: `proof` measures rules, `people` what people ask and do, `metrics` what counting costs.
ALONE := proof people metrics told scale
bench: install $(if $(filter-out $(ALONE),$(PARTS)),.venv-bench/.installed) ## measure, in ratios of one run: PARTS="pace flood", BENCH="--rounds 1", CHART=1
	@for part in $(PARTS); do PYTHONPATH=tests $(BIN)/python -m bench $$part $(BENCH) || exit 1; done
	@$(if $(CHART),PYTHONPATH=tests $(BIN)/python -m bench.summary && $(MAKE) --no-print-directory chart)

.PHONY: chart
chart: .venv-bench/.installed ## draw docs/pictures/bench.svg again, from the bench.json beside it
	@PYTHONPATH=tests .venv-bench/bin/python -m bench.chart

.venv-bench/.installed: requirements/bench.lock
	$(PYTHON) -m venv --clear .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/bench.lock
	@touch $@

pictures: install ## take the pictures of Flower in docs/pictures again (needs `make parts`)
	PICTURES=1 $(BIN)/python -m pytest -q tests/e2e/test_flower_browser.py

sbom: install ## write dist/sbom.cdx.json (CycloneDX) and dist/licenses.json of what the image installs, and refuse a licence
	@PYTHONPATH=tests $(BIN)/python -m harness.supply_chain dist

release: install ## check all that must hold before a release, and build it into dist/; DATE=2026-12-01 where that is not today
	@PYTHONPATH=tests $(BIN)/python -m harness.release $(if $(DATE),--date $(DATE))

log-events: ## write docs/log-events.md from worker/telemetry/events.py
	$(BIN)/python -m worker.telemetry.event_list > docs/log-events.md

contract: ## write docs/contract from the code; RELEASE=0.2.0 keeps what later releases must still read
	PYTHONPATH=tests $(BIN)/python -m harness.contract $(RELEASE)

# Not --quiet: with it, warnings are neither told nor counted, and a dead link is one.
SITE := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
docs: install ## build the documents as a site, into site/: `python -m http.server -b 127.0.0.1 -d site` shows it
	$(SITE)

check: install ## lint, types, import contracts, models = migrations, and the documents' site
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/integration/test_migrations.py
	$(SITE)

LOCKED := run dev bench build axe
COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --system-certs $(UPGRADE)
PINS := grep -hoE '^[a-z0-9.-]+==[^ ;]+'
lock: ## renew requirements/*.lock from pyproject.toml and say what changed (needs uv); UPGRADE=--upgrade takes the newest
	@rm -rf .locks-before && cp -r requirements .locks-before
	$(COMPILE) --extra flower pyproject.toml -o requirements/run.lock
	$(COMPILE) --extra flower --extra embedded --extra dev pyproject.toml -c requirements/run.lock -o requirements/dev.lock
	@# arq caps redis-py at 5; it runs on the newer one that all others use.
	$(COMPILE) --override <(echo 'redis[hiredis]>=6.4,<9') -c requirements/dev.lock tests/bench/requirements.in -o requirements/bench.lock
	$(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' | \
	  $(COMPILE) - -c requirements/dev.lock -o requirements/build.lock
	@# The accessibility rules (axe-core) that the browser's tests run. It says 3.12; on 3.11 only its JavaScript is read.
	echo 'pytest-playwright-axe>=4.14' | $(subst 3.11,3.12,$(COMPILE)) --no-deps - -o requirements/axe.lock
	@for name in $(LOCKED); do echo "$$name.lock:"; \
	  diff <($(PINS) .locks-before/$$name.lock | sort -u) <($(PINS) requirements/$$name.lock | sort -u) | grep '^[<>]' || echo "  as it was"; done
	@rm -rf .locks-before

clean: ## remove what make made
	rm -rf $(VENV) .venv-bench $(NODE_PARTS:%/.package-lock.json=%) bench-results site dist .coverage-data .locks-before .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
