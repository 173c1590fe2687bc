# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The departure of a host that is shut down: every phase from all facts, what is written, what comes back, and who says so."""
from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from pvcd.cluster import requests, schema
from pvcd.cluster.claims import Actor
from pvcd.cluster.notices import Departure, decode_departure, decode_strangers, encode_strangers
from pvcd.cluster.records import Check, Create, Delete, Fence, FenceRecord, NodeRecord, View, Write
from pvcd.cluster.schema import DaemonState, DomainState, FencePhase, Unknown
from pvcd.departure import AFTERWARDS_S, AWAY_S, IDLE_S, Facts, Limits, Phase, announcement, homecoming, next_phase, plan_alone
from pvcd.hostjobs import goes_down, host_goes_down
from pvcd.local import COPY, Local, Status
from pvcd.situation import Verb

ME = Actor("a", "a1/0", 7)
ORDER = list(Phase)
WORDS = [*DomainState, Unknown(b"x"), None]
TABLE = [Facts(word, announced, left, elapsed, idle, away, closing) for word, announced, left, elapsed, idle, away, closing in itertools.product(
    WORDS, (False, True), (0, 2), (0.0, 299.9, 300.0), (0.0, 9.9, 10.0), (0.0, 29.9, 30.0), (0.0, 89.9, 90.0))]


def node(word: object = DomainState.READY, **more: object) -> NodeRecord:
    versions = {"": 0, "domainstate": 4, **({"departure": 2} if more else {})}
    return NodeRecord("a", DaemonState.RUN, word, versions=versions, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("flush", [True, False])
def test_no_phase_goes_back_and_none_lasts_for_ever(flush: bool) -> None:
    limits = Limits(flush=flush)
    for phase, facts in itertools.product(Phase, TABLE):
        found, why = next_phase(phase, facts, limits)
        assert ORDER.index(found) >= ORDER.index(phase)
        assert bool(why) is (found is not phase)
        if facts.elapsed_s >= limits.flush_s:
            assert found in (Phase.CLOSE, Phase.END)
        if phase is Phase.CLOSE and facts.closing_s >= limits.shutdown_s + AFTERWARDS_S:
            assert found is Phase.END


def test_the_host_is_let_down_only_when_nothing_is_left_or_the_time_is_over() -> None:
    for phase, facts in itertools.product(Phase, TABLE):
        found, _ = next_phase(phase, facts, Limits())
        if found is Phase.END and phase is not Phase.END:
            assert phase is Phase.CLOSE and (facts.left == 0 or facts.closing_s >= 90)


def test_guests_are_shut_down_only_when_the_flush_has_done_what_it_can() -> None:
    for phase, facts in itertools.product((Phase.ANNOUNCE, Phase.FLUSH), TABLE):
        found, _ = next_phase(phase, facts, Limits())
        late = facts.elapsed_s >= 300 or facts.away_s >= AWAY_S
        over = phase is Phase.FLUSH and (facts.word is not DomainState.FLUSH or facts.idle_s >= IDLE_S)
        assert (found is Phase.CLOSE) is (late or over), (phase, facts)
        if phase is Phase.ANNOUNCE and not late:
            assert found is (Phase.FLUSH if facts.announced else Phase.ANNOUNCE)


def test_nothing_is_flushed_when_the_configuration_says_shutdown() -> None:
    for facts in TABLE:
        found, _ = next_phase(Phase.ANNOUNCE, facts, Limits(flush=False))
        assert found is not Phase.FLUSH


# ------------------------------------------------------------------------------------------------------- what is written

@pytest.mark.parametrize("word", [DomainState.READY, DomainState.UNFLUSH])
def test_the_flush_and_the_departure_are_one_transaction(word: DomainState) -> None:
    told = Departure("now", True, 3).encode()
    word_written = Write(schema.node_key("a", "domainstate"), b"flush", 4)
    assert announcement(ME, node(word), "now", 3) == (ME.mine, word_written, Create(schema.node_key("a", "departure"), told))
    old = node(word, departure=Departure("then", True))
    assert announcement(ME, old, "now", 3) == (ME.mine, word_written, Write(schema.node_key("a", "departure"), told, 2))


@pytest.mark.parametrize("word", [DomainState.FLUSH, DomainState.FLUSHED, Unknown(b"x"), None])
def test_a_node_that_was_flushed_before_stays_so(word: object) -> None:
    assert announcement(ME, node(word), "now", 3) == ()


def test_the_departure_ends_with_the_next_start() -> None:
    over, back = Delete(schema.node_key("a", "departure"), 2), Write(schema.node_key("a", "domainstate"), b"unflush", 4)
    for word, departure in itertools.product(WORDS, [Departure("t", True), Departure("t", False), Unknown(b"{")]):
        changes = homecoming(ME, node(word, departure=departure))
        ours = word in (DomainState.FLUSH, DomainState.FLUSHED) and departure == Departure("t", True)
        assert changes == ((ME.mine, back, over) if ours else (ME.mine, over))
    assert homecoming(ME, node(DomainState.FLUSHED)) == ()


@pytest.mark.parametrize("verb", [requests.flush, requests.ready])
@pytest.mark.parametrize("word", list(DomainState))
def test_the_operators_word_counts(verb: object, word: DomainState) -> None:
    """`node flush` and `node ready` end the departure, also where the word is that already; a flush then outlasts the boot."""
    view = View({"a": node(word, departure=Departure("t", True))}, {"a": FenceRecord(Fence("a1/0", FencePhase.UP), 7)})
    changes = verb(view, "a").changes  # type: ignore[operator]
    assert Delete(schema.node_key("a", "departure"), 2) in changes
    assert any(isinstance(c, (Check, Write)) and c.path == schema.node_key("a", "domainstate") and c.version == 4 for c in changes)


# ------------------------------------------------------------------------------------------------- without ZooKeeper

def test_without_zookeeper_whole_guests_are_asked_and_then_ended_and_nothing_else_is_touched() -> None:
    for status, since in itertools.product(Status, (None, 0.0, 29.9, 30.0)):
        step = plan_alone(Local(status), since, 30.0)
        assert step.changes == ()
        expected = Verb.NOTHING
        if status in COPY:
            expected = Verb.SHUT_DOWN if since is None else Verb.DESTROY if since >= 30 else Verb.NOTHING
        assert step.verb is expected
        assert step.again_s is not None or status is Status.ABSENT


# ------------------------------------------------------------------------------------------------------------- codecs

def test_a_departure_that_cannot_be_understood_is_no_order() -> None:
    assert decode_departure(None) is None
    assert decode_departure(Departure("t", True, 3).encode()) == Departure("t", True, 3)
    assert decode_departure(b'{"at":"t","return":false,"new":1}') == Departure("t", False)
    for raw in (b"", b"{", b"[]", b"{}", b'{"at":1,"return":true}', b'{"at":"t","return":"yes"}', b"\xff", b"[" * 3000):
        assert isinstance(decode_departure(raw), Unknown)


def test_strangers_fit_into_a_key_and_say_how_many_do_not() -> None:
    found = {f"{n:08x}-0000-4000-8000-000000000000": "né\u202e" * 30 for n in range(300)}
    raw = encode_strangers(found).encode()
    assert len(raw) <= schema.VALUE_LIMIT and b'"more":' in raw
    read = decode_strangers(raw)
    assert not isinstance(read, Unknown) and read is not None and 0 < len(read) < 300 and set(read) <= set(found)
    assert decode_strangers(encode_strangers({}).encode()) == {}
    for raw in (b"", b"[]", b"\xff"):
        assert isinstance(decode_strangers(raw), Unknown)


# ------------------------------------------------------------------------------------------------------------- systemd

JOBS = """ 1201 shutdown.target            start waiting
 1310 pvcd.service               stop  running
"""


@pytest.mark.parametrize(("jobs", "down"), [
    (JOBS, True), ("", False), ("1310 pvcd.service stop running\n", False), ("1201 shutdown.target stop waiting\n", False),
    ("7 my-shutdown.target start waiting\n", False), ("No jobs running.\n", False), ("shutdown.target\n", False)])
def test_only_a_start_of_the_shutdown_target_is_a_shutdown(jobs: str, down: bool) -> None:
    assert goes_down(jobs) is down


def test_systemd_that_fails_hangs_or_is_missing_is_no_answer(tmp_path: Path) -> None:
    script = tmp_path / "systemctl"
    script.write_text(f"#!/bin/sh\ncat <<END\n{JOBS}END\n")
    script.chmod(0o755)
    assert host_goes_down((str(script),)) is True
    assert host_goes_down(("/bin/true",)) is False
    assert host_goes_down(("/bin/false",)) is None
    assert host_goes_down((str(tmp_path / "missing"),)) is None
    assert host_goes_down(("/bin/sh", "-c", "sleep 60 & wait"), deadline_s=0.2) is None


def test_a_view_knows_what_runs_outside_only_of_a_node_that_is_up() -> None:
    told = {"b": replace(node(), name="b", strangers={"u": "old1"})}
    for phase in FencePhase:
        view = View(told, {"b": FenceRecord(Fence("b1/0", phase), 1)})
        assert view.runs_outside("b", "u") is (phase is FencePhase.UP)
        assert not view.runs_outside("b", "v") and not view.runs_outside("c", "u")
