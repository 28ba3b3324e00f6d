"""Small fleets as tables, for the tests of the live side."""

from __future__ import annotations

from typing import Any

from baseload.serve import tables as t


def policy(**kw: Any) -> t.PolicyRow:
    """Return a policy; the defaults of the fleet file where nothing is said."""
    base: dict[str, Any] = {
        "route": "least_outstanding", "admit": "always", "scale": "fixed", "cap": "none", "load_guard": 1.5,
        "admit_factor": 1.0, "target_utilisation": 0.6, "scale_down_s": 300.0, "observe_every_s": 1.0,
        "control_every_s": 10.0, "detect_s": 2.0, "retries": 2, "max_wait_s": 0.0,
    }  # fmt: skip
    return t.PolicyRow(**{**base, **kw})


def tenant(name: str, **kw: Any) -> t.TenantRow:
    """Return a tenant."""
    base: dict[str, Any] = {
        "ttft_slo_s": 2.0, "tpot_slo_s": 0.1, "priority": 5, "input_pico": 1_000_000, "cached_pico": 100_000,
        "output_pico": 2_000_000, "budget_per_month_nano": None,
    }  # fmt: skip
    return t.TenantRow(name=name, **{**base, **kw})


def deployment(name: str, **kw: Any) -> t.DeploymentRow:
    """Return a deployment of model 0."""
    base: dict[str, Any] = {
        "model_i": 0, "kind": "external", "accelerator": "h100-sxm", "slots": 8, "prefill_tokens_per_s": 10_000.0,
        "decode_s_per_token": 0.02, "idle_w": 100.0, "busy_w": 500.0, "j_per_input_token": 0.01,
        "j_per_output_token": 0.5, "idle_cost_per_s": 0.001, "cost_per_input_token": 1e-7,
        "cost_per_output_token": 1e-6,
    }  # fmt: skip
    return t.DeploymentRow(name=name, **{**base, **kw})


def tables(replicas: int = 16, *, sites: int = 2, tenants: int = 2, models: int = 1, **kw: Any) -> t.Tables:
    """Return a fleet: each model's replicas spread over the sites, in the twin's order of rows.

    The last tenant may not run at the last site.
    """
    each = replicas // (sites * models)
    assert each * sites * models == replicas, "so many replicas do not spread evenly"
    pools, rows = [], []
    for m in range(models):
        for s in range(sites):
            pools.append(t.PoolRow(deployment_i=m, site_i=s, n_min=each, n_max=each))
            rows += [
                t.ReplicaRow(deployment_i=m, site_i=s, pool_i=len(pools) - 1, number=k, on_at_start=True)
                for k in range(each)
            ]
    may = [
        [
            [int(p.deployment_i == m and not (who == tenants - 1 > 0 and p.site_i == sites - 1 > 0)) for p in pools]
            for m in range(models)
        ]
        for who in range(tenants)
    ]
    base: dict[str, Any] = {
        "version": 1, "fleet": "toy", "fleet_digest": "", "currency": "EUR",
        "tenants": [tenant(f"t{i}") for i in range(tenants)], "regions": ["here"],
        "models": [t.ModelRow(name=f"m{i}", max_context_tokens=8192) for i in range(models)],
        "sites": [
            t.SiteRow(
                name=f"s{i}", jurisdiction="DE", operator_jurisdiction="DE", one_way_s=0.001 * i, pue=1.2,
                carbon_g_per_kwh=300.0, price_per_kwh=0.1, limit_kw=None, idle_kw=0.0,
            )
            for i in range(sites)
        ],
        "deployments": [deployment(f"d{i}", model_i=i) for i in range(models)], "pools": pools, "replicas": rows,
        "may": may, "region_rtt_s": [0.01], "policy": policy(),
    }  # fmt: skip
    return t.Tables(**{**base, **kw})
