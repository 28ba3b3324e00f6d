"""The plan as a fleet file: what the owner wrote, comments kept, with racks, power, rent and replicas by their dates.

Deployments of today end on the plan's first day; from then on each runs as many whole replicas as the plan puts to work,
a new entry whenever that changes. What the owner declared is never taken away, but power contracts that end within the
horizon go on where the plan renews them. `baseload simulate plan/fleet.yaml --date 2028-01` runs it with the demand of
that day.
"""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Iterable, Sequence
from datetime import date
from typing import Any

import numpy as np
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from baseload.app.plan_delay import written_stages
from baseload.app.plan_map import PlanMap
from baseload.app.plan_problem import quarter
from baseload.app.plan_sites import HOURS_PER_QUARTER, Phase
from baseload.app.plan_whole import Whole, whole
from baseload.fleet import catalog
from baseload.fleet.check_service import SHIPPED_TRACES
from baseload.fleet.load import Loaded
from baseload.fleet.planning import grows_from
from baseload.plan.money import rented_racks
from baseload.plan.problem import Answer, Problem
from baseload.plan.table import ReplicaRow

_INDEX = re.compile(r"\[(\d+)\]")


def planned_fleet(loaded: Loaded, problem: Problem, answer: Answer, plan_map: PlanMap) -> str:
    """Return the fleet file of an answer."""
    keeper = _keeper(loaded.text)
    document = keeper.load(loaded.text.removeprefix("\ufeff"))
    _unshare(document, set())
    for override in loaded.overrides:
        _override(document, override)
    numbers = whole(problem, answer, plan_map)
    writer = _Writer(document, problem, answer, plan_map, numbers)
    writer.power()
    writer.racks()
    writer.rent()
    writer.deployments()
    writer.section()
    out = io.StringIO()
    keeper.dump(document, out)
    return _head(loaded, problem, answer, plan_map) + out.getvalue()


def moved(text: str, way: str) -> str:
    """Return a fleet file for another folder, from which the old one is reached by `way`: files keep being found.

    >>> moved("demand: {trace: day.csv}\\n", "../fleets")
    'demand: {trace: ../fleets/day.csv}\\n'
    """
    if way in ("", "."):
        return text
    keeper = _keeper(text)
    document = keeper.load(text)
    demand, policy = document.get("demand") or {}, document.get("policy") or {}
    for holder, key in ((demand, "trace"), (demand.get("generator") or {}, "lengths_from")):
        if holder.get(key) and holder[key] not in SHIPPED_TRACES:
            holder[key] = _by(way, holder[key])
    for key in ("route", "admit", "scale", "cap"):
        if ":" in str(policy.get(key) or ""):
            policy[key] = _by(way, policy[key])
    for site in (document.get("sites") or {}).values():
        _move_series(site, way)
    out = io.StringIO()
    keeper.dump(document, out)
    return out.getvalue()


def _by(way: str, name: str) -> str:
    return name if name.startswith("/") else f"{way}/{name}"


def _move_series(node: Any, way: str) -> None:
    """Change the `file` of each series below a node."""
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    if isinstance(node, dict) and isinstance(node.get("file"), str):
        node["file"] = _by(way, node["file"])
    for child in children:
        _move_series(child, way)


def _keeper(text: str) -> YAML:
    """Return the round-trip reader, which keeps comments and knows no tags that make objects, laid out as the text is."""
    keeper = YAML()
    keeper.preserve_quotes = True
    keeper.width = 4096
    keeper.representer.ignore_aliases = lambda *_: True  # each place has its own copy
    if _indented_lists(text):
        keeper.indent(mapping=2, sequence=4, offset=2)
    return keeper


def _head(loaded: Loaded, problem: Problem, answer: Answer, plan_map: PlanMap) -> str:
    meets = "" if answer.meets else " IT DOES NOT MEET ALL LIMITS: see the report."
    far = f"at most {100.0 * answer.gap:.2f} %" if np.isfinite(answer.gap) else "it is not known how far"
    priced = "" if answer.meets else ", misses at their price"
    stopped = {"interrupted": " Interrupted: the best plan so far.", "stopped": " Stopped at its limit of time."}
    return (
        f"# Made by `baseload plan` from {loaded.path.rsplit('/', 1)[-1]} as of {plan_map.today}, "
        f"{problem.periods[0]} to {problem.periods[-1]}; {far} from the best{priced}."
        f"{meets}{stopped.get(answer.status, '')}\n"
    )


def _indented_lists(text: str) -> bool:
    """Say whether the owner sets the dashes of lists further in than the key above them."""
    found = re.search(r"^( *)[\w.-]+:[^\n\[{]*\n(?: *#[^\n]*\n)*( *)- ", text, re.MULTILINE)
    return found is not None and len(found[2]) > len(found[1])


def _unshare(node: Any, seen: set[int]) -> None:
    """Give each place its own copy of what an alias shares, so that one site's racks are not another's."""
    pairs: Iterable[tuple[Any, Any]] = ()
    if isinstance(node, CommentedMap):
        pairs = list(node.items())
    elif isinstance(node, CommentedSeq):
        pairs = list(enumerate(node))
    for key, child in pairs:
        if isinstance(child, CommentedMap | CommentedSeq):
            if id(child) in seen:
                child = _bare(child)
                node[key] = child
                node.ca.items.pop(key, None)  # the alias brought its anchor's comment along, which would break the line
            seen.add(id(child))
            child.yaml_set_anchor(None, always_dump=False)
            _unshare(child, seen)


def _bare(node: Any) -> Any:
    """Return a copy without comments, which belong to the place where they were written."""
    if isinstance(node, CommentedMap):
        made: Any = CommentedMap((key, _bare(child)) for key, child in node.items())
    elif isinstance(node, CommentedSeq):
        made = CommentedSeq(_bare(child) for child in node)
    else:
        return node
    if node.fa.flow_style():
        made.fa.set_flow_style()
    return made


def _override(document: CommentedMap, override: str) -> None:
    """Put one `key=value` of `--set` or `--what-if` into the document; it was checked when the file was read."""
    key, _, text = override.partition("=")
    node: Any = document
    parts = _INDEX.sub(r".\1", key.strip()).split(".")
    value = YAML(typ="safe").load(text)
    if isinstance(value, str) and re.fullmatch(r"\d{4}-\d{2}", value):
        value = date.fromisoformat(f"{value}-01")
    while parts:
        if isinstance(node, CommentedSeq):
            name: Any = int(parts[0])
            taken = 1
        else:
            known = {str(one): one for one in node}  # a year may be a number
            taken = next((n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in known), 1)
            name = known.get(".".join(parts[:taken]), ".".join(parts[:taken]))
        parts = parts[taken:]
        if not parts:
            node[name] = value
        elif not isinstance(node, CommentedSeq) and name not in node:
            node[name] = CommentedMap()
        node = node[name] if parts else node


class _Writer:
    """Changes a document step by step."""

    def __init__(
        self, document: CommentedMap, problem: Problem, answer: Answer, plan_map: PlanMap, numbers: Whole
    ) -> None:
        self.document, self.problem, self.answer, self.map, self.numbers = document, problem, answer, plan_map, numbers
        self.days = plan_map.days
        self.n_periods = len(plan_map.days)

    # -- power

    def power(self) -> None:
        """Give begun phases their days, and power contracts for what they bring."""
        for name in self.document["sites"]:
            if self.map.plan.renew_contracts:
                self._renew(self.document["sites"][name])
        for p, phase in enumerate(self.map.phases):
            begun, live = int(self.numbers.begun[p]), int(self.numbers.live[p])
            if begun >= self.n_periods:
                continue
            site = self.document["sites"][phase.declared]
            day = self.days[live] if live < self.n_periods else None
            if phase.kind == "grid":
                self._grid(site, phase.index, phase.meter_mw, self.days[begun], day)
                self._stages(site, phase, self.days[begun])
            if day is not None and (site.get("contracts") or phase.kind == "colocation"):
                self._contract(site, phase.meter_mw, day)

    def _grid(self, site: CommentedMap, index: int | None, mw: float, begun: date, day: date | None) -> None:
        if index is None:
            entry = CommentedMap(power_mw=mw, announced=begun, contracted=begun)
            site.setdefault("grid", CommentedSeq()).append(entry)
        else:
            entry = site["grid"][index]
            if not entry.get("contracted") and not (entry.get("stages") or {}).get("agreement"):
                entry["contracted"] = max(begun, entry.get("permitted") or begun, entry.get("announced") or begun)
        if day is not None:
            entry["energised"] = day

    def _stages(self, site: CommentedMap, phase: Phase, begun: date) -> None:
        """Write the stages of a phase with declared months scaled to them, so that the file's ladder has that median."""
        for name, months in written_stages(self.map, phase, begun).items():
            entry = site["grid"][phase.index]
            if not entry.get("stages"):
                entry["stages"] = CommentedMap()
            if not entry["stages"].get(name):
                entry["stages"][name] = CommentedMap()
                entry["stages"][name].fa.set_flow_style()
            entry["stages"][name].update(months)

    def _contract(self, site: CommentedMap, mw: float, day: date) -> None:
        """Add a power contract like the largest one, for what a phase brings."""
        contracts = site.setdefault("contracts", CommentedSeq())
        like = max(contracts, key=lambda one: one["power_mw"], default=CommentedMap())
        added = CommentedMap((key, copy.deepcopy(value)) for key, value in like.items() if key != "until")
        added["power_mw"] = mw
        added["start"] = day
        contracts.append(added)

    def _renew(self, site: CommentedMap) -> None:
        contracts = site.get("contracts") or ()
        ends = [one.get("until") for one in contracts]
        if contracts and all(ends):
            last = max(ends)
            for one in contracts if last <= self.days[-1] else ():
                if one["until"] == last:
                    del one["until"]

    # -- racks

    def racks(self) -> None:
        """Add the racks that are bought or leased, each order with its day in service and its price."""
        bought, cash = self.numbers.bought, self.map.prices
        for s, site in enumerate(self.map.sites):
            for a, kind in enumerate(self.map.kinds):
                for t in np.flatnonzero(bought[s, a]):
                    arrives = int(t) + int(self.problem.lead[a])
                    if arrives >= self.n_periods or site.rented:
                        continue
                    rack = self._rack(a, int(bought[s, a, t]))
                    rack["in_service"] = self.days[arrives]
                    gone = arrives + int(self.problem.life[a])
                    if gone < self.n_periods:
                        rack["until"] = self.days[gone]
                    name = f"{kind.accelerator}-{quarter(self.days[arrives]).lower()}"
                    if kind.lease is not None:
                        hourly = float(cash.owned_lease[s, a, t]) / kind.per_rack / HOURS_PER_QUARTER
                        rack["rent_per_accelerator_hour"] = round(hourly, 6)
                        name = f"{kind.accelerator}-leased-{quarter(self.days[arrives]).lower()}"
                    else:
                        rack["capex_per_accelerator"] = round(float(cash.buy_it[s, a, t]) / kind.per_rack, 2)
                    self._put(self._racks_of(site.declared), name, rack)

    def _racks_of(self, site: str) -> CommentedMap:
        there = self.document["sites"][site]
        if not there.get("racks"):
            there["racks"] = CommentedMap()
        racks: CommentedMap = there["racks"]
        return racks

    def _rack(self, a: int, n: int) -> CommentedMap:
        kind = self.map.kinds[a]
        rack = CommentedMap(accelerator=kind.accelerator, accelerators_per_rack=kind.per_rack, racks=n)
        for key in ("rack_kw", "liquid_ratio"):
            if getattr(kind, key) is not None:
                rack[key] = getattr(kind, key)
        rack["area_m2"] = kind.area_m2
        rack.fa.set_flow_style()
        return rack

    @staticmethod
    def _put(mapping: CommentedMap, name: str, value: CommentedMap) -> None:
        """Add an entry under a name of its own."""
        n, free = 1, name
        while free in mapping:
            n += 1
            free = f"{name}-{n}"
        mapping[free] = value

    # -- rent

    def rent(self) -> None:
        """Add a site for each place of rent that is used, its racks by the quarters in which they are in force."""
        for s, site in enumerate(self.map.sites):
            rented = self.numbers.rented[s]
            if not site.rented or not rented.any():
                continue
            record = self.map.fleet.sites[site.declared]
            each_mw = [float(self.problem.rack_mw[s, a]) / kind.per_rack for a, kind in enumerate(self.map.kinds)]
            entry = CommentedMap(
                place=record.place,
                operator=record.operator,
                operator_jurisdiction=record.operator_jurisdiction,
                contracts=CommentedSeq(
                    [CommentedMap(power_mw=_ceil(float((rented.T @ np.array(each_mw)).max())), price_per_mwh=0)]
                ),
                cooling=CommentedMap(type="direct_to_chip", pue=1.0),
                chain_efficiency=1.0,
                parked_power_ratio=0.0,
                racks=CommentedMap(),
            )
            entry.yaml_set_start_comment("rented: power and cooling are in the price", indent=4)
            for a, kind in enumerate(self.map.kinds):
                for first, last, n in runs(rented[a].tolist()):
                    size = min(n, catalog.accelerator(kind.accelerator).per_server)
                    rack = self._rack(a, n // size)
                    rack["accelerators_per_rack"] = size
                    rack["in_service"] = self.days[first]
                    if last + 1 < self.n_periods:
                        rack["until"] = self.days[last + 1]
                    rack["rent_per_accelerator_hour"] = round(self._hourly(s, a, first, last), 4)
                    self._put(entry["racks"], f"{kind.accelerator}-{quarter(self.days[first]).lower()}", rack)
            self.document["sites"][site.declared] = entry

    def _hourly(self, s: int, a: int, first: int, last: int) -> float:
        """Return what an hour of an accelerator costs over some periods, at the mean of the offers that are in force."""
        span = slice(first, last + 1)
        signed = rented_racks(self.problem, self.answer.sign)[s, a, :, span]
        price = self.map.prices.rent[s, a, :, span]
        paid = float((np.where(np.isfinite(price), price, 0.0) * signed).sum())
        return paid / max(1e-12, float(signed.sum())) / self.map.kinds[a].per_rack / HOURS_PER_QUARTER

    # -- deployments

    def deployments(self) -> None:
        """End today's deployments on the first day, and add the planned ones by their dates."""
        there: CommentedMap = self.document["deployments"]
        templates = {name: copy.deepcopy(entry) for name, entry in there.items()}
        first = self.days[0]
        planned = {row.model for row in self.map.rows.values()}
        for name in list(there):
            entry = there[name]
            if entry["model"] not in planned:
                continue
            if (entry.get("start") or date.min) >= first:
                del there[name]
            elif (entry.get("until") or date.max) > first:
                entry["until"] = first
        for (template, model), row in self._templates().items():
            counts = self._counts(template, model)
            changes = runs([tuple(one) for one in counts.T.tolist()], empty=tuple([0] * counts.shape[0]))
            for start, last, n in changes:
                entry = self._deployment(templates.get(row.deployment or ""), row)
                by_site: dict[str, int] = {}
                for s, k in enumerate(n):
                    if k > 0:
                        by_site[self.map.sites[s].declared] = by_site.get(self.map.sites[s].declared, 0) + k
                entry["sites"] = CommentedMap((name, self._replicas(k)) for name, k in by_site.items())
                entry["start"] = self.days[start]
                entry.pop("until", None)
                if last + 1 < self.n_periods:
                    entry["until"] = self.days[last + 1]
                self._put(there, f"{_short(template)}-{quarter(self.days[start]).lower()}", entry)

    @staticmethod
    def _replicas(n: int) -> CommentedMap:
        entry = CommentedMap(min=n)
        entry.fa.set_flow_style()
        return entry

    def _templates(self) -> dict[tuple[str, str], ReplicaRow]:
        """Return a row for each deployment that is planned: services of a model on an accelerator share one."""
        found: dict[tuple[str, str], ReplicaRow] = {}
        for row in self.map.rows.values():
            found.setdefault((row.deployment or f"{row.model}-{row.accelerator}", row.model), row)
        return found

    def _counts(self, template: str, model: str) -> Any:
        """Return replicas of a deployment by site and period."""
        total = np.zeros((len(self.map.sites), self.n_periods), np.int64)
        for (a, m), row in self.map.rows.items():
            if row.model == model and (row.deployment or f"{row.model}-{row.accelerator}") == template:
                total += self.numbers.replicas[:, a, m]
        return total

    @staticmethod
    def _deployment(template: CommentedMap | None, row: ReplicaRow) -> CommentedMap:
        if template is not None:
            return copy.deepcopy(template)
        entry = CommentedMap(model=row.model, accelerator=row.accelerator, precision=row.precision)
        for key in ("tp", "pp", "ep"):
            if getattr(row, key) != 1:
                entry[key] = getattr(row, key)
        if row.kv_precision is not None:
            entry["kv_precision"] = row.kv_precision
        entry["max_num_seqs"] = row.max_num_seqs
        entry["max_num_batched_tokens"] = row.max_num_batched_tokens
        entry["memory_utilisation"] = row.memory_utilisation
        return entry

    # -- the plan section

    def section(self) -> None:
        """Write down from which day demand grows and by how much, for `simulate --date`; what is begun is no choice."""
        plan = self.document.get("plan")
        if plan is None:
            plan = CommentedMap()
            self.document["plan"] = plan
        plan["start"] = grows_from(self.map.plan, self.map.today)
        if "demand" not in plan:
            plan["demand"] = CommentedMap(growth_per_year=self.map.plan.demand.growth_per_year)
        choices = plan.get("begin") or []
        for i, one in reversed(list(enumerate(choices))):
            if one.get("phase") is not None and self.document["sites"][one["site"]]["grid"][one["phase"]].get(
                "energised"
            ):
                del choices[i]


def runs(values: Sequence[Any], empty: Any = 0) -> list[tuple[int, int, Any]]:
    """Return (first, last, value) of each run of equal values that are not empty.

    >>> runs([0, 2, 2, 3, 0])
    [(1, 2, 2), (3, 3, 3)]
    """
    found: list[tuple[int, int, Any]] = []
    for t, value in enumerate(values):
        if value == empty:
            continue
        if found and found[-1][1] == t - 1 and found[-1][2] == value:
            found[-1] = (found[-1][0], t, value)
        else:
            found.append((t, t, value))
    return found


def _ceil(mw: float) -> float:
    """Return MW rounded up to three figures that can be read."""
    if mw <= 0.0:
        return 0.001
    scale = 10.0 ** (2 - int(np.floor(np.log10(mw))))
    return float(np.ceil(mw * scale - 1e-9) / scale)


def _short(name: str) -> str:
    """Return a name with room for a quarter behind it."""
    return name[:52]
