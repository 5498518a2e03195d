# make demo   set up, then run the quickstart from spec to comparison
# make test   set up, then run the tests; a quarter of an hour on two cores
# make long   the tests that take minutes each: faults, nodes that die, buckets, other databases
# make check  format, lint, types, import contracts, all tests
# make audit  known vulnerabilities in the locked versions; needs the internet

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

.PHONY: demo test long check static lint types contracts format docs lock audit clean

demo: $(READY)
	$(BIN)/slimvit run specs/library/quickstart.yaml

# Side by side what can be; then what starts clusters, two at a time; then, one by one, what needs the machine to itself.
test: $(READY)
	$(BIN)/python -m pytest -m "not alone and not ray and not long" --numprocesses auto --dist worksteal
	$(BIN)/python -m pytest -m "ray and not alone and not long" --numprocesses 2 --dist loadfile
	$(BIN)/python -m pytest -m "alone and not long"

long: $(READY)
	$(BIN)/python -m pytest -m long

check: static test long

# Everything that `make check` does besides running the tests.
static: lint types contracts

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

contracts: $(READY)
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY)
	$(BIN)/python -m orchestrator.reference docs/spec-reference.md
	$(BIN)/python -m orchestrator.strategy_help docs/strategies.md

# Versions that still fit stay as they are; UPGRADE=1 takes the newest of everything.
lock:
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/pip install --quiet uv
	cp requirements.lock requirements.lock.new
	$(VENV)-lock/bin/uv pip compile --universal --python-version 3.11 --extra dev --no-header --no-annotate \
	  --quiet $(if $(UPGRADE),--upgrade) --output-file requirements.lock.new pyproject.toml
	{ echo "# Exact versions of everything that slimvit runs and is tested with. Made by: make lock"; \
	  cat requirements.lock.new; } > requirements.lock
	rm -rf requirements.lock.new $(VENV)-lock

# Of what it finds, versions with a fix are raised in pyproject.toml and locked anew (make lock).
audit:
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/pip install --quiet pip-audit
	$(VENV)-audit/bin/pip-audit --requirement requirements.lock --no-deps --disable-pip --strict; status=$$?; \
	  rm -rf $(VENV)-audit; exit $$status

# An interrupted set-up is repeated: the marker is written last.
$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "slimvit needs Python 3.11 or newer; none was found. Install one, or call: make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "Installing the locked dependencies; the first time this takes a few minutes and about 7 GB."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(READY)

clean:
	rm -rf $(VENV) build *.egg-info
