# Every target sets up what it needs first; set-up is over in a moment once it has been done.
#   PYTHON=python3.12   the interpreter .venv is made with
#   TESTS=...           what `make test` runs; WORKERS=n  how many processes run it
#   RECORDING=... LIMIT=n   what `make airline`, `make duplicates` and `make injections` replay
#   FIRECRACKER_BIN=file JAILER_BIN=file   what `make test-nested` runs (the jailer may lie beside it)
#   UPGRADE=1           `make relock` takes the newest versions pyproject.toml allows

PYTHON ?= python3
TESTS ?=
# gVisor tests use about a core each, so two at a time; one file stays in one process. In the order of their names the
# long files come before the many short ones of tests/unit; xdist's own order has those with few, long tests last, alone.
# A narrowed run stays in this one.
WORKERS ?= $(if $(TESTS),0,2)
# Real sandboxes on a busy machine miss a deadline now and then: in the whole run a failure is tried once more, and named.
RERUNS ?= $(if $(TESTS),,--reruns 1 -raR)
LOCKSTEP_DATA ?= ../shared/data
AIRLINE := $(LOCKSTEP_DATA)/tau1_airline_gpt-4o.jsonl.zst
INJECTIONS := $(LOCKSTEP_DATA)/agentdojo_gpt-4o_banking+slack.jsonl.zst
RECORDING ?=
LIMIT ?=
UPGRADE ?=
# Images of containers set this; without bytecode every start of `lockstep` compiles all it imports, at twice the time.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-nested check bench bench-sandboxes bench-gate bench-gateway airline duplicates
.PHONY: bench-mcp injections hostile conformance adapters relock clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## .venv with what running needs, and runsc and bubblewrap where they are missing
	@$(PYTHON) scripts/setup.py

demo:  ## the travel example from a request to a booking, offline, in sandboxes
	@$(PYTHON) scripts/setup.py
	@.venv/bin/python scripts/demo.py

test:  ## the tests; TESTS=tests/unit narrows
	@$(PYTHON) scripts/setup.py --dev
	.venv/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(RERUNS) $(TESTS)

test-slow:  ## sandboxes in emulated microVMs and without root, and more recorded conversations
	@$(PYTHON) scripts/setup.py --dev
	.venv/bin/python -m pytest -n $(WORKERS) --dist loadfile --reruns 1 -raR -m slow tests/contract tests/security tests/scenario/test_airline.py

test-nested:  ## the microVM tier on the real Firecracker, in an emulated machine; FIRECRACKER_BIN=file
	@$(PYTHON) scripts/setup.py --dev
	.venv/bin/python -m pytest -m nested tests/nested

adapters:  ## the scripts of docs/adapters, with other people's frameworks before a gateway
	@$(PYTHON) scripts/setup.py --dev
	.venv/bin/python -m pytest --reruns 1 -raR -m adapters tests/adapters

check:  ## format, lint and types
	@$(PYTHON) scripts/setup.py --dev --no-system
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

bench:  ## speed and memory, side by side with the peers
	@$(PYTHON) scripts/setup.py --dev
	.venv/bin/python bench/run.py

bench-sandboxes:  ## sandboxed calls, warm, cold and many, beside bubblewrap and a plain subprocess
	@$(PYTHON) scripts/setup.py --dev
	.venv/bin/python bench/sandboxes.py

bench-gate:  ## what the gate costs a call: schema, provenance, receipts and policy
	@$(PYTHON) scripts/setup.py --dev
	.venv/bin/python bench/gate.py

bench-mcp:  ## a call of an MCP server in its run's sandbox, beside the SDK's client on the bare server
	@$(PYTHON) scripts/setup.py --dev
	.venv/bin/python bench/mcp_host.py

bench-gateway:  ## what the gateway adds to a call, beside the SDK's own server
	@$(PYTHON) scripts/setup.py --dev
	.venv/bin/python bench/gateway.py

airline:  ## recorded gpt-4o conversations through loop, gate and sandbox; RECORDING=file LIMIT=n
	@$(PYTHON) scripts/setup.py --dev
	@.venv/bin/python examples/airline/replay.py --recording "$(or $(RECORDING),$(AIRLINE))" $(if $(LIMIT),--limit $(LIMIT))

injections:  ## recorded prompt injections through loop and gate; RECORDING=file LIMIT=n FRONTIER=1
	@$(PYTHON) scripts/setup.py --dev --no-system
	@.venv/bin/python examples/injections/environment.py
	@.venv/bin/python examples/injections/replay.py --recording "$(or $(RECORDING),$(INJECTIONS))" \
		$(if $(LIMIT),--limit $(LIMIT)) $(if $(FRONTIER),--frontier)

duplicates:  ## repeated calls in recorded conversations: caught, let through, served; RECORDING=file LIMIT=n
	@$(PYTHON) scripts/setup.py --dev --no-system
	@.venv/bin/python examples/duplicates/measure.py \
	    $(if $(RECORDING),--recording "$(RECORDING)") $(if $(LIMIT),--limit $(LIMIT))

hostile:  ## hostile payloads against every isolation backend of this machine, as a table
	@$(PYTHON) scripts/setup.py --dev
	@.venv/bin/python tests/security/hostile.py

conformance:  ## the protocol's conformance suite against the gateway; needs npm
	@$(PYTHON) scripts/setup.py --dev
	@.venv/bin/python scripts/conformance.py

relock:  ## requirements/*.lock again from pyproject.toml; UPGRADE=1 for newer versions
	@$(PYTHON) scripts/setup.py --dev --no-system
	@.venv/bin/python scripts/relock.py $(if $(UPGRADE),--upgrade)

clean:  ## remove what make created; the records in .lockstep stay
	rm -rf .venv .agentdojo .demo .bench .mypy_cache .ruff_cache .pytest_cache dist build
	find src tests examples scripts bench -name __pycache__ -type d -prune -exec rm -rf {} +
