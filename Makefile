# On a fresh machine `make demo` and `make test` do all set-up: they create .venv and install the
# project into it. Set PYTHON to choose the interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow lint bench clean

# Installed again only when the packaging changes.
.venv/installed: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "epochal needs Python 3.11 or newer: make PYTHON=python3.12 demo"'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: .venv/installed
	rm -rf runs/demo
	$(BIN)/epochal train resnet20-digits --run-dir runs/demo
	$(BIN)/epochal export runs/demo
	$(BIN)/python pipelines/ask.py runs/demo/export

test: .venv/installed
	$(BIN)/python -m pytest -n 2

test-slow: .venv/installed
	$(BIN)/python -m pytest -n 2 -m slow

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: .venv/installed
	$(BIN)/pip install --quiet --editable '.[bench]' && $(BIN)/epochal bench

clean:
	rm -rf .venv build *.egg-info
