"""Distance: kilometres on the globe, milliseconds on the fibre, seconds for a payload.

A declared or measured RTT always beats these; which links exist is the fleet file's business.
"""

from __future__ import annotations

from math import asin, cos, radians, sin, sqrt

EARTH_RADIUS_KM = 6371.0088  # mean radius, IUGG
FIBRE_KM_PER_MS = 200.0  # two thirds of light's speed in vacuum: refractive index about 1.47
PATH_STRETCH = 1.6  # fibre follows coasts and rails; see rtt_ms
FIXED_RTT_MS = 5.5  # routers, metro detours, the last mile inside the region; see rtt_ms


def great_circle_km(lat_a: float, lon_a: float, lat_b: float, lon_b: float) -> float:
    """Return the shortest way over the globe between two points in degrees (haversine formula).

    >>> round(great_circle_km(50.11, 8.68, 59.91, 10.75))  # Frankfurt, Oslo
    1098
    """
    assert -90.0 <= lat_a <= 90.0 and -90.0 <= lat_b <= 90.0, (lat_a, lat_b)
    phi_a, phi_b = radians(lat_a), radians(lat_b)
    half = sin((phi_b - phi_a) / 2.0) ** 2
    half += cos(phi_a) * cos(phi_b) * sin(radians(lon_b - lon_a) / 2.0) ** 2
    return 2.0 * EARTH_RADIUS_KM * asin(min(1.0, sqrt(half)))


def light_rtt_ms(distance_km: float) -> float:
    """Return the round trip no fibre can beat: there and back at the speed of light in glass.

    >>> light_rtt_ms(1000.0)
    10.0
    """
    assert distance_km >= 0.0, distance_km
    return 2.0 * distance_km / FIBRE_KM_PER_MS


def rtt_ms(distance_km: float, path_stretch: float = PATH_STRETCH, fixed_ms: float = FIXED_RTT_MS) -> float:
    """Return a likely round trip: light in glass on a path longer than the great circle, and a fixed part.

    The defaults fit 2,348 pairs of Azure regions more than 100 km apart (Microsoft Learn, Azure network
    latency statistics, CC-BY-4.0): median error 14 %, 90 % of pairs within 34 %. Declare what you measured.

    >>> round(rtt_ms(1097.0), 1)
    23.1
    """
    assert path_stretch >= 1.0 and fixed_ms >= 0.0, (path_stretch, fixed_ms)
    return light_rtt_ms(distance_km) * path_stretch + fixed_ms


def transfer_s(payload_bytes: float, bandwidth_gbps: float, rtt_ms: float = 0.0, efficiency: float = 0.9) -> float:
    """Return the seconds to move a payload: half a round trip, then bytes over usable bandwidth.

    `efficiency` is what headers and congestion leave of the line rate. 140 GB of weights over 100 Gbit/s:

    >>> round(transfer_s(140e9, bandwidth_gbps=100.0, rtt_ms=20.0), 2)
    12.45
    """
    assert payload_bytes >= 0.0 and bandwidth_gbps > 0.0 and rtt_ms >= 0.0, (payload_bytes, bandwidth_gbps)
    assert 0.0 < efficiency <= 1.0, efficiency
    return rtt_ms / 2000.0 + payload_bytes * 8.0 / (bandwidth_gbps * 1e9 * efficiency)
