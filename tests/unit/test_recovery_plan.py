# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""What becomes of the VMs of dead nodes: each row with the whole of what it writes and checks. (Operations: `test_handoff`.)"""
from __future__ import annotations

from dataclasses import replace

import pytest
from test_planner import ME, UUID, record, view
from test_transactions import CLAIM, HOME, MINE, STATE, claimed, home, is_exactly, last, state

from pvcd.cluster import schema
from pvcd.cluster.records import Change, Check, Claim, ClaimRecord, DomainRecord, Fence, FenceRecord, Operation, View
from pvcd.cluster.schema import FencePhase, OpPhase, Unknown, VMState
from pvcd.recovery_plan import Recovery, plan_recovery

START, STOP, MIGRATE, RESTART, SHUTDOWN, DELETE, FAILED = (
    VMState.START, VMState.STOP, VMState.MIGRATE, VMState.RESTART, VMState.SHUTDOWN, VMState.DELETE, VMState.FAILED)
DEAD = Claim("d", "d1/0")
PROOF, FREED = Check(schema.fence("d"), 7), claimed(None)
SECOND = "22222222-2222-4333-8444-555555555555"


def free(**mib: int) -> View:
    """Nodes a, b, c are ready with 1000 MiB, or as told; d is fenced, e in `fencing`."""
    found = view()
    return replace(found, nodes={name: replace(node, memfree_mib=mib.get(name, 1000)) for name, node in found.nodes.items()})


def plan(r: DomainRecord, claim: object, seen: View | None = None, mib: int = 100, broken: str = "", avoided: tuple[str, ...] = ()) -> Recovery | None:
    found = plan_recovery(ME, seen or free(), {UUID: r} if r.exists else {}, {UUID: ClaimRecord(claim, 9)},  # type: ignore[arg-type]
                          {UUID: mib}, {UUID: broken} if broken else {}, {}, {UUID: avoided})
    assert len(found) < 2
    return found[0] if found else None


@pytest.mark.parametrize(("r", "claim"), [
    (record(START, "b"), None), (record(START, "e"), None), (record(START, ""), None), (record(START, Unknown(b"\xff")), None),
    (record(START, None), None), (record(START, "nowhere"), None), (record(STOP, "d"), None), (record(SHUTDOWN, "d"), None),
    (record(FAILED, "d"), None), (record(DELETE, "d"), None), (record(Unknown(b"x"), "d"), None), (record(None, "d"), None),
    (record(START, "a"), Unknown(b"{")), (record(START, "b"), Claim("b", "b1/0")), (record(START, "b"), Claim("nowhere", "x")),
    (record(START, "e"), Claim("e", "e1/0")), (record(START, "b"), Claim("b", "b0/0"))])
def test_what_is_left_alone(r: DomainRecord, claim: object) -> None:
    """Nobody is proved dead, nothing is wanted, nothing is understood, or its home is back and takes it itself."""
    assert plan(r, claim) is None


def test_a_claim_that_does_not_exist_is_not_recovered() -> None:
    assert plan_recovery(ME, free(), {UUID: record(START, "d")}, {}, {UUID: 1}, {}, {}) == []


@pytest.mark.parametrize(("r", "claim", "changes", "target"), [
    (record(START, "d"), DEAD, (PROOF, state("start"), home("a"), last("d"), FREED), "a"),
    (record(MIGRATE, "d"), DEAD, (PROOF, state("start"), home("a"), last("d"), FREED), "a"),
    (record(RESTART, "d"), None, (PROOF, state("start"), home("a"), last("d"), CLAIM), "a"),
    (record(START, "d"), None, (PROOF, state("start"), home("a"), last("d"), CLAIM), "a"),
    (record(START, "d", "c"), DEAD, (PROOF, state("start"), home("a"), FREED), "a"),
    (record(START, "d", "a"), DEAD, (PROOF, state("start"), home("a"), last(""), FREED), "a"),
    (record(MIGRATE, "e"), DEAD, (PROOF, state("start"), home("a"), FREED), "a"),
    (record(MIGRATE, "c"), DEAD, (PROOF, state("start"), HOME, FREED), "c"),
    (record(START, "a"), Claim("b", "b0/0"), (Check(schema.fence("b"), 7), state("start"), HOME, FREED), "a"),
    (record(STOP, "d"), DEAD, (PROOF, STATE, HOME, FREED), None), (record(FAILED, "d"), DEAD, (PROOF, STATE, HOME, FREED), None),
    (record(DELETE, "d"), DEAD, (PROOF, STATE, HOME, FREED), None), (record(SHUTDOWN, "d"), DEAD, (PROOF, state("stop"), HOME, FREED), None),
    (record("gone", ""), DEAD, (PROOF, FREED), None)])
def test_what_is_recovered(r: DomainRecord, claim: Claim | None, changes: tuple[Change, ...], target: str | None) -> None:
    step = plan(r, claim)
    assert step is not None and (step.target, step.waits, step.failed, step.node) == (target, False, "", claim.node if claim else "d")
    is_exactly(step.changes, MINE, *changes)


@pytest.mark.parametrize("r", [record(Unknown(b"x"), "d"), record(None, "d"), record(START, Unknown(b"\xff")), record(START, None)])
def test_words_that_are_not_understood_are_left(r: DomainRecord) -> None:
    step = plan(r, DEAD)
    assert step is not None and step.changes == () and step.waits


def test_a_definition_that_is_broken_fails_with_its_reason() -> None:
    step = plan(record(START, "d"), DEAD, broken="no name")
    assert step is not None and (step.failed, step.target, step.waits) == ("no name", None, False)
    is_exactly(step.changes, MINE, PROOF, state("failed"), HOME, FREED)


def test_what_fits_nowhere_is_freed_and_waits() -> None:
    step = plan(record(START, "d"), DEAD, mib=1001)
    assert step is not None and step.waits and step.target is None
    is_exactly(step.changes, MINE, PROOF, STATE, HOME, FREED)
    step = plan(record(START, "d"), None, mib=1001)
    assert step is not None and step.waits and step.changes == ()


def test_a_node_on_which_it_could_not_be_started_comes_last() -> None:
    seen = free(a=3000, b=2000)
    for avoided, target in (((), "a"), (("a",), "b"), (("a", "b"), "c"), (("a", "b", "c"), "a")):
        step = plan(record(START, "d"), DEAD, seen, avoided=avoided)
        assert step is not None and step.target == target, avoided


def test_the_janitor_does_not_check_its_own_fence_twice() -> None:
    """Its own old boot is dead: the claim is its own old one, and the proof is the fence that `mine` checks."""
    step = plan(record(START, "d"), Claim("a", "a0/0"))
    assert step is not None
    is_exactly(step.changes, MINE, state("start"), home("b"), FREED)


def test_an_operation_that_was_only_offered_holds_up_nothing() -> None:
    for phase in (OpPhase.READY, OpPhase.GIVEN):
        step = plan(record(MIGRATE, "c"), replace(DEAD, op=Operation("o", phase, "c", "c1/0")))
        assert step is not None and step.target == "c"


def test_the_biggest_comes_first_and_memory_is_counted_down_and_what_is_promised_is_kept_free() -> None:
    """G7: each of these three, dropped, over-commits a node or leaves a VM without a place that had one."""
    names = ("1", "2", "3")
    uuids = {name: f"{name * 8}-2222-4333-8444-555555555555" for name in names}
    sizes: dict[str, int | None] = {uuids["1"]: 300, uuids["2"]: 400, uuids["3"]: 600}
    domains = {uuid: replace(record(START, "d"), uuid=uuid) for uuid in uuids.values()}
    claims = {uuid: ClaimRecord(DEAD, 9) for uuid in uuids.values()}
    seen = free(a=700, b=600, c=0)
    found = {step.uuid: step.target for step in plan_recovery(ME, seen, domains, claims, sizes, {}, {})}
    assert found == {uuids["3"]: "a", uuids["2"]: "b", uuids["1"]: None}
    arriving = replace(record(START, "b"), uuid=SECOND)
    for word, claim, target in ((START, None, "c"), (MIGRATE, Claim("c", "c1/0"), "c"), (RESTART, None, "c"), (STOP, None, "b"),
                                (FAILED, None, "b"), (START, Claim("b", "b1/0"), "b")):
        domains = {UUID: record(START, "d"), SECOND: replace(arriving, state=word)}
        claims = {UUID: ClaimRecord(DEAD, 9), SECOND: ClaimRecord(claim, 9)}
        steps = plan_recovery(ME, free(a=0, b=900, c=600), domains, claims, {UUID: 500, SECOND: 500}, {}, {})
        assert [step.target for step in steps] == [target], (word, claim)


def test_a_node_whose_free_memory_is_unknown_is_no_target() -> None:
    for unknown in (None, Unknown(b"x")):
        seen = replace(view(), nodes={name: replace(node, memfree_mib=unknown) for name, node in view().nodes.items()})
        step = plan(record(START, "d"), DEAD, seen)
        assert step is not None and step.target is None and "free memory unknown" in step.reason


def test_a_fence_that_is_not_known_proves_nothing() -> None:
    for value in (None, Unknown(b"{")):
        seen = replace(view(), fences={**view().fences, "d": FenceRecord(value, 7)})
        assert plan(record(START, "d"), DEAD, seen) is None and plan(record(START, "d"), None, seen) is None
    seen = replace(view(), fences={**view().fences, "d": FenceRecord(Fence("d1/0", FencePhase.REMOVED), 7)})
    assert plan(record(START, "d"), DEAD, seen) is None, "a removed node is not proved dead"
