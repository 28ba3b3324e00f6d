"""Reading a fleet file: YAML 1.2, one message with all that is wrong, and --set."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.errors import FleetError
from baseload.fleet.load import load, loads
from baseload.fleet.template import template
from baseload.fleet.tree import MAX_BYTES

SMALL = """\
baseload: 1
name: small
sites:
  oslo:
    place: oslo
    grid: &grid
      - {power_mw: 1, energised: 2023-01-01}
    racks:
      r.1: {accelerator: h100-sxm, accelerators_per_rack: 8}
  bergen: {place: oslo, grid: *grid}
models:
  m: {catalog: llama-3.1-8b}
deployments:
  d: {model: m, accelerator: h100-sxm, sites: {oslo: {min: 2}}}
"""


def problems_of(text: str, *overrides: str) -> list[str]:
    """Return the problems of a text, each as `line key: what; mend`."""
    with pytest.raises(FleetError) as caught:
        loads(text, file="f.yaml", overrides=overrides)
    return [str(problem) for problem in caught.value.problems]


def changed(old: str, new: str) -> str:
    """Return SMALL with one change."""
    assert old in SMALL
    return SMALL.replace(old, new, 1)


def test_a_file_becomes_records(tmp_path: Path):
    """A fleet file on disk becomes a frozen Fleet that remembers its text, folder and digest."""
    path = tmp_path / "my.yaml"
    path.write_text(SMALL, encoding="utf-8")

    loaded = load(path)

    assert loaded.fleet.sites["oslo"].grid[0].power_mw == 1.0
    assert loaded.fleet.sites["oslo"].grid[0].energised.isoformat() == "2023-01-01"
    assert loaded.base_folder == tmp_path
    assert loaded.digest == hashlib.sha256(SMALL.encode()).hexdigest()
    with pytest.raises(AttributeError):
        loaded.fleet.name = "other"


def test_norway_is_no_truth_value():
    """YAML 1.2: NO, on and yes are texts, so a site may lie in Norway."""
    fleet = loads(changed("place: oslo\n    grid", "place: oslo\n    jurisdiction: NO\n    grid")).fleet

    assert fleet.sites["oslo"].jurisdiction == "NO"


def test_every_mistake_is_told_at_once():
    """Three mistakes in three records give three problems, each with its own line and key."""
    text = (
        changed("power_mw: 1,", "power_mw: 8 MW,").replace("min: 2", "mim: 2").replace("accelerator: h100-sxm, s", "s")
    )

    first, second, third = problems_of(text)

    assert first.startswith("f.yaml:7: sites.oslo.grid.0.power_mw: wants a number, not `8 MW`; write the number alone")
    assert second.startswith("f.yaml:14: deployments.d.sites.oslo.mim: no such key")
    assert "did you mean `min`?" in second
    assert third.startswith("f.yaml:14: deployments.d: `accelerator` is missing")


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("power_mw: 1", "power_kw: 1000", 7, "the key is `power_mw`: give the value in its unit"),
        ("power_mw: 1", "power_mw: 1000000", 7, "at most 100,000 is wanted; is the unit right?"),
        ("power_mw: 1", "power_mw: -1", 7, "at least 1e-09 is wanted"),
        ("power_mw: 1", "power_mw: .nan", 7, ".nan is not a number that can be used"),
        ("power_mw: 1", "power_mw: .inf", 7, ".inf is not a number that can be used"),
        ("power_mw: 1", "power_mw: 1e999", 7, "1e999 is not a number that can be used"),
        ("power_mw: 1", "power_mw: true", 7, "wants a number, not true"),
        ("power_mw: 1", "power_mw: 1_000", 7, "write it without quotes or separators: 1000"),
        ("2023-01-01", "2023-02-30", 7, "`2023-02-30` is not a date; write year-month-day"),
        ("2023-01-01", "01.02.2023", 7, "is not a date"),
        ("2023-01-01", "9999-12-31", 7, "`9999-12-31` is out of range; write a day between 1950 and 2200"),
        ("_rack: 8", "_rack: 8.0", 9, "wants a whole number, not 8; write 8"),
        ("name: small", "name: a name", 2, "1 to 64 letters, digits"),
        ("name: small", "name:", 2, "the key has no value"),
        ("name: small", "name: small\nname: twice", 3, "key `name` stands twice, first in line 2"),
        ("name: small", "name: small\ntp: 3", 3, "`tp` is a key of Deployment"),
        ("name: small", "name: !!str small", 2, "remove it: the key says what a value is"),
        ("name: small", "<<: {name: small}", 2, "merge key"),
        ("name: small", "name: [small]", 2, "wants a text, not a list"),
        ("place: oslo\n", "place: oslo\n    redundancy: N+2\n", 6, "did you mean `N+1`?"),
        ("place: oslo\n", "place: oslo\n    chain_efficiency: 94\n", 6, "e.g. 0.94 for 94 %"),
        ("place: oslo\n", "place: oslo\n    jurisdiction: Norway\n", 6, "two capital letters"),
        ("baseload: 1", "baseload: 2", 1, "choose from 1"),
        ("*grid", "*gird", 10, "has no anchor"),
        ("models:\n", "models\n", 12, "not valid YAML"),
    ],
)
def test_a_mistake_is_named_with_line_and_mend(old: str, new: str, line: int, words: str):
    """Each usual slip is told with its line, and with words that help."""
    said = problems_of(changed(old, new))

    assert any(one.startswith(f"f.yaml:{line}: ") and words in one for one in said), said


def test_bombs_are_refused_quickly():
    """Deep nesting, unfolding aliases and huge texts end in an error, not in memory or patience spent."""
    deep = "a: " + "[" * 20_000
    laughs = "a0: &a0 [x, x]\n" + "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(12))
    itself = "a: &a [*a]"
    digits = "a: " + "9" * 5000

    assert "levels deep" in problems_of(deep)[0]
    assert "once its aliases are unfolded" in problems_of(laughs)[0]
    assert "inside what it names" in problems_of(itself)[0]
    assert "characters" in problems_of(digits)[0]
    assert "more than the" in problems_of("#" * (MAX_BYTES + 1))[0]


def test_what_is_no_fleet_file_is_said_so(tmp_path: Path):
    """A missing file, a folder, binary and an empty file each get a sentence."""
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"baseload: 1\nname: \xff\xfe")
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    for path, words in (
        (tmp_path / "none.yaml", "no such file; `baseload init"),
        (tmp_path, "not a regular file"),
        (binary, "binary.yaml:2: not UTF-8 text"),
        (empty, "the file is empty"),
        (tmp_path / ("a" * 5000), "cannot be read"),
    ):
        with pytest.raises(FleetError, match=words.replace("(", r"\(")):
            load(path)


# ---- --set -----------------------------------------------------------------------------------------------


def test_set_changes_one_value_and_no_alias():
    """--set reaches into lists and names with dots, makes records that were not there, and leaves aliases alone."""
    loaded = loads(
        SMALL,
        overrides=[
            "sites.oslo.grid.0.power_mw=3",
            "sites.oslo.racks.r.1.racks=4",
            "policy.route=least_wait",
            "tenants.t={share: 2, residency: [NO]}",
            "policy.digest.my.py=ab",
        ],
    )

    fleet = loaded.fleet
    assert fleet.sites["oslo"].grid[0].power_mw == 3.0
    assert fleet.sites["bergen"].grid[0].power_mw == 1.0
    assert fleet.sites["oslo"].racks["r.1"].racks == 4
    assert fleet.policy.route == "least_wait"
    assert fleet.tenants["t"].residency == ["NO"]
    assert fleet.policy.digest == {"my.py": "ab"}
    assert loaded.digest != loads(SMALL).digest


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sites.olso.lat=3", "sites.olso: no such name in the file; did you mean `oslo`?"),
        ("sites.oslo.latt=3", "sites.oslo.latt: no such key; did you mean `lat`?"),
        ("sites.oslo.grid.1.power_mw=3", "sites.oslo.grid.1: no such entry; it has entries 0 to 0"),
        ("plan.horizon=forever", "`forever` is not allowed here; write years, months or quarters: 5y, 18m or 20q"),
        ("sites.oslo.grid[7].power_mw=3", "sites.oslo.grid.7: no such entry; it has entries 0 to 0"),
        ("sites.oslo.grid[-1].power_mw=3", "sites.oslo.grid.-1: no such entry; it has entries 0 to 0"),
        ("sites.oslo.lat.deg=3", "sites.oslo.lat: is a value, and has no key `deg`"),
        ("sites.oslo.place.x=3", "sites.oslo.place: is a value, and has no key `x`"),
        ("sites.oslo.lat=200", "200 is out of range: at most 90 is wanted"),
        ("sites.oslo.lat=.nan", ".nan is not a number that can be used"),
        ("demand.scale=", "no value after the `=`"),
        ("demand.scale", "not of the form key=value"),
        ("=3", "not of the form key=value"),
    ],
)
def test_a_wrong_set_is_named(override: str, words: str):
    """A key that does not exist, or a value that does not fit, is told with the override it came from."""
    said = problems_of(SMALL, override)

    assert said[0].startswith(f"--set {override}: ")
    assert words in said[0]


@given(st.text(max_size=60))
def test_any_text_is_an_error_with_a_message(text: str):
    """Whatever is written instead of a fleet file, the answer is a FleetError that says something."""
    with pytest.raises(FleetError, match=r"\S"):
        loads(text)


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_set_is_an_error_or_a_fleet(key: str, value: str):
    """Whatever is written after --set, the answer is a fleet or a FleetError."""
    try:
        loads(SMALL, overrides=[f"{key}={value}"])
    except FleetError as error:
        assert "--set" in str(error)  # noqa: PT017


def test_the_template_takes_any_name():
    """`baseload init` may be given any file name: what a fleet's name may not hold is replaced."""
    for name in ("my fleet", "é", "", "a" * 200, "../x", "-x"):
        assert loads(template(name)).fleet.name


def test_a_place_in_a_list_and_a_month_may_be_set():
    """`sites.x.grid[0].energised=2028-06` means the first entry and the first of June; elsewhere a month stays text."""
    fleet = loads(template(), overrides=["sites.oslo.grid[0].energised=2028-06", "name=2028-06"]).fleet
    assert str(fleet.sites["oslo"].grid[0].energised) == "2028-06-01" and fleet.name == "2028-06"
