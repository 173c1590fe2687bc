# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The table of the plan of a fence and of a power-on, what is learned from answers, and whose turn it is."""
from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from pvcd.bmc import Answer, Bmc, Kind, Power, Purpose, Question
from pvcd.cluster import schema, tries
from pvcd.cluster.controllers import Card
from pvcd.cluster.records import Check, Fence, FenceRecord, Value
from pvcd.cluster.schema import FencePhase
from pvcd.cluster.tries import Tries, Try
from pvcd.fence_plan import (
    IDENTITY_FRESH_S,
    MAX_REFUSED,
    OFF_DEADLINE_S,
    ON_DEADLINE_S,
    TURN_S,
    Act,
    Action,
    Learned,
    is_due,
    learn,
    plan,
    plan_on,
)

FENCING = Fence("b1/0", FencePhase.FENCING, ka=5, since="t0")
NOW = 100.0
GUIDS = {"a": "ab" * 16, "b": "cd" * 16}
NEW = Learned("f", 90.0)
KNOWN = replace(NEW, identified=NOW, address="10.0.0.2", power=Power.ON)
SENT = replace(KNOWN, sent=NOW - 5.0, power=Power.UNKNOWN)
OFF_ONCE = replace(SENT, power=Power.OFF, seen_off=NOW - 1.0, looked=NOW - 1.0)

# what was learned · obstacle · the next action
PLAN: tuple[tuple[str, Learned, str, Action], ...] = (
    ("nothing is known: whose controller is it", NEW, "", Action(Act.ASK, Kind.IDENTITY)),
    ("asked, not answered", replace(NEW, asking=Kind.IDENTITY), "", Action(Act.WAIT)),
    ("no BMC is configured", NEW, "no BMC is configured", Action(Act.GIVE_UP, why="no BMC is configured")),
    ("it is another node's by what is recorded", KNOWN, "shared", Action(Act.GIVE_UP, why="shared")),
    ("unreachable, or a stranger", replace(NEW, problem="no answer"), "", Action(Act.GIVE_UP, why="no answer")),
    (
        "whose it is was told a while ago",
        replace(KNOWN, identified=NOW - IDENTITY_FRESH_S - 0.1),
        "",
        Action(Act.ASK, Kind.IDENTITY),
    ),
    ("whose it is was told just now", replace(KNOWN, identified=NOW - IDENTITY_FRESH_S), "", Action(Act.ASK, Kind.OFF)),
    ("off is under way", replace(KNOWN, asking=Kind.OFF), "", Action(Act.WAIT)),
    ("the gate was shut a moment ago", replace(NEW, refused=1, looked=NOW - 0.5), "", Action(Act.WAIT)),
    (
        "the gate was shut: from the beginning",
        replace(NEW, refused=1, looked=NOW - 1.0),
        "",
        Action(Act.ASK, Kind.IDENTITY),
    ),
    (
        "the gate stays shut",
        replace(NEW, refused=MAX_REFUSED, looked=NOW, said="keepalive"),
        "",
        Action(Act.GIVE_UP, why="the order could not be sent: keepalive"),
    ),
    ("off was sent: read it back", SENT, "", Action(Act.ASK, Kind.STATUS)),
    ("off was sent, an obstacle has come since: it is read back", SENT, "shared", Action(Act.ASK, Kind.STATUS)),
    ("it says on", replace(SENT, power=Power.ON, looked=NOW - 1.0), "", Action(Act.ASK, Kind.STATUS)),
    (
        "it said on half a second ago",
        replace(SENT, power=Power.ON, looked=NOW - 0.5),
        "",
        Action(Act.WAIT, again_s=0.5),
    ),
    (
        "off slowly: it still says on",
        replace(SENT, sent=NOW - OFF_DEADLINE_S, power=Power.ON, looked=NOW),
        "",
        Action(Act.GIVE_UP, why="10.0.0.2 was told to switch off: it still says on"),
    ),
    (
        "it has stopped answering",
        replace(SENT, sent=NOW - OFF_DEADLINE_S, said="no route", looked=NOW),
        "",
        Action(Act.GIVE_UP, why="10.0.0.2 was told to switch off: no route"),
    ),
    ("off, once", replace(OFF_ONCE, looked=NOW, seen_off=NOW), "", Action(Act.WAIT, again_s=1.0)),
    ("off, once, a second ago: once more", OFF_ONCE, "", Action(Act.ASK, Kind.STATUS)),
    (
        "off, once, at the deadline: once more",
        replace(OFF_ONCE, sent=NOW - OFF_DEADLINE_S - 9),
        "",
        Action(Act.ASK, Kind.STATUS),
    ),
    ("off, twice", replace(OFF_ONCE, looked=NOW), "", Action(Act.PROVE)),
)


@pytest.mark.parametrize(("learned", "obstacle", "expected"), [row[1:] for row in PLAN], ids=[row[0] for row in PLAN])
def test_the_plan_of_a_fence(learned: Learned, obstacle: str, expected: Action) -> None:
    assert plan(FENCING, learned, NOW, obstacle) == expected


@pytest.mark.parametrize("phase", [FencePhase.UP, FencePhase.FENCED, FencePhase.REMOVED])
@pytest.mark.parametrize("learned", [row[1] for row in PLAN])
def test_nothing_is_done_about_a_node_that_has_objected_booted_or_is_fenced(
    phase: FencePhase, learned: Learned
) -> None:
    assert plan(replace(FENCING, phase=phase), learned, NOW, "") == Action(Act.DONE)


POWER_ON = replace(SENT, sent=NOW - 5.0)
ON_PLAN: tuple[tuple[str, Learned, str, Action], ...] = (
    ("nothing is known", NEW, "", Action(Act.ASK, Kind.IDENTITY)),
    ("under way", replace(NEW, asking=Kind.ON), "", Action(Act.WAIT)),
    ("it is another's", NEW, "shared", Action(Act.GIVE_UP, why="shared")),
    ("somebody has switched it on", KNOWN, "", Action(Act.DONE)),
    ("it is off", replace(KNOWN, power=Power.OFF), "", Action(Act.ASK, Kind.ON)),
    ("told: read it back", POWER_ON, "", Action(Act.ASK, Kind.STATUS)),
    ("told, and off a moment ago", replace(POWER_ON, power=Power.OFF, looked=NOW), "", Action(Act.WAIT)),
    ("told, and on", replace(POWER_ON, power=Power.ON, looked=NOW), "", Action(Act.DONE)),
    (
        "told, and still off",
        replace(POWER_ON, sent=NOW - ON_DEADLINE_S, power=Power.OFF, looked=NOW),
        "",
        Action(Act.GIVE_UP, why="10.0.0.2 was told to switch on: it still says off"),
    ),
    (
        "told, and silent",
        replace(POWER_ON, sent=NOW - ON_DEADLINE_S, looked=NOW),
        "",
        Action(Act.GIVE_UP, why="10.0.0.2 was told to switch on: no answer"),
    ),
)


@pytest.mark.parametrize(
    ("learned", "obstacle", "expected"), [row[1:] for row in ON_PLAN], ids=[row[0] for row in ON_PLAN]
)
def test_the_plan_of_a_power_on(learned: Learned, obstacle: str, expected: Action) -> None:
    assert plan_on(learned, NOW, obstacle) == expected


# ------------------------------------------------------------------------------------------------------------ learning


def answer(kind: Kind, **words: Any) -> Answer:
    return Answer(Question(Purpose.FENCE, "b", kind, Bmc("b-lom", "u", "p")), NOW - 19.0, NOW, **words)


CARDS = {name: Card(f"{name}-lom", found) for name, found in GUIDS.items()}


def test_an_identity_counts_from_its_answer_and_pins_the_address() -> None:
    found = learn(
        replace(NEW, asking=Kind.IDENTITY),
        answer(Kind.IDENTITY, guid=GUIDS["b"], addresses=("10.0.0.2", "10.0.0.3"), power=Power.ON),
        CARDS,
    )
    assert (found.asking, found.identified, found.address, found.problem) == (None, NOW, "10.0.0.2", "")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ({"guid": GUIDS["a"]}, "belongs to another machine"),
        ({"guid": None}, "does not say which machine"),
        ({"problem": "no answer"}, "no answer"),
    ],
)
def test_a_stranger_a_silent_one_and_one_without_a_name_are_a_problem(words: dict[str, Any], why: str) -> None:
    found = learn(replace(NEW, asking=Kind.IDENTITY), answer(Kind.IDENTITY, addresses=("10.0.0.2",), **words), CARDS)
    assert why in found.problem and found.identified is None


def test_an_order_that_was_not_sent_begins_anew_and_one_that_was_forgets_older_readings() -> None:
    shut = learn(replace(OFF_ONCE, asking=Kind.OFF, sent=None), answer(Kind.OFF, said="lost"), CARDS)
    assert (shut.sent, shut.identified, shut.refused) == (None, None, 1)
    sent = learn(replace(OFF_ONCE, asking=Kind.OFF, sent=None), answer(Kind.OFF, sent=True), CARDS)
    assert (sent.sent, sent.seen_off, sent.looked, sent.power) == (NOW, None, None, Power.UNKNOWN)


def test_on_or_silence_between_two_offs_undoes_the_first() -> None:
    for power in (Power.ON, Power.UNKNOWN):
        assert learn(OFF_ONCE, answer(Kind.STATUS, power=power), CARDS).seen_off is None
    first = learn(SENT, answer(Kind.STATUS, power=Power.OFF), CARDS)
    assert first.seen_off == first.looked == NOW
    assert learn(OFF_ONCE, answer(Kind.STATUS, power=Power.OFF), CARDS).seen_off == OFF_ONCE.seen_off


# ---------------------------------------------------------------------------------------------------------- whose turn


def tried(*by: str, count: int | None = None) -> Tries:
    return Tries(len(by) if count is None else count, tuple(Try(name, "t", "why") for name in by), 3)


def test_the_nodes_take_turns_and_pause_after_each_round() -> None:
    assert tries.next_node(tried(), ["a", "c"]) == "" and tries.pause_s(tried(), 2) == 0.0
    assert tries.next_node(tried("a"), ["a", "c"]) == "c" and tries.pause_s(tried("a"), 2) == 0.0
    assert tries.next_node(tried("a", "c"), ["a", "c"]) == "a" and tries.pause_s(tried("a", "c"), 2) == 10.0
    assert tries.next_node(tried("c"), ["a"]) == "a" and tries.pause_s(tried("a", "a", "a"), 1) == 40.0
    assert tries.pause_s(tried("a", count=10**6), 1) == 300.0
    assert is_due(100.0, 90.0, 10.0, True) and not is_due(99.0, 90.0, 10.0, True)
    assert is_due(100.0 + TURN_S, 90.0, 10.0, False) and not is_due(99.0 + TURN_S, 90.0, 10.0, False)


def test_tries_are_of_one_fence_are_bounded_and_check_what_they_are_about() -> None:
    mine, record = Check("/fences/a", 7), FenceRecord(FENCING, 9)
    found = Tries()
    for number in range(20):
        changes = tries.added("b", record, found, Try("a", "t", f"{number} " + "x" * 900), mine)
        assert changes[:2] == (mine, Check(schema.fence("b"), 9))
        assert getattr(changes[2], "version", -1) == (number - 1 if number else -1)
        found = tries.decode(Value(getattr(changes[2], "data", b""), number), FENCING)
    assert (
        found.count == 20
        and len(found.last) == tries.KEPT
        and len(getattr(changes[2], "data", b"")) < schema.VALUE_LIMIT
    )
    for other in (
        replace(FENCING, ka=6),
        replace(FENCING, inc="b2/0"),
        replace(FENCING, forced=True),
        replace(FENCING, since="t1"),
    ):
        assert tries.decode(Value(getattr(changes[2], "data", b""), 4), other) == Tries(version=4)
    for garbage in (
        b"",
        b"{",
        b"[]",
        b'{"fence": 1}',
        b"\xff",
        b"[" * 9000,
        json.dumps({"fence": tries.about(FENCING), "count": 3}).encode(),
    ):
        assert tries.decode(Value(garbage, 4), FENCING) == Tries(version=4)
