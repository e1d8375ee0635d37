# `make check` is what every change has to pass; CI runs the same tests from a clean clone (.ci/run).
PYTHON ?= python

.PHONY: check format lint types test slow faults docs

check: lint types test

format:  ## rewrite the sources in the project's format
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

faults:  ## every fault the project claims to survive, with counts; the quick part is in `make test`
	$(PYTHON) -m pytest -q -n auto tests/faults --all-faults -m "not gpu"

docs:  ## tutorial, how-to, ideas and reference as pages, in site/
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict
