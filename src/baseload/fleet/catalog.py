"""Catalogue: what is known of accelerators, models and places, each figure with where it comes from.

Facts only: what they mean for speed, power or money is `formulas/`, and what an owner declares instead is
`model.py`. The files lie in `fleet/data`; each is read once, when first asked for. Money is US dollars,
memory 10^9 bytes, bandwidth one direction. `docs/catalogue.md` says what is measured and what is guessed.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Literal, TypeVar

import msgspec

from baseload.errors import CatalogError

Basis = Literal["measured", "calibrated", "modelled", "datasheet"]
Quantity = Literal["price_per_mwh", "carbon_g_per_kwh", "wetbulb_c"]
QUANTITIES: tuple[Quantity, ...] = ("price_per_mwh", "carbon_g_per_kwh", "wetbulb_c")
HOURS_PER_YEAR = 8760

_EU = {
    "AT", "BE", "BG", "CY", "CZ", "DE", "DK", "EE", "ES", "FI", "FR", "GR", "HR", "HU", "IE", "IT", "LT", "LU",
    "LV", "MT", "NL", "PL", "PT", "RO", "SE", "SI", "SK",
}  # fmt: skip
BLOCS: Mapping[str, frozenset[str]] = MappingProxyType(
    {"EU": frozenset(_EU), "EEA": frozenset(_EU | {"NO", "IS", "LI"})}
)


class _Fact(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what the catalogue hands out: frozen, by keyword."""


class Provenance(_Fact, frozen=True, kw_only=True):
    """Where a figure comes from, as of when, and how far to trust it."""

    source: str
    date: str
    basis: Basis


class Accelerator(_Fact, frozen=True, kw_only=True):
    """One accelerator with its share of server and rack; None is unknown, or for fp8 and fp4 unsupported."""

    accelerator_id: str
    name: str
    vendor: str
    aliases: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # where sources disagree, and what is special

    bf16_tflops: float  # dense, as all of these
    fp8_tflops: float | None
    fp4_tflops: float | None
    memory_gb: float
    memory_bw_tb_s: float
    tdp_w: float
    idle_w: float  # an engine loaded, no request
    server_other_w: float  # processors, fans, network cards: share of one accelerator, at load
    server_idle_other_w: float
    scale_up_gb_s: float  # to all peers together, one direction
    scale_up_size: int  # accelerators in one such domain
    scale_out_gb_s: float
    per_server: int
    accelerators_per_rack: int
    rack_kw: float
    needs_liquid: bool
    price_usd: float  # with its share of server and network
    rental_usd_h: float | None = None  # list price, on demand
    rental_3yr_usd_h: float | None = None
    export_class: str | None = None  # US export control number
    provenance: dict[str, Provenance]  # by field name


class Shape(_Fact, frozen=True, kw_only=True):
    """A model's architecture; names and meaning are those of `formulas.shape.ModelShape`."""

    n_layers: int
    hidden: int
    vocab: int
    tied_embeddings: bool = False
    n_heads: int
    n_kv_heads: int
    head_dim: int
    gated_attention: bool = False
    k_equals_v: bool = False
    o_lora_rank: int = 0
    o_groups: int = 1
    kv_lora_rank: int = 0
    q_lora_rank: int = 0
    qk_nope_head_dim: int = 0
    qk_rope_head_dim: int = 0
    v_head_dim: int = 0
    index_n_heads: int = 0
    index_head_dim: int = 0
    index_topk: int = 0
    n_sliding_layers: int = 0
    sliding_window_tokens: int = 0
    sliding_n_kv_heads: int = 0
    sliding_head_dim: int = 0
    compressed_kv_values_per_token: float = 0.0
    n_linear_layers: int = 0
    linear_n_heads: int = 0
    linear_head_dim: int = 0
    linear_n_groups: int = 0
    linear_state_dim: int = 0
    linear_conv_kernel: int = 4
    ffn: int = 0
    ffn_matrices: int = 3
    n_ffn_layers: int = 0
    n_experts: int = 0
    experts_per_token: int = 0
    moe_ffn: int = 0
    n_shared_experts: int = 0
    shared_ffn: int = 0
    first_dense_layers: int = 0
    moe_every: int = 1


class CatalogModel(_Fact, frozen=True, kw_only=True):
    """One language model: its shape, and what its maker publishes of it."""

    model_id: str
    name: str  # on Hugging Face
    maker: str
    licence: str
    precision: Literal["bf16", "fp8", "fp4"]  # in which the weights are published
    max_context_tokens: int
    aliases: tuple[str, ...] = ()
    shape: Shape
    published_parameters_b: float  # the tests hold the computed count to it, within size_tolerance
    published_active_b: float | None
    active_counts_embedding: bool = False  # whether the published active count includes the input table
    size_tolerance: float
    active_tolerance: float
    shape_from: Provenance
    size_from: Provenance
    note: str = ""


class Place(_Fact, frozen=True, kw_only=True):
    """A town with data centres: where it is, whose law holds, its grid and its weather, as yearly figures."""

    place_id: str
    name: str
    aliases: tuple[str, ...] = ()
    lat: float
    lon: float
    country: str  # ISO 3166; also the jurisdiction
    azure_region: str | None  # row of the measured RTT matrix
    price_zone: str | None  # None: no hourly series
    carbon_zone: str | None
    weather_zone: str | None
    price_per_mwh: float  # wholesale, US dollars; grid fees and taxes come on top
    carbon_g_per_kwh: float
    mean_wetbulb_c: float
    design_wetbulb_c: float  # exceeded in 0.4 % of hours
    provenance: dict[str, Provenance]

    @property
    def jurisdiction(self) -> str:
        """ISO code of the country whose law holds."""
        return self.country

    @property
    def blocs(self) -> tuple[str, ...]:
        """Blocs that the country belongs to, of EU and EEA."""
        return tuple(bloc for bloc, members in BLOCS.items() if self.country in members)


class HourlySeries(_Fact, frozen=True, kw_only=True):
    """One value an hour of `year`, from 1 January 00:00 UTC; `n_filled` of them were missing in the source."""

    values: list[float]
    year: int
    n_filled: int
    provenance: Provenance


def accelerators() -> Mapping[str, Accelerator]:
    """Return every accelerator by its id."""
    return _accelerators()


def accelerator(name: str) -> Accelerator:
    """Return the accelerator of that id, name or alias, e.g. `h100-sxm` or `H100_SXM`."""
    return _find("accelerator", _key(name), name, _accelerators(), _accelerator_keys())


def models() -> Mapping[str, CatalogModel]:
    """Return every model by its id."""
    return _models()


def model(name: str) -> CatalogModel:
    """Return the model of that id, alias or Hugging Face name; suffixes such as -Instruct or -FP8 do not matter."""
    exact, known = _key(name), _model_keys()
    return _find("model", exact if exact in known else _bare(exact), name, _models(), known)


def places() -> Mapping[str, Place]:
    """Return every place by its id."""
    return _places()


def place(name: str) -> Place:
    """Return the place of that id or alias, e.g. `frankfurt`, `germanywestcentral`, `eu-central-1`."""
    return _find("place", _key(name), name, _places(), _place_keys())


def series(place_id: str, quantity: Quantity) -> HourlySeries | None:
    """Return the place's hourly price (USD/MWh), carbon (g/kWh) or wet bulb (C), or None where there is none.

    Gaps of up to three hours were filled with a straight line, longer ones from the same hours of the nearest day.
    """
    where = place(place_id)
    zones = dict(zip(QUANTITIES, (where.price_zone, where.carbon_zone, where.weather_zone), strict=True))
    if quantity not in zones:
        raise CatalogError(f"no hourly series is called {quantity!r}; there are {', '.join(QUANTITIES)}")
    zone = zones[quantity]
    return None if zone is None else _series(f"{zone}.{quantity}")


def rtt_ms(place_a: str, place_b: str) -> tuple[float, Basis] | None:
    """Return the measured median round trip between two places, mean of both directions; None if not measured."""
    regions = place(place_a).azure_region, place(place_b).azure_region
    if None in regions or regions[0] == regions[1]:
        return None
    matrix = _rtt_matrix()
    both = [matrix[pair] for pair in (regions, regions[::-1]) if pair in matrix]
    return (sum(both) / len(both), "measured") if both else None


def modelled_figures(provenance: Mapping[str, Provenance]) -> tuple[str, ...]:
    """Return the names of the figures that are guesses or computed; a report that uses one says so."""
    return tuple(name for name, origin in provenance.items() if origin.basis == "modelled")


T = TypeVar("T")
Figure = tuple[int | float | bool | str | None, str]  # value, key of its source


def _read(name: str) -> bytes:
    return (files("baseload.fleet") / "data" / name).read_bytes()


def _find(kind: str, key: str, asked: str, table: Mapping[str, T], keys: Mapping[str, str]) -> T:
    if key in keys:
        return table[keys[key]]
    near = dict.fromkeys(keys[match] for match in get_close_matches(key, keys, n=5, cutoff=0.6))
    listed = "sites" if kind == "place" else f"{kind}s"
    mend = f"did you mean {', '.join(near)}?" if near else f"`baseload catalog {listed}` lists them"
    raise CatalogError(f"the catalogue has no {kind} {asked!r}; {mend}")


def _key(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(" ", "-")


_MODEL_SUFFIXES = (
    "-instruct", "-it", "-chat", "-base", "-hf", "-bf16", "-fp8", "-fp4", "-nvfp4", "-mxfp4", "-awq", "-gptq",
    "-int4", "-int8", "-dynamic", "-2507",
)  # fmt: skip


def _bare(key: str) -> str:
    """Return a model's key without its organisation and without what its weights were made into."""
    key = key.rsplit("/", 1)[-1]
    while key.endswith(_MODEL_SUFFIXES):
        key = key[: key.rindex("-")]
    return key


def _keys(names_of: Iterable[tuple[str, Iterable[str]]]) -> Mapping[str, str]:
    """Return id by lookup key; the first owner of a key keeps it, and an id is owned before any alias."""
    rows = [(row_id, list(names)) for row_id, names in names_of]
    keys = {_key(row_id): row_id for row_id, _ in rows}
    for row_id, names in rows:
        for name in names:
            keys.setdefault(_key(name), row_id)
    return MappingProxyType(keys)


class _AcceleratorRow(_Fact, frozen=True, kw_only=True):
    accelerator_id: str
    name: str
    vendor: str
    aliases: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    figures: dict[str, Figure]


class _AcceleratorFile(_Fact, frozen=True, kw_only=True):
    sources: dict[str, Provenance]
    accelerators: list[_AcceleratorRow]


class _ModelFile(_Fact, frozen=True, kw_only=True):
    models: list[CatalogModel]


class _PlaceRow(_Fact, frozen=True, kw_only=True):
    place_id: str
    name: str
    lat: float
    lon: float
    country: str
    aliases: tuple[str, ...] = ()
    azure_region: str | None
    price_zone: str | None
    carbon_zone: str | None
    weather_zone: str | None
    figures: dict[str, Figure]


class _SeriesRow(_Fact, frozen=True, kw_only=True):
    year: int
    source: str
    n_filled: int


class _PlaceFile(_Fact, frozen=True, kw_only=True):
    sources: dict[str, Provenance]
    series: dict[str, _SeriesRow]
    places: list[_PlaceRow]


def _join(row: _AcceleratorRow | _PlaceRow, sources: Mapping[str, Provenance], **more: str) -> dict[str, object]:
    """Return the fields of a row: its names, its figures' values, and the provenance of each figure."""
    fields: dict[str, object] = {k: getattr(row, k) for k in row.__struct_fields__ if k != "figures"}
    fields |= {name: value for name, (value, _) in row.figures.items()}
    origins = {name: source for name, (_, source) in row.figures.items()} | more
    return fields | {"provenance": {name: sources[source] for name, source in origins.items()}}


@cache
def _accelerators() -> Mapping[str, Accelerator]:
    file = msgspec.json.decode(_read("accelerators.json"), type=_AcceleratorFile)
    rows = (msgspec.convert(_join(row, file.sources), Accelerator) for row in file.accelerators)
    return MappingProxyType({row.accelerator_id: row for row in rows})


@cache
def _accelerator_keys() -> Mapping[str, str]:
    return _keys((key, (row.name, *row.aliases)) for key, row in _accelerators().items())


@cache
def _models() -> Mapping[str, CatalogModel]:
    file = msgspec.json.decode(_read("models.json"), type=_ModelFile)
    return MappingProxyType({row.model_id: row for row in file.models})


@cache
def _model_keys() -> Mapping[str, str]:
    rows = ((key, (row.name, *row.aliases)) for key, row in _models().items())
    return _keys((key, (*names, *(_bare(_key(name)) for name in names))) for key, names in rows)


@cache
def _place_file() -> _PlaceFile:
    return msgspec.json.decode(_read("places.json"), type=_PlaceFile)


@cache
def _places() -> Mapping[str, Place]:
    file = _place_file()
    rows = (msgspec.convert(_join(row, file.sources, lat="azure", lon="azure"), Place) for row in file.places)
    return MappingProxyType({row.place_id: row for row in rows})


@cache
def _place_keys() -> Mapping[str, str]:
    return _keys((key, (row.name, row.name.split(",")[0], *row.aliases)) for key, row in _places().items())


@cache
def _series(key: str) -> HourlySeries:
    row = _place_file().series[key]
    values = [float(line) for line in gzip.decompress(_read(f"hourly/{key}.txt.gz")).split()]
    assert len(values) == HOURS_PER_YEAR, (key, len(values))
    return HourlySeries(
        values=values, year=row.year, n_filled=row.n_filled, provenance=_place_file().sources[row.source]
    )


@cache
def _rtt_matrix() -> Mapping[tuple[str | None, str | None], float]:
    header, *rows = csv.reader(_read("azure_rtt_ms.csv").decode().splitlines())
    return {
        (row[0], region): float(cell) for row in rows for region, cell in zip(header[1:], row[1:], strict=True) if cell
    }
