# One word each. VENV=…, PYTHON=… and PORT=… change where, with what, and on which port.

VENV ?= .venv
PORT ?= 8000
BIN := $(VENV)/bin
PARITY_VENV ?= .venv-parity

.DEFAULT_GOAL := help
.PHONY: help setup site test lint format migrations-check pytest run demo demo-check browser screenshots soak parity

help: ## show these words
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: $(VENV)/installed-test ## virtual environment with everything needed to work on the project

site: $(VENV)/installed-site

test: setup lint migrations-check pytest ## all that CI runs but for demo-check

lint: setup ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

migrations-check: setup
	DJANGO_SETTINGS_MODULE=tests.settings $(BIN)/python manage.py makemigrations --check --dry-run

pytest: setup browser
	$(BIN)/pytest -m "not soak" --cov --cov-report=term:skip-covered
	$(BIN)/python -m tests.postgres $(BIN)/pytest -m "not soak" $(ON_POSTGRESQL)

# What is tested in one process too, once more on the other database.
ON_POSTGRESQL := tests/test_turns.py tests/test_swift.py tests/test_grouping.py tests/test_session_store.py tests/test_sessions.py tests/test_replay.py tests/test_overview.py tests/test_indexes.py tests/test_lookup.py tests/test_token_lookup.py

# Only where this user may install it; with CI=true the tests fail without one.
browser:
	@command -v chromium >/dev/null || { test "$$(id -u)" != 0 || apt-get install --yes --quiet chromium || true; }

run: site ## the site on 127.0.0.1:$(PORT), reloading when its code changes
	$(BIN)/python manage.py migrate
	$(BIN)/uvicorn project.asgi:application --port $(PORT) --loop uvloop --http httptools --reload

demo: site ## from nothing to an agent that answers, on 127.0.0.1:$(PORT)
	@exec $(BIN)/python scripts/demo.py --port $(PORT)

demo-check: site ## start the demonstration and compare its answers with the README's
	@$(BIN)/python scripts/demo_check.py

screenshots: setup browser ## the pictures in docs/images, anew
	$(BIN)/python -W ignore -m scripts.screenshots

soak: setup ## the long measurements, and what they saw
	$(BIN)/pytest -m soak -v

parity: $(PARITY_VENV)/installed ## compare with the published Foundry host and its recorded answers
	$(PARITY_VENV)/bin/python scripts/parity.py

bench: $(VENV)/installed-bench $(PARITY_VENV)/installed ## all measurements, beside what one would write by hand: 50 minutes
	BENCH_FOUNDRY_PYTHON=$(PARITY_VENV)/bin/python $(BIN)/python -W ignore -m benchmarks

bench-quick: $(VENV)/installed-bench $(PARITY_VENV)/installed ## the most telling ones, once: a minute
	BENCH_FOUNDRY_PYTHON=$(PARITY_VENV)/bin/python $(BIN)/python -W ignore -m benchmarks --size quick

profile: $(VENV)/installed-bench ## where the time of a turn goes, by py-spy
	$(BIN)/python -W ignore -m benchmarks.profile

$(BIN)/python:
	python=$$(sh scripts/find_python.sh) && "$$python" -m venv $(VENV)

# A stamp is a copy of the pyproject.toml that was installed: a checkout that only touches the file installs nothing.
$(VENV)/installed-test: pyproject.toml | $(BIN)/python
	@cmp -s pyproject.toml $@ || $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[site,test,bench]'
	@cp pyproject.toml $@ && cp pyproject.toml $(VENV)/installed-site && cp pyproject.toml $(VENV)/installed-bench

$(VENV)/installed-site: pyproject.toml | $(BIN)/python
	@cmp -s pyproject.toml $@ || $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[site]'
	@cp pyproject.toml $@

$(VENV)/installed-bench: pyproject.toml | $(BIN)/python
	@cmp -s pyproject.toml $@ || $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[site,bench]'
	@cp pyproject.toml $@

$(PARITY_VENV)/installed: pyproject.toml
	@test -x $(PARITY_VENV)/bin/python || { python=$$(sh scripts/find_python.sh) && "$$python" -m venv $(PARITY_VENV); }
	@cmp -s pyproject.toml $@ || $(PARITY_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[site,parity]'
	@cp pyproject.toml $@
