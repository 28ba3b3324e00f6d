"""The live page in a real Chromium: it logs in, follows, fits a phone, works by keyboard, and says when it is cut off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

from baseload.app.web.view import Alarm
from tests.app.control_client import Listener, listening
from tests.app.fake_owner import TOKENS, FakeOwner

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    """One Chromium for all tests."""
    with playwright.sync_playwright() as runner:
        one = runner.chromium.launch(executable_path=chromium, args=FLAGS)
        yield one
        one.close()


@contextmanager
def opened(browser: Any, listener: Listener, width: int = 1280, height: int = 900, **options: Any) -> Iterator[Any]:
    """Yield a page with its complaints collected; there must be none at the end."""
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    page = context.new_page()
    page.set_default_timeout(10_000)
    page.complaints = []
    page.on("console", lambda said: page.complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("request", lambda sent: None if sent.url.startswith(listener.origin) else page.complaints.append(sent.url))
    yield page
    context.close()
    assert page.complaints == []


def live(page: Any, listener: Listener) -> None:
    """Open the page, wait until it follows."""
    page.goto(listener.origin + "/")
    page.wait_for_selector("#link[data-state=live]")
    page.wait_for_selector("#plot-load canvas")


@pytest.fixture(scope="module")
def listener() -> Iterator[Listener]:
    """A listener that anyone on this machine may look at."""
    with listening(open_role="viewer") as one:
        yield one


def test_a_person_logs_in_and_out(browser: Any):
    """A wrong token is told, a right one opens the page, the button closes it for good."""
    with listening() as own:
        context = browser.new_context()
        page = context.new_page()
        page.goto(own.origin + "/")
        assert page.url.endswith("/login")
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("[role=alert]")
        page.fill("#token", TOKENS["operator"])
        page.click("button.main")
        page.wait_for_selector("#link[data-state=live]")
        assert "token" not in page.url and TOKENS["operator"] not in page.content()
        assert page.evaluate("document.cookie") == ""
        page.click("#reload")
        page.wait_for_selector("#answer:not([hidden])")
        assert "Version 4" in page.inner_text("#answer")
        page.click("text=Log out")
        page.wait_for_url("**/login")
        page.goto(own.origin + "/")
        assert page.url.endswith("/login")
        context.close()


def test_figures_move_by_themselves(browser: Any, listener: Listener):
    """Within three seconds the clock of the figures, the requests and a chart have moved, without a reload."""
    with opened(browser, listener) as page:
        live(page, listener)
        before = page.inner_text("#as-of"), page.inner_text("#s-recent tbody tr:first-child")
        page.wait_for_function("(old) => document.getElementById('as-of').textContent !== old", arg=before[0])
        page.wait_for_timeout(2500)

        assert page.inner_text("#s-recent tbody tr:first-child") != before[1]
        assert "req-" in page.inner_text("#s-recent tbody tr:first-child")
        assert page.locator(".plot canvas").count() == 6


def test_news_leave_focus_scrolling_and_open_details_alone(browser: Any, listener: Listener):
    """Who reads with the keyboard is not thrown out of a table by the next second."""
    with opened(browser, listener) as page:
        live(page, listener)
        page.click("#s-ladders summary >> nth=1")
        page.locator("#s-recent .scroll").evaluate("(box) => { box.scrollTop = 90; box.focus(); }")
        was = page.inner_text("#as-of")
        page.wait_for_function("(old) => document.getElementById('as-of').textContent !== old", arg=was)
        page.wait_for_timeout(1500)

        assert page.evaluate("document.activeElement.closest('#s-recent') !== null")
        assert page.locator("#s-recent .scroll").evaluate("(box) => box.scrollTop") > 0
        assert page.locator("#s-ladders details[open]").count() == 1


@pytest.mark.parametrize(
    ("width", "sites", "replicas"),
    [(320, 3, 12), (375, 3, 12), (1280, 3, 12), (375, 0, 0), (375, 40, 400), (1280, 40, 400)],
)
def test_nothing_is_wider_than_the_screen(browser: Any, width: int, sites: int, replicas: int):
    """On a phone no page, table or chart has to be pushed sideways; with no site and with forty."""
    with listening(FakeOwner(sites, replicas), open_role="viewer") as own, opened(browser, own, width, 800) as page:
        page.goto(own.origin + "/")
        page.wait_for_selector("#link[data-state=live]")
        page.wait_for_timeout(600)

        assert page.evaluate("document.documentElement.scrollWidth") <= width
        if width < 640:
            wide = page.evaluate(
                "[...document.querySelectorAll('main *')].filter((e) => !e.closest('svg,.u-wrap')"
                " && e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.tagName + e.className)"
            )
            assert wide == []


def test_the_keyboard_reaches_everything_in_order(browser: Any, listener: Listener):
    """Tab goes skip link, pause, sections, chart's choice, filter; each shows where it is; Enter skips to the figures."""
    with opened(browser, listener) as page:
        live(page, listener)
        reached = []
        for _ in range(12):
            page.keyboard.press("Tab")
            reached.append(
                page.evaluate("document.activeElement.id || document.activeElement.textContent.trim().slice(0, 20)")
            )
            outlined = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outlined != "none", reached
        assert reached[0] == "Skip to the figures" and reached[1] == "pause" and "scope" in reached
        page.focus(".skip")
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"


def test_it_can_be_paused(browser: Any, listener: Listener):
    """What moves by itself can be stopped, and goes on from now when resumed."""
    with opened(browser, listener) as page:
        live(page, listener)
        page.click("#pause")
        held = page.inner_text("#s-recent tbody tr:first-child")
        page.wait_for_timeout(2500)
        assert page.inner_text("#s-recent tbody tr:first-child") == held and "paused" in page.inner_text("#link")
        page.click("#pause")
        assert page.inner_text("#s-recent tbody tr:first-child") != held


def test_a_screen_reader_has_names_for_all_of_it(browser: Any, listener: Listener):
    """Landmarks, one h1, named regions and charts, captions on tables, labels on fields; figures are not read aloud."""
    with opened(browser, listener) as page:
        live(page, listener)

        assert [page.locator(one).count() for one in ("main", "h1", "header", "footer", "nav[aria-label]")] == [1] * 5
        assert page.locator("table:not(:has(caption))").count() == 0
        assert page.locator("section:not([aria-label]):not([aria-labelledby])").count() == 0
        assert page.locator("svg:not([role=img]):not([aria-hidden=true])").count() == 0
        for plot in page.locator(".plot").all():
            words = plot.evaluate("(e) => document.getElementById(e.getAttribute('aria-describedby')).textContent")
            assert "between" in words
        live_regions = page.locator("[aria-live],[role=status],[role=alert]")
        assert page.locator("label:has(select), label:has(input)").count() == 2
        assert all(
            page.evaluate("(e) => !e.querySelector('table,.card')", one.element_handle()) for one in live_regions.all()
        )
        assert page.locator("button:not(:has-text(' ')):empty").count() == 0


def test_new_alarms_are_said_once(browser: Any):
    """An alarm that comes while the page is open is announced politely, and told at the top."""
    with listening(FakeOwner(well=True), open_role="viewer") as own, opened(browser, own) as page:
        live(page, own)
        page.wait_for_timeout(1200)
        assert page.inner_text("#say") == ""
        alarm = Alarm(
            kind="power", level="critical", subject="oslo", what="12 kW drawn, 11 kW may be.", since_ns=10**18
        )
        own.owner.extra_alarms = [alarm]
        page.wait_for_selector("#s-notices .critical")
        page.wait_for_function("() => document.getElementById('say').textContent.includes('1 in all')")

        assert "oslo" in page.inner_text("#s-notices")


def test_rehearsals_are_marked(browser: Any, listener: Listener):
    """Whoever looks sees at the top, and at each replica, that emulated engines prove nothing."""
    with opened(browser, listener) as page:
        live(page, listener)

        assert "4 of 12 replicas are emulated" in page.inner_text("#s-head")
        assert page.locator("#s-replicas .tag.rehearsal").count() >= 1
        assert page.locator("#s-recent .tag.rehearsal").count() >= 1


def test_a_site_has_its_own_charts_and_the_filter_narrows(browser: Any, listener: Listener):
    """The choice above the charts changes whose history is drawn; the filter keeps rows with a part of a name."""
    with opened(browser, listener) as page:
        live(page, listener)
        page.select_option("#scope", "tenant/acme")
        page.wait_for_function("() => document.getElementById('plot-power').hidden")
        page.wait_for_function("() => document.querySelector('#plot-ttft .legend').textContent.includes('SLO')")
        page.select_option("#scope", "site/oslo")
        page.wait_for_function("() => !document.getElementById('plot-power').hidden")
        page.fill("#filter", "oslo")
        page.wait_for_timeout(1300)  # the next news keep it

        assert page.locator("#s-sites tbody tr:visible").count() == 1


def test_a_lost_connection_is_shown_and_mends_itself(browser: Any):
    """When the owner goes, the page says so and how old its figures are; when the session ends, it asks to log in."""
    with listening() as own:
        context = browser.new_context()
        page = context.new_page()
        page.goto(own.origin + "/login")
        page.fill("#token", TOKENS["viewer"])
        page.keyboard.press("Enter")
        page.wait_for_selector("#link[data-state=live]")
        context.set_offline(True)
        page.evaluate("window.stop()")
        page.wait_for_selector("#link[data-state=lost]", timeout=15_000)
        assert "figures of" in page.inner_text("#link") and "Connection lost" in page.inner_text("#say")
        context.set_offline(False)
        page.wait_for_selector("#link[data-state=live]", timeout=15_000)
        own.owner.revoke_token("viewer")
        page.wait_for_url("**/login", timeout=15_000)
        context.close()


def test_names_with_markup_are_shown_as_text(browser: Any):
    """A tenant's name cannot run a script, neither on the first page nor in the news; the policy forbids inline code too."""
    owner = FakeOwner()
    evil = "<img src=x onerror=document.title='hit'>"
    plain = owner.snapshot

    def snapshot() -> Any:
        now = plain()
        recent = [msgspec.structs.replace(one, tenant=evil, why=evil) for one in now.recent]
        return msgspec.structs.replace(now, recent=recent, reload_fault=evil, fleet="three")

    owner.snapshot = snapshot  # type: ignore[method-assign]
    with listening(owner, open_role="viewer") as own, opened(browser, own) as page:
        live(page, own)
        page.wait_for_timeout(1500)

        assert page.title() == "(2) three: live" and evil in page.inner_text("#s-recent")
        blocked = page.evaluate(
            "() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s);"
            " return window.ran === undefined; }"
        )
        assert blocked
        assert any("Content Security Policy" in said for said in page.complaints)
        page.complaints.clear()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_their_ground(browser: Any, listener: Listener, scheme: str):
    """Every text has a contrast of at least 4.5 to 1 (WCAG AA), in light and dark."""
    with opened(browser, listener, color_scheme=scheme) as page:
        live(page, listener)
        weak = page.evaluate(CONTRAST)

        assert weak == []


CONTRAST = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const seen = (c) => c.length < 4 || c[3] > 0;
  const ground = (e) => !e ? [255, 255, 255] : seen(parse(getComputedStyle(e).backgroundColor))
    ? parse(getComputedStyle(e).backgroundColor) : ground(e.parentElement);
  const weak = new Set();
  for (const e of document.querySelectorAll('body *')) {
    if (e.closest('svg,.sr,.skip,noscript') || ![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
    const a = light(parse(getComputedStyle(e).color)), b = light(ground(e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) weak.add(e.tagName + '.' + e.className + ' ' + ratio.toFixed(2));
  }
  return [...weak];
}"""
