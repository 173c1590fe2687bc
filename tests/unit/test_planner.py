# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The planner's table over all combinations of its inputs: every row is reached, and no combination breaks a law."""
from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest

from pvcd.cluster import avoid, claims, schema
from pvcd.cluster.avoid import Avoided
from pvcd.cluster.claims import Actor
from pvcd.cluster.records import (
    Check,
    Claim,
    ClaimRecord,
    Create,
    DomainRecord,
    Fence,
    FenceRecord,
    NodeRecord,
    Operation,
    Value,
    View,
    Write,
    decode_claim,
)
from pvcd.cluster.schema import DaemonState, DomainState, FencePhase, OpPhase, Unknown, VMState
from pvcd.local import COPY, Call, CallState, Local, Status
from pvcd.planner import plan_domain
from pvcd.situation import Attempts, Level, Onward, Situation, Step, Timers, Verb

UUID = "11111111-2222-4333-8444-555555555555"
ME = Actor("a", "a1/0", 7)
NODE_VERSIONS = {"": 0, "daemonstate": 3, "domainstate": 4, "protocol": 11}

STATES = [*VMState, Unknown(b"foo"), None, "gone"]
HOMES = ["a", "b", "c", "", "nowhere", Unknown(b"\xff"), None]
STATUSES = list(Status)
DEST_A = Operation("op1", OpPhase.READY, "a", "a1/0")
DEST_B = Operation("op1", OpPhase.READY, "b", "b1/0")
HOLDERS = {
    "free": None, "garbage": Unknown(b"{"), "mine": Claim("a", "a1/0"), "my old": Claim("a", "a0/0"),
    "other": Claim("b", "b1/0"), "dead": Claim("b", "b0/0"),
    **{f"mine to b {p.value}": Claim("a", "a1/0", replace(DEST_B, phase=p)) for p in OpPhase},
    **{f"mine to dead b {p.value}": Claim("a", "a1/0", replace(DEST_B, phase=p, dinc="b0/0")) for p in OpPhase},
    **{f"mine to d {p.value}": Claim("a", "a1/0", replace(DEST_B, phase=p, dest="d", dinc="d1/0")) for p in OpPhase},
    "mine to e": Claim("a", "a1/0", replace(DEST_B, phase=OpPhase.RUN, dest="e", dinc="e1/0")),
    **{f"mine given by {p}": Claim("a", "a1/0", replace(DEST_A, phase=OpPhase.GIVEN)) for p in "b"},
    **{f"other to a {p.value}": Claim("b", "b1/0", replace(DEST_A, phase=p)) for p in OpPhase},
    **{f"dead to a {p.value}": Claim("b", "b0/0", replace(DEST_A, phase=p)) for p in OpPhase},
    **{f"dead to dead c {p.value}": Claim("b", "b0/0", replace(DEST_A, phase=p, dest="c", dinc="c0/0")) for p in OpPhase},
    **{f"dead to c {p.value}": Claim("b", "b0/0", replace(DEST_A, phase=p, dest="c", dinc="c1/0")) for p in OpPhase},
    **{f"dead to d {p.value}": Claim("b", "b0/0", replace(DEST_A, phase=p, dest="d", dinc="d1/0")) for p in OpPhase},
    "old mine to b": Claim("a", "a1/0", replace(DEST_B, phase=OpPhase.RUN, v=1)), "old ready": Claim("a", "a1/0", replace(DEST_B, v=1)),
    "old other to a": Claim("b", "b1/0", replace(DEST_A, phase=OpPhase.RUN, v=1)), "old dead to a": Claim("b", "b0/0", replace(DEST_A, phase=OpPhase.RUN, v=1)),
    "old dead to c": Claim("b", "b0/0", replace(DEST_A, phase=OpPhase.RUN, dest="c", dinc="c1/0", v=1)),
    "old dead to d": Claim("b", "b0/0", replace(DEST_A, phase=OpPhase.RUN, dest="d", dinc="d1/0", v=1)),
    **{f"other to old a {p.value}": Claim("b", "b1/0", replace(DEST_A, phase=p, dinc="a0/0")) for p in OpPhase},
}
CALLS = [None, Call("op1", CallState.ACTIVE), Call("op1", CallState.SUCCEEDED), Call("op1", CallState.FAILED, "no room"),
         Call("op0", CallState.SUCCEEDED)]
TIMERS = [Timers(), Timers(ordered_s=31, stalled_s=31, dest_down_s=31, holder_dead_s=31, shutdown_s=31, resume_s=5),
          Timers(dest_down_s=29, holder_dead_s=29, shutdown_s=1, resume_s=31)]
REFUSED = Attempts(errors=3, refused_s=600, reason="no disk")
ATTEMPTS = [Attempts(), Attempts(errors=3, refused_s=600, reason="no"), Attempts(wait_s=3), Attempts(doubt=True), Attempts(deaths=3)]


def node(name: str, daemon: DaemonState = DaemonState.RUN, domains: DomainState = DomainState.READY) -> NodeRecord:
    return NodeRecord(name, daemon, domains, 0, 1000, 0, protocol=2, versions=NODE_VERSIONS)


def view(own: DomainState = DomainState.READY, other: DaemonState = DaemonState.RUN) -> View:
    nodes = {"a": node("a", domains=own), "b": node("b", other), "c": node("c")}
    fences = {name: FenceRecord(Fence(f"{name}1/0", FencePhase.UP), 7) for name in "abc"}
    fences["d"] = FenceRecord(Fence("d1/0", FencePhase.FENCED), 7)
    fences["e"] = FenceRecord(Fence("e1/0", FencePhase.FENCING), 7)
    return View(nodes, fences)


def record(state: object, home: object, last: str = "") -> DomainRecord:
    if state == "gone":
        return DomainRecord(UUID)
    values = {"": 1, "state": 5, "hypervisor": 6, "lasthypervisor": 2}
    versions = {key: version for key, version in values.items()
                if not ((key == "state" and state is None) or (key == "hypervisor" and home is None))}
    return DomainRecord(UUID, "web1", state, home, last, versions)  # type: ignore[arg-type]


def situations() -> Iterator[tuple[str, Situation]]:
    for (holder, claim), state, home, status in itertools.product(HOLDERS.items(), STATES, HOMES, STATUSES):
        for call, (job, incoming) in itertools.product(CALLS if "mine to" in holder else [None], ((False, False), (True, False), (False, True))):
            local = Local(status, job, call, incoming=incoming)
            yield holder, Situation(ME, record(state, home), ClaimRecord(claim, 9), local, view(), op_id="new")


Row = tuple[str, Situation, Step]


@pytest.fixture(scope="module")
def table() -> list[Row]:
    found = []
    for holder, s in situations():
        for timers in TIMERS:
            found.append((holder, replace(s, timers=timers)))
        if holder == "mine" and s.local.status is Status.ABSENT:
            found += [(holder, replace(s, attempts=attempts)) for attempts in ATTEMPTS]
        if holder == "other":
            found.append((holder, replace(s, unfit="no room")))
        found += [(holder, replace(s, stopping=True, closing=True, timers=timers)) for timers in TIMERS]
        found.append((holder, replace(s, stopping=True)))
        if holder == "free":
            found.append((holder, replace(s, local=replace(s.local, persistent=True))))
    return [(holder, s, plan_domain(s)) for holder, s in found]


def test_every_row_is_reached(table: list[Row]) -> None:
    rows = Counter(step.row for _, _, step in table)
    of_migrations = {"D1", "D2", "D3", "D4", "D5", "D6", "D7", "D8", "S1", "S2", "S3", "S4", "S5", "S6", "S7", "S8", "J1", "V1", "V2"}
    in_recovery = {12}
    assert set(rows) == of_migrations | {0, 7, *range(9, 17), *range(28, 45)} - in_recovery - {14}
    assert len(table) > 50_000


def test_unknown_is_never_a_reason_to_act(table: list[Row]) -> None:
    for _, s, step in table:
        if s.local.status is Status.UNKNOWN or isinstance(s.claim.value, Unknown):
            assert (step.row, step.verb, step.changes) == (0, Verb.NOTHING, ())


def test_every_change_checks_that_this_node_may_act_and_the_claim(table: list[Row]) -> None:
    for _, s, step in table:
        if step.changes or step.verb is not Verb.NOTHING:
            paths = [change.path for change in step.changes]
            if step.verb is not Verb.ABORT:
                assert step.changes[0] == ME.mine
                assert schema.claim(UUID) in paths
            assert len(set(paths)) == len(paths)
            assert all(change.version >= 0 for change in step.changes if not isinstance(change, Create))


def test_the_gate_is_closed_before_every_effect(table: list[Row]) -> None:
    for _, s, step in table:
        if step.verb in (Verb.CREATE, Verb.SHUT_DOWN, Verb.DESTROY, Verb.RESUME):
            assert all(isinstance(change, Check) for change in step.changes)
        if step.verb is Verb.CREATE:
            assert {schema.domain_key(UUID, "state"), schema.domain_key(UUID, "hypervisor")} <= {c.path for c in step.changes}


def test_only_the_holder_creates_and_only_what_is_wanted_here(table: list[Row]) -> None:
    for holder, s, step in table:
        if step.verb is Verb.CREATE:
            assert holder == "mine" and s.state is VMState.START and s.homed_here and s.local.status is Status.ABSENT


def test_a_running_guest_is_destroyed_only_by_an_order_or_because_another_holds_it(table: list[Row]) -> None:
    for holder, s, step in table:
        if step.verb is Verb.DESTROY and s.local.status in COPY:
            ordered = holder.startswith("mine") and (s.closing or s.state in (VMState.STOP, VMState.DELETE, VMState.SHUTDOWN, VMState.RESTART))
            arrived = s.claim.value is None and s.local.status is Status.PAUSED  # and nobody has resumed it
            assert ordered or arrived or (isinstance(s.claim.value, Claim) and not ME.holds(s.claim.value))
        if s.record.exists is False and holder == "mine":
            half = s.local.status is Status.MIGRATING and s.local.incoming
            assert step.verb is not Verb.DESTROY or s.local.status is Status.CRASHED or half or s.closing


def test_unknown_words_start_stop_and_move_nothing(table: list[Row]) -> None:
    for holder, s, step in table:
        if s.record.exists and not isinstance(s.record.state, VMState):
            assert not any(c.path == schema.domain_key(UUID, "state") and isinstance(c, Write) for c in step.changes)
            assert step.verb not in (Verb.CREATE, Verb.SHUT_DOWN, Verb.MIGRATE) or step.row == 42
            if step.verb is Verb.DESTROY:
                assert step.row in ("D2", "D5", "D6", "V2", 36, 42)


ALLOWED = {  # from what the claim is to what it may become, by whom: the table of claims, without what the janitor does
    ("free", "mine"), ("other", "ready for me"), ("ready for me", "other"), ("mine ready", "mine"),
    ("mine ready", "mine run"), ("mine ready", "free"), ("mine run", "handed over"), ("mine run", "mine"), ("mine given", "mine"), ("mine", "free"),
    ("other", "free"), ("ready for me", "free"), ("run for me", "free"), ("given for me", "free"), ("gone", "free"),
    ("old run for me", "mine"), ("old run for me", "free")}


def kind(claim: Claim | None) -> str:
    if claim is None:
        return "free"
    op = claim.op
    if op is not None and op.v == 1 and op.dest == ME.node and not ME.holds(claim):
        return f"old {op.phase.value} for me"
    if ME.holds(claim):
        return "mine" if op is None else f"mine {op.phase.value}"
    if op is not None and op.dest == ME.node:
        return f"{op.phase.value} for me"
    return "other" if op is None else "gone"


def test_claims_move_only_along_the_table(table: list[Row]) -> None:
    seen = set()
    for holder, s, step in table:
        for change in step.changes:
            if isinstance(change, Write) and change.path == schema.claim(UUID):
                old, new = s.claim.value, decode_claim(change.data)
                assert not isinstance(old, Unknown) and not isinstance(new, Unknown)
                move = (kind(old), kind(new))
                if move[0] == "mine run" and isinstance(new, Claim) and new.op is not None and new.op.phase is OpPhase.GIVEN:
                    assert old is not None and old.op is not None and (new.node, new.op.v) == (old.op.dest, 2)
                    move = ("mine run", "handed over")
                if move[1] == "free" and old is not None and not ME.holds(old):
                    assert s.view.is_dead(old.node, old.inc), (holder, move)
                seen.add(move)
    assert seen - ALLOWED == set()
    assert ALLOWED - seen == set()


def test_an_acquired_claim_is_not_created_in_the_same_visit(table: list[Row]) -> None:
    for holder, s, step in table:
        assert not (step.verb is Verb.CREATE and any(isinstance(change, Write) for change in step.changes))


def situation(claim: object, state: object, home: object, status: Status, **kw: object) -> Situation:
    base = Situation(ME, record(state, home), ClaimRecord(claim, 9), Local(status), view(), op_id="new")  # type: ignore[arg-type]
    return replace(base, **kw)  # type: ignore[arg-type]


MINE = HOLDERS["mine"]


@pytest.mark.parametrize("phase", [FencePhase.FENCING, FencePhase.FENCED, FencePhase.REMOVED])
def test_a_node_that_is_not_up_touches_nothing(phase: FencePhase) -> None:
    fences = {**view().fences, "a": FenceRecord(Fence("a1/0", phase), 8)}
    for _, s in itertools.islice(situations(), 0, None, 37):
        step = plan_domain(replace(s, view=replace(s.view, fences=fences)))
        assert (step.row, step.verb, step.changes) == (0, Verb.NOTHING, ())


def test_a_claim_that_does_not_exist_is_created_first_not_written_blindly() -> None:
    step = plan_domain(replace(situation(None, VMState.START, "a", Status.ABSENT), claim=ClaimRecord(None, -1)))
    assert (step.row, step.changes) == (0, ())


def test_nothing_is_claimed_before_run_or_while_a_node_has_not_looked_at_its_guests() -> None:
    wanted = situation(None, VMState.START, "a", Status.ABSENT)
    assert plan_domain(wanted).changes
    starting = {**view().nodes, "a": node("a", DaemonState.INIT)}
    assert not plan_domain(replace(wanted, view=replace(view(), nodes=starting))).changes
    old = {**view().nodes, "c": replace(node("c"), protocol=None)}
    assert not plan_domain(replace(wanted, view=replace(view(), nodes=old))).changes
    assert not plan_domain(replace(wanted, view=view(own=DomainState.FLUSH))).changes


@pytest.mark.parametrize(("daemon", "fence", "waits"), [
    (DaemonState.RUN, None, True), (DaemonState.RUN, FencePhase.FENCING, True), (DaemonState.RUN, FencePhase.FENCED, False),
    (DaemonState.STOP, None, False), (DaemonState.DEAD, None, False)])
def test_a_node_in_run_that_knows_no_claims_is_waited_for_with_a_fence_or_without(
        daemon: DaemonState, fence: FencePhase | None, waits: bool) -> None:
    """A daemon of 0.1 has no fence, and starts what is wanted on it without asking anybody."""
    nodes = {**view().nodes, "c": replace(node("c", daemon), protocol=None)}
    fences = {name: found for name, found in view().fences.items() if name != "c"}
    if fence is not None:
        fences["c"] = FenceRecord(Fence("c1/0", fence), 7)
    step = plan_domain(replace(situation(None, VMState.START, "a", Status.ABSENT), view=View(nodes, fences)))
    assert bool(step.changes) is not waits
    assert ("upgrade it" in step.reason) is (waits and fence is None)


def test_failed_is_written_with_its_reason_and_frees_the_claim() -> None:
    s = situation(MINE, VMState.START, "a", Status.ABSENT, attempts=REFUSED)
    step = plan_domain(replace(s, onward=Onward(None, "it is at home")))
    assert step.failed == "no disk" and step.level is Level.CRITICAL
    given_up = (ME.mine, Write(schema.domain_key(UUID, "state"), b"failed", 5), Check(schema.domain_key(UUID, "hypervisor"), 6),
                Write(schema.claim(UUID), b"", 9))
    assert step.changes == given_up
    step = plan_domain(replace(s, onward=Onward(None, "nothing left", Avoided({"b": "no bridge"}, 4))))
    assert step.failed == "no disk; tried before: b: no bridge"
    assert step.changes == (*given_up, Write(schema.avoid(UUID), b"", 4)), "an operator's next order begins anew"


def test_a_stand_in_sends_it_on_with_a_note_in_one_transaction() -> None:
    s = replace(situation(MINE, VMState.START, "a", Status.ABSENT, attempts=Attempts(errors=5, refused_s=61, reason="no disk")),
                onward=Onward("c", "most free memory", Avoided({"b": "no bridge"}, 4)))
    step = plan_domain(s)
    assert step.failed is None and (step.verb, step.level) == (Verb.NOTHING, Level.WARNING)
    checked, wanted, home, note, freed = step.changes
    assert (checked, wanted) == (ME.mine, Check(schema.domain_key(UUID, "state"), 5))
    assert home == Write(schema.domain_key(UUID, "hypervisor"), b"c", 6)
    assert freed == Write(schema.claim(UUID), b"", 9)
    assert isinstance(note, Write) and (note.path, note.version) == (schema.avoid(UUID), 4)
    assert avoid.read(Value(note.data, 5)).nodes == {"b": "no bridge", "a": "no disk"}
    home_again = plan_domain(replace(s, record=replace(s.record, lasthypervisor="c")))
    assert Write(schema.domain_key(UUID, "lasthypervisor"), b"", s.record.version("lasthypervisor")) in home_again.changes
    for attempts in (Attempts(errors=5, refused_s=59), Attempts(errors=2, refused_s=61), Attempts(errors=5, refused_s=61, deaths=4)):
        assert not any(change for change in plan_domain(replace(s, attempts=attempts)).changes
                       if isinstance(change, Write) and change.path.endswith("hypervisor")), attempts
    assert plan_domain(replace(s, attempts=Attempts(errors=1, permanent=True))).changes[2] == home, "at once"
    assert plan_domain(replace(s, attempts=Attempts(errors=1, permanent=True, hopeless=True))).failed is not None, "nowhere"


def test_a_request_to_power_off_is_repeated_within_its_deadline() -> None:
    s = situation(MINE, VMState.SHUTDOWN, "a", Status.RUNNING)
    for since, asked, verb in ((None, None, Verb.SHUT_DOWN), (5, 5, Verb.NOTHING), (10, 10, Verb.SHUT_DOWN), (12, 2, Verb.NOTHING),
                               (30, 10, Verb.DESTROY), (31, 1, Verb.DESTROY)):
        step = plan_domain(replace(s, timers=Timers(shutdown_s=since, asked_s=asked)))
        assert step.verb is verb, (since, asked)
        assert verb is Verb.NOTHING or step.changes == s.gate


def test_what_is_left_of_a_crash() -> None:
    s = replace(situation(MINE, VMState.START, "a", Status.CRASHED))
    dumping = replace(s, local=Local(Status.CRASHED, other_job=True))
    assert plan_domain(s).verb is Verb.DESTROY and plan_domain(s).changes == s.gate
    assert plan_domain(dumping).verb is Verb.NOTHING
    assert plan_domain(replace(dumping, timers=Timers(crashed_s=601))).verb is Verb.DESTROY, "not for ever"
    kept = plan_domain(replace(s, preserved=True))
    assert kept.verb is Verb.NOTHING and kept.level is Level.CRITICAL and "pvc vm restart" in kept.reason
    for state in (VMState.STOP, VMState.RESTART, VMState.DELETE, VMState.SHUTDOWN):
        ordered = situation(MINE, state, "a", Status.CRASHED)
        assert plan_domain(replace(ordered, preserved=True)).verb is Verb.DESTROY, state


def test_a_doubtful_absence_frees_nothing_and_starts_nothing() -> None:
    for state in (VMState.START, VMState.STOP, VMState.FAILED):
        step = plan_domain(situation(MINE, state, "a", Status.ABSENT, attempts=Attempts(doubt=True)))
        assert (step.verb, step.changes) == (Verb.NOTHING, ())


def test_close_takes_the_order_back_and_keeps_a_true_home() -> None:
    claim = Claim("a", "a1/0", replace(DEST_B, phase=OpPhase.RUN))
    base = situation(claim, VMState.MIGRATE, "b", Status.RUNNING)
    for last, cleared in (("a", True), ("c", False)):
        changes = plan_domain(replace(base, record=record(VMState.MIGRATE, "b", last))).changes
        assert Write(schema.domain_key(UUID, "hypervisor"), b"a", 6) in changes
        assert Write(schema.domain_key(UUID, "state"), b"start", 5) in changes
        assert (Write(schema.domain_key(UUID, "lasthypervisor"), b"", 2) in changes) is cleared
    other_order = plan_domain(replace(base, record=record(VMState.STOP, "b"))).changes
    assert not any(isinstance(c, Write) and "state" in c.path for c in other_order)


@pytest.mark.parametrize("moved, aborted", [(0, False), (20 * 2**30, False), (20 * 2**30 + 1, True)])
def test_a_migration_that_does_not_converge_is_aborted(moved: int, aborted: bool) -> None:
    """Faults, row 79: it moves bytes all the time, so it is the passes over the memory that count."""
    s = situation(Claim("a", "a1/0", replace(DEST_B, phase=OpPhase.RUN)), VMState.MIGRATE, "b", Status.RUNNING,
                  local=Local(Status.RUNNING, True, Call("op1", CallState.ACTIVE), moved=moved, size=2**30))
    step = plan_domain(s)
    assert (step.verb is Verb.ABORT) == aborted and step.row == "S3"
    assert plan_domain(replace(s, local=replace(s.local, size=0))).verb is Verb.NOTHING


# ------------------------------------------------------------------------------------------------- a host that is shut down

def test_a_host_that_is_shut_down_starts_claims_and_receives_nothing(table: list[Row]) -> None:
    for holder, s, step in table:
        if s.stopping:
            assert step.verb is not Verb.CREATE, (holder, step)
            assert step.row != 9 or not step.changes, (holder, step)
        if s.closing and step.row in (42, 43):
            assert isinstance(s.claim.value, Claim) and ME.holds(s.claim.value), holder


def test_words_stay_when_a_host_is_shut_down(table: list[Row]) -> None:
    """Rows 42 and 43: asked, destroyed after the timeout, freed; only an order to go elsewhere is taken back."""
    for _, s, step in table:
        if step.row == 43:
            assert step.changes == claims.free(ME, s.record, s.claim) and s.local.status is Status.ABSENT and not s.attempts.doubt
        if step.row == 42 and step.verb is Verb.NOTHING and step.changes:
            assert s.state is VMState.MIGRATE and s.homed_elsewhere and s.copy
            assert step.changes == (*s.claim_gate, *claims.rolled_back(ME, s.record))
        if step.row == 42 and step.verb is not Verb.NOTHING:
            assert step.changes == s.gate and s.copy
        if step.row == 42 and step.verb is Verb.DESTROY:
            assert (s.timers.shutdown_s or 0) >= s.timers.shutdown_timeout_s


def test_everything_that_this_host_holds_ends_when_it_is_shut_down(table: list[Row]) -> None:
    """No held VM stays in a row that only waits: the whole of D3 is bounded."""
    for holder, s, step in table:
        if s.closing and holder == "mine" and s.local.status in (Status.RUNNING, Status.ABSENT) and not s.attempts.doubt:
            waits = step.verb is Verb.NOTHING and not step.changes
            assert not waits or s.timers.shutdown_s is not None, (s.record, s.local, step)


# --------------------------------------------------------------------------------------------------------- outside PVC

def test_what_libvirt_keeps_and_nobody_ordered_is_never_switched_off_or_taken(table: list[Row]) -> None:
    seen = set()
    for holder, s, step in table:
        if holder == "free" and s.local.persistent and s.record.exists and s.state not in (VMState.START, VMState.MIGRATE, VMState.RESTART) \
                and s.local.status not in (Status.ABSENT, Status.UNKNOWN):
            assert (step.row, step.verb, step.changes, step.level) == (44, Verb.NOTHING, (), Level.WARNING)
            seen.add(s.state)
        if step.row == 44:
            assert s.local.persistent and holder == "free"
    assert len(seen) == 5


def test_what_runs_outside_is_taken_over_where_it_runs_once_it_is_ordered() -> None:
    outside = Local(Status.RUNNING, persistent=True)
    assert plan_domain(situation(None, VMState.START, "b", Status.RUNNING, local=outside)).row == 7
    told = {**view().nodes, "c": replace(node("c"), strangers={UUID: "web1"})}
    wanted = situation(None, VMState.START, "a", Status.ABSENT)
    step = plan_domain(replace(wanted, view=replace(view(), nodes=told)))
    assert (step.row, step.changes, step.level) == (9, (), Level.WARNING) and "outside PVC on c" in step.reason
