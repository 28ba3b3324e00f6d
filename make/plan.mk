# The planner's longer measurements; `make help` lists them.
.PHONY: bench-plan

# PARTS=check,large,mid,coarse,whatif,conflict,risk,peer picks some; RESUME=1 goes on where the last run stopped; SEEDS and FIRST choose instances.
bench-plan: venv  # speed and proof of plans: gap, CPU seconds, memory, what-ifs, conflicts, many futures, beside linopy with HiGHS defaults; QUICK=1 for a short look
	$(PY) -m bench.plan.run $(if $(QUICK),--quick) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(FIRST),--first-seed $(FIRST)) \
		$(if $(PARTS),--parts $(PARTS)) $(if $(RESUME),--resume)
