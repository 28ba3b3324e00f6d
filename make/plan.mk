# The planner's longer measurements; `make help` lists them.
.PHONY: bench-plan

bench-plan: venv  # speed and proof of plans: gap, CPU seconds, memory, beside HiGHS defaults; QUICK=1 for a short look
	$(PY) -m bench.plan.run $(if $(QUICK),--quick) $(if $(SEEDS),--seeds $(SEEDS))
