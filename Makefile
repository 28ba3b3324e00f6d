# Few words. `make demo` and `make test` need nothing but python3 (3.11 to 3.14) and make.
.DEFAULT_GOAL := help
SHELL := /bin/sh
PY := .venv/bin/python

DEMO_FLEET ?= examples/three-sites/fleet.yaml
DEMO_TRACE ?= azure-conv
DEMO_OUT ?= runs/demo
N ?= 100000
PYTEST_ARGS ?=
PROCESSES ?= 2

.PHONY: help venv venv-run demo test check bench accuracy fuzz plan-examples native test-native docs lock clean

help:
	@echo 'make demo               simulate examples/three-sites on a real trace (runs/demo/report.html), then run it live'
	@echo 'make test               run the tests, in two processes; says at the end what was skipped and why'
	@echo 'make check              ruff, mypy --strict, import contract, house rules'
	@echo 'make bench              speed, in CPU seconds and as ratios (QUICK=1 for a short look)'
	@echo 'make accuracy [DATA=D]  errors against measured data; D holds the data that may not ship'
	@echo 'make fuzz [N=100000]    mutated fleet files and traces: an error or a run, never a traceback'
	@echo 'make clients            eight client libraries, at an engine and through the gateway'
	@echo 'make chaos [SEED=1]     kills, faults, partitions over a whole gateway: nothing may be lost, leak or be left over'
	@echo 'make bench-serve        CPU time a request beside haproxy, vllm-router, LiteLLM (QUICK=1)'
	@echo 'make bench-plan         gap, CPU seconds, memory of large plans, what-ifs, conflicts, many futures, linopy (QUICK=1, SEEDS=5, PARTS=)'
	@echo 'make fuzz-serve         a million mutated requests and event streams (STATE=file: go on where it stopped)'
	@echo 'make plan-examples      plan the examples, and run each plan in the twin at every milestone with each site lost'
	@echo 'make native             compile the data plane (optional; wants a C compiler): less CPU a request'
	@echo 'make test-native        the tests of those parts, compiled'
	@echo 'make docs               write docs/reference from the code'
	@echo 'make venv               only set up .venv        make lock   resolve the two lock files anew'

venv:
	@scripts/setup.sh dev

venv-run:
	@scripts/setup.sh run

demo: venv-run
	.venv/bin/baseload simulate $(DEMO_FLEET) --trace $(DEMO_TRACE) --out $(DEMO_OUT) --overwrite
	@$(PY) -m baseload.app.live_demo

test: venv  # in two processes where there are two cores
	$(PY) -m pytest -n logical --maxprocesses $(PROCESSES) $(PYTEST_ARGS)

check: venv  # all five, even when an early one fails
	@failed=; \
	for step in "ruff check ." "ruff format --check --diff ." mypy lint-imports "python -m pytest -q tests/test_tidy.py"; do \
		echo "== $$step"; .venv/bin/$$step || failed="$$failed [$$step]"; \
	done; \
	test -z "$$failed" || { echo "make check failed:$$failed" >&2; exit 1; }

bench: venv-run
	$(PY) bench/run.py $(if $(QUICK),--quick)

accuracy: venv-run
	$(PY) -m baseload.app.accuracy $(if $(DATA),--data $(DATA))

fuzz: venv
	$(PY) -m tests.fuzz.run --count $(N)

plan-examples: venv
	$(PY) -m tests.whole.test_plan_loop

native: venv
	@$(PY) -m baseload.app.native_build

# The parts of the data plane, compiled, under the tests that they pass as they are written; whole gateways that other
# tests start are compiled ones wherever `make native` was run.
test-native: native
	TEST_NATIVE=1 $(PY) -m pytest -q -n 0 $(foreach part,board bodies door energy fragments known_events marks waiting,tests/serve/test_$(part).py)

docs: venv-run
	$(PY) -m baseload.app.docs

# Resolves pyproject.toml as of [tool.uv] exclude-newer. uv.lock itself stays out of the repository:
# it names the hosts it was resolved from; the exported files hold names, versions and hashes only.
lock:
	@command -v uv >/dev/null || { echo 'make lock needs uv: pip install uv' >&2; exit 1; }
	uv lock
	uv export -q --format requirements-txt --no-header --no-emit-project --no-default-groups --group build --all-extras \
		-o requirements.lock
	uv export -q --format requirements-txt --no-header --no-emit-project --all-groups --all-extras -o requirements-dev.lock

clean:
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache build dist

include make/serve.mk
include make/plan.mk
