# Every target makes the environment it needs; nothing has to be set up by hand.
VENV ?= .venv
PYTHON ?= python3
READY := $(VENV)/.ready

.PHONY: demo test test-all fuzz check docs bench claims clean
demo: $(READY)
	$(VENV)/bin/handful demo -o demo

# All but what starts processes or browsers or trains for long; each of these has a fast sister here.
test: $(READY)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadgroup -m "not process and not browser and not learning"

test-all: $(READY)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadgroup

# FUZZ damaged scans, DICOM damaged DICOM files and MODELS damaged model folders, each read in a process that may die, and
# KILLS of commands. FUZZ_FROM repeats a trial by its number.
FUZZ ?= 4000
DICOM ?= 2000
MODELS ?= 1000
KILLS ?= 120
fuzz: $(READY)
	FUZZ=$(FUZZ) DICOM=$(DICOM) MODELS=$(MODELS) KILLS=$(KILLS) OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -s tests/fuzz

check: $(READY)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m reproduction --check

# The documentation site, built without the network into build/site; warnings are errors.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --clean

# BEFORE=commit also measures that version and this one in turn.
bench: $(READY)
	$(VENV)/bin/python benchmarks/run.py
	$(if $(BEFORE),$(VENV)/bin/python benchmarks/before_after.py --before $(BEFORE))

# Rewrites docs/evidence/claims.md and all tables from reproduction/results. DATA=folder measures what is missing first, which may take
# days and goes on where it was stopped; PART="acdc fate" takes some of it.
claims: $(READY)
	$(VENV)/bin/python -m reproduction --curves $(if $(DATA),--data "$(DATA)") $(if $(PART),--part $(PART))

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

$(VENV)/.docs: $(READY)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	touch $(VENV)/.docs

clean:
	rm -rf $(VENV) demo
