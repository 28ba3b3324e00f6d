"""`baseload catalog`: what is known of accelerators, models and sites, as a list or one entry with every source.

The facts are `fleet/catalog.py`; what they mean for speed, power and money is `formulas/`. Plain text, so that it can
be read in any terminal and piped; JSON for everything else.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from baseload.fleet import catalog
from baseload.fleet.catalog import Accelerator, CatalogModel, Place, Provenance
from baseload.formulas.shape import ModelShape, active_parameters, parameters

if TYPE_CHECKING:
    from rich.table import Table

NARROWEST = 80
MARKS = {"datasheet": " ", "measured": "m", "calibrated": "c", "modelled": "~"}
LEGEND = "No mark: its maker says so. m: measured. c: calibrated. ~: computed or estimated. - : none, or unknown."
SERIES_LETTERS = {"price_per_mwh": "P", "carbon_g_per_kwh": "C", "wetbulb_c": "W"}

# The unit of each figure; a name that is not here says its unit itself, or has none.
UNITS = {
    "bf16_tflops": "TFLOPS, dense", "fp8_tflops": "TFLOPS, dense", "fp4_tflops": "TFLOPS, dense", "memory_gb": "10^9 bytes",
    "memory_bw_tb_s": "10^12 bytes/s", "tdp_w": "W", "idle_w": "W", "server_other_w": "W", "server_idle_other_w": "W",
    "scale_up_gb_s": "GB/s, one direction", "scale_out_gb_s": "GB/s, one direction", "scale_up_size": "accelerators",
    "per_server": "accelerators", "accelerators_per_rack": "accelerators", "rack_kw": "kW", "price_usd": "USD",
    "rental_usd_h": "USD/h", "rental_3yr_usd_h": "USD/h", "lat": "degrees north", "lon": "degrees east",
    "price_per_mwh": "USD/MWh, yearly mean", "carbon_g_per_kwh": "g CO2/kWh, yearly mean",
    "mean_wetbulb_c": "C", "design_wetbulb_c": "C, exceeded in 0.4 % of hours", "max_context_tokens": "tokens",
    "parameters": "computed", "active_parameters": "computed", "published_parameters_b": "10^9",
    "published_active_b": "10^9", "hours_of_price_per_mwh": "hours", "hours_of_wetbulb_c": "hours",
    "hours_of_carbon_g_per_kwh": "hours",
}  # fmt: skip

Row = tuple[str, ...]
FigureRow = tuple[str, object, Provenance]


def page(kind: str, name: str | None, *, as_json: bool = False) -> str:
    """Return a catalogue (`accelerators`, `models` or `sites`) as text or JSON; with `name`, that entry in full.

    Raises CatalogError with the nearest names for one that is not there.
    """
    if name is None:
        return _json([_plain(entry) for entry in _entries(kind)]) if as_json else _LISTS[kind]()
    entry = _FIND[kind](name)
    return _json(_plain(entry)) if as_json else _full(entry)


Entry = Accelerator | CatalogModel | Place
_FIND: Mapping[str, Any] = {"accelerators": catalog.accelerator, "models": catalog.model, "sites": catalog.place}


def _entries(kind: str) -> Iterable[Entry]:
    tables: Mapping[str, Any] = {
        "accelerators": catalog.accelerators,
        "models": catalog.models,
        "sites": catalog.places,
    }
    entries: Iterable[Entry] = tables[kind]().values()
    return entries


# ---- JSON ------------------------------------------------------------------------------------------------


def _json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def _plain(entry: Entry) -> dict[str, Any]:
    """Return an entry's fields, and what is computed from them."""
    fields: dict[str, Any] = msgspec.to_builtins(entry)
    if isinstance(entry, CatalogModel):
        shape = shape_of(entry)
        fields |= {"parameters": parameters(shape), "active_parameters": active_parameters(shape)}
    if isinstance(entry, Place):
        fields |= {"jurisdiction": entry.jurisdiction, "blocs": list(entry.blocs), "hourly": list(_hourly(entry))}
    return fields


def shape_of(entry: CatalogModel) -> ModelShape:
    """Return the shape with which `formulas/shape.py` counts."""
    return ModelShape(**msgspec.structs.asdict(entry.shape))


def _hourly(place: Place) -> tuple[str, ...]:
    zones = (place.price_zone, place.carbon_zone, place.weather_zone)
    return tuple(quantity for quantity, zone in zip(catalog.QUANTITIES, zones, strict=True) if zone is not None)


# ---- lists -----------------------------------------------------------------------------------------------


def _list_accelerators() -> str:
    rows = [
        (
            a.accelerator_id,
            a.vendor,
            *(
                _marked(getattr(a, figure), a.provenance.get(figure))
                for figure in ("bf16_tflops", "fp8_tflops", "fp4_tflops", "memory_gb", "memory_bw_tb_s", "tdp_w")
            ),
        )
        for a in catalog.accelerators().values()
    ]
    head = ("accelerator", "maker", "bf16", "fp8", "fp4", "GB", "TB/s", "TDP W")
    units = "bf16, fp8, fp4: dense TFLOPS. GB: 10^9 bytes of memory. TB/s: memory bandwidth. TDP: board power."
    return _listing(head, "llrrrrrr", rows, units, LEGEND, "accelerators")


def _list_models() -> str:
    rows = []
    for m in catalog.models().values():
        shape = shape_of(m)
        total, active = parameters(shape) / 1e9, active_parameters(shape) / 1e9
        rows.append(
            (
                m.model_id,
                f"{total:,.1f}{MARKS[m.shape_from.basis]}",
                f"{active:,.1f}{MARKS[m.shape_from.basis]}",
                f"{m.max_context_tokens // 1024:,}k",
                m.precision,
                _short(m.licence),
            )
        )
    head = ("model", "total", "active", "context", "weights", "licence")
    units = (
        "Total and active: 10^9 parameters, computed from the architecture; active: what one token is multiplied with, "
        "the input table aside. Context: k is 1,024 tokens. Weights: as published."
    )
    return _listing(head, "lrrrll", rows, units, LEGEND, "models")


def _short(licence: str) -> str:
    """Return a licence's name without the words that all of them carry; the entry in full has it whole."""
    for ending in (" Community License", " License", " Terms of Use"):
        licence = licence.removesuffix(ending)
    return licence


def _list_sites() -> str:
    rows = []
    for p in catalog.places().values():
        rows.append(
            (
                p.place_id,
                p.country,
                f"{p.lat:.2f}",
                f"{p.lon:.2f}",
                _marked(p.price_per_mwh, p.provenance.get("price_per_mwh")),
                _marked(p.carbon_g_per_kwh, p.provenance.get("carbon_g_per_kwh")),
                _marked(p.design_wetbulb_c, p.provenance.get("design_wetbulb_c")),
                "".join(SERIES_LETTERS[quantity] for quantity in _hourly(p)) or "-",
            )
        )
    head = ("site", "country", "lat", "lon", "USD/MWh", "g/kWh", "design C", "hourly")
    units = (
        "USD/MWh: wholesale, mean of the year. g/kWh: CO2 equivalent, mean of the year. Design C: wet bulb exceeded in "
        "0.4 % of hours. Hourly series: P price, C carbon, W wet bulb."
    )
    return _listing(head, "llrrrrrl", rows, units, LEGEND, "sites")


_LISTS = {"accelerators": _list_accelerators, "models": _list_models, "sites": _list_sites}


def _listing(head: Row, sides: str, rows: Sequence[Row], units: str, legend: str, kind: str) -> str:
    hint = f"`baseload catalog {kind} NAME` shows one in full, with the source of each figure."
    return f"{_drawn(_table(head, sides, rows))}\n\n{_wrapped(units)}\n{_wrapped(legend)}\n{_wrapped(hint)}"


def _marked(value: object, origin: Provenance | None) -> str:
    """Return a figure as text with the mark of its basis."""
    if value is None:
        return "- "
    return _number(value) + (MARKS[origin.basis] if origin else " ")


def _number(value: object) -> str:
    """Return a figure as a person writes it.

    >>> _number(49248.0), _number(3.35), _number(85.899), _number(True), _number(None)
    ('49,248', '3.35', '85.899', 'yes', '-')
    """
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4f}".rstrip("0").rstrip(".")
    return str(value)


# ---- one entry -------------------------------------------------------------------------------------------


def _full(entry: Entry) -> str:
    """Return an entry in full: what it is, its figures with date and basis, and the numbered sources."""
    facts, figures, notes = _PARTS[type(entry)](entry)
    sources: dict[str, int] = {}
    rows = []
    for name, value, origin in figures:
        number = sources.setdefault(origin.source, len(sources) + 1)
        rows.append((name, _number(value), UNITS.get(name, ""), origin.basis, origin.date, f"[{number}]"))
    parts = [_drawn(_table(("", ""), "ll", facts, headless=True))]
    parts.append(_drawn(_table(("figure", "value", "unit", "basis", "date", "source"), "lrllll", rows)))
    parts.append(
        "\n".join(_wrapped(f"[{number}] {source}", hang=len(f"[{number}] ")) for source, number in sources.items())
    )
    if notes:
        parts.append("\n".join(_wrapped(f"Note: {note}", hang=6) for note in notes))
    return "\n\n".join(parts)


Parts = tuple[list[Row], list[FigureRow], list[str]]


def _accelerator_parts(a: Accelerator) -> Parts:
    facts: list[Row] = [("accelerator", a.accelerator_id), ("name", a.name), ("maker", a.vendor), _aliases(a)]
    figures = [(name, getattr(a, name), origin) for name, origin in _in_field_order(a)]
    return facts, figures, list(a.notes)


def _model_parts(m: CatalogModel) -> Parts:
    facts: list[Row] = [
        ("model", m.model_id), ("name", m.name), ("maker", m.maker), ("licence", m.licence), _aliases(m),
        ("weights", f"published in {m.precision}"),
    ]  # fmt: skip
    shape = shape_of(m)
    figures: list[FigureRow] = [
        ("parameters", parameters(shape), m.shape_from),
        ("active_parameters", active_parameters(shape), m.shape_from),
        ("published_parameters_b", m.published_parameters_b, m.size_from),
    ]
    if m.published_active_b is not None:
        figures.append(("published_active_b", m.published_active_b, m.size_from))
    figures.append(("max_context_tokens", m.max_context_tokens, m.shape_from))
    defaults = {field.name: field.default for field in msgspec.structs.fields(m.shape)}
    for name, value in msgspec.structs.asdict(m.shape).items():
        if value != defaults[name]:
            figures.append((name, value, m.shape_from))
    return facts, figures, [m.note] if m.note else []


def _place_parts(p: Place) -> Parts:
    facts: list[Row] = [
        ("site", p.place_id), ("name", p.name), _aliases(p),
        ("jurisdiction", p.jurisdiction + (f" ({', '.join(p.blocs)})" if p.blocs else "")),
        ("round trips", f"measured, as Azure {p.azure_region}" if p.azure_region else "from distance"),
    ]  # fmt: skip
    figures: list[FigureRow] = [(name, getattr(p, name), origin) for name, origin in _in_field_order(p)]
    notes = []
    for quantity in catalog.QUANTITIES:
        hourly = catalog.series(p.place_id, quantity)
        if hourly is not None:
            notes.append(
                f"{quantity} is there hour by hour for {hourly.year}; {hourly.n_filled} missing hours were filled"
            )
            figures.append((f"hours_of_{quantity}", len(hourly.values), hourly.provenance))
    return facts, figures, notes


_PARTS: Mapping[type, Any] = {Accelerator: _accelerator_parts, CatalogModel: _model_parts, Place: _place_parts}


def _aliases(entry: Entry) -> Row:
    return ("also called", ", ".join(entry.aliases) or "-")


def _in_field_order(entry: Accelerator | Place) -> list[tuple[str, Provenance]]:
    names = entry.__struct_fields__
    return [(name, entry.provenance[name]) for name in names if name in entry.provenance]


# ---- drawing ---------------------------------------------------------------------------------------------


def _width() -> int:
    return max(NARROWEST, shutil.get_terminal_size((NARROWEST, 24)).columns)


def _table(head: Row, sides: str, rows: Sequence[Row], *, headless: bool = False) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=not headless)
    for title, side in zip(head, sides, strict=True):
        right = side == "r"
        whole = right or not table.columns  # names and figures stay on one line, words may wrap
        table.add_column(Text(title), justify="right" if right else "left", no_wrap=whole, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _drawn(table: Table) -> str:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=_width(), color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _wrapped(text: str, *, hang: int = 0) -> str:
    import textwrap

    return textwrap.fill(text, _width(), subsequent_indent=" " * hang, break_on_hyphens=False)
