# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The planner's rows of a migration: D1-D4 and D6-D8 of its destination, S1-S7 and S9 of its source (D5 and S8 are in `planner`). Pure.

**The guest runs only where the claim is.** libvirt's own hand-off cannot say who has the guest once a reply is lost, so libvirt is told to
leave the copy at the destination paused, and only the node that holds the claim resumes it. The claim leaves the source S by S's own
transaction, when S's copy is gone. Nobody has to ask D for anything. A copy at D is never resumed where the guest may have executed elsewhere
since: the disk is newer than its memory then. (One residue: D's word was lost, libvirt has
woken S's copy, and that has ended before S has closed the operation, within a second. An error of the call does not tell this from a call
that has lost libvirtd when all was done, and that life must go on.)

*Whole* = PAUSED under an operation that names this node: it has arrived. *Half* = MIGRATING at a node that is not the source.
*Gone* = libvirt's look-up has answered that there is no such domain; no answer is none, and waits. libvirt itself kills the source's QEMU when
it has the destination's word, and sees 0.2 s later that it has ended: `departed` sees both at once, and S4 does not wait for libvirt then. The
source does not end its QEMU itself: libvirt may have woken it right before, because that word was lost to it, and then the disk is newer than the
memory at D. libvirt may wake a source by itself: at once when its link to D breaks, after 30 s when D is silent. That is harmless: S has the
claim.

| row | claim, operation | here | also | action |
|---|---|---|---|---|
| D1 | other, run, dest = my node in any life | whole | S not dead | wait, however long: S decides |
| D2 | other, run, dest = my node | whole | S proved dead | gate, destroy: S may have run since, and the disk be newer than this memory. It is recovered |
| D3 | other, run, dest = my node | half | S not dead | wait (S dead: D5) |
| D4 | other, ready, dest = me | absent | order gone, or this daemon is being stopped | op null |
| D6 | mine, given | half; or whole and the word is stop, delete | | gate, destroy |
| D7 | mine, given | whole | else | gate, **resume**. Refused (somebody has the image's lock): said, tried each 2 s, never forced |
| D8 | mine, given | anything else | | op null; the rows of a holder go on |
| S1 | mine, ready | running | ordered, D up and its daemon in `run` | run, then the call |
| S2 | mine, ready | absent | ordered | claim := '': D starts it |
| S2 | mine, ready | else | | op null. A guest that does not execute, or a daemon of protocol 1 at D: the order is taken back too (D would offer anew) |
| S3 | mine, run | a job (or its monitor is busy), or a call under way | order gone, D dead or without pvcd, no progress | abort (queue: withdraw); else wait |
| S4 | mine, run | gone, by libvirt or `departed` | D up | claim := D in its present life, given |
| S5 | mine, run | gone | D off, or not up for 30 s | close: it starts here. D's copy cannot run |
| S6 | mine, run | MIGRATING or STUCK, no job, no call | | gate, resume: libvirtd was restarted, or could not wake it |
| S9 | mine, run | as S6 | refused for a while: D's copy has the lock of its image (QEMU 10) | run, dest = me: D's copy goes (D5), S6 goes on |
| S7 | mine, run | else | | close |

A source that is cut off from ZooKeeper for two ticks, or whose pvcd is told to end, aborts a migration whose memory still moves
(`VMInstance.stay`), since a guest that arrives then is paused until the claim can move; it does nothing else.
For one release, an operation of protocol 1 (its D runs what has arrived at once): whoever has a whole copy at D takes the claim (V1); a paused copy
at S, whose job is over, goes (V2), since D may run it.
"""
from __future__ import annotations

from .cluster import claims, schema
from .cluster.records import PATIENCE_S, Check, Claim, Operation
from .cluster.schema import OpPhase, VMState
from .local import COPY, CallState, Status
from .situation import Level, Situation, Step, Verb

RESTART_S = 10.0
"""A daemon that is restarted is back after this long."""
RESUME_REFUSED_S = 2.0
REFUSED_FOR_S = 4.0
"""A source whose resume was refused for so long does not wait for its own destination's copy, which may hold the lock."""
CONVERGES = 20
"""A live migration that has moved so many times the guest's memory does not converge, slowed down as the guest is by then
(AUTO_CONVERGE adds a tenth with every pass over the memory that gains too little): aborted. Counted in passes and not in hours,
because how long a pass may take is a matter of the network."""


# -------------------------------------------------------------------------------------------------------- the destination

def plan_arrival(s: Situation, claim: Claim, op: Operation) -> Step | None:
    """The next step of an operation that names this node, under another's claim; None where no row speaks of it."""
    status, dead = s.local.status, s.view.is_dead(claim.node, claim.inc)
    if op.phase is OpPhase.READY:
        gone = "the order to come here was withdrawn" if not (s.state is VMState.MIGRATE and s.homed_here) else \
            "this daemon is being stopped, and only a daemon resumes what arrives" if s.stopping else ""
        if gone and status is Status.ABSENT and op.dinc == s.me.inc:
            return Step("D4", gone, changes=claims.withdraw(s.me, s.record.uuid, s.claim))
        return None
    if op.phase is not OpPhase.RUN:
        return None
    if op.v == 1 and status in COPY and not (dead and status is Status.PAUSED):
        return Step("V1", f"arrived from {claim.node}", changes=claims.take_running(s.me, s.record.uuid, s.claim))
    if status is Status.PAUSED and not dead:
        return Step("D1", f"arrived from {claim.node}, paused: waits for the claim", level=Level.QUIET, again_s=1.0)
    if status is Status.PAUSED:
        return Step("D2", f"{claim.node} is proved dead, and the guest may have run there after this copy was made: the copy is destroyed",
                    Verb.DESTROY, s.claim_gate, Level.WARNING)
    if status is Status.MIGRATING and not dead:
        return Step("D3", f"arriving from {claim.node}", level=Level.QUIET, again_s=1.0)
    return None


def _given(s: Situation, op: Operation) -> Step:
    status = s.local.status
    if status is Status.MIGRATING:
        return Step("D6", "its source is gone and only half of it has arrived: the half copy is destroyed", Verb.DESTROY, s.claim_gate, Level.WARNING)
    if status is Status.PAUSED and s.state in (VMState.STOP, VMState.DELETE):
        return Step("D6", f"{s.state.value}: the copy that has arrived is destroyed", Verb.DESTROY, s.gate)
    if status is Status.PAUSED:
        return Step("D7", "has arrived: resumed", Verb.RESUME, s.gate, retry_s=RESUME_REFUSED_S)
    if status is Status.ABSENT:
        return Step("D8", "the claim came here, and no copy with it", changes=claims.landed(s.me, s.record.uuid, s.claim), level=Level.WARNING)
    return Step("D8", f"the migration to {op.dest} is over", changes=claims.landed(s.me, s.record.uuid, s.claim), level=Level.QUIET)


# ------------------------------------------------------------------------------------------------------------- the source

def plan_handoff(s: Situation, op: Operation) -> Step:
    """The next step of a migration that this node's claim holds."""
    if op.phase is OpPhase.READY:
        return _ready(s, op)
    return _given(s, op) if op.phase is OpPhase.GIVEN else _run(s, op)


def _why(s: Situation) -> str:
    return f": {s.local.call.error}" if s.local.call and s.local.call.error else ""


def ordered(s: Situation, op: Operation) -> bool:
    """The record still asks for this migration."""
    return s.state is VMState.MIGRATE and s.home == op.dest


def _dest_agreed(s: Situation, op: Operation) -> bool:
    """D lives as it did when it said that it can take the VM, and its daemon runs: only that resumes what arrives."""
    fence = s.view.fence(op.dest)
    return fence is not None and fence.inc == op.dinc and s.view.is_running(op.dest)


def halted(status: Status) -> str:
    """Why a guest does not execute, for people."""
    return {Status.PAUSED: "paused by somebody", Status.IO_ERROR: "paused by an I/O error", Status.CRASHED: "crashed",
            Status.MIGRATING: "paused by a migration that is over"}.get(status, "paused, and libvirt could not resume it")


def _ready(s: Situation, op: Operation) -> Step:
    if op.v == 1:
        return Step("S2", f"{op.dest} runs an older pvcd, which does not receive from this one: it stays here. Upgrade pvcd on {op.dest}",
                    changes=claims.close(s.me, s.record, s.claim), level=Level.WARNING)
    if s.local.status is Status.RUNNING and ordered(s, op) and _dest_agreed(s, op):
        runs = (Check(schema.node_key(op.dest, "daemonstate"), s.view.nodes[op.dest].version("daemonstate")),)
        return Step("S1", f"migrating live to {op.dest}", Verb.MIGRATE, claims.begin(s.me, s.record, s.claim, runs))
    if s.local.status is Status.ABSENT and ordered(s, op) and not s.attempts.doubt:
        return Step("S2", f"it has ended before its migration: {op.dest} starts it", changes=claims.free(s.me, s.record, s.claim))
    if s.local.status not in (Status.RUNNING, Status.ABSENT):
        return Step("S2", f"{halted(s.local.status)}: a guest that does not run is not migrated; it stays here",
                    changes=claims.close(s.me, s.record, s.claim), level=Level.WARNING)
    if s.local.status is Status.ABSENT and s.attempts.doubt:
        return Step("S2", "a start ended without an answer: looks again", level=Level.QUIET, again_s=2.0)
    return Step("S2", f"the migration to {op.dest} is off", changes=claims.withdraw(s.me, s.record.uuid, s.claim))


def _run(s: Situation, op: Operation) -> Step:
    local, call = s.local, s.local.call
    if local.left and call is not None and call.op == op.id:
        return _gone(s, op) if s.view.is_up(op.dest) else Step("S3", f"its copy here is gone, and {op.dest} is not up: waits for the end of the call",
                                                               level=Level.QUIET, again_s=1.0)
    if local.job or local.busy or (call is not None and call.op == op.id and call.state is CallState.ACTIVE):
        return _under_way(s, op)
    if local.status is Status.ABSENT:
        return _gone(s, op)
    if local.status is Status.MIGRATING and op.v == 1:
        return Step("V2", f"the migration to {op.dest} began before the upgrade, and {op.dest} may run it: the paused copy is destroyed",
                    Verb.DESTROY, s.claim_gate, Level.CRITICAL)
    if local.status in (Status.MIGRATING, Status.STUCK):
        if op.v != 1 and op.dest != s.me.node and (s.timers.refused_s or 0.0) >= REFUSED_FOR_S:
            return Step("S9", f"paused by a migration that is over, and it cannot be resumed: the migration is taken back, so that the copy on {op.dest} "
                        "goes, which may hold its disks", changes=claims.take_back(s.me, s.record, s.claim), level=Level.WARNING)
        return Step("S6", f"paused by a migration that is over{_why(s)}: it is resumed here", Verb.RESUME, s.gate, Level.WARNING, retry_s=RESUME_REFUSED_S)
    left = "it stays here" if local.status is Status.RUNNING else f"it is {local.status.value} here"
    what = "was taken back" if op.dest == s.me.node else f"to {op.dest} failed{_why(s)}"
    return Step("S7", f"the migration {what}; {left}", changes=claims.close(s.me, s.record, s.claim), level=Level.WARNING)


def _under_way(s: Situation, op: Operation) -> Step:
    """Row S3. Whoever is paused by the migration is left to libvirt, which has decided within 30 s."""
    why = None
    if s.local.status is Status.ABSENT:
        # A call that waits for its turn would hold up what becomes of the VM; one that is about to end ends as it would.
        return Step("S3", "its guest has ended: waits for the end of the call", Verb.ABORT, level=Level.QUIET, again_s=1.0)
    if s.local.status is not Status.MIGRATING:
        if s.view.is_dead(op.dest, op.dinc):
            why = f"{op.dest} is proved dead"
        elif not ordered(s, op):
            why = "the order was taken back"
        elif (s.timers.dest_down_s or 0.0) >= RESTART_S:
            why = f"pvcd has not run on {op.dest} for {RESTART_S:.0f} s, and only that resumes what arrives"
        elif (s.timers.stalled_s or 0.0) >= PATIENCE_S:
            why = f"no progress for {PATIENCE_S:.0f} s"
        elif s.local.size and s.local.moved > CONVERGES * s.local.size:
            why = f"{CONVERGES} times its memory was moved and it changes faster"
    if why is None:
        return Step("S3", f"under way to {op.dest}", level=Level.QUIET, again_s=1.0)
    level = Level.WARNING if ordered(s, op) else Level.INFO
    return Step("S3", f"{why}: the migration is aborted", Verb.ABORT, level=level, again_s=1.0)


def _gone(s: Situation, op: Operation) -> Step:
    fence = s.view.fence(op.dest)
    if fence is not None and s.view.is_up(op.dest):
        alive = claims.proof(op.dest, s.view.fences[op.dest])
        return Step("S4", f"gone to {op.dest}", changes=claims.hand_over(s.me, s.record.uuid, s.claim, fence.inc, alive))
    off = s.view.is_off(op.dest)
    if off or (s.timers.dest_down_s or 0.0) >= PATIENCE_S:
        why = "is proved dead" if off else f"has not been up for {PATIENCE_S:.0f} s"
        return Step("S5", f"its copy here is gone and {op.dest} {why}: it is started here anew", changes=claims.close(s.me, s.record, s.claim),
                    level=Level.WARNING)
    return Step("S5", f"its copy here is gone, and {op.dest} is not up: waits for it", level=Level.WARNING, again_s=1.0)
