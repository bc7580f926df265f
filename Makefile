# The two commands: `make demo` trains, measures and shows a Scale-Time Lattice on data that it
# generates; `make test` runs the tests. Both make the environment (.venv) when it is missing.
PYTHON ?= $(shell for p in python3.11 python3.12 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null \
	&& echo $$p && break; done)
RUN = .venv/bin/python

.PHONY: help env demo test lint
help:
	@echo 'make demo   generate video, train detector and lattice, measure, render (9 to 11 minutes)'
	@echo 'make test   run the tests (7 minutes)'
	@echo 'make lint   ruff'
	@echo 'make env    make or check the environment in .venv (first time 15 to 40 minutes)'

env:
	@test -n '$(PYTHON)' || { echo 'No Python 3.11 or 3.12 found: install one, or name it: make PYTHON=... env'; exit 3; }
	@$(PYTHON) tools/environment.py

demo: env
	@$(RUN) tools/demo.py

test: env
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile

lint: env
	@$(RUN) -m ruff check .
