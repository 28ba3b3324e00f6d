"""Rules about service: models that exist, deployments that find their accelerators, tenants that somebody may serve.

Written into `notes`; `check.py` is the way in.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from datetime import date

from baseload.errors import CatalogError, FleetError
from baseload.fleet import catalog, dates, resolve
from baseload.fleet.check_sites import in_order
from baseload.fleet.model import Architecture, Deployment, Fleet, Site, Tenant
from baseload.fleet.notes import Notes
from baseload.fleet.tree import Path
from baseload.fleet.typed import nearest

SHIPPED_TRACES = ("azure-conv", "azure-code")
_FILE_ENDINGS = (".csv", ".jsonl", ".parquet", ".gz", ".json", ".txt")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def look(notes: Notes, day: date, policies: Mapping[str, Collection[str]] | None) -> None:
    """Write down what is wrong with models, deployments, tenants, demand and policies on the day of the run."""
    for name in notes.fleet.models:
        _model(notes, name)
    for name, deployment in notes.fleet.deployments.items():
        _deployment(notes, ("deployments", name), deployment, day)
    today = dates.on(notes.fleet, day)
    _room(notes, today, day)
    _pairs(notes, today)
    for name, tenant in notes.fleet.tenants.items():
        _tenant(notes, ("tenants", name), tenant, today)
    _served(notes, today)
    _demand(notes)
    _policies(notes, policies)
    _money(notes)


# ---- models ----------------------------------------------------------------------------------------------


def _model(notes: Notes, name: str) -> None:
    model, at = notes.fleet.models[name], ("models", name)
    if (model.catalog is None) == (model.architecture is None):
        words = "has both `catalog` and" if model.catalog is not None else "has neither `catalog` nor"
        notes.problem(at, f"{words} `architecture`", "write one of them")
    if model.catalog is not None:
        known = model.catalog
        notes.attempt((*at, "catalog"), lambda: catalog.model(known))
    if model.architecture is not None:
        _architecture(notes, (*at, "architecture"), model.architecture)


def _architecture(notes: Notes, at: Path, shape: Architecture) -> None:
    is_latent = shape.kv_lora_rank > 0
    rules = (
        (
            "head_dim",
            shape.head_dim == 0 and shape.hidden % shape.n_heads,
            "hidden does not divide by n_heads",
        ),
        (
            "n_kv_heads",
            not is_latent and shape.n_heads % shape.n_kv_heads,
            "n_heads does not divide by n_kv_heads",
        ),
        ("ffn", shape.ffn == 0 and shape.n_experts == 0, "has neither a dense feed-forward nor experts"),
        ("ffn", shape.ffn == 0 and shape.first_dense_layers > 0, "dense layers need a width"),
        ("experts_per_token", shape.experts_per_token > shape.n_experts, "is more than n_experts"),
        ("experts_per_token", shape.n_experts and not shape.experts_per_token, "is 0, and there are experts"),
        ("moe_ffn", shape.n_experts > 0 and shape.moe_ffn == 0, "is 0, and there are experts"),
        ("first_dense_layers", shape.first_dense_layers > shape.n_layers, "is more than n_layers"),
        (
            "n_layers",
            shape.n_sliding_layers + shape.n_linear_layers > shape.n_layers,
            "is less than sliding and linear layers together",
        ),
        (
            "sliding_window_tokens",
            shape.n_sliding_layers > 0 and shape.sliding_window_tokens == 0,
            "is 0, and there are sliding layers",
        ),
        ("v_head_dim", is_latent and shape.v_head_dim == 0, "is 0, and attention is latent"),
        ("qk_rope_head_dim", is_latent and shape.qk_rope_head_dim == 0, "is 0, and attention is latent"),
    )
    for key, broken, what in rules:
        if broken:
            notes.problem((*at, key), what, "take the numbers from the model's config.json")


def _heads_layers_experts(fleet: Fleet, model_name: str) -> tuple[int, int, int] | None:
    """Return attention heads, layers and experts of a model, or None where it is not known."""
    model = fleet.models.get(model_name)
    if model is None:
        return None
    shape: Architecture | catalog.Shape | None = model.architecture
    if model.catalog is not None:
        try:
            shape = catalog.model(model.catalog).shape
        except CatalogError:
            return None
    return None if shape is None else (shape.n_heads, shape.n_layers, shape.n_experts)


# ---- deployments -----------------------------------------------------------------------------------------


def _deployment(notes: Notes, at: Path, deployment: Deployment, day: date) -> None:
    fleet = notes.fleet
    in_order(notes, at, [("start", deployment.start), ("until", deployment.until)])
    if deployment.model not in fleet.models:
        what = f"there is no model `{deployment.model}`"
        notes.problem((*at, "model"), what, nearest(deployment.model, fleet.models))
    if not deployment.sites:
        notes.problem((*at, "sites"), "is empty", "say where it runs, e.g. `sites: {oslo: {min: 2}}`")
    for name in deployment.sites:
        if name not in fleet.sites:
            notes.problem((*at, "sites", name), f"there is no site `{name}`", nearest(name, fleet.sites))
    if deployment.max_num_batched_tokens < deployment.max_num_seqs:
        notes.problem(
            (*at, "max_num_batched_tokens"),
            f"{deployment.max_num_batched_tokens} is below max_num_seqs {deployment.max_num_seqs}",
            "a step has at least one token for each sequence",
        )
    if deployment.block_tokens & (deployment.block_tokens - 1):
        notes.problem((*at, "block_tokens"), f"{deployment.block_tokens} is no power of two", "write 16, or 32")
    _parallel(notes, at, deployment)
    known = notes.attempt((*at, "accelerator"), lambda: catalog.accelerator(deployment.accelerator))
    if known is not None:
        _on_accelerator(notes, at, deployment, known, day)


def _parallel(notes: Notes, at: Path, deployment: Deployment) -> None:
    shape = _heads_layers_experts(notes.fleet, deployment.model)
    n_accelerators = resolve.replica_accelerators(deployment)
    if deployment.ep > n_accelerators:
        notes.problem((*at, "ep"), f"{deployment.ep} is more than the tp x pp = {n_accelerators} of a replica")
    if shape is None:
        return
    n_heads, n_layers, n_experts = shape
    if n_heads % deployment.tp:
        notes.problem((*at, "tp"), f"{n_heads} attention heads do not divide by {deployment.tp}")
    if deployment.pp > n_layers:
        notes.problem((*at, "pp"), f"{deployment.pp} stages are more than the {n_layers} layers")
    if deployment.ep > 1 and not n_experts:
        notes.problem((*at, "ep"), f"{deployment.model} has no experts to spread", "remove it")


def _on_accelerator(notes: Notes, at: Path, deployment: Deployment, known: catalog.Accelerator, day: date) -> None:
    for precision, speed in (("fp8", known.fp8_tflops), ("fp4", known.fp4_tflops)):
        if deployment.precision == precision and speed is None:
            others = "bf16" if known.fp8_tflops is None else "bf16 or fp8"
            notes.problem((*at, "precision"), f"{known.accelerator_id} has no {precision}", f"write {others}")
    if deployment.tp > known.scale_up_size:
        what = f"{deployment.tp} spans more than the {known.scale_up_size} that are linked directly"
        notes.warning((*at, "tp"), what, "collectives over the network are slow")
    if not dates.holds(day, deployment.start, deployment.until):
        return
    for name in deployment.sites:
        site = notes.fleet.sites.get(name)
        if site is None:
            continue
        today = _racked(dates.site_on(site, day))
        if today is not None and known.accelerator_id not in today:
            ever = known.accelerator_id in (_racked(site) or {})
            what = f"no {known.accelerator_id} is racked there" + (f" on {day}" if ever else "")
            mend = "look at in_service, until and demand.start" if ever else nearest(known.accelerator_id, today)
            notes.problem((*at, "sites", name), what, mend)


def _racked(site: Site) -> dict[str, int] | None:
    """Return accelerators by id, or None where the racks name one that does not exist."""
    try:
        return resolve.rack_accelerators(site)
    except CatalogError:
        return None


def _room(notes: Notes, today: Fleet, day: date) -> None:
    """Hold what replicas and training want against what is racked, for each site and accelerator."""
    wanted: dict[tuple[str, str], int] = {}
    first: dict[tuple[str, str], Path] = {}

    def want(site: str, accelerator: str, n: int, path: Path) -> None:
        try:
            key = (site, resolve.accelerator_id(accelerator))
        except CatalogError:
            return
        wanted[key] = wanted.get(key, 0) + n
        first.setdefault(key, path)

    for name, deployment in today.deployments.items():
        for site, replicas in deployment.sites.items():
            most = replicas.min if replicas.max is None else replicas.max
            n = most * resolve.replica_accelerators(deployment)
            want(site, deployment.accelerator, n, ("deployments", name, "sites", site))
    for name, declared in today.sites.items():
        for job_name, job in declared.training.items():
            path = ("sites", name, "training", job_name)
            notes.attempt((*path, "accelerator"), lambda job=job: catalog.accelerator(job.accelerator))  # type: ignore[misc]
            want(name, job.accelerator, job.accelerators, path)
    for (site, accelerator), n in wanted.items():
        racked = _racked(today.sites[site]) if site in today.sites else None
        there = racked.get(accelerator, 0) if racked else None
        in_training = first[site, accelerator][0] == "sites"
        if there is not None and n > there and (there or in_training):
            notes.problem(
                first[site, accelerator],
                f"replicas (at their max) and training want {n} {accelerator} at {site}, "
                f"and {there} are racked on {day}",
                "add racks, or run fewer replicas",
            )


def _pairs(notes: Notes, today: Fleet) -> None:
    """Prefill replicas need decode replicas of the same model in the same site, and the other way round."""
    roles: dict[tuple[str, str], dict[str, Path]] = {}
    for name, deployment in today.deployments.items():
        for site, replicas in deployment.sites.items():
            if (replicas.max if replicas.max is not None else replicas.min) > 0:
                own = roles.setdefault((deployment.model, site), {})
                if deployment.role == "decode" and "decode" in own:
                    what = f"{site} has a second deployment that decodes for {deployment.model}"
                    notes.problem(
                        ("deployments", name, "role"), what, "join the two into one deployment, with more replicas"
                    )
                if deployment.role == "decode" and replicas.min == 0:
                    what = "decode replicas that start from none would never be woken: prompts reach them only when computed"
                    notes.problem(("deployments", name, "sites", site, "min"), what, "set it to 1 or more")
                own[deployment.role] = ("deployments", name, "role")
    for (model, site), own in roles.items():
        for role, other in (("prefill", "decode"), ("decode", "prefill")):
            if role in own and other not in own:
                what = f"{model} has {role} replicas at {site}, and no {other} replicas there"
                notes.problem(own[role], what, f"add a deployment with `role: {other}`")


# ---- tenants ---------------------------------------------------------------------------------------------


def _tenant(notes: Notes, at: Path, tenant: Tenant, today: Fleet) -> None:
    fleet = notes.fleet
    for key, known, one in (("regions", fleet.regions, "region"), ("models", fleet.models, "model")):
        weights: dict[str, float] = getattr(tenant, key)
        for name in weights:
            if name not in known:
                notes.problem((*at, key, name), f"there is no {one} `{name}`", nearest(name, known))
        if weights and not sum(weights.values()) > 0:
            notes.problem((*at, key), "all weights are 0", "raise one")
    for key in ("residency", "sovereignty"):
        for i, code in enumerate(getattr(tenant, key)):
            if not resolve.is_known_law(code):
                blocs = ", ".join(catalog.BLOCS)
                mend = f"write an ISO 3166 code such as NO, or one of {blocs}"
                notes.problem((*at, key, str(i)), f"`{code}` is neither a country nor a bloc", mend)
    if tenant.price.cached_per_mtok is not None and tenant.price.cached_per_mtok > tenant.price.input_per_mtok:
        notes.warning((*at, "price", "cached_per_mtok"), "cached tokens cost more than fresh ones")
    if tenant.budget_per_month is not None and tenant.budget_per_month < tenant.committed_per_month:
        notes.warning((*at, "budget_per_month"), "is below committed_per_month")
    for name in called_models(tenant, today):
        if name in _deployed(today) and not _somewhere(tenant, name, today):
            what = f"no site may serve `{name}` to them ({law_of(tenant)})"
            if an_offer_may(fleet, tenant):
                notes.warning(at, f"{what}; an offer of rent under `plan` may")
            else:
                notes.problem(at, what, "deploy it in a site that may, or widen residency or sovereignty")


def law_of(tenant: Tenant) -> str:
    """Return a tenant's law in words."""
    return f"residency {', '.join(tenant.residency) or 'any'}, sovereignty {', '.join(tenant.sovereignty) or 'any'}"


def an_offer_may(fleet: Fleet, tenant: Tenant) -> bool:
    """Say whether law lets an offer of rent in the `plan` section serve a tenant."""
    offers = fleet.plan.rent if fleet.plan is not None else None
    return any(
        resolve.jurisdiction_allows(catalog.place(one.place).country, tenant.residency)
        and resolve.jurisdiction_allows(one.operator_jurisdiction or "US", tenant.sovereignty)
        for one in offers or ()
    )


def called_models(tenant: Tenant, fleet: Fleet) -> list[str]:
    """Return the models that a tenant calls: those with a weight, all where none is named."""
    if not tenant.models:
        return list(fleet.models)
    return [name for name, weight in tenant.models.items() if weight > 0]


def may_serve(fleet: Fleet, tenant: Tenant, site_name: str) -> bool:
    """Say whether law lets a site serve a tenant: where the data sits, and whose law reaches the operator."""
    facts = resolve.site_facts(fleet, site_name)
    return resolve.jurisdiction_allows(facts.jurisdiction, tenant.residency) and resolve.jurisdiction_allows(
        facts.operator_jurisdiction, tenant.sovereignty
    )


def _somewhere(tenant: Tenant, model: str, today: Fleet) -> bool:
    sites = {
        name
        for deployment in today.deployments.values()
        if deployment.model == model
        for name, replicas in deployment.sites.items()
        if name in today.sites and max(replicas.min, replicas.max or 0) > 0
    }
    try:
        return any(may_serve(today, tenant, name) for name in sites)
    except (CatalogError, FleetError):
        return True  # the site's place is wrong, and said so


def _deployed(today: Fleet) -> set[str]:
    return {deployment.model for deployment in today.deployments.values()}


def _served(notes: Notes, today: Fleet) -> None:
    fleet = notes.fleet
    tenants = list(fleet.tenants.values()) or [Tenant()]
    called = {name for tenant in tenants for name in called_models(tenant, fleet)}
    for name in fleet.models:
        if name in called and name not in _deployed(today):
            notes.problem(("models", name), "tenants call it, and no deployment serves it on the day of the run")
        elif name not in called:
            notes.warning(("models", name), "no tenant calls it")
    if fleet.tenants and not sum(tenant.share for tenant in tenants) > 0:
        notes.problem(("tenants",), "all shares are 0", "raise one")


# ---- demand, policies, money -----------------------------------------------------------------------------


def _demand(notes: Notes) -> None:
    demand = notes.fleet.demand
    generator = demand.generator
    if demand.trace is not None and generator is not None:
        notes.problem(("demand",), "has both `trace` and `generator`", "keep one of them")
    _trace(notes, ("demand", "trace"), demand.trace)
    if generator is None:
        return
    _trace(notes, ("demand", "generator", "lengths_from"), generator.lengths_from)
    if generator.kind == "mmpp" and generator.burst_factor * generator.burst_ratio > 1:
        notes.problem(
            ("demand", "generator", "burst_factor"),
            f"{generator.burst_factor:g} times the mean rate in {generator.burst_ratio:g} of the time is more than all",
            "burst_factor x burst_ratio may be 1 at most",
        )


def _trace(notes: Notes, at: Path, name: str | None) -> None:
    if name is None or name in SHIPPED_TRACES:
        return
    looks_like_file = "/" in name or name.lower().endswith(_FILE_ENDINGS)
    if not looks_like_file:
        notes.problem(at, f"there is no trace `{name}`", f"name a file, or one of {', '.join(SHIPPED_TRACES)}")
    elif not _is_file(notes, name):
        notes.problem(at, f"there is no file `{name}`", "name it relative to the fleet file")


def _is_file(notes: Notes, name: str) -> bool:
    try:
        return (notes.base_folder / name).is_file()
    except (OSError, ValueError):
        return False


def _policies(notes: Notes, policies: Mapping[str, Collection[str]] | None) -> None:
    policy = notes.fleet.policy
    for key in ("route", "admit", "scale", "cap"):
        name: str = getattr(policy, key)
        at = ("policy", key)
        file, colon, function = name.partition(":")
        if colon:
            if not function.isidentifier() or not file.endswith(".py"):
                notes.problem(at, f"`{name}` is not of the form file.py:function")
            elif not _is_file(notes, file):
                notes.problem(at, f"there is no file `{file}`", "name it relative to the fleet file")
        elif policies is not None and name not in policies[key]:
            notes.problem(at, f"there is no rule `{name}`", nearest(name, policies[key]))
    for name, digest in policy.digest.items():
        if not _SHA256.fullmatch(digest):
            notes.problem(("policy", "digest", name), "is not a SHA-256", "write 64 hexadecimal digits")


def _money(notes: Notes) -> None:
    money = notes.fleet.money
    if money.currency != "USD" and money.usd_rate == 1.0:
        notes.warning(("money", "usd_rate"), f"catalogue prices count as {money.currency}", "write units per US dollar")
