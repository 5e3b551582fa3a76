# make env · demo · site · test · lint · lab · bench · course PRESET=… · tables      (each sets itself up)
PYTHON ?= python3
VENV   ?= .venv
RUN    ?= runs/demo
PRESET ?= toy
SEEDS  ?= 10
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.lofi-env
MAKEFLAGS += --no-print-directory

.PHONY: help env demo site test lint lab bench course tables notebooks clean

help:
	@sed -n 1p Makefile

env: $(STAMP)
$(STAMP): requirements.lock pyproject.toml
	@echo "setting up $(VENV) (about a minute the first time)"
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
	  { echo "$(PYTHON) is older than 3.11; use: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $(STAMP)

demo: env
	$(BIN)/lofi course --preset $(PRESET) --run $(RUN) --to 06

site: env  # the course and the report of RUN as pages, in build/site
	$(BIN)/python notebooks/build_site.py --out build/site --run $(RUN)

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --nbval --nbval-cell-timeout 600 notebooks

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ruff format --check --line-length 80 notebooks/*.ipynb notebooks/solutions/*.ipynb

lab: env
	$(BIN)/jupyter lab notebooks

bench: env
	for name in tests/benchmarks/*.py; do echo "== $$name"; $(BIN)/python $$name || exit 1; done

course: env
	$(BIN)/lofi course --preset $(PRESET) --run runs/$(PRESET)

tables: env  # ten seeds, CPU hours in docs/RESULTS.md; SEEDS=1 in minutes; goes on where it was stopped
	$(BIN)/lofi tables --study --run runs/tables --seeds $(SEEDS) --jobs 2

notebooks: env  # run all notebooks at preset tiny and keep their outputs, ready to commit
	$(BIN)/python notebooks/refresh.py

clean:
	rm -rf $(VENV) runs
