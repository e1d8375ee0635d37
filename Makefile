# `make check` is what every change has to pass; continuous integration runs the same tests from a clean clone (.ci/run).
PYTHON ?= python

.PHONY: check format lint types test slow faults docs

check: lint types test

format:  ## format the sources
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

lint:
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .

types:
	$(PYTHON) -m mypy

test:
	$(PYTHON) -m pytest -q

slow:  ## the tests that take minutes
	$(PYTHON) -m pytest -q -m "slow and not gpu"

faults:  ## the complete fault injection, with counts; `make test` runs a quick subset
	$(PYTHON) -m pytest -q -n auto tests/faults --all-faults -m "not gpu"

docs:  ## all pages with the reference, in site/
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict
