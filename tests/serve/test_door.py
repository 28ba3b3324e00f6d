"""The door: hard limits, counts that cannot leak, and the same answers in plain and compiled form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from msgspec.structs import replace

from baseload.policies.retry import may_try_again
from baseload.records import REASON_BUDGET, REASON_NO_REPLICA, REASON_POWER, REASON_SLO, REASON_TOO_LONG
from baseload.serve import door as d
from baseload.serve.board import Board
from baseload.serve.door import Door
from tests.serve.fleet import deployment, policy, tables, tenant

ROUTES = ("round_robin", "least_outstanding", "least_wait", "prefix_affine", "cheapest", "greenest")
ADMISSION = ("always", "within_slo", "within_budget", "within_slo_and_budget")


def ask(door: Door, now_s: float = 0.0, **kw: Any) -> int:
    """Ask where a plain request goes."""
    base: dict[str, Any] = {"tenant_i": 0, "model_i": 0, "input_tokens": 100, "budget_left": 1e9}
    return door.decide(now_s, **{**base, **kw})


def end(door: Door, replica: int, work: float, now_s: float = 0.0, outcome: int = d.OK, tokens: int = 10) -> None:
    """Let a try end."""
    door.ended(now_s, replica, work, tenant_i=0, model_i=0, output_tokens=tokens, outcome=outcome)


@given(
    seed=some.integers(0, 2**32 - 1),
    route=some.sampled_from(ROUTES),
    admit=some.sampled_from(ADMISSION),
)
def test_no_request_ever_goes_where_it_may_not(seed: int, route: str, admit: str) -> None:
    """Whatever fails, closes, is ejected or retried: only replicas that law, model, gate, address and tries allow."""
    rng = np.random.default_rng(seed)
    fleet = tables(12, sites=2, tenants=3, models=2, policy=policy(route=route, admit=admit))
    door = Door(fleet)
    flying: list[tuple[int, float, int, int]] = []
    for step in range(120):
        now_s = step * 0.4
        if rng.random() < 0.1:
            door.set_gate(rng.integers(-1, 10, 12).tolist())
        if rng.random() < 0.1:
            door.set_endpoints([None if rng.random() < 0.3 else "url" for _ in range(12)])
        who, model = int(rng.integers(0, 3)), int(rng.integers(0, 2))
        tried = int(rng.integers(0, 1 << 12)) if rng.random() < 0.3 else 0
        r = ask(door, now_s, tenant_i=who, model_i=model, prefix_key=int(rng.integers(0, 5)), tried=tried,
                budget_left=float(rng.choice([0.0, 1.0])))  # fmt: skip
        if r >= 0:
            pool = fleet.replicas[r].pool_i
            assert fleet.may[who][model][pool] == 1 and fleet.pools[pool].deployment_i == model
            assert door.gate[r] >= 5 and door.reachable[r] and not tried >> r & 1 and door.ejection.open[r]
            door.sent(r, 50.0)
            flying.append((r, 50.0, who, model))
        while flying and rng.random() < 0.6:
            r, work, who, model = flying.pop(int(rng.integers(0, len(flying))))
            door.ended(now_s, r, work, tenant_i=who, model_i=model, output_tokens=int(rng.integers(0, 99)),
                       outcome=int(rng.choice([0, 0, 1, 1, 2, 3, 4])))  # fmt: skip
        door.check()
    for r, work, who, model in flying:
        door.ended(50.0, r, work, tenant_i=who, model_i=model, output_tokens=0, outcome=d.CANCELLED)
    assert not any(door.own) and not any(door.own_queued)  # nothing leaked
    with pytest.raises(AssertionError, match="more requests ended than were sent"):
        door.ended(50.0, 0, 1.0, tenant_i=0, model_i=0, output_tokens=0, outcome=d.OK)


def test_the_law_fails_closed() -> None:
    """A tenant, model or region that is not of the fleet is served nowhere; nor is a pool without its own `may`."""
    door = Door(tables(4, tenants=2))
    for wrong in ({"tenant_i": -1}, {"tenant_i": 2}, {"model_i": -1}, {"model_i": 1}, {"region_i": 7}):
        assert ask(door, **wrong) == -REASON_NO_REPLICA
    base = tables(4, tenants=1)
    for value in (0, 2, -1):
        assert ask(Door(replace(base, may=[[[value, value]]]))) == -REASON_NO_REPLICA


def test_a_fresh_board_serves_nobody(tmp_path: Path) -> None:
    """Until the owner has opened a replica's gate, and said so, the door knows of none; a priority closed is told so."""
    board = Board.create(tmp_path / "board", 4, 2, 1)
    door = Door(tables(4), board)
    assert ask(door) == -REASON_NO_REPLICA
    board.gate[2] = 9
    assert ask(door) == -REASON_NO_REPLICA  # the burst is not over
    board.bump()
    assert ask(door) == 2
    board.gate[2] = 3
    board.bump()
    assert ask(door) == -REASON_POWER
    assert board.totals("asked")[:2] == [3, 3]
    door.check()


def test_each_refusal_has_its_reason() -> None:
    """Too long, over budget and hopeless within the SLO are told apart, as in the twin."""
    door = Door(tables(4, tenants=1, policy=policy(admit="within_slo_and_budget")))
    assert ask(door, input_tokens=8192) == -REASON_TOO_LONG
    assert ask(door, budget_left=0.0) == -REASON_BUDGET
    slow = tables(
        4, tenants=1, policy=policy(admit="within_slo"), deployments=[deployment("d0", prefill_tokens_per_s=10.0)]
    )
    assert ask(Door(slow)) == -REASON_SLO
    assert ask(Door(slow), tried=1) == 1  # admitted is admitted: a retry is not asked again


def test_failures_in_a_row_close_a_replica_and_one_trial_opens_it() -> None:
    """Five failures and it is left alone; after its time exactly one request tries it, and decides."""
    door = Door(tables(4, tenants=1))
    for i in range(5):
        door.sent(0, 1.0)
        end(door, 0, 1.0, now_s=float(i), outcome=d.FAILED_BEFORE_FIRST_BYTE, tokens=0)
    assert ask(door, 5.0) == 1
    first = ask(door, 15.0)
    assert first == 0
    door.sent(0, 1.0)
    assert ask(door, 15.1) == 1  # the trial is under way
    end(door, 0, 1.0, now_s=15.2)
    assert ask(door, 15.3) == 0
    door.check()


def test_a_refused_connection_closes_at_once_and_a_start_opens(tmp_path: Path) -> None:
    """Nobody listens: no request follows; when the owner sees the replica start anew it is open at once."""
    board = Board.create(tmp_path / "board", 4, 2, 1)
    for r in range(4):
        board.gate[r] = 9
    door = Door(tables(4, tenants=1), board)
    door.sent(0, 1.0)
    end(door, 0, 1.0, outcome=d.UNREACHED, tokens=0)
    assert ask(door, 0.1) == 1
    board.epoch[0] += 1
    board.bump()
    assert ask(door, 0.2) == 0


def test_workers_see_what_others_sent(tmp_path: Path) -> None:
    """With two workers least outstanding counts both workers' requests; a dead worker's are forgotten."""
    board = Board.create(tmp_path / "board", 4, 2, 2)
    for r in range(4):
        board.gate[r] = 9
    one, two = Door(tables(4, tenants=1), board, 0), Door(tables(4, tenants=1), board, 1)
    for door in (one, two, one, two):
        r = ask(door)
        door.sent(r, 10.0)
    assert board.totals("outstanding") == [1, 1, 1, 1]
    board.clear_worker(1)
    assert ask(one) == 1
    one.check()


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("admit", ["always", "within_slo_and_budget"])
def test_plain_and_compiled_doors_decide_alike(route: str, admit: str) -> None:
    """A worker on lists and one on arrays with compiled rules send every request to the same replica."""
    rows = [tenant("a", priority=2, ttft_slo_s=0.05), tenant("b", priority=7)]
    fleet = tables(
        80, tenants=2, policy=policy(route=route, admit=admit), deployments=[deployment("d0", slots=2)]
    )  # fmt: skip
    fleet = replace(fleet, tenants=rows)
    plain, compiled = Door(fleet, compiled=False), Door(fleet)
    assert compiled.compiled and not plain.compiled
    rng = np.random.default_rng(3)
    flying: list[tuple[int, float, int]] = []
    reasons = 0
    for i in range(800):
        who, tokens = int(rng.integers(0, 2)), int(rng.integers(1, 2000))
        what = {"tenant_i": who, "input_tokens": tokens, "prefix_key": int(rng.integers(0, 9)) * 1_234_567_891_011,
                "prefix_blocks": 3, "budget_left": float(rng.choice([0.001, 1.0]))}  # fmt: skip
        r = ask(plain, i * 0.01, **what)
        assert r == ask(compiled, i * 0.01, **what), i
        reasons += r < 0
        if r >= 0:
            assert plain.why(r) == compiled.why(r)
            work = plain.work(who, 0, tokens)
            for door in (plain, compiled):
                door.sent(r, work)
            flying.append((r, work, who))
        if len(flying) > 200:
            r, work, who = flying.pop(int(rng.integers(0, len(flying))))
            for door in (plain, compiled):
                door.ended(i * 0.01, r, work, tenant_i=who, model_i=0, output_tokens=int(tokens % 300), outcome=d.OK)
    plain.check()
    compiled.check()
    assert (reasons > 0) == (admit != "always")


def test_plain_and_compiled_workers_share_a_board_alike(tmp_path: Path) -> None:
    """Three workers on lists and three on arrays, each lot with its own board, send the same requests alike."""
    fleet = tables(80, tenants=1, policy=policy(route="least_wait"), deployments=[deployment("d0", slots=2)])
    lots = []
    for name, compiled in (("plain", False), ("compiled", True)):
        board = Board.create(tmp_path / name, 80, 2, 3)
        for r in range(80):
            board.gate[r] = 9
        board.bump()
        lots.append([Door(fleet, board, w, compiled=compiled) for w in range(3)])
    rng = np.random.default_rng(4)
    flying: list[tuple[int, int, float]] = []
    for i in range(500):
        w, tokens = int(rng.integers(0, 3)), int(rng.integers(1, 2000))
        one, two = (lot[w] for lot in lots)
        r = ask(one, i * 0.01, input_tokens=tokens)
        assert r == ask(two, i * 0.01, input_tokens=tokens) and r >= 0, i
        for door in (one, two):
            door.sent(r, tokens + 100.0)
        flying.append((w, r, tokens + 100.0))
        if len(flying) > 150:
            w, r, work = flying.pop(int(rng.integers(0, len(flying))))
            for lot in lots:
                end(lot[w], r, work, i * 0.01)
    for lot in lots:
        for door in lot:
            door.check()


def test_a_reload_keeps_what_is_in_flight() -> None:
    """Replicas move rows, one leaves: counts follow by name, and a request sent before ends where it went."""
    before = tables(4, tenants=1)
    door = Door(before)
    for r in (0, 1, 2):
        door.sent(r, 10.0)
    door.mean_tokens[0] = 77.0
    after = tables(2, tenants=1, version=2)  # one replica a site: rows 0 and 2 of before
    door.reload(after)
    assert list(door.own) == [1, 1] and door.predicted(0, 0) == 77.0
    door.ended(1.0, 2, 10.0, tenant_i=0, model_i=0, output_tokens=9, outcome=d.OK, version=1)
    door.ended(1.0, 1, 10.0, tenant_i=0, model_i=0, output_tokens=9, outcome=d.OK, version=1)  # it left
    door.ended(1.0, 0, 10.0, tenant_i=0, model_i=0, output_tokens=9, outcome=d.OK, version=1)
    assert list(door.own) == [0, 0]
    door.check()


def test_a_reload_forgets_no_verdict(tmp_path: Path) -> None:
    """A replica that is left alone, or being tried, is so after a reload too, though the board tells of its start long ago."""
    board = Board.create(tmp_path / "board", 4, 2, 1)
    for r in range(4):
        board.gate[r], board.epoch[r] = 9, 1
    door = Door(tables(4, tenants=1), board)
    for i in range(5):
        for r in (0, 1):
            door.sent(r, 1.0)
            end(door, r, 1.0, now_s=float(i), outcome=d.FAILED_BEFORE_FIRST_BYTE, tokens=0)
    door.reload(tables(4, tenants=1, version=2))
    assert ask(door, 5.0) == 2
    trial = ask(door, 15.0)
    assert trial in (0, 1)
    door.sent(trial, 1.0)
    door.reload(tables(4, tenants=1, version=3))
    assert ask(door, 15.1) != trial, "its trial is under way"
    door.ended(15.2, trial, 1.0, tenant_i=0, model_i=0, output_tokens=5, outcome=d.OK, version=2)
    assert door.ejection.state[trial] == 0
    board.epoch[1 - trial] += 1
    board.bump()
    assert door.ejection.state[1 - trial] != 0 and ask(door, 15.3) >= 0 and door.ejection.state[1 - trial] == 0
    door.check()


def test_with_every_upstream_down_they_see_at_most_a_tenth_more() -> None:
    """Each request is tried, fails, and is retried as the budget allows: tries stay within 1.1 of the requests."""
    door = Door(tables(8, tenants=1))
    tries = requests = 0
    for i in range(6000):
        now_s, tried, n = i * 0.01, 0, 0
        requests += 1
        while True:
            r = ask(door, now_s, tried=tried, first=n == 0)
            if r < 0:
                break
            door.sent(r, 1.0)
            n += 1
            tries += 1
            tried |= 1 << r
            end(door, r, 1.0, now_s, d.FAILED_BEFORE_FIRST_BYTE, tokens=0)
            if not (may_try_again(n, door.tables.policy.retries) and door.may_retry(now_s)):
                break
    assert tries <= 1.1 * requests
    assert tries > 0.9 * requests  # the brake: it is we who are cut off, so nobody is left alone for long
