# make demo   sets everything up and shows what the harness does
# make test   sets everything up and runs all tests, those with real containers included
# Both leave alone what is there already: a second run takes seconds of set-up.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=
# Which machine `make test-vm` boots: options of scripts/vm/test.sh, such as --kernel uml.
VM ?=

# What `make engine` installs on Debian and Ubuntu where no engine answers: the engine, and what makes Debian systems for
# the images (Ubuntu knows Debian's keys only with the last one).
APT_PACKAGES := ca-certificates docker.io e2fsprogs mmdebstrap mount debian-archive-keyring

.DEFAULT_GOAL := help
.PHONY: help venv engine images samples test-tools demo test test-vm lint clean database database-stop

help:
	@echo "make demo   set up, then show what the harness does"
	@echo "make test   set up, then run all tests"
	@echo "make test-vm         tests/engine in a virtual machine and against its engine from outside: hours under emulation"
	@echo "make samples         install what the sample functions need besides git"
	@echo "make database        start a PostgreSQL server for the sample that connects to one"
	@echo "make database-stop   remove it with all its data"
	@echo "make lint   ruff and mypy"
	@echo "make clean  remove what the tools left in this folder (not $(VENV), not the images)"

venv:
	@scripts/venv.sh $(VENV) $(PYTHON)

engine: venv
	@scripts/engine.sh $(BIN)/python "$(APT_PACKAGES)"

images: engine
	@$(BIN)/lambda-harness images build

demo: images
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/demo.sh

# A PostgreSQL server for sample_functions/database_connection_python, in a container of its own.
database: images
	@scripts/database.sh start $(BIN)/python

database-stop: venv
	@scripts/database.sh stop $(BIN)/python

samples: venv
	@scripts/samples.sh $(BIN)/python

test-tools:
	@scripts/test_tools.sh

# Images are mostly waited for, and unit tests need none. Together on a first run, each shown when it is done; no target for people.
.PHONY: test-unit
test-unit: venv
	@$(BIN)/coverage run -m pytest -n 2 --dist worksteal $(PYTEST_ARGS) tests/unit tests/reports

# The tests' own exit status counts; the coverage is told either way. Not by $(MAKE), or --dry-run would run all of it.
test: engine test-tools
	@rm -f .coverage .coverage.*
	@echo "unit tests, while images and samples are got ready where they are not there: each is shown when it is done"
	@status=0; \
	make --no-print-directory --jobs 2 --keep-going --output-sync=target test-unit images samples || status=$$?; \
	$(BIN)/coverage run -m pytest $(PYTEST_ARGS) tests/engine || status=$$?; \
	$(BIN)/coverage run -m pytest $(PYTEST_ARGS) tests/docs || status=$$?; \
	$(BIN)/coverage combine --quiet && $(BIN)/coverage report || [ $$status -ne 0 ] || status=1; \
	exit $$status

# cgroup version 2, and an engine on another kernel: see docs/engines.md. Each line boots a machine of its own.
test-vm: images samples
	@failed=; for way in "inside" "outside --vantage agent" "outside --vantage api"; do \
		scripts/vm/test.sh $$way $(VM) $(PYTEST_ARGS) || failed="$$failed, $$way"; \
	done; [ -z "$$failed" ] || { echo "failed: $${failed#, }" >&2; exit 1; }

lint: venv
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

clean:
	@rm -rf .coverage .coverage.* htmlcov .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
