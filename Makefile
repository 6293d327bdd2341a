# `make demo` and `make test` set themselves up into .venv; the second time they reuse it.

PYTHON := $(shell for p in python3.11 python3.12 python3; do \
	"$$p" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' \
	2>/dev/null && echo "$$p" && break; done)
BIN := .venv/bin
READY := .venv/.ready
# The package as it is when installed, for tools that read sources: frontends/ and runtime/ inside tileir/.
TREE := .cache/tree

.PHONY: demo test verify lint docs setup clean

demo: $(READY)
	$(BIN)/python -m tileir.tools.demo

test: lint
	$(BIN)/lit -sv test
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4

# Seeded defects, adversarial schedules, random decoders: half an hour on two cores.
verify: $(READY)
	$(BIN)/python -W ignore -m test.verify

lint: $(READY)
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	rm -rf $(TREE) && mkdir -p $(TREE)
	cp -Rp tileir benchmarks docs test $(TREE)/ && cp -Rp frontends runtime $(TREE)/tileir/
	cd $(TREE) && $(CURDIR)/$(BIN)/mypy --cache-dir $(CURDIR)/.mypy_cache --config-file $(CURDIR)/pyproject.toml
	cd $(TREE) && $(CURDIR)/$(BIN)/lint-imports --no-logo --config $(CURDIR)/pyproject.toml

# docs/python-api.md from docstrings.
docs: $(READY)
	$(BIN)/python -m docs.python_api

setup: $(READY)

# torch first and alone: what is installed later then asks for no other build of it.
$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or 3.12 with venv and ensurepip found" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$$(sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)"
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf .venv lit-out $(TREE)
