"""Who asks: a tenant, a region and a model for each request, by the shares that the fleet file declares.

Drawn from a hash of seed and request id, so that a request's draw does not depend on chunks or on other requests.
What a trace says itself (tenant, region and model columns) stands.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from baseload.adapters.traces import Names, Trace, TraceSource, key64, mixed64, salted
from baseload.errors import TraceError
from baseload.fleet.model import Fleet, Tenant

_BITS = 21  # of the hash, for each of the three draws: shares hold to 5e-7
_TENANT, _REGION, _MODEL = range(3)
_Index = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class _Choice:
    """Weighted choices, a row of them for each tenant, laid end to end: row t fills [t, t + 1)."""

    ends: npt.NDArray[np.float64]
    chosen: _Index

    def draw(self, tenant_i: _Index | int, uniform: npt.NDArray[np.float64]) -> _Index:
        """Return a choice for each row."""
        if len(self.chosen) == 1:
            return np.full(len(uniform), self.chosen[0], np.int16)
        return np.asarray(self.chosen[np.searchsorted(self.ends, tenant_i + uniform, side="right")])


def mixed(source: TraceSource, fleet: Fleet, seed: int) -> TraceSource:
    """Return the source with tenant, region and model filled in, and prefixes salted so that tenants share no cache.

    Indices follow the fleet file. A tenant asks from its own regions (all where it names none) and for its own models
    that a deployment serves (all of those where it names none).
    """
    tenants = fleet.tenants or {"anyone": Tenant()}
    names = Names(tuple(fleet.tenants), tuple(fleet.regions), tuple(fleet.models))
    served = {deployment.model for deployment in fleet.deployments.values()}
    shares = _choice([_weights([t.share for t in tenants.values()], "tenants: all shares are 0; raise one")])
    regions = _choice([
        _weights(_over(tenant.regions, names.regions) or [1.0], f"tenant {name}: all regions weigh 0; raise one")
        for name, tenant in tenants.items()
    ])  # fmt: skip
    models = _choice([
        _weights(
            [w * (model in served) for w, model in zip(_over(tenant.models, names.models), names.models)],
            f"tenant {name}: no deployment serves any of its models; deploy one, or change `models`",
        )
        for name, tenant in tenants.items()
    ])  # fmt: skip
    key = key64(seed, 0x313)
    salts = np.array([key64(0x5A17, i) for i in range(len(tenants))], np.uint64)
    bound = source.bound(names)

    def fill(block: Trace) -> Trace:
        ids = np.arange(block.first_id, block.first_id + len(block), dtype=np.int64).view(np.uint64)
        dice = mixed64(ids ^ key)
        tenant_i = _filled(block.tenant_i, shares.draw(0, _uniform(dice, _TENANT)))
        hash_ids = block.hash_ids
        if len(hash_ids):
            hash_ids = salted(hash_ids, np.repeat(salts[tenant_i], np.diff(block.hash_offsets)))
        return replace(
            block,
            tenant_i=tenant_i,
            region_i=_filled(block.region_i, regions.draw(tenant_i, _uniform(dice, _REGION))),
            model_i=_filled(block.model_i, models.draw(tenant_i, _uniform(dice, _MODEL))),
            hash_ids=hash_ids,
        )

    def blocks() -> Iterator[Trace]:
        return map(fill, bound.blocks())

    return replace(bound, blocks=blocks, bind=None)


def _filled(given: _Index, drawn: _Index) -> _Index:
    return drawn if len(given) == 0 or int(given.max()) < 0 else np.where(given >= 0, given, drawn)


def _uniform(dice: npt.NDArray[np.uint64], draw: int) -> npt.NDArray[np.float64]:
    """Return one of three independent numbers in [0, 1) from each hash."""
    bits = (dice >> np.uint64(_BITS * draw)) & np.uint64((1 << _BITS) - 1)
    return bits.astype(np.float64) * 2.0**-_BITS


def _over(weights: Mapping[str, float], names: Sequence[str]) -> list[float]:
    """Return a weight for each name; 1 for all where none is given."""
    return [weights.get(name, 0.0) for name in names] if weights else [1.0] * len(names)


def _weights(weights: list[float], trouble: str) -> list[float]:
    if not sum(weights) > 0.0:
        raise TraceError(trouble)
    return weights


def _choice(weights_of: Sequence[Sequence[float]]) -> _Choice:
    ends: list[float] = []
    chosen: list[int] = []
    for row, weights in enumerate(weights_of):
        positive = [i for i, weight in enumerate(weights) if weight > 0.0]
        shares = np.cumsum([weights[i] for i in positive])
        ends += [row + float(share) for share in shares[:-1] / shares[-1]] + [row + 1.0]
        chosen += positive
    return _Choice(np.array(ends), np.array(chosen, np.int16))
