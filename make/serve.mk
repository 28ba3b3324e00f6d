# The live side's longer tests; `make help` lists them.
SEED ?= 1
REQUESTS ?= 10000
FUZZ_SERVE ?= 1000000

.PHONY: chaos clients bench-serve fuzz-serve

chaos: venv  # kills, faults and partitions over a whole gateway, with SQLite and PostgreSQL; ten thousand ways to cheat after
	$(PY) -m tests.chaos.run --seed $(SEED) --requests $(REQUESTS)
	$(PY) -m tests.chaos.run --seed $(SEED) --requests $(REQUESTS) --postgres
	$(PY) -m tests.chaos.run --seed $(SEED) --requests $(REQUESTS) --spare
	$(PY) -m tests.chaos.tamper 10000 $(SEED)

clients: venv  # eight clients, directly at an engine and through the gateway
	$(PY) -m tests.clients.run $(if $(ONLY),--only $(ONLY))

bench-serve: native  # CPU time beside haproxy, vllm-router and LiteLLM
	$(PY) -m bench.serve.run $(if $(QUICK),--quick)

fuzz-serve: venv  # mutated requests and event streams, in process; STATE=file goes on where the last run stopped
	$(PY) -m tests.serve_hostile.fuzz --count $(FUZZ_SERVE) $(if $(STATE),--state $(STATE))
