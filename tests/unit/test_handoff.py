# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The rows of a migration, each with the whole of what it writes and checks: a check that is dropped fails here."""
from __future__ import annotations

from dataclasses import replace

import pytest
from test_planner import DEST_A, DEST_B, ME, NODE_VERSIONS, UUID, node, record, view

from pvcd.cluster import claims, schema
from pvcd.cluster.records import Change, Check, Claim, ClaimRecord, DomainRecord, Fence, FenceRecord, Operation, View, Write, decode_claim
from pvcd.cluster.schema import DaemonState, FencePhase, OpPhase, Unknown, VMState
from pvcd.handoff import PATIENCE_S
from pvcd.local import COPY, HALTED, Call, CallState, Local, Status
from pvcd.planner import plan_domain
from pvcd.recovery_plan import plan_recovery
from pvcd.situation import Attempts, Level, Situation, Step, Timers, Verb

MINE = ME.mine
CLAIM = Check(schema.claim(UUID), 9)
STATE, HOME = (Check(schema.domain_key(UUID, key), version) for key, version in (("state", 5), ("hypervisor", 6)))
FENCE_B = Check(schema.fence("b"), 7)
ACTIVE, FAILED = Call("op1", CallState.ACTIVE), Call("op1", CallState.FAILED, "no")


def mine(phase: OpPhase, **more: object) -> Claim:
    return Claim("a", "a1/0", replace(DEST_B, phase=phase, **more))  # type: ignore[arg-type]


def others(phase: OpPhase, inc: str = "b1/0", **more: object) -> Claim:
    return Claim("b", inc, replace(DEST_A, phase=phase, **more))  # type: ignore[arg-type]


def given() -> Claim:
    return Claim("a", "a1/0", replace(DEST_A, phase=OpPhase.GIVEN))


def plan(claim: Claim | None, local: Local | Status, state: VMState = VMState.MIGRATE, home: str = "b", seen: View | None = None,
         timers: Timers = Timers(), version: int = 9, attempts: Attempts = Attempts()) -> Step:  # noqa: B008
    found = local if isinstance(local, Local) else Local(local)
    return plan_domain(Situation(ME, record(state, home), ClaimRecord(claim, version), found, seen or view(), timers, attempts, op_id="new"))


def with_fence(name: str, phase: FencePhase, inc: str = "") -> View:
    base = view()
    return replace(base, fences={**base.fences, name: FenceRecord(Fence(inc or f"{name}1/0", phase), 7)})


def claimed(claim: Claim | None) -> Write:
    return Write(schema.claim(UUID), claim.encode() if claim else b"", 9)


def rolled_back() -> list[Change]:
    return [Write(schema.domain_key(UUID, "state"), b"start", 5), Write(schema.domain_key(UUID, "hypervisor"), b"a", 6)]


def is_exactly(step: Step, row: str, verb: Verb, *changes: Change) -> None:
    assert (step.row, step.verb) == (row, verb)
    assert sorted(step.changes, key=repr) == sorted(changes, key=repr)


# -------------------------------------------------------------------------------------------------------- the destination

@pytest.mark.parametrize("dinc", ["a1/0", "a0/0"])
@pytest.mark.parametrize("phase", [FencePhase.UP, FencePhase.FENCING])
def test_d1_what_has_arrived_waits_for_the_source(dinc: str, phase: FencePhase) -> None:
    is_exactly(plan(others(OpPhase.RUN, dinc=dinc), Status.PAUSED, home="a", seen=with_fence("b", phase)), "D1", Verb.NOTHING)


def test_d2_a_dead_source_may_have_woken_its_copy_before() -> None:
    is_exactly(plan(others(OpPhase.RUN, "b0/0"), Status.PAUSED, home="a"), "D2", Verb.DESTROY, MINE, CLAIM)
    is_exactly(plan(others(OpPhase.RUN), Status.PAUSED, home="a", seen=with_fence("b", FencePhase.FENCED)), "D2", Verb.DESTROY, MINE, CLAIM)


def test_d3_half_a_copy_waits_for_a_source_that_lives() -> None:
    is_exactly(plan(others(OpPhase.RUN), Status.MIGRATING, home="a"), "D3", Verb.NOTHING)
    is_exactly(plan(others(OpPhase.RUN, "b0/0"), Status.MIGRATING, home="a"), "D5", Verb.DESTROY, MINE, CLAIM)


def test_d4_an_order_that_is_gone() -> None:
    is_exactly(plan(others(OpPhase.READY), Status.ABSENT, home="c"), "D4", Verb.NOTHING, MINE, claimed(Claim("b", "b1/0")))


def test_d4_a_daemon_that_is_being_stopped_takes_its_offer_back() -> None:
    s = Situation(ME, record(VMState.MIGRATE, "a"), ClaimRecord(others(OpPhase.READY), 9), Local(Status.ABSENT), view(), stopping=True)
    is_exactly(plan_domain(s), "D4", Verb.NOTHING, MINE, claimed(Claim("b", "b1/0")))
    assert plan_domain(replace(s, stopping=False)).row == 16
    assert plan_domain(replace(s, claim=ClaimRecord(others(OpPhase.READY, dinc="a0/0"), 9))).row == 16, "an earlier boot's is its source's to withdraw"


@pytest.mark.parametrize("status", [Status.RUNNING, Status.PAUSED, Status.MIGRATING, Status.STUCK, Status.IO_ERROR, Status.CRASHED])
def test_d5_strays(status: Status) -> None:
    for claim in (Claim("b", "b1/0"), others(OpPhase.READY), Claim("b", "b1/0", replace(DEST_A, phase=OpPhase.RUN, dest="c"))):
        step = plan(claim, status, home="a")
        is_exactly(step, "D5", Verb.DESTROY, MINE, CLAIM)
        assert (step.level is Level.CRITICAL) is (status is Status.RUNNING)


def test_d5_a_paused_copy_that_nobody_holds() -> None:
    """It came by a migration that is over: destroyed. No claim was ever held: somebody has paused it, and it is adopted, as if it ran."""
    is_exactly(plan(None, Status.PAUSED), "D5", Verb.DESTROY, MINE, CLAIM, STATE, HOME)
    assert plan(None, Status.PAUSED, version=0).row == 7
    for status in (Status.RUNNING, Status.IO_ERROR, Status.STUCK):
        assert plan(None, status).row == 7


@pytest.mark.parametrize("status", list(Status))
def test_d6_to_d8_what_the_claim_was_given_for(status: Status) -> None:
    step = plan(given(), status, home="a")
    if status is Status.MIGRATING:
        is_exactly(step, "D6", Verb.DESTROY, MINE, CLAIM)
    elif status is Status.PAUSED:
        is_exactly(step, "D7", Verb.RESUME, MINE, CLAIM, STATE, HOME)
        assert step.retry_s == 2.0
    elif status is not Status.UNKNOWN:
        is_exactly(step, "D8", Verb.NOTHING, MINE, claimed(Claim("a", "a1/0")))


@pytest.mark.parametrize("word", list(VMState))
def test_d7_whatever_is_ordered_but_an_end(word: VMState) -> None:
    step = plan(given(), Status.PAUSED, word, "c")
    is_exactly(step, "D6" if word in (VMState.STOP, VMState.DELETE) else "D7", Verb.DESTROY if step.row == "D6" else Verb.RESUME, MINE, CLAIM, STATE, HOME)


# ------------------------------------------------------------------------------------------------------------- the source

def test_s1_the_start_mark() -> None:
    step = plan(mine(OpPhase.READY), Status.RUNNING)
    runs = Check(schema.node_key("b", "daemonstate"), NODE_VERSIONS["daemonstate"])
    is_exactly(step, "S1", Verb.MIGRATE, MINE, runs, STATE, HOME, claimed(mine(OpPhase.RUN)))


def test_s2_an_offer_that_is_not_taken() -> None:
    plain = (MINE, claimed(Claim("a", "a1/0")))
    is_exactly(plan(mine(OpPhase.READY), Status.RUNNING, VMState.STOP), "S2", Verb.NOTHING, *plain)
    is_exactly(plan(mine(OpPhase.READY), Status.RUNNING, home="c"), "S2", Verb.NOTHING, *plain)
    is_exactly(plan(mine(OpPhase.READY, dinc="b0/0"), Status.RUNNING), "S2", Verb.NOTHING, *plain)
    is_exactly(plan(mine(OpPhase.READY), Status.ABSENT, VMState.STOP), "S2", Verb.NOTHING, *plain)
    for word in (DaemonState.STOP, DaemonState.INIT):  # nobody would resume what arrives there
        is_exactly(plan(mine(OpPhase.READY), Status.RUNNING, seen=view(other=word)), "S2", Verb.NOTHING, *plain)
    for status in (*HALTED, Status.CRASHED, Status.MIGRATING):  # else the destination offers again, as fast as ZooKeeper answers
        step = plan(mine(OpPhase.READY), status)
        is_exactly(step, "S2", Verb.NOTHING, *plain, *rolled_back())
        assert step.level is Level.WARNING
    is_exactly(plan(mine(OpPhase.READY, v=1), Status.RUNNING), "S2", Verb.NOTHING, *plain, *rolled_back())


def test_s2_a_guest_that_has_ended_before_its_migration_is_started_by_the_destination() -> None:
    is_exactly(plan(mine(OpPhase.READY), Status.ABSENT), "S2", Verb.NOTHING, MINE, STATE, HOME, claimed(None))
    is_exactly(plan(mine(OpPhase.READY), Status.ABSENT, attempts=Attempts(doubt=True)), "S2", Verb.NOTHING)


def test_an_order_for_a_guest_that_does_not_run_is_taken_back_before_anybody_offers() -> None:
    for status in HALTED:
        for word in (VMState.START, VMState.MIGRATE):
            step = plan(Claim("a", "a1/0"), status, word)
            assert step.row == 31 and sorted(step.changes, key=repr) == sorted((MINE, CLAIM, *rolled_back()), key=repr)


@pytest.mark.parametrize(("why", "step"), [
    ("order gone", plan(mine(OpPhase.RUN), Local(Status.RUNNING, True, ACTIVE), VMState.START, "a")),
    ("in the queue", plan(mine(OpPhase.RUN), Local(Status.RUNNING, False, ACTIVE), VMState.STOP)),
    ("dest dead", plan(mine(OpPhase.RUN, dinc="b0/0"), Local(Status.RUNNING, True, ACTIVE))),
    ("dest's pvcd away", plan(mine(OpPhase.RUN), Local(Status.RUNNING, True, ACTIVE), timers=Timers(dest_down_s=10))),
    ("no progress", plan(mine(OpPhase.RUN), Local(Status.RUNNING, True, ACTIVE), timers=Timers(stalled_s=PATIENCE_S))),
    ("its guest has ended", plan(mine(OpPhase.RUN), Local(Status.ABSENT, False, ACTIVE))),
])
def test_s3_aborts(why: str, step: Step) -> None:
    is_exactly(step, "S3", Verb.ABORT)


def test_s3_waits() -> None:
    is_exactly(plan(mine(OpPhase.RUN), Local(Status.RUNNING, True, ACTIVE)), "S3", Verb.NOTHING)
    for state, home in ((VMState.MIGRATE, "b"), (VMState.STOP, "b"), (VMState.START, "a")):
        paused = plan(mine(OpPhase.RUN, dinc="b0/0"), Local(Status.MIGRATING, True, ACTIVE), state, home, timers=Timers(stalled_s=99))
        is_exactly(paused, "S3", Verb.NOTHING)


@pytest.mark.parametrize("call", [None, Call("op0", CallState.FAILED), Call("op1", CallState.SUCCEEDED)])
@pytest.mark.parametrize("dinc", ["b1/0", "b0/0"])
def test_s4_the_claim_goes_to_the_present_life_of_the_destination(call: Call | None, dinc: str) -> None:
    step = plan(mine(OpPhase.RUN, dinc=dinc), Local(Status.ABSENT, call=call))
    is_exactly(step, "S4", Verb.NOTHING, MINE, FENCE_B, claimed(Claim("b", "b1/0", replace(DEST_B, phase=OpPhase.GIVEN, dinc=dinc))))


def test_s9_a_copy_that_has_ended_after_its_migration_has_failed() -> None:
    """libvirt may have woken it first: the one at the destination is not given the claim."""


@pytest.mark.parametrize("call", [None, Call("op0", CallState.ACTIVE), ACTIVE])
def test_s4_a_process_that_has_ended_before_libvirt_looks(call: Call | None) -> None:
    """Only under the operation that its call is of, and only to a destination that is up; else it waits for the end of the call and aborts nothing."""
    left = Local(Status.ABSENT, call=call, left=True)
    step = plan(mine(OpPhase.RUN), left)
    if call is not ACTIVE:
        assert step == plan(mine(OpPhase.RUN), replace(left, left=False))
        return
    is_exactly(step, "S4", Verb.NOTHING, MINE, FENCE_B, claimed(Claim("b", "b1/0", replace(DEST_B, phase=OpPhase.GIVEN))))
    for phase in (FencePhase.FENCING, FencePhase.FENCED):
        step = plan(mine(OpPhase.RUN), left, seen=with_fence("b", phase), timers=Timers(dest_down_s=99.0))
        is_exactly(step, "S3", Verb.NOTHING)
        assert step.again_s == 1.0


def test_s5_a_destination_that_cannot_have_it() -> None:
    closed = (MINE, claimed(Claim("a", "a1/0")), *rolled_back())
    for phase, down_s, ends in ((FencePhase.FENCED, 0.0, True), (FencePhase.FENCING, 29.0, False), (FencePhase.FENCING, 30.0, True)):
        step = plan(mine(OpPhase.RUN), Status.ABSENT, seen=with_fence("b", phase), timers=Timers(dest_down_s=down_s))
        is_exactly(step, "S5", Verb.NOTHING, *(closed if ends else ()))


def test_s6_a_source_that_nobody_wakes() -> None:
    for status in (Status.MIGRATING, Status.STUCK):
        for call in (None, FAILED):
            is_exactly(plan(mine(OpPhase.RUN), Local(status, call=call)), "S6", Verb.RESUME, MINE, CLAIM, STATE, HOME)


REFUSED = Timers(refused_s=4.0)


@pytest.mark.parametrize("status", [Status.MIGRATING, Status.STUCK])
def test_s9_a_source_that_may_not_resume_takes_its_migration_back(status: Status) -> None:
    """QEMU 10: the paused copy at the destination has the lock of the image, and each would wait for the other for ever."""
    back = Claim("a", "a1/0", replace(DEST_B, phase=OpPhase.RUN, dest="a", dinc="a1/0"))
    is_exactly(plan(mine(OpPhase.RUN), status, timers=REFUSED), "S9", Verb.NOTHING, MINE, claimed(back), *rolled_back())
    is_exactly(plan(mine(OpPhase.RUN), status, VMState.STOP, timers=REFUSED), "S9", Verb.NOTHING, MINE, claimed(back))
    is_exactly(plan(mine(OpPhase.RUN), status, home="c", timers=REFUSED), "S9", Verb.NOTHING, MINE, claimed(back))
    assert plan(mine(OpPhase.RUN), status, timers=Timers(refused_s=3.9)).row == "S6" and plan(mine(OpPhase.RUN, v=1), status, timers=REFUSED).row != "S9"
    is_exactly(plan(back, status, VMState.START, "a", timers=REFUSED), "S6", Verb.RESUME, MINE, CLAIM, STATE, HOME)
    for busy in (Local(status, call=ACTIVE), Local(status, job=True)):
        assert plan(mine(OpPhase.RUN), busy, timers=REFUSED).row == "S3"


def test_what_becomes_of_a_migration_that_was_taken_back() -> None:
    """At the source its life goes on; at the destination the copy goes, and is not inherited when the source dies."""
    back = Claim("a", "a1/0", replace(DEST_B, phase=OpPhase.RUN, dest="a", dinc="a1/0"))
    step = plan(back, Local(Status.RUNNING, call=FAILED), VMState.START, "a")
    assert step.row == "S7" and "taken back" in step.reason and claimed(Claim("a", "a1/0")) in step.changes
    there = Claim("b", "b1/0", replace(DEST_B, phase=OpPhase.RUN, dest="b"))  # seen from the destination, node a
    is_exactly(plan(there, Status.PAUSED, VMState.START, "b"), "D5", Verb.DESTROY, MINE, CLAIM)
    dead = plan(there, Status.PAUSED, VMState.START, "b", seen=with_fence("b", FencePhase.FENCED))
    assert dead.row == "D5"


@pytest.mark.parametrize("status", [Status.RUNNING, Status.PAUSED, Status.IO_ERROR, Status.CRASHED])
def test_s7_it_stayed(status: Status) -> None:
    is_exactly(plan(mine(OpPhase.RUN), Local(status, call=FAILED)), "S7", Verb.NOTHING, MINE, claimed(Claim("a", "a1/0")), *rolled_back())


def test_s8_a_call_that_no_operation_allows() -> None:
    for status in (Status.RUNNING, Status.MIGRATING):
        is_exactly(plan(Claim("a", "a1/0"), Local(status, True), VMState.START, "a"), "S8", Verb.ABORT)


def test_a_guest_that_libvirt_could_not_resume_is_named_and_not_resumed_blindly() -> None:
    step = plan(Claim("a", "a1/0"), Status.STUCK, VMState.START, "a")
    assert (step.row, step.verb, step.changes, step.level) == (35, Verb.NOTHING, (), Level.CRITICAL)


def test_only_daemons_of_this_protocol_migrate_live() -> None:
    def step(protocol: int | None) -> Step:
        base = view()
        seen = replace(base, nodes={**base.nodes, "b": replace(node("b"), protocol=protocol)})
        return plan(Claim("b", "b1/0"), Status.ABSENT, home="a", seen=seen)
    offer = Claim("b", "b1/0", Operation("new", OpPhase.READY, "a", "a1/0"))
    spoken = Check(schema.node_key("b", "protocol"), NODE_VERSIONS["protocol"])
    assert sorted(step(2).changes, key=repr) == sorted((MINE, spoken, STATE, HOME, claimed(offer)), key=repr)
    assert step(1).changes == claims.refuse(ME, record(VMState.MIGRATE, "a"), ClaimRecord(Claim("b", "b1/0"), 9)) and "older" in step(1).reason
    for starting in (0, None):
        assert step(starting).changes == ()


# ----------------------------------------------------------------------------------------------- a dead holder, and protocol 1

def recovered(claim: Claim, dead_s: float, seen: View | None = None) -> tuple[Change, ...]:
    domains: dict[str, DomainRecord] = {UUID: record(VMState.START, "a")}
    steps = plan_recovery(ME, seen or view(), domains, {UUID: ClaimRecord(claim, 9)}, {UUID: 1}, {}, {UUID: dead_s})
    return steps[0].changes


def test_j1_the_janitor_waits_for_a_destination_that_is_up_and_never_asks_its_fence() -> None:
    for phase, dead_s, seen, frees in ((OpPhase.RUN, 29.0, view(), False), (OpPhase.RUN, 30.0, view(), True), (OpPhase.READY, 0.0, view(), True),
                                       (OpPhase.RUN, 0.0, with_fence("c", FencePhase.FENCING), True)):
        claim = Claim("b", "b0/0", Operation("op1", phase, "c", "c1/0"))
        changes = recovered(claim, dead_s, seen)
        assert bool(changes) is frees
        assert not frees or [c.path for c in changes if c.path.startswith(schema.FENCES)] == [schema.fence("a"), schema.fence("b")]
        step = plan(claim, Status.ABSENT, VMState.START, "a", seen, Timers(holder_dead_s=dead_s))
        assert (step.row == 15) is frees and (step.row == "J1") is not frees
        assert Check(schema.fence("c"), 7) not in step.changes


def test_the_destination_recovers_at_once_what_has_not_arrived() -> None:
    step = plan(others(OpPhase.RUN, "b0/0"), Status.ABSENT, home="a")
    assert step.row == 15 and {MINE, FENCE_B} <= set(step.changes)


def test_operations_of_protocol_1() -> None:
    for word in ("run", "query", "none"):
        raw = b'{"v":1,"node":"b","inc":"b1/0","op":{"id":"op1","phase":"%s","dest":"a","dinc":"a1/0","there":true}}' % word.encode()
        assert decode_claim(raw) == others(OpPhase.RUN, v=1)
    assert isinstance(decode_claim(b'{"v":1,"node":"b","inc":"b1/0","op":{"v":2,"id":"op1","phase":"query","dest":"a","dinc":"a1/0"}}'), Unknown)
    assert isinstance(decode_claim(b'{"v":1,"node":"b","inc":"b1/0","op":{"v":3,"id":"op1","phase":"run","dest":"a","dinc":"a1/0"}}'), Unknown)
    for inc, statuses in (("b1/0", COPY), ("b0/0", COPY - {Status.PAUSED})):
        for status in statuses:
            is_exactly(plan(others(OpPhase.RUN, inc, v=1), status, home="a"), "V1", Verb.NOTHING, MINE, claimed(Claim("a", "a1/0")))
    is_exactly(plan(others(OpPhase.RUN, "b0/0", v=1), Status.PAUSED, home="a"), "D2", Verb.DESTROY, MINE, CLAIM)
    is_exactly(plan(mine(OpPhase.RUN, v=1), Status.MIGRATING), "V2", Verb.DESTROY, MINE, CLAIM)
    is_exactly(plan(mine(OpPhase.RUN, v=1), Local(Status.MIGRATING, True)), "S3", Verb.NOTHING)


def test_a_dead_holders_operation_of_protocol_1_is_over_only_where_its_destination_says_so_or_is_off() -> None:
    claim = Claim("b", "b0/0", Operation("op1", OpPhase.RUN, "c", "c1/0", 1))
    assert not recovered(claim, 999.0) and not recovered(claim, 999.0, with_fence("c", FencePhase.FENCING))
    changes = recovered(claim, 0.0, with_fence("c", FencePhase.FENCED))
    assert {FENCE_B, Check(schema.fence("c"), 7)} <= set(changes)
    assert plan(others(OpPhase.RUN, "b0/0", v=1), Status.ABSENT, VMState.START, "c").row == 15
