"""Alerts: each rule raised at its bound after its time, cleared below its calm, visible for a while."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness import MEDIUM, SMALL, World, small_settings
from test_reports import ask

from shmpool.protocol.figures import LATENCIES, MISSES, TIMEOUTS, USED_COUNTERS
from shmpool.protocol.header import counters_at
from shmpool.protocol.metrics import ALERTS
from shmpool.protocol.states import State
from shmpoold.core.actions import Log
from shmpoold.core.events import MemoryRead
from shmpoold.core.lending.requests import Rung
from shmpoold.core.memory.pressure import Room
from shmpoold.core.outbox import Outbox
from shmpoold.core.reports import JUDGED_EVERY
from shmpoold.core.reports.alerts import FEW_TIMED, Alerts
from shmpoold.core.reports.rules import LINGERS, NAMES, RULES, Rule, Severity, said, table


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_each_rule_is_raised_after_its_time_and_cleared_below_its_calm(rule: Rule) -> None:
    outbox = Outbox()
    alerts = Alerts(outbox, {})
    alerts.judge(rule.name, rule.bound * 0.99, 0.0)
    assert alerts.is_quiet and not alerts.lines(0.0)
    alerts.judge(rule.name, rule.bound, 1.0, "pid 7")
    if rule.after:
        assert not alerts.lines(1.0) and not alerts.is_quiet
        alerts.judge(rule.name, rule.bound * 0.99, 2.0)  # not for long enough: it begins anew
        alerts.judge(rule.name, rule.bound, 3.0)
        alerts.judge(rule.name, rule.bound, 3.0 + rule.after - 0.1)
        assert not alerts.lines(3.0 + rule.after - 0.1)
        alerts.judge(rule.name, rule.bound * 2, 3.0 + rule.after, "pid 7")
    [line] = alerts.lines(200.0)
    assert (line["name"], line["severity"], line["about"]) == (rule.name, rule.severity.name.lower(), "pid 7")
    assert line["cleared_seconds"] is None and line["advice"] == rule.advice
    assert list(line) == [figure.name for figure in ALERTS]
    [said] = [action for action in outbox.take() if isinstance(action, Log)]
    assert said.is_warning and rule.name in said.text and rule.advice in said.text and "pid 7" in said.text

    alerts.judge(rule.name, rule.calm, 300.0)  # hysteresis: not better than calm
    assert alerts.lines(300.0)[0]["cleared_seconds"] is None and not outbox.take()
    alerts.judge(rule.name, rule.calm * 0.99, 301.0)
    [over] = outbox.take()
    assert isinstance(over, Log) and not over.is_warning
    assert alerts.lines(310.0)[0]["cleared_seconds"] == 9.0
    alerts.forget_old(301.0 + LINGERS)
    assert alerts.lines(301.0 + LINGERS) == [] and alerts.is_quiet


def test_bounds_can_be_moved_and_an_alert_switched_off() -> None:
    alerts = Alerts(Outbox(), {"quarantine": False, "leaks": 10.0})
    alerts.judge("quarantine", 1e9, 0.0)
    alerts.judge("leaks", 9.0, 0.0)
    assert alerts.is_quiet
    alerts.judge("leaks", 10.0, 0.0)
    assert [line["name"] for line in alerts.lines(0.0)] == ["leaks"]


def test_counts_are_said_as_people_count() -> None:
    rules = {rule.name: rule for rule in RULES}
    assert said(rules["timeouts"], 4060.0) == "4,060"
    assert said(rules["full"], 0.994) == "99%"
    assert said(rules["waiting"], 1.25) == "1.25 s"
    assert said(rules["latency"], 4.0) == "4 times"


def test_the_worst_come_first() -> None:
    alerts = Alerts(Outbox(), {})
    alerts.judge("leaks", 3.0, 0.0)
    alerts.judge("quarantine", 1.0, 0.0)
    assert [Severity[line["severity"].upper()] for line in alerts.lines(0.0)] == [Severity.CRITICAL, Severity.WARNING]


@pytest.mark.parametrize("count", [FEW_TIMED - 1, FEW_TIMED])
def test_latencies_of_few_timed_leases_are_told_and_of_fewer_not(count: int) -> None:
    alerts, totals = Alerts(Outbox(), {}), [0] * USED_COUNTERS
    alerts.judge_counters(list(totals), 0.0)
    for now, leases, each in ((1000.0, FEW_TIMED, 1_000), (2000.0, count, 9_000), (3000.0, count, 9_000)):
        totals[LATENCIES] += leases * each
        totals[LATENCIES + 3] += leases
        alerts.judge_counters(list(totals), now)
    assert [line["name"] for line in alerts.lines(3000.0)] == ["latency"] * (count == FEW_TIMED)


def test_what_an_alert_is_about_is_said_as_it_is_now() -> None:
    alerts, figures = Alerts(Outbox(), {}), [(0.0, "one"), (1000.0, "one"), (2000.0, "other"), (3000.0, "")]
    told = []
    for now, about in figures:
        alerts.judge("reader", 0.9, now, about)
        told.append([line["about"] for line in alerts.lines(now)])
    assert told == [[], ["one"], ["other"], ["other"]]


# --- each figure, by what really happens ------------------------------------------------------------


@pytest.fixture
def world(make_world: type[World]) -> World:
    return make_world(small_settings(leak_age=3600.0))


def raised(world: World) -> dict[str, dict[str, Any]]:
    return {line["name"]: line for line in ask(world)["alert_states"]}


def look(world: World, times: int = 1) -> None:
    """So many looks at the figures."""
    world.pass_time(times * (JUDGED_EVERY + 0.1))


def count(world: World, seat: int, word: int, more: int) -> None:
    world.ledger[counters_at(world.broker.rows.count, seat) + word] += more


def test_counters_raise_misses_timeouts_and_latency(world: World) -> None:
    client = world.client()
    client.lease(client.get()[0])
    for turn in range(8):
        count(world, client.seat, 0, 200)  # small pooled leases
        count(world, client.seat, MISSES, 10)
        count(world, client.seat, LATENCIES, FEW_TIMED * 1_000)
        count(world, client.seat, LATENCIES + 3, FEW_TIMED)
        look(world)
        assert not raised(world), turn
    for turn in range(6):
        count(world, client.seat, TIMEOUTS, 2 * (turn == 5))
        count(world, client.seat, 0, 200)
        count(world, client.seat, MISSES, 80)
        count(world, client.seat, LATENCIES, FEW_TIMED * 9_000)
        count(world, client.seat, LATENCIES + 6, FEW_TIMED)
        look(world)
    found = raised(world)
    assert set(found) == {"misses", "timeouts", "latency"}
    assert found["misses"]["worst"] == pytest.approx(0.4) and found["latency"]["about"] == "small objects"
    assert any("40%" in alert for alert in ask(world)["alerts"])
    look(world, 2)  # nothing is leased now
    assert all(line["cleared_seconds"] is not None for line in raised(world).values())


def test_who_waited_is_still_seen_when_he_has_gone(world: World) -> None:
    client, waiter = world.client(), world.client()
    client.answers_recalls = False
    while not client.refusals:
        client.refill(SMALL, queue=False)
        world.run()
    number = waiter.refill(SMALL)
    world.pass_time(2.0)
    assert raised(world)["waiting"]["cleared_seconds"] is None
    waiter.cancel(number)
    look(world)
    waiting = raised(world)["waiting"]
    assert waiting["cleared_seconds"] is not None and waiting["worst"] >= 1.0
    assert not any("wait for memory" in alert for alert in ask(world)["alerts"])


def test_a_reader_that_keeps_most_and_a_full_pool_are_named(world: World) -> None:
    writer, reader = world.client(), world.client()
    writer.answers_recalls = False
    while not writer.refusals:
        number = len(writer.ready)
        writer.refill(MEDIUM, queue=False)
        world.run()
        for slot in writer.ready[number:]:
            [ticket] = writer.publish(writer.lease(slot))
            assert reader.open(ticket)
    look(world, 3)
    found = raised(world)
    assert {"full", "reader"} <= set(found)
    assert f"pid {reader.process.pid}" in found["reader"]["about"]


def test_quarantine_away_and_pressure(world: World) -> None:
    world.check_every = 0
    client, holder = world.client(), world.client()
    slot = client.lease(client.get()[0])
    world.store(slot.row, State.COLD)
    client.die()
    holder.lease(holder.get()[0])
    holder.disconnect()
    world.dispatch(MemoryRead((Room("the host", 100, 1, bounds_pool=False),), None))
    look(world, 4)
    assert set(raised(world)) == {"quarantine", "away", "pressure", "pressure_critical"}


def test_a_pool_at_rest_has_nothing_to_wake_for(world: World) -> None:
    client = world.client()
    client.goodbye()
    world.run()
    world.pass_time(LINGERS + 3 * JUDGED_EVERY)
    assert world.broker.reports.alerts.is_quiet
    assert world.broker.reports.next_deadline == float("inf")


def test_the_names_are_no_two_the_same() -> None:
    assert len(set(NAMES)) == len(RULES)


def test_the_page_has_the_rules() -> None:
    page = Path(__file__).parents[2] / "docs/alerts.md"
    assert table() in page.read_text()


def test_fallbacks_since_the_last_look_are_an_alert(world: World) -> None:
    client = world.client()
    client.lease(client.get()[0])
    world.broker.lending.ladder.served[Rung.FALLBACK] = 3
    look(world)
    assert raised(world)["fallback"]["worst"] == 3
    look(world)
    assert raised(world)["fallback"]["cleared_seconds"] is not None
