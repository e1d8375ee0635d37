# `make check` is what every change has to pass; continuous integration runs the same tests from a clean clone (.ci/run).
PYTHON ?= python

.PHONY: check format lint types test test-older slow faults gpu docs

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

test-older:  ## the same on an older CPU, as far as this one can play it: no bf16, other kernels and roundings, one thread
	PYTHONPATH="$(CURDIR)/tests/older_machine:$$PYTHONPATH" ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 \
	MKL_ENABLE_INSTRUCTIONS=SSE4_2 OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q

slow:  ## the tests that take minutes
	$(PYTHON) -m pytest -q -m "slow and not gpu"

faults:  ## the complete fault injection, with counts; `make test` runs a quick subset
	$(PYTHON) -m pytest -q -n auto tests/faults --all-faults -m "not gpu"

gpu:  ## all that needs a GPU, in under 12 minutes, with one report (runs/gpu/gpu.md); without one its dry half
	$(PYTHON) scripts/gpu_report.py

docs:  ## all pages with the reference, in site/; npm fetches what site/try/ generates with, once
	-$(PYTHON) -c "from ldm.apps.web.runtime import find_runtime; find_runtime()"
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict
