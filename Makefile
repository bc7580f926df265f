# `make demo` runs the lattice on a clip that it makes, in a light environment (no compiler, no
# torch); `make demo-train` trains one; `make test` runs the tests. Each makes what it needs in .venv.
PYTHON ?= $(shell for p in python3.11 python3.12 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null \
	&& echo $$p && break; done)
RUN = .venv/bin/python

.PHONY: help python env env-light demo demo-train test test-gpu chaos fuzz lint
help:
	@echo 'make demo        annotated video, table and curve of a small clip; no training (3 minutes)'
	@echo 'make demo-train  generate video, train detector and lattice, measure, render (9 to 11 minutes)'
	@echo 'make test        run the tests (12 minutes on two cores)'
	@echo 'make test-gpu    run the tests that need a GPU, on the one of this machine'
	@echo 'make chaos       kill, hang, cut, flip, fill the disk: nothing is lost (10 minutes)'
	@echo 'make lint        ruff'
	@echo 'make fuzz        1,100,000 spoiled files for all readers (half an hour; goes on where it was ended)'
	@echo 'make env         make or check the full environment in .venv (first time 7 to 15 minutes)'
	@echo 'make env-light   the same without training: no compiler, no torch (first time a minute)'

python:
	@test -n '$(PYTHON)' || { echo 'No Python 3.11 or 3.12 found: install one, or name it: make PYTHON=... env'; exit 3; }

env: python
	@$(PYTHON) tools/environment.py

env-light: python
	@$(PYTHON) tools/environment.py --light

demo: env-light
	@$(RUN) tools/demo.py

demo-train: env
	@$(RUN) tools/demo_train.py

# On CPUs, also where there is a GPU: ranks of a test are more than a machine has GPUs.
test: env
	@CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-gpu: env
	@$(RUN) -m pytest -m gpu -n 2 --dist loadfile tests/gpu

chaos: env
	@OMP_NUM_THREADS=1 $(RUN) benchmarks/chaos.py --json build/chaos.json

lint: env
	@$(RUN) -m ruff check .

fuzz: env
	@OMP_NUM_THREADS=1 $(RUN) benchmarks/fuzz_readers.py --inputs 100000 \
		--annotations 1000000 --state build/fuzz.json --json build/fuzz_readers.json
