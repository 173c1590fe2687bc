# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Every transaction of the claims, the fences and the planner's rows, with the whole of what it writes and checks.

A check that is dropped, a version that is not the one read, a write too much: each fails here, row by row. (The rows of a migration are in
`test_handoff`, a janitor's recovery is in `test_recovery_plan`.)
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from sim.fakezk import FakeServer, FakeZooKeeper
from test_planner import DEST_A, DEST_B, ME, NODE_VERSIONS, UUID, node, record, situation, view
from test_requests import ROOT, TAKEN

from pvcd.cluster import avoid, claims, fences, flush, history, requests, schema, tries
from pvcd.cluster.avoid import Avoided
from pvcd.cluster.flush import Cluster
from pvcd.cluster.records import (
    Change,
    Check,
    Claim,
    ClaimRecord,
    Create,
    Delete,
    DomainRecord,
    Fence,
    FenceRecord,
    Hold,
    NodeRecord,
    Operation,
    View,
    Write,
)
from pvcd.cluster.requests import Names
from pvcd.cluster.schema import DaemonState, DomainState, FencePhase, OpPhase, Unknown, VMState
from pvcd.cluster.store import Store
from pvcd.cluster.tries import Tries, Try
from pvcd.local import Local, Status
from pvcd.planner import plan_domain
from pvcd.situation import Attempts, Onward, Situation, Timers, Verb

MINE = ME.mine
CLAIM = Check(schema.claim(UUID), 9)
STATE, HOME, LAST = (Check(schema.domain_key(UUID, key), version) for key, version in (("state", 5), ("hypervisor", 6), ("lasthypervisor", 2)))
HELD, OTHERS = Claim("a", "a1/0"), Claim("b", "b1/0")


def is_exactly(changes: Iterable[Change], *expected: Change) -> None:
    assert sorted(changes, key=repr) == sorted(expected, key=repr)


def state(word: str) -> Write:
    return Write(schema.domain_key(UUID, "state"), word.encode(), 5)


def home(name: str) -> Write:
    return Write(schema.domain_key(UUID, "hypervisor"), name.encode(), 6)


def last(name: str) -> Write:
    return Write(schema.domain_key(UUID, "lasthypervisor"), name.encode(), 2)


def claimed(claim: Claim | None) -> Write:
    return Write(schema.claim(UUID), claim.encode() if claim else b"", 9)


def read(claim: Claim | None) -> ClaimRecord:
    return ClaimRecord(claim, 9)


# -------------------------------------------------------------------------------------------------------------- claims

def test_mine_is_the_fence_at_the_version_at_which_it_was_up() -> None:
    assert ME.mine == Check(schema.fence("a"), 7)


def test_what_was_read_is_checked_at_its_version_and_what_was_absent_is_not() -> None:
    is_exactly(claims.as_read(record(VMState.START, "a")), STATE, HOME)
    is_exactly(claims.as_read(record(VMState.START, "a"), "lasthypervisor", "state"), LAST, STATE)
    is_exactly(claims.as_read(record(None, "a")), HOME)
    assert claims.as_read(DomainRecord(UUID)) == []


def test_an_order_writes_at_the_versions_read_and_checks_the_other_word() -> None:
    r = record(VMState.START, "a")
    is_exactly(claims.order(r, VMState.MIGRATE, "b", "a"), state("migrate"), home("b"), last("a"))
    is_exactly(claims.order(r, VMState.STOP), state("stop"), HOME)
    is_exactly(claims.order(r, hypervisor="b"), STATE, home("b"))
    is_exactly(claims.order(r), STATE, HOME)
    is_exactly(claims.order(record(None, None), VMState.STOP, "b"), Create(schema.domain_key(UUID, "state"), b"stop"),
               Create(schema.domain_key(UUID, "hypervisor"), b"b"))


def test_the_moves_of_a_claim() -> None:
    r, op = record(VMState.MIGRATE, "b"), replace(DEST_B, phase=OpPhase.RUN)
    speaks = Check(schema.node_key("b", "protocol"), 11)
    fence = Check(schema.fence("b"), 3)
    is_exactly(claims.holding(ME, UUID, read(HELD), r), MINE, CLAIM, STATE, HOME)
    is_exactly(claims.acquire(ME, r, read(None)), MINE, STATE, HOME, claimed(HELD))
    is_exactly(claims.adopt(ME, UUID, read(None)), MINE, claimed(HELD))
    is_exactly(claims.offer(ME, r, read(OTHERS), "op1", (speaks,)), MINE, speaks, STATE, HOME, claimed(replace(OTHERS, op=DEST_A)))
    is_exactly(claims.withdraw(ME, UUID, read(replace(OTHERS, op=DEST_A))), MINE, claimed(OTHERS))
    runs = Check(schema.node_key("b", "daemonstate"), 12)
    is_exactly(claims.begin(ME, r, read(replace(HELD, op=DEST_B)), (runs,)), MINE, runs, STATE, HOME, claimed(replace(HELD, op=op)))
    is_exactly(claims.hand_over(ME, UUID, read(replace(HELD, op=replace(op, v=1))), "b2/0", (fence,)), MINE, fence,
               claimed(Claim("b", "b2/0", replace(op, phase=OpPhase.GIVEN))))
    run = replace(DEST_A, phase=OpPhase.RUN)
    is_exactly(claims.take_running(ME, UUID, read(replace(OTHERS, op=run))), MINE, claimed(HELD))
    is_exactly(claims.landed(ME, UUID, read(replace(HELD, op=replace(run, phase=OpPhase.GIVEN)))), MINE, claimed(HELD))
    is_exactly(claims.free(ME, r, read(HELD)), MINE, STATE, HOME, claimed(None))
    is_exactly(claims.free(ME, r, read(HELD), VMState.STOP), MINE, state("stop"), HOME, claimed(None))
    assert claims.proof("b", FenceRecord(None, 3)) == (fence,)


def test_what_takes_an_order_back() -> None:
    for was, clears in (("", ()), ("c", ()), ("a", (last(""),))):
        r = record(VMState.MIGRATE, "b", was)
        back = (state("start"), home("a"), *clears)
        is_exactly(claims.rolled_back(ME, r), *back)
        is_exactly(claims.close(ME, r, read(replace(HELD, op=DEST_B))), MINE, claimed(HELD), *back)
    for was, clears in (("", ()), ("a", ()), ("b", (last(""),))):
        is_exactly(claims.refuse(ME, record(VMState.MIGRATE, "a", was), read(OTHERS)), MINE, CLAIM, state("start"), home("b"), *clears)
    for word, where in ((VMState.STOP, "b"), (VMState.MIGRATE, "c"), (VMState.SHUTDOWN, "b")):
        is_exactly(claims.close(ME, record(word, where), read(replace(HELD, op=DEST_B))), MINE, claimed(HELD))
    is_exactly(claims.close(ME, record(VMState.START, "b"), read(replace(HELD, op=DEST_B))), MINE, claimed(HELD), state("start"), home("a"))


def test_what_is_sent_on() -> None:
    note = Create(schema.avoid(UUID), b"{}")
    for was, clears in (("b", ()), ("c", (last(""),))):
        is_exactly(claims.send_on(ME, record(VMState.START, "a", was), read(HELD), "c", note), MINE, STATE, home("c"), *clears, note, claimed(None))


def test_what_is_recovered() -> None:
    r, proved = record(VMState.START, "b"), (Check(schema.fence("b"), 3), Check(schema.fence("a"), 1))
    words = claims.order(r, None, "a")
    is_exactly(claims.recover(ME, r, read(OTHERS), proved, words), MINE, proved[0], STATE, home("a"), claimed(None))
    is_exactly(claims.recover(ME, r, read(None), proved, words), MINE, proved[0], STATE, home("a"), CLAIM)


# -------------------------------------------------------------------------------------------------------------- fences

KEYS = {"": 0, "daemonstate": 3, "domainstate": 4, "keepalive": 50}
DEAD, FLUSHED = (Write(schema.node_key("b", key), word, version) for key, word, version in
                 (("daemonstate", b"dead", 3), ("domainstate", b"flushed", 4)))
SILENT = Check(schema.node_key("b", "keepalive"), 50)


def fenced(old: Fence) -> View:
    found = {name: FenceRecord(Fence(f"{name}1/0", FencePhase.UP), number) for name, number in (("a", 7), ("c", 8), ("d", 6))}
    return View({name: NodeRecord(name, versions=KEYS) for name in "abcd"}, {**found, "b": FenceRecord(old, 9)}, Hold(version=2))


def fence_of(view: View, **new: object) -> Write:
    old = view.fences["b"].value
    assert isinstance(old, Fence)
    return Write(schema.fence("b"), replace(old, **new).encode(), 9)  # type: ignore[arg-type]


def test_the_moves_of_a_fence() -> None:
    up = fenced(Fence("b1/0", FencePhase.UP, "b", "boot", 3, True, True, "then", True))  # everything that an earlier fence may have left
    suspicion = {"phase": FencePhase.FENCING, "method": "", "ka": 50, "since": "now", "on": False, "asked": False}
    is_exactly(fences.committed(ME, up, "b", 50, ["a", "b", "c"], "now"), MINE, SILENT, Check(schema.FENCES, 2), Check(schema.fence("c"), 8),
               fence_of(up, by="a", forced=False, **suspicion), DEAD)
    is_exactly(fences.forced(up, "b", "op", 50, "now"), SILENT, fence_of(up, by="op", forced=True, **suspicion), DEAD)
    suspected = fenced(Fence("b1/0", FencePhase.FENCING, "a", "x", 50, False, True, "then", True))
    proof = fence_of(suspected, phase=FencePhase.FENCED, by="a", method="ipmi-off", since="now", on=False, asked=False)
    is_exactly(fences.proved(suspected, "b", "a", "ipmi-off", "now", ME), MINE, SILENT, proof, FLUSHED, DEAD)
    is_exactly(fences.proved(suspected, "b", "op", "confirm", "now"), SILENT,
               fence_of(suspected, phase=FencePhase.FENCED, by="op", method="confirm", since="now", on=False, asked=False), FLUSHED, DEAD)
    unwatched = fenced(Fence("b1/0", FencePhase.FENCING, "a", forced=True))
    is_exactly(fences.proved(unwatched, "b", "a", "ipmi-off", "now", ME), MINE,
               fence_of(unwatched, phase=FencePhase.FENCED, by="a", method="ipmi-off", since="now"), FLUSHED, DEAD)
    alive = Write(schema.node_key("b", "keepalive"), b"1", 50)
    is_exactly(fences.back_up("b", suspected.fences["b"], (alive,)), alive, fence_of(suspected, phase=FencePhase.UP, by="b", method="", ka=None))


def test_a_word_that_is_missing_is_created() -> None:
    bare = fenced(Fence("b1/0", FencePhase.UP))
    bare = replace(bare, nodes={**bare.nodes, "b": NodeRecord("b", versions={"": 0})})
    assert Create(schema.node_key("b", "daemonstate"), b"dead") in fences.forced(bare, "b", "op", 50, "now")


def test_the_boots_of_a_node() -> None:
    off = fenced(Fence("b1/0", FencePhase.FENCED, "a", "ipmi-off", 50))
    new = Fence("b2/0", FencePhase.UP, "b", "boot", since="now")
    assert fences.registered("b", FenceRecord(None, -1), "b2/0", "now") == (Create(schema.fence("b"), new.encode()),)
    assert fences.registered("b", off.fences["b"], "b2/0", "now") == (Write(schema.fence("b"), new.encode(), 9),)
    assert fences.rejoined("b", off.fences["b"], "b1/1", "now") == (
        Write(schema.fence("b"), Fence("b1/1", FencePhase.UP, "b", "rejoin", since="now").encode(), 9),)
    asked = fenced(replace(Fence("b1/0", FencePhase.FENCED), asked=True))
    is_exactly(fences.powered_on(ME, "b", asked.fences["b"]), MINE, fence_of(asked, on=True, asked=False))
    on = fenced(replace(Fence("b1/0", FencePhase.FENCED), on=True))
    assert fences.power_asked("b", on.fences["b"]) == (fence_of(on, on=False, asked=True),)


def test_a_removal_and_the_hold() -> None:
    up = fenced(Fence("b1/0", FencePhase.UP))
    gone = fence_of(up, phase=FencePhase.REMOVED, by="op", method="remove", since="now")
    deletes = [Delete(schema.node_key("b", key), version) for key, version in (("daemonstate", 3), ("keepalive", 50), ("odd", -1))]
    is_exactly(fences.removed(up.nodes["b"], ["daemonstate", "keepalive", "odd"], up.fences["b"], "op", "now"),
               Check(schema.node_key("b", "daemonstate"), 3), SILENT, gone, *deletes, Delete(schema.node("b"), -1))
    twice = fenced(Fence("b1/0", FencePhase.REMOVED, method="remove-fenced"))
    assert fences.removed(NodeRecord("b"), [], twice.fences["b"], "op", "now") == (fence_of(twice, by="op", since="now"),), "it stays proved dead"
    never = Fence("", FencePhase.REMOVED, "op", "remove", since="now")
    assert fences.removed(NodeRecord("b"), [], FenceRecord(None, -1), "op", "now") == (Create(schema.fence("b"), never.encode()),)
    assert fences.held(Hold(version=4), True, "then", "op") == (Write(schema.FENCES, Hold(True, "then", "op").encode(), 4),)
    assert fences.held(Hold(version=4), False, "then", "op") == (Write(schema.FENCES, Hold(False, None, "op").encode(), 4),)
    assert fences.restored(Hold(version=4), "a") == (Write(schema.FENCES, Hold(True, None, "a", restored=True).encode(), 4),)


def test_a_try_and_a_note() -> None:
    fence = FenceRecord(Fence("b1/0", FencePhase.FENCING), 9)
    for version, kind in ((4, Write), (-1, Create)):
        changes = tries.added("b", fence, Tries(version=version), Try("a", "now", "no way"), MINE)
        assert changes[:2] == (MINE, Check(schema.fence("b"), 9)) and isinstance(changes[2], kind) and len(changes) == 3
        assert (changes[2].path, getattr(changes[2], "version", -1)) == (schema.node_key("b", "fencetries"), version)
        note = avoid.noted(UUID, Avoided({}, version), "a", "no disk")
        assert isinstance(note, kind) and (note.path, getattr(note, "version", -1)) == (schema.avoid(UUID), version)
    assert avoid.forgotten(UUID, Avoided({"b": "no"}, 4)) == (Write(schema.avoid(UUID), b"", 4),)
    assert avoid.forgotten(UUID, Avoided({}, 4)) == ()


# --------------------------------------------------------------------------------------------------------------- flush

def flushing(word: VMState, at: str, was: str, claim: ClaimRecord) -> Cluster:
    return Cluster(view(own=DomainState.FLUSH), {UUID: record(word, at, was)}, {UUID: claim}, {UUID: 1})


def test_the_orders_of_a_flush_and_an_unflush() -> None:
    for claim, gate, word in ((read(HELD), (CLAIM,), "migrate"), (read(None), (CLAIM,), "start"), (ClaimRecord(None, -1), (), "start")):
        plan = flush.plan_flush(ME, flushing(VMState.START, "a", "", claim))
        is_exactly(plan.orders[0].changes, MINE, *gate, state(word), home("b"), last("a"))
    plan = flush.plan_unflush(ME, flushing(VMState.START, "b", "a", read(OTHERS)))
    is_exactly(plan.orders[0].changes, MINE, state("migrate"), home("a"))


# --------------------------------------------------------------------------------------------------- an operator's verbs

def test_a_definition() -> None:
    keys = {"state": b"stop", "hypervisor": b"a", "lasthypervisor": b"", "xml": b"<domain/>"}
    created = [Create(schema.domain(UUID), b"web1"), *(Create(schema.domain_key(UUID, key), data) for key, data in keys.items())]
    for claim, held in ((ClaimRecord(None, -1), Create(schema.claim(UUID), b"")), (read(None), CLAIM)):
        request = requests.define(UUID, "web1", b"<domain/>", "a", view(), Names(ROOT, {}), claim)
        is_exactly(request.changes, Check(schema.node("a"), -1), TAKEN, held, *created)


def test_a_new_home() -> None:
    there = Check(schema.node("b"), -1)
    running, stopped = record(VMState.START, "a"), record(VMState.STOP, "a")
    is_exactly(requests.move(running, view(), "b").changes, there, state("migrate"), home("b"), last(""))
    is_exactly(requests.move(stopped, view(), "b").changes, there, STATE, home("b"), last(""))
    is_exactly(requests.migrate(running, view(), "b", False).changes, there, state("migrate"), home("b"), last("a"))
    is_exactly(requests.migrate(stopped, view(), "b", False).changes, there, state("start"), home("b"), last("a"))
    is_exactly(requests.unmigrate(record(VMState.START, "a", "b"), view()).changes, there, state("migrate"), home("b"), LAST)
    is_exactly(requests.unmigrate(record(VMState.STOP, "a", "b"), view()).changes, there, state("start"), home("b"), last(""))


def test_a_nodes_word_ends_a_departure_that_is_under_way() -> None:
    path, over = schema.node_key("a", "domainstate"), Delete(schema.node_key("a", "departure"), 6)
    leaving = NodeRecord("a", domainstate=DomainState.FLUSH, versions={"": 0, "domainstate": 4, "departure": 6})
    is_exactly(requests.ready(View({"a": leaving}), "a").changes, Write(path, b"unflush", 4), over)
    is_exactly(requests.flush(View({"a": leaving}), "a").changes, Check(path, 4), over)
    wordless = replace(leaving, domainstate=None, versions={"": 0, "departure": 6})
    is_exactly(requests.flush(View({"a": wordless}), "a").changes, Create(path, b"flush"), over)


# ------------------------------------------------------------------------------------------------- the rows of the planner

GATE, CLAIM_GATE = (MINE, CLAIM, STATE, HOME), (MINE, CLAIM)
BACK = (*CLAIM_GATE, state("start"), home("a"))
START, STOP, MIGRATE, RESTART, SHUTDOWN, DELETE, FAILED = (
    VMState.START, VMState.STOP, VMState.MIGRATE, VMState.RESTART, VMState.SHUTDOWN, VMState.DELETE, VMState.FAILED)
ABSENT, RUNNING = Status.ABSENT, Status.RUNNING
AWAY = replace(view(), nodes={**view().nodes, "b": node("b", DaemonState.STOP)})
FENCING = replace(view(), fences={**view().fences, "b": FenceRecord(Fence("b1/0", FencePhase.FENCING), 7)})
REFUSED = Attempts(errors=5, refused_s=601, reason="no disk")
NOTED = Avoided({"b": "no"}, 4)
OLD_B = replace(view(), nodes={**view().nodes, "b": replace(node("b"), protocol=1)})
SPEAKS = Check(schema.node_key("b", "protocol"), NODE_VERSIONS["protocol"])
FENCE_B = Check(schema.fence("b"), 7)
READY_A = Claim("b", "b1/0", Operation("new", OpPhase.READY, "a", "a1/0"))

ANOTHER_LIFE = replace(view(), fences={**view().fences, "a": FenceRecord(Fence("a2/0", FencePhase.UP), 8)})

ROWS: list[tuple[object, Verb, Situation, tuple[Change, ...]]] = [
    (0, Verb.NOTHING, situation(HELD, STOP, "a", RUNNING, view=ANOTHER_LIFE), ()),
    (7, Verb.NOTHING, situation(None, STOP, "b", RUNNING), (MINE, claimed(HELD))),
    ("D5", Verb.DESTROY, situation(None, START, "a", Status.CRASHED), GATE),
    ("D5", Verb.DESTROY, situation(None, START, "a", Status.PAUSED), GATE),
    ("D5", Verb.DESTROY, situation(OTHERS, START, "b", RUNNING), CLAIM_GATE),
    (9, Verb.NOTHING, situation(None, START, "a", ABSENT), (MINE, STATE, HOME, claimed(HELD))),
    (9, Verb.NOTHING, situation(None, START, "a", ABSENT, stopping=True), ()),
    (9, Verb.NOTHING, situation(None, START, "a", ABSENT, view=view(own=DomainState.FLUSH), timers=Timers(unclaimed_s=9.9)), ()),
    (9, Verb.NOTHING, situation(None, START, "a", ABSENT, view=view(own=DomainState.FLUSH), timers=Timers(unclaimed_s=10)),
     (MINE, STATE, HOME, claimed(HELD))),
    (10, Verb.NOTHING, situation(None, RESTART, "a", ABSENT), (*CLAIM_GATE, state("start"), HOME)),
    (10, Verb.NOTHING, situation(None, MIGRATE, "a", ABSENT, record=record(MIGRATE, "a", "a")), (*CLAIM_GATE, state("start"), HOME, last(""))),
    (11, Verb.NOTHING, situation(None, SHUTDOWN, "a", ABSENT), (*CLAIM_GATE, state("stop"), HOME)),
    (13, Verb.NOTHING, situation(OTHERS, MIGRATE, "a", ABSENT), (MINE, SPEAKS, STATE, HOME, claimed(READY_A))),
    (13, Verb.NOTHING, situation(OTHERS, MIGRATE, "a", ABSENT, unfit="no room"), (*CLAIM_GATE, state("start"), home("b"))),
    (13, Verb.NOTHING, situation(OTHERS, MIGRATE, "a", ABSENT, view=OLD_B), (*CLAIM_GATE, state("start"), home("b"))),
    (15, Verb.NOTHING, situation(Claim("b", "b0/0"), START, "a", ABSENT), (MINE, FENCE_B, STATE, HOME, claimed(None))),
    (15, Verb.NOTHING, situation(Claim("b", "b0/0"), MIGRATE, "a", ABSENT), (MINE, FENCE_B, state("start"), HOME, claimed(None))),
    (15, Verb.NOTHING, situation(Claim("b", "b0/0"), RESTART, "a", ABSENT), (MINE, FENCE_B, state("start"), HOME, claimed(None))),
    (15, Verb.NOTHING, situation(Claim("b", "b0/0"), SHUTDOWN, "a", ABSENT), (MINE, FENCE_B, state("stop"), HOME, claimed(None))),
    (29, Verb.NOTHING, situation(HELD, MIGRATE, "a", RUNNING), (*CLAIM_GATE, state("start"), HOME)),
    (29, Verb.NOTHING, situation(HELD, MIGRATE, "a", RUNNING, record=record(MIGRATE, "a", "a")), (*CLAIM_GATE, state("start"), HOME, last(""))),
    (30, Verb.NOTHING, situation(HELD, START, "b", RUNNING), (*CLAIM_GATE, state("migrate"), HOME)),
    (31, Verb.NOTHING, situation(HELD, MIGRATE, "b", Status.IO_ERROR), BACK),
    (31, Verb.NOTHING, situation(HELD, MIGRATE, "b", RUNNING, timers=Timers(ordered_s=29.9)), ()),
    (31, Verb.NOTHING, situation(HELD, MIGRATE, "b", RUNNING, timers=Timers(ordered_s=30)), BACK),
    (31, Verb.NOTHING, situation(HELD, MIGRATE, "b", RUNNING, view=AWAY, timers=Timers(ordered_s=9.9)), ()),
    (31, Verb.NOTHING, situation(HELD, MIGRATE, "b", RUNNING, view=AWAY, timers=Timers(ordered_s=10)), BACK),
    (31, Verb.NOTHING, situation(HELD, MIGRATE, "b", RUNNING, view=FENCING), BACK),
    (31, Verb.NOTHING, situation(HELD, MIGRATE, "b", RUNNING, view=FENCING, record=record(MIGRATE, "b", "a")), (*BACK, last(""))),
    (32, Verb.SHUT_DOWN, situation(HELD, SHUTDOWN, "a", RUNNING), GATE),
    (32, Verb.SHUT_DOWN, situation(HELD, RESTART, "a", RUNNING, timers=Timers(shutdown_s=11, asked_s=10)), GATE),
    (32, Verb.DESTROY, situation(HELD, SHUTDOWN, "a", RUNNING, timers=Timers(shutdown_s=180, shutdown_timeout_s=180)), GATE),
    (33, Verb.DESTROY, situation(HELD, STOP, "a", RUNNING), GATE),
    (33, Verb.DESTROY, situation(HELD, DELETE, "a", RUNNING), GATE),
    (34, Verb.RESUME, situation(HELD, START, "a", Status.IO_ERROR), GATE),
    (34, Verb.RESUME, situation(HELD, START, "a", Status.IO_ERROR, timers=Timers(resume_s=30)), GATE),
    (34, Verb.NOTHING, situation(HELD, START, "a", Status.IO_ERROR, timers=Timers(resume_s=29.9)), ()),
    (34, Verb.NOTHING, situation(HELD, START, "a", Status.PAUSED), ()),
    (36, Verb.DESTROY, situation(HELD, START, "a", Status.CRASHED), GATE),
    (36, Verb.NOTHING, situation(HELD, START, "a", ABSENT, local=Local(Status.CRASHED, other_job=True), timers=Timers(crashed_s=599)), ()),
    (36, Verb.DESTROY, situation(HELD, START, "a", ABSENT, local=Local(Status.CRASHED, other_job=True), timers=Timers(crashed_s=600)), GATE),
    (37, Verb.CREATE, situation(HELD, START, "a", ABSENT), GATE),
    (37, Verb.NOTHING, situation(HELD, START, "a", ABSENT, stopping=True), ()),
    (37, Verb.NOTHING, situation(HELD, START, "a", ABSENT, attempts=Attempts(wait_s=0.1)), ()),
    (37, Verb.NOTHING, situation(HELD, START, "a", ABSENT, attempts=REFUSED, onward=Onward(None, "", NOTED)),
     (MINE, state("failed"), HOME, claimed(None), Write(schema.avoid(UUID), b"", 4))),
    (37, Verb.NOTHING, situation(HELD, START, "a", ABSENT, attempts=REFUSED, onward=Onward("c", "", NOTED)),
     (MINE, STATE, home("c"), avoid.noted(UUID, NOTED, "a", "no disk"), claimed(None))),
    (38, Verb.NOTHING, situation(HELD, RESTART, "a", ABSENT), (*CLAIM_GATE, state("start"), HOME)),
    (38, Verb.NOTHING, situation(HELD, MIGRATE, "a", ABSENT, record=record(MIGRATE, "a", "a")), (*CLAIM_GATE, state("start"), HOME, last(""))),
    (38, Verb.NOTHING, situation(HELD, RESTART, "b", ABSENT, record=record(RESTART, "b", "a")), (*CLAIM_GATE, state("start"), HOME)),
    (39, Verb.NOTHING, situation(HELD, SHUTDOWN, "a", ABSENT), (MINE, state("stop"), HOME, claimed(None))),
    (35, Verb.NOTHING, situation(HELD, STOP, None, ABSENT), ()),
    (35, Verb.NOTHING, situation(HELD, None, "a", ABSENT), ()),
    (40, Verb.NOTHING, situation(HELD, STOP, "a", ABSENT), (MINE, STATE, HOME, claimed(None))),
    (40, Verb.NOTHING, situation(HELD, START, "b", ABSENT), (MINE, STATE, HOME, claimed(None))),
    (40, Verb.NOTHING, situation(HELD, FAILED, "a", ABSENT), (MINE, STATE, HOME, claimed(None))),
    (40, Verb.NOTHING, situation(HELD, "gone", "a", ABSENT), (MINE, claimed(None))),
    (41, Verb.RESUME, situation(HELD, START, "a", Status.MIGRATING), GATE),
    ("D6", Verb.DESTROY, situation(HELD, START, "a", ABSENT, local=Local(Status.MIGRATING, incoming=True)), CLAIM_GATE),
    (42, Verb.SHUT_DOWN, situation(HELD, START, "a", RUNNING, closing=True), GATE),
    (42, Verb.NOTHING, situation(HELD, MIGRATE, "b", RUNNING, closing=True), BACK),
    (43, Verb.NOTHING, situation(HELD, START, "a", ABSENT, closing=True), (MINE, STATE, HOME, claimed(None))),
    (43, Verb.NOTHING, situation(HELD, Unknown(b"x"), "a", ABSENT, closing=True), (MINE, STATE, HOME, claimed(None))),
    ("S8", Verb.ABORT, situation(HELD, START, "a", ABSENT, local=Local(RUNNING, True)), ()),
]


@pytest.mark.parametrize("number", range(len(ROWS)))
def test_the_row(number: int) -> None:
    row, verb, situation, changes = ROWS[number]
    step = plan_domain(situation)
    assert (step.row, step.verb) == (row, verb), step
    is_exactly(step.changes, *changes)


# ------------------------------------------------------------------------------------------------------ what is only shown

def test_a_line_of_history_and_a_reason_are_written_over_nobodys() -> None:
    server = FakeServer()
    zk = FakeZooKeeper(server, "a")
    store, found = Store(zk), list[tuple[Change, ...]]()
    store.ensure_roots()
    server.on_commit = lambda _client, changes: found.append(tuple(changes))
    entry = history.Entry("t", "a", "started", "ordered")
    for number in range(2):
        data = history.appended(store.raw(schema.history(UUID)).data, entry)
        assert history.record(store, UUID, entry)
        assert found.pop() == ((Write(schema.history(UUID), data, number - 1) if number else Create(schema.history(UUID), data)),)
        store.write_meta(UUID, {f"key{number}": "x"})
        assert len(found[-1]) == 1 and (found[-1][0].path, getattr(found[-1][0], "version", -1)) == (schema.vmmeta(UUID), number - 1)
    assert store.meta(UUID) == {"key0": "x", "key1": "x"}

    def another(_changes: object) -> None:
        zk.before_commit = lambda _changes: None
        server.put(schema.history(UUID), b"another\n")
    zk.before_commit = another
    assert history.record(store, UUID, entry), "a lost race is tried again"
    assert (server.text(schema.history(UUID)) or "").splitlines()[0] == "another" and len(found) > 1
    zk.cut()
    assert not history.record(store, UUID, entry), "a history stops no action"
