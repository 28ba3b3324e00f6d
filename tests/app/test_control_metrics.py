"""The metrics, and the alert rules over them, as Prometheus's own tool judges them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from baseload.app import metrics
from baseload.app.web.view import RecentRequest, TenantNow
from tests.app.control_client import listening
from tests.app.fake_owner import TOKENS, FakeOwner

DOCS = Path(__file__).resolve().parents[2] / "docs"
SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")


@pytest.fixture(scope="session")
def promtool() -> str:
    """Return the path of promtool."""
    found = shutil.which("promtool")
    if not found:
        pytest.skip("no promtool on PATH: apt install prometheus")
    return found


def checked(*command: str, sent: bytes | None = None) -> str:
    """Run promtool; return what it says, and fail where it is not content."""
    done = subprocess.run(command, input=sent, capture_output=True, cwd=DOCS, timeout=60, check=False)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    return said


def samples(text: bytes) -> dict[str, float]:
    """Return the samples by name with labels."""
    rows = [line for line in text.decode().splitlines() if line and not line.startswith("#")]
    return {row.rpartition(" ")[0]: float(row.rpartition(" ")[2]) for row in rows}


@pytest.mark.parametrize(
    "owner", [FakeOwner(), FakeOwner(0, 0), FakeOwner(40, 300, 60)], ids=["three", "empty", "large"]
)
def test_promtool_finds_nothing_to_mend_in_the_metrics(promtool: str, owner: FakeOwner):
    """Names, units, types and help are as Prometheus wants them, for no site and for forty."""
    said = checked(promtool, "check", "metrics", sent=metrics.exposition(owner.snapshot()))

    assert said == ""


def test_promtool_finds_the_rules_right(promtool: str):
    """The alert rules parse, and their unit tests pass."""
    assert "SUCCESS" in checked(promtool, "check", "rules", "alerts.yml")
    assert "SUCCESS" in checked(promtool, "test", "rules", "alerts.test.yml")


def test_the_rules_speak_of_metrics_that_exist():
    """Every metric and label that a rule names is one that we expose."""
    owner = FakeOwner()
    exposed = metrics.exposition(owner.snapshot()).decode()
    names = {match.group(1) for line in exposed.splitlines() if (match := SAMPLE.match(line))}
    rules = (DOCS / "alerts.yml").read_text("utf-8")
    wanted = set(
        re.findall(r"(?<![:\w])baseload_\w+", "\n".join(line for line in rules.splitlines() if "summary" not in line))
    )

    assert wanted and wanted <= names, wanted - names


def test_every_alert_has_a_test():
    """No alert rule stands that the unit tests do not speak of."""
    alerts = set(re.findall(r"alert: (\w+)", (DOCS / "alerts.yml").read_text("utf-8")))
    tested = (DOCS / "alerts.test.yml").read_text("utf-8")

    assert alerts and not [name for name in alerts if name not in tested]


def test_figures_are_in_base_units():
    """Watts, joules, seconds and ratios: a site's kW times a thousand, a histogram that adds up."""
    owner = FakeOwner()
    now = owner.snapshot()
    got = samples(metrics.exposition(now))

    assert got['baseload_site_power_watts{site="oslo"}'] == pytest.approx(1000.0 * now.sites[1].power_kw)
    assert got['baseload_ttft_seconds_bucket{le="+Inf",tenant="acme"}'] == sum(now.tenants[1].ttft_s_counts)
    assert got['baseload_requests_total{outcome="served",tenant="acme"}'] == now.tenants[1].requests_total["served"]
    assert got['baseload_alarms{kind="divergence",level="warning"}'] == 1.0


def test_what_clients_send_never_becomes_a_label():
    """Models and tenants that someone made up are in no metric; the number of series does not grow with requests."""
    owner = FakeOwner()
    now = owner.snapshot()
    made_up = [
        RecentRequest(at_ns=0, request_id=f"req-{i}", tenant=f"made-up-{i}", model=f"model-{i}", outcome="refused")
        for i in range(100)
    ]
    before = metrics.exposition(now)
    after = metrics.exposition(msgspec.structs.replace(now, recent=made_up))

    assert before == after and b"made-up" not in after


def test_labels_are_bounded_and_what_is_left_out_is_counted():
    """A fleet with more tenants than Prometheus should see keeps its metrics small, and says so."""
    owner = FakeOwner()
    many = [TenantNow(name=f"t{i}", slo_requests_total=1) for i in range(metrics.LABELS_MAX + 10)]
    got = samples(metrics.exposition(msgspec.structs.replace(owner.snapshot(), tenants=many)))

    assert sum(name.startswith("baseload_slo_requests_total") for name in got) == metrics.LABELS_MAX
    assert got["baseload_metrics_left_out"] >= 10


def test_label_values_are_escaped(promtool: str):
    """A name with quotes, backslashes and line ends stays one label."""
    owner = FakeOwner()
    evil = [TenantNow(name='a"} 1\nevil{x="\\', slo_requests_total=1)]
    text = metrics.exposition(msgspec.structs.replace(owner.snapshot(), tenants=evil))

    checked(promtool, "check", "metrics", sent=text)
    assert b"\nevil{" not in text


def test_metrics_are_for_this_machine_or_a_viewer():
    """Prometheus beside the gateway needs no token, one elsewhere needs a viewer's; a proxy does not open it."""
    with listening() as listener:
        local = listener.ask("GET", "/metrics")
        assert local.status == 200 and local.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert listener.ask("GET", "/metrics", headers={"X-Forwarded-For": "10.0.0.1"}).status == 401
        assert listener.ask("GET", "/metrics", token="wrong").status == 401
        assert listener.ask("GET", "/metrics", token=TOKENS["viewer"]).status == 200
