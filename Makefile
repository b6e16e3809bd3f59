# Everything from a fresh clone with Python >= 3.11 and make: `make demo`, `make test`.
#
#   PYTHON=python3.12        another interpreter for the environment
#   VENV=/somewhere          another place for it
#   CONSTRAINTS=/dev/null    whatever torch pip prefers, instead of .ci/constraints.txt
#   PIP_ARGS="..."           more arguments for pip install, an extra index for instance
#   WORKERS=4                test processes

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= .ci/constraints.txt
PIP_ARGS ?=
WORKERS ?= 2
OUTPUT ?= demo_run
ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# The tests speak to nothing outside and leave the cores to the test processes.
TEST_ENV := HF_HUB_OFFLINE=1 MPLBACKEND=Agg OMP_NUM_THREADS=1

# The variable leaves out a notice at every build (mkdocs-material is kept until May 2027; zensical follows it).
# ruff, which sets the signatures, is looked for on the path.
MKDOCS := NO_MKDOCS_2_WARNING=1 PATH="$(abspath $(BIN)):$$PATH" $(BIN)/mkdocs

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow gpu wheel client format lint types docs docs-serve checks clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

install: $(STAMP) ## the environment, with vla in editable form

$(STAMP): pyproject.toml $(wildcard $(CONSTRAINTS))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vla needs Python 3.11 or newer; set PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c $(CONSTRAINTS) $(PIP_ARGS) -e '.[dev]'
	@touch $@

demo: $(STAMP) ## record, train, evaluate, compare: a report in OUTPUT=demo_run
	$(BIN)/vla demo --output $(OUTPUT) $(ARGS)

test: $(STAMP) ## the whole default suite, offline
	$(TEST_ENV) $(BIN)/pytest -n $(WORKERS) --dist loadfile $(ARGS)

test-slow: $(STAMP) ## what the default suite leaves out: full size, minutes long
	MPLBACKEND=Agg HF_HUB_OFFLINE=1 $(BIN)/pytest -m slow $(ARGS) || [ $$? -eq 5 ] # 5: no test is slow

gpu: $(STAMP) ## on a CUDA card: parity, times, training and memory, into gpu_results/ (PARTS="parity sample")
	$(BIN)/python .ci/gpu.py $(if $(PARTS),--parts $(PARTS)) $(ARGS)

wheel: $(STAMP) ## build the wheel, install it in a fresh environment outside the checkout, and use it there
	$(BIN)/python .ci/check_wheel.py --constraints $(CONSTRAINTS) $(ARGS)

client: $(STAMP) ## build vla-client's wheel and run its tests in a fresh environment, of Python 3.9 where there is one
	$(BIN)/python .ci/check_client.py $(ARGS)

format: $(STAMP) ## rewrite the code in the house style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix --exit-zero --quiet .

lint: $(STAMP) ## formatting and lint, changing nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP) ## the type checker
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(STAMP) ## the documentation as a site in site/; what is doubtful in it is an error
	$(MKDOCS) build --strict --quiet

docs-serve: $(STAMP) ## the site on http://127.0.0.1:8000, built again at each change
	$(MKDOCS) serve $(ARGS)

checks: lint types docs test ## everything that a change must pass

clean: ## remove caches and build leftovers (not the environment, not runs)
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis
	find vla tests -name __pycache__ -type d -prune -exec rm -rf {} +
