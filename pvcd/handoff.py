# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The planner's rows of a holder with a migration operation (17-27). Pure.

libvirt's own hand-off cannot say who has the guest once a reply is lost, so the claim does: the source marks the start (`run`), notes
that the destination's QEMU is there while the destination lives as it did when it agreed (`there`), and gives the claim away or asks
(`query`). A call may start late, or wait in a TCP connect while the destination boots: without `there`, a copy may be in a later life
of the destination, and only that life can answer.
"""
from __future__ import annotations

from .cluster import claims
from .cluster.records import Change, Operation
from .cluster.schema import OpPhase, VMState
from .local import COPY, CallState, Status
from .situation import Level, Situation, Step, Verb

PATIENCE_S = 30.0
"""A migration order that no operation follows, or a call that makes no progress, is given up after this long."""
CONVERGES = 20
"""A live migration that has moved so many times the guest's memory does not converge, slowed down as the guest is by then
(AUTO_CONVERGE adds a tenth with every pass over the memory that gains too little): aborted. Counted in passes and not in hours,
because how long a pass may take is a matter of the network."""


def plan_handoff(s: Situation, op: Operation) -> Step:
    """The next step of a migration that this node's claim holds."""
    if op.phase is OpPhase.READY:
        return _ready(s, op)
    if op.phase is OpPhase.RUN:
        return _run(s, op)
    if op.phase is OpPhase.QUERY:
        return _query(s, op)
    if s.local.status is Status.MIGRATING:
        return Step(26, f"{op.dest} does not have it: the copy here goes on", Verb.RESUME, s.gate, Level.WARNING)
    return Step(27, f"the migration to {op.dest} did not happen{_why(s)}", changes=claims.close(s.me, s.record, s.claim),
                level=Level.WARNING)


def _why(s: Situation) -> str:
    return f": {s.local.call.error}" if s.local.call and s.local.call.error else ""


def _ordered(s: Situation, op: Operation) -> bool:
    return s.state is VMState.MIGRATE and s.home == op.dest


def _dest_up(s: Situation, op: Operation) -> bool:
    fence = s.view.fence(op.dest)
    return fence is not None and fence.inc == op.dinc and s.view.is_up(op.dest)


def _ready(s: Situation, op: Operation) -> Step:
    if s.local.status is Status.RUNNING and _ordered(s, op) and _dest_up(s, op):
        return Step(17, f"migrating live to {op.dest}", Verb.MIGRATE, claims.begin(s.me, s.record, s.claim))
    return Step(18, f"the migration to {op.dest} is off", changes=claims.withdraw(s.me, s.record.uuid, s.claim))


def _run(s: Situation, op: Operation) -> Step:
    local, call = s.local, s.local.call
    if call is not None and call.op == op.id and call.state is CallState.SUCCEEDED and _dest_up(s, op):
        return Step(20, f"arrived on {op.dest}", changes=claims.hand_over(s.me, s.record.uuid, s.claim, _as_it_lives(s, op)))
    if _is_there(s, op):
        return _arriving(s, op)
    calling = call is not None and call.op == op.id and call.state is CallState.ACTIVE
    if local.job or calling:
        return _under_way(s, op)
    if local.status is Status.RUNNING:
        return Step(21, f"the migration to {op.dest} failed{_why(s)}; it stays here",
                    changes=claims.close(s.me, s.record, s.claim), level=Level.WARNING)
    if local.status in (Status.MIGRATING, Status.ABSENT, Status.CRASHED):
        return Step(22, f"has {op.dest} got it{_why(s)}?", changes=claims.ask(s.me, s.record.uuid, s.claim), level=Level.WARNING)
    return Step(21, f"the migration to {op.dest} ended and the guest is {local.status.value} here",
                changes=claims.close(s.me, s.record, s.claim), level=Level.WARNING)


def _as_it_lives(s: Situation, op: Operation) -> tuple[Change, ...]:
    """The check of the destination's fence, as it was read."""
    return claims.proof(op.dest, s.view.fences[op.dest])


def _is_there(s: Situation, op: Operation) -> bool:
    """Memory has moved, so there is a QEMU at the destination; and the destination lives as it did when it said ready."""
    moved = s.local.moved > 0 or s.local.status is Status.MIGRATING
    return moved and not op.there and _dest_up(s, op)


def _arriving(s: Situation, op: Operation) -> Step:
    return Step(19, f"its memory goes to {op.dest}", changes=claims.arriving(s.me, s.record.uuid, s.claim, _as_it_lives(s, op)), level=Level.QUIET)


def _under_way(s: Situation, op: Operation) -> Step:
    """Row 19. libvirt resumes the source at the very moment its call errors: a pause that lasts is asked about before that."""
    if s.local.status is Status.MIGRATING:
        if (s.timers.migrating_s or 0.0) >= s.timers.tick_s:
            return Step(19, f"no word from {op.dest} since the guest was paused: has it got it?",
                        changes=claims.ask(s.me, s.record.uuid, s.claim), level=Level.WARNING)
    elif s.view.is_dead(op.dest, op.dinc):
        return Step(19, f"{op.dest} is proved dead: the migration is aborted", Verb.ABORT, (), Level.WARNING, 1.0)
    elif not _ordered(s, op):
        return Step(19, "the order was taken back: the migration is aborted", Verb.ABORT, again_s=1.0)
    elif (s.timers.stalled_s or 0.0) >= PATIENCE_S:
        return Step(19, f"no progress for {PATIENCE_S:.0f} s: the migration is aborted", Verb.ABORT, (), Level.WARNING, 1.0)
    elif s.local.size and s.local.moved > CONVERGES * s.local.size:
        return Step(19, f"{CONVERGES} times its memory was moved and it changes faster: the migration is aborted", Verb.ABORT, (), Level.WARNING, 1.0)
    return Step(19, f"under way to {op.dest}", level=Level.QUIET, again_s=1.0)


def _query(s: Situation, op: Operation) -> Step:
    status = s.local.status
    if status in COPY and not s.local.job:
        return Step(21, f"it runs here: the migration to {op.dest} did not happen{_why(s)}",
                    changes=claims.close(s.me, s.record, s.claim), level=Level.WARNING)
    if s.view.has_no_copy(op):
        return Step(23, f"{op.dest} is proved dead: it does not have it",
                    changes=claims.answer_none(s.me, s.record.uuid, s.claim, _as_it_lives(s, op)), level=Level.WARNING)
    if _is_there(s, op):
        return _arriving(s, op)
    if status is Status.MIGRATING and (s.timers.migrating_s or 0.0) >= 2 * s.timers.tick_s:
        return Step(24, f"{op.dest} does not answer: the paused copy here goes before libvirt wakes it", Verb.DESTROY,
                    s.claim_gate, Level.CRITICAL)
    return Step(25, f"waits for the answer of {op.dest}", level=Level.QUIET, again_s=1.0)
