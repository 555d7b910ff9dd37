# What there is to do here. Each verb sets up what it needs, and a second run costs seconds.
#
#   make up ARGS="--max-models 3"        more flags for `shoal up`
#   make setup PYTHON=python3.12         the interpreter to build the environments from

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

ARGS ?=
WHEEL ?=
# All tests but the heavy ones.
LIGHT := -m "not soak and not wheel" -n 2 --dist loadfile --no-loadscope-reorder
BIN := .venv/bin

# One interpreter for both environments where there is one: Triton's wheels end at Python 3.12, and
# the caches that the Registry makes for Python models fit Triton only if both are the same version.
find_python = $(shell for name in $(1); do \
	if "$$name" -c 'import sys; sys.exit(not $(2) <= sys.version_info[:2] <= $(3))' 2> /dev/null; \
	then command -v "$$name"; break; fi; done)
ifndef PYTHON
PYTHON := $(call find_python,python3.12 python3.11 python3.13 python3.14 python3,(3, 11),(3, 99))
endif
ifndef TRITON_PYTHON
TRITON_PYTHON := $(call find_python,$(wildcard .venv/bin/python) $(PYTHON) python3.12 python3.11 python3,(3, 11),(3, 12))
endif

.PHONY: help
help: ## What there is to do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

.PHONY: setup
setup: .venv/.shoal-stamp .venv-triton/.shoal-made models ## Both environments and the example models

.PHONY: up
up: setup ## Serve the example models here, until Ctrl-C
	@exec $(BIN)/shoal up --repository model_repository $(ARGS)

.PHONY: demo
demo: setup ## Send real inputs to more models than fit, and show what happens
	@exec $(BIN)/python -m services.embedded.demo $(ARGS)

# A stack is several processes: without bytecode each compiles the services anew.
.PHONY: test
test: setup ## All tests but the heavy ones, against the real Triton
	@PYTHONDONTWRITEBYTECODE= exec $(BIN)/pytest $(LIGHT) $(ARGS)

.PHONY: coverage
coverage: setup ## What the tests reach, of all processes. Some of them: ARGS=tests/router
	@$(BIN)/coverage erase
	@status=0; PYTHONDONTWRITEBYTECODE= $(BIN)/coverage run -m pytest $(LIGHT) $(ARGS) || status=$$?; \
	$(BIN)/coverage combine --quiet; $(BIN)/coverage report; exit $$status

.PHONY: wheel-test
wheel-test: setup ## The wheel, installed alone: does it serve? Another one: WHEEL=dist/…
	@SHOAL_WHEEL="$(WHEEL)" exec $(BIN)/pytest -m wheel tests/test_wheel.py $(ARGS)

.PHONY: soak
soak: setup ## The heavy counts; results go to bench/RESULTS.md
	@$(BIN)/pytest -m soak --timeout 3600 $(ARGS)
	@exec $(BIN)/pytest -m "not soak" --hypothesis-profile soak --timeout 3600 tests/*/core $(ARGS)

.PHONY: bench
bench: setup ## Direct Triton against the Router
	@exec $(BIN)/python -m bench $(ARGS)

.PHONY: bench-lane
bench-lane: setup ## What a load or an eviction costs the lane's proxy
	@exec $(BIN)/python -m bench.lane $(ARGS)

.PHONY: bench-peers
bench-peers: setup .venv/.plot-stamp ## The Router against other servers and proxies
	@exec $(BIN)/python -m bench.peers $(ARGS)

.PHONY: growth
growth: setup ## An hour of mixed load: does anything grow? Shorter: ARGS="--minutes 2"
	@exec $(BIN)/python -m bench.growth $(ARGS)

.PHONY: simulate
simulate: .venv/.shoal-stamp ## The residency engine under a trace, in virtual time
	@exec $(BIN)/python -m bench.simulate $(ARGS)

.PHONY: lint
lint: .venv/.shoal-stamp ## Style, formatting, types, protos
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/buf lint

.PHONY: hooks
hooks: .venv/.shoal-stamp ## Check every commit as `make lint` and CI do, before it is made
	@$(BIN)/pre-commit install

.PHONY: dist
dist: .venv/.shoal-stamp ## The source distribution and the wheel, into dist/
	@rm -rf dist
	@$(BIN)/python -m build

.PHONY: proto
proto: .venv/.shoal-stamp ## Generate the stubs in shoal/ from protos/
	$(BIN)/buf generate
	$(BIN)/buf build third_party/triton --as-file-descriptor-set --exclude-source-info \
		-o shoal/client/triton.binpb

.PHONY: models
models: .venv/.shoal-stamp
	@$(BIN)/python model_repository/build.py

.PHONY: constraints
constraints: ## Pin the newest versions that pyproject.toml allows
	@fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; \
	$(call make_venv,$$fresh/venv); \
	"$$fresh/venv/bin/python" -m pip install --quiet '.[dev]'; \
	{ head -n 1 constraints.txt; \
	"$$fresh/venv/bin/python" -m pip freeze | grep -E '^[A-Za-z0-9_.-]+==' | grep -v '^shoal=='; \
	} > "$$fresh/constraints.txt"; \
	cp "$$fresh/constraints.txt" constraints.txt

.PHONY: clean
clean: ## Remove the environments, the caches, and the models that were built
	rm -rf .venv .venv-peers .venv-triton .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find model_repository -mindepth 3 -maxdepth 3 -name model.onnx -delete

# `venv` needs ensurepip, which Debian packs apart; virtualenv brings its own.
make_venv = if [[ -z "$(PYTHON)" ]]; then \
		echo "Python 3.11 or newer is needed: install it, or name it: make setup PYTHON=…" >&2; exit 1; \
	elif "$(PYTHON)" -c 'import ensurepip, venv' 2> /dev/null; then \
		"$(PYTHON)" -m venv --clear "$(1)"; \
	elif "$(PYTHON)" -m virtualenv --version > /dev/null 2>&1; then \
		"$(PYTHON)" -m virtualenv --quiet --clear "$(1)"; \
	else \
		loose=$$(mktemp -d); \
		"$(PYTHON)" -m pip install --quiet --target "$$loose" virtualenv || { \
			echo "$(PYTHON) has neither venv, virtualenv nor pip: install python3-venv" >&2; exit 1; }; \
		PYTHONPATH="$$loose" "$(PYTHON)" -m virtualenv --quiet --clear "$(1)"; \
		rm -rf "$$loose"; \
	fi

.venv/.shoal-stamp: pyproject.toml constraints.txt
	@if ! .venv/bin/python -m pip --version > /dev/null 2>&1; then \
		echo "making .venv with $(PYTHON)"; $(call make_venv,.venv); \
	fi
	@echo "installing what the services need"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[dev]'
	@touch $@

.venv/.plot-stamp: .venv/.shoal-stamp bench/peers/pins/plot.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --constraint bench/peers/pins/plot.txt --editable '.[plot]'
	@touch $@

.venv-triton/.shoal-made: deploy/triton/setup.sh deploy/triton/constraints.txt
	@if [[ -z "$(TRITON_PYTHON)" ]]; then \
		echo "Triton's environment needs CPython 3.11 or 3.12: install one, or name it:" \
			"make setup TRITON_PYTHON=…" >&2; exit 1; \
	fi
	@PYTHON="$(TRITON_PYTHON)" deploy/triton/setup.sh
	@touch $@
