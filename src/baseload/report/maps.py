"""A map of the sites: equirectangular, cropped to them, with a coastline of Natural Earth (public domain)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources
from itertools import product
from math import cos, radians

from markupsafe import Markup

from baseload.report.charts import WIDTH, _path, _svg, _tag, _text
from baseload.report.model import SiteReport
from baseload.report.words import megawatts

SPAN_DEG_MIN = 24.0
HEIGHT = 240.0


@cache
def _coastline() -> tuple[tuple[tuple[float, float], ...], ...]:
    """Return the polygons of land as (longitude, latitude) in degrees."""
    text = resources.files("baseload.report").joinpath("templates/coastline.txt").read_text("utf-8")
    rings = []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            pairs = [point.split(",") for point in line.split(" ")]
            rings.append(_unwrapped([(int(x) / 10.0, int(y) / 10.0) for x, y in pairs]))
    return tuple(rings)


def _unwrapped(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Return a ring without the jump from 180 to -180 degrees: its longitudes may pass 180."""
    kept: list[tuple[float, float]] = []
    for lon, lat in points:
        while kept and lon - kept[-1][0] < -180.0:
            lon += 360.0
        while kept and lon - kept[-1][0] > 180.0:
            lon -= 360.0
        kept.append((lon, lat))
    return tuple(kept)


def site_map(sites: Sequence[SiteReport]) -> Markup:
    """Draw the sites as dots, as large as their racked power, on the land around them."""
    lons, lats = [site.lon for site in sites], [site.lat for site in sites]
    if not sites:
        return _svg("Map of the sites", "no sites", 20.0, [])
    mid_lon, mid_lat = (min(lons) + max(lons)) / 2.0, (min(lats) + max(lats)) / 2.0
    narrow = max(0.35, cos(radians(mid_lat)))  # a degree of longitude is shorter than one of latitude
    span = max(SPAN_DEG_MIN, (max(lons) - min(lons)) * narrow * 1.5, (max(lats) - min(lats)) * 1.6 * WIDTH / HEIGHT)
    span = min(span, 360.0 * narrow)
    unit = WIDTH / span  # per degree of latitude

    def at(lon: float, lat: float) -> tuple[float, float]:
        return WIDTH / 2.0 + (lon - mid_lon) * narrow * unit, HEIGHT / 2.0 - (lat - mid_lat) * unit

    parts = [_tag("rect", x=0.0, y=0.0, width=WIDTH, height=HEIGHT, class_="sea")]
    for ring, turn in product(_coastline(), (-360.0, 0.0, 360.0)):
        points = [at(lon + turn, lat) for lon, lat in ring]
        inside = any(-60.0 < x < WIDTH + 60.0 and -60.0 < y < HEIGHT + 60.0 for x, y in points)
        around = min(x for x, _ in points) < WIDTH and max(x for x, _ in points) > 0.0
        if inside or (around and min(y for _, y in points) < 0.0 and max(y for _, y in points) > HEIGHT):
            parts.append(_tag("path", d=_path(_clipped(points)) + "Z", class_="land"))
    parts += _dots(sites, [at(site.lon, site.lat) for site in sites])
    words = "; ".join(f"{site.name} at {site.lat:.1f}, {site.lon:.1f}" for site in sites)
    return _svg("Map of the sites", words, HEIGHT, parts)


def _clipped(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return a ring with far-away points pulled in, and runs of them left out: the picture is cut there anyway."""
    margin = 200.0
    kept: list[tuple[float, float]] = []
    for x, y in points:
        point = (min(max(x, -margin), WIDTH + margin), min(max(y, -margin), HEIGHT + margin))
        if not kept or abs(point[0] - kept[-1][0]) + abs(point[1] - kept[-1][1]) > 0.6:
            kept.append(point)
    return kept


def _dots(sites: Sequence[SiteReport], places: Sequence[tuple[float, float]]) -> list[str]:
    """Return dots and names; a name goes to the first of eight spots where it hides no other."""
    parts: list[str] = []
    racked = [next((step.mw for step in site.ladder if step.name == "racked"), 0.0) for site in sites]
    top = max(racked, default=0.0) or 1.0
    sizes = [4.0 + 7.0 * (mw / top) ** 0.5 for mw in racked]
    taken = [(x - r, y - r, x + r, y + r) for (x, y), r in zip(places, sizes)]
    for site, (x, y), r, mw in zip(sites, places, sizes, racked):
        tip = _tag("title", f"{Markup.escape(site.name)}: {megawatts(mw)} racked")
        parts.append(_tag("circle", tip, cx=x, cy=y, r=r, class_="dot"))
        width = 7.0 * len(site.name)
        spots = [
            (x + r + 4.0, y + 4.0), (x - r - 4.0 - width, y + 4.0), (x - width / 2.0, y - r - 5.0),
            (x - width / 2.0, y + r + 13.0), (x + r, y - r - 2.0), (x + r, y + r + 10.0),
            (x - r - width, y - r - 2.0), (x - r - width, y + r + 10.0),
        ]  # fmt: skip
        for left, base in spots:
            box = (left, base - 11.0, left + width, base + 3.0)
            fits = box[0] >= 2.0 and box[2] <= WIDTH - 2.0 and box[1] >= 2.0 and box[3] <= HEIGHT - 2.0
            own = (x - r, y - r, x + r, y + r)
            if fits and not any(_overlap(box, other) for other in taken if other != own):
                taken.append(box)
                parts.append(_text(left, base, site.name, css="place"))
                break
    return parts


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
