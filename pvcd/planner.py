# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Decides, from a record, its claim, what libvirt shows and the cluster view, the one next step and its reason. Pure.

`plan_domain` is a table: the first row that matches wins, one step per visit, and every step says which row it was. D1-D8 and S1-S8
are the rows of a migration's destination and source (`handoff`), 7-16 of a node that does not hold the claim, 28-41 of a holder
without an operation, 42 and 43 of a holder whose host is being shut down (`departure`), 44 of a domain that is libvirt's own and nobody
ordered. (Recovery of what dead nodes held, row 12, J1 and the janitor's half of 15, is planned for all VMs at once in
`pvcd.recovery_plan`.) Whatever is missing, unknown or malformed has no row: nothing is done.

| row | claim | here | also | action |
|---|---|---|---|---|
| D5 | other, and no row D1-D4 | any but absent | | gate, destroy: a stray (running: CRITICAL) |
| D5 | nobody's | half, crashed; or paused, and the claim was held before: it has arrived, too late | | gate, destroy |
| 7 | nobody's | any other copy | the VM's keys are there | claim := me: adopted |
| J1 | dead, run | absent | another D is up, for at most 30 s | wait: D2, or D's own recovery, comes first |
| 15 | dead | absent | it belongs here, and this node is ready | recovered |
| S8 | mine, no operation | a migration job | | abort: a late call that no operation allows |
| 41 | mine, no operation | paused by a migration, no job | | gate, resume (a half copy: D6, destroy) |
| 35 | mine, no operation | STUCK | the word is start | left, and told: its memory may be older than its disks |
"""
from __future__ import annotations

from dataclasses import replace
from enum import Enum

from .cluster import avoid, claims, schema
from .cluster.placement import WANTED
from .cluster.records import PATIENCE_S, Change, Check, Claim, View
from .cluster.schema import DaemonState, DomainState, FencePhase, OpPhase, Unknown, VMState
from .handoff import RESTART_S, halted, plan_arrival, plan_handoff
from .local import HALTED, Status
from .situation import Level, Situation, Step, Verb

FLUSH_PATIENCE_S = 10.0
"""A flush sends a VM that waits for its start elsewhere; one that fits nowhere else is started here after this long."""
RESUME_EVERY_S = 30.0
ASK_EVERY_S = 10.0
DUMP_S = 600.0
"""A dump of a crashed guest that takes longer hangs."""


def plan_domain(s: Situation) -> Step:
    """The next step for one VM on this node."""
    fence = s.view.fence(s.me.node)
    if fence is None or fence.inc != s.me.inc or not s.view.is_up(s.me.node):
        return Step(0, "this node is not up: nothing is touched", level=Level.QUIET, again_s=s.timers.tick_s)
    if s.local.status is Status.UNKNOWN:
        return Step(0, f"libvirt gives no answer: {s.local.detail}", level=Level.WARNING, again_s=s.timers.tick_s)
    claim = s.claim.value
    if not s.claim.exists:
        return Step(0, "it has no claim yet", level=Level.QUIET)
    if isinstance(claim, Unknown):
        return Step(0, f"the claim cannot be understood: {claim}", level=Level.WARNING)
    if claim is None:
        return _unclaimed(s)
    if not s.me.holds(claim):
        return _not_mine(s, claim)
    if s.closing and s.state is VMState.MIGRATE and s.homed_elsewhere and s.copy:
        return _recalled(s)
    if claim.op is not None:
        return plan_handoff(s, claim.op)
    return _held_present(s) if s.local.status is not Status.ABSENT else _held_absent(s)


# ------------------------------------------------------------------------------------------------ somebody else's claim

def _not_mine(s: Situation, claim: Claim) -> Step:
    op = claim.op
    step = plan_arrival(s, claim, op) if op is not None and op.dest == s.me.node else None
    if step is not None:
        return step
    if s.local.status is not Status.ABSENT:
        level = Level.CRITICAL if s.local.status is Status.RUNNING else Level.WARNING
        return Step("D5", f"a copy is here ({s.local.status.value}) and {claim.node} holds the claim: it is destroyed", Verb.DESTROY,
                    s.claim_gate, level)
    return _ordered_here(s, claim)


def _ordered_here(s: Situation, claim: Claim) -> Step:
    """Nothing of it is here: is it to come here, live or from a dead holder?"""
    dead = s.view.is_dead(claim.node, claim.inc)
    if s.state is VMState.MIGRATE and s.homed_here and claim.op is None and not dead:
        return _asked_to_receive(s, claim)
    op = claim.op
    knows = op is not None and op.v == 1 and op.phase is OpPhase.RUN and op.dest == s.me.node  # only D can say that it has nothing
    if dead and s.state is not None and (knows or (s.homed_here and s.view.is_ready(s.me.node))):
        why = s.view.may_be_at(op, s.timers.holder_dead_s or 0.0) if op is not None and op.dest != s.me.node else None
        if why is not None:
            return Step("J1", why, level=Level.QUIET, again_s=1.0)
        words = claims.order(s.record, recovered_word(s.state))
        changes = claims.recover(s.me, s.record, s.claim, claims.proof(claim.node, s.view.fences[claim.node]), words)
        return Step(15, f"{claim.node} is proved dead, and the VM belongs here: recovered", changes=changes)
    return Step(16, f"{claim.node} holds it", level=Level.QUIET)


def _asked_to_receive(s: Situation, claim: Claim) -> Step:
    """Row 13. Only daemons of protocol 2 migrate live: the one of 1 would let the guest run before the claim has moved."""
    source = s.view.nodes.get(claim.node)
    spoken = source.protocol if source is not None else None
    if source is None or not isinstance(spoken, int) or spoken < 1:
        return Step(13, f"waits for {claim.node} to have finished its start", level=Level.QUIET, again_s=1.0)
    old = spoken < schema.PROTOCOL_VERSION
    why = f"{claim.node} runs an older pvcd, which does not migrate to this one (upgrade pvcd on {claim.node})" if old else s.unfit
    if why is not None:
        return Step(13, f"cannot come here: {why}; stays on {claim.node}", changes=claims.refuse(s.me, s.record, s.claim), level=Level.WARNING)
    speaks = (Check(schema.node_key(claim.node, "protocol"), source.version("protocol")),)
    return Step(13, f"ready to receive it from {claim.node}", changes=claims.offer(s.me, s.record, s.claim, s.op_id, speaks))


def recovered_word(state: VMState) -> VMState | None:
    """What a recovered VM is wanted to do, where that is another word than it was."""
    if state in (VMState.MIGRATE, VMState.RESTART):
        return VMState.START
    return VMState.STOP if state is VMState.SHUTDOWN else None


# ------------------------------------------------------------------------------------------------------- nobody's claim

def _unclaimed(s: Situation) -> Step:
    uuid, status = s.record.uuid, s.local.status
    if not s.record.exists:
        return Step(16, "PVC does not know this VM", level=Level.QUIET)
    if s.local.persistent and s.state not in WANTED and status is not Status.ABSENT:
        # A word that is missing is no order either: the keys of a VM may come one by one, and adopted now it would obey `stop` then.
        return Step(44, f"runs here outside PVC ({status.value}, libvirt's own domain) and its state is {_shown(s.record.state)}: left alone",
                    level=Level.WARNING)
    # PVC frees a claim only where nothing of the VM is left, so a paused copy without one has arrived by a migration that is over, and its
    # memory may be older than the disks. (libvirt's own memory of the arrival ends with a restart of libvirtd.) Under a claim that was never
    # written there was no migration: somebody has paused it, before PVC had claims.
    stray = status is Status.PAUSED and s.claim.version > 0
    if s.copy and not stray:
        return Step(7, f"it is here ({status.value}) and nobody holds it: adopted", changes=claims.adopt(s.me, uuid, s.claim))
    if status is not Status.ABSENT:
        return Step("D5", f"a leftover is here ({status.value}) and nobody holds the claim: it is destroyed", Verb.DESTROY, s.gate, Level.WARNING)
    if not s.homed_here:
        return Step(16, "belongs elsewhere", level=Level.QUIET)
    if s.state is VMState.START:
        return _acquire(s)
    if s.state in (VMState.RESTART, VMState.MIGRATE):
        return Step(10, f"{s.state.value} of a VM that does not run: start",
                    changes=_words(s, VMState.START, _returned(s)))
    if s.state is VMState.SHUTDOWN:
        return Step(11, "it does not run: stop", changes=_words(s, VMState.STOP))
    return Step(16, "nothing to do", level=Level.QUIET)


def _acquire(s: Situation) -> Step:
    node = s.view.nodes.get(s.me.node)
    if not s.view.is_running(s.me.node) or node is None:
        return Step(9, "this node is not in run yet", level=Level.QUIET, again_s=s.timers.tick_s)
    if s.stopping:
        return Step(9, "this daemon is being stopped: it waits for the next start", level=Level.QUIET)
    if node.domainstate is DomainState.FLUSH and (s.timers.unclaimed_s or 0.0) < FLUSH_PATIENCE_S:
        return Step(9, "this node is being flushed: the flush sends it elsewhere", level=Level.QUIET, again_s=FLUSH_PATIENCE_S)
    outside = sorted(name for name in s.view.nodes if name != s.me.node and s.view.runs_outside(name, s.record.uuid))
    if outside:
        return Step(9, f"waits: it runs outside PVC on {', '.join(outside)}", level=Level.WARNING, again_s=s.timers.tick_s)
    silent = sorted(name for name, found in s.view.nodes.items() if found.daemonstate is DaemonState.RUN and not _speaks(s.view, name))
    if silent:
        why = "has not finished its start" if s.view.fence(silent[0]) else "runs a pvcd that knows no claims: upgrade it, or stop it"
        return Step(9, f"waits: {', '.join(silent)} {why}", level=Level.WARNING, again_s=1.0)
    return Step(9, "wanted here: claimed", changes=claims.acquire(s.me, s.record, s.claim))


def _speaks(view: View, name: str) -> bool:
    """The node has looked at what runs on it, and honours claims; or it is proved to run nothing."""
    protocol, fence = view.nodes[name].protocol, view.fence(name)
    return (isinstance(protocol, int) and protocol >= 1) or (fence is not None and fence.phase is FencePhase.FENCED)


# ---------------------------------------------------------------------------------------------- my claim, no operation

def _held_present(s: Situation) -> Step:
    status = s.local.status
    if s.local.job:
        return Step("S8", "a migration is under way that no operation allows: it is aborted", Verb.ABORT, level=Level.WARNING, again_s=1.0)
    if status is Status.CRASHED:
        return _crashed(s)
    if status is Status.MIGRATING:
        if s.local.incoming:
            return Step("D6", "half of a copy is here, and no operation asks for it: it is destroyed", Verb.DESTROY, s.claim_gate, Level.WARNING)
        return Step(41, "paused by a migration that is over: it is resumed", Verb.RESUME, s.gate, Level.WARNING)
    if s.state in (VMState.STOP, VMState.DELETE):
        return Step(33, f"{s.state.value}: its power goes off", Verb.DESTROY, s.gate)
    if s.closing:
        return replace(_shut_down(s, "this host is being shut down"), row=42)
    if not s.record.exists:
        return Step(35, "its keys are gone and it runs here: left alone", level=Level.WARNING)
    if s.state in (VMState.RESTART, VMState.SHUTDOWN):
        return _shut_down(s, s.state.value)
    if s.state is VMState.FAILED or s.state is None or s.home is None:
        return Step(35, f"left as it is ({_shown(s.record.state)})", level=Level.QUIET if s.state else Level.WARNING)
    if s.homed_elsewhere:
        return _leaving(s)
    if not s.homed_here:
        return Step(35, "its hypervisor is empty: left as it is", level=Level.WARNING)
    if s.state is VMState.MIGRATE:
        return Step(29, "it is here: start", changes=_words(s, VMState.START, _returned(s)))
    if status is Status.IO_ERROR:
        return _io_error(s)
    if status is Status.PAUSED:
        return Step(34, "paused by somebody: left as it is", level=Level.WARNING)
    if status is Status.STUCK:
        return Step(35, f"{halted(status)}: its memory may be older than its disks, so it is not resumed. If nothing else has written to them: "
                    "virsh resume; else: pvc vm restart", level=Level.CRITICAL)
    return Step(28, "runs", level=Level.QUIET)


def _crashed(s: Situation) -> Step:
    """What libvirt was told to do with a crashed guest (`on_crash`) comes first: a dump is waited for, and what is to be preserved stays."""
    if s.local.other_job and (s.timers.crashed_s or 0.0) < DUMP_S:
        return Step(36, "crashed, and libvirt is busy with it (a dump): waits for its end", level=Level.WARNING, again_s=5.0)
    if s.preserved and s.state is VMState.START and s.homed_here:
        return Step(36, "crashed, and its definition says on_crash=preserve: left as it is, does not run. "
                    f"When you have looked at it: pvc vm restart {_called(s)}", level=Level.CRITICAL)
    return Step(36, "crashed: what is left of it is destroyed", Verb.DESTROY, s.gate, Level.WARNING)


def _called(s: Situation) -> str:
    return s.record.name if isinstance(s.record.name, str) else s.record.uuid


def _shown(word: object) -> str:
    return word.value if isinstance(word, Enum) else ("missing" if word is None else str(word))


def _words(s: Situation, state: VMState, lasthypervisor: str | None = None) -> tuple[Change, ...]:
    return (*s.claim_gate, *claims.order(s.record, state, lasthypervisor=lasthypervisor))


def _returned(s: Situation) -> str | None:
    """'' to write into `lasthypervisor` of a VM that has come back to it, None to leave it."""
    return "" if s.record.lasthypervisor == s.me.node else None


def _leaving(s: Situation) -> Step:
    if s.local.status in HALTED:
        return Step(31, f"{halted(s.local.status)}: a guest that does not run is not migrated; it stays here",
                    changes=(*s.claim_gate, *claims.rolled_back(s.me, s.record)), level=Level.WARNING)
    if s.state is VMState.START:
        return Step(30, f"belongs to {s.home} now: it goes there live", changes=_words(s, VMState.MIGRATE))
    why = None
    if not s.view.is_up(s.home or ""):
        why = f"{s.home} is not up"
    elif not s.view.is_running(s.home or "") and (s.timers.ordered_s or 0.0) >= RESTART_S:
        why = f"{s.home} does not run"
    elif (s.timers.ordered_s or 0.0) >= PATIENCE_S:
        why = f"{s.home} has not answered for {PATIENCE_S:.0f} s"
    if why is None:
        return Step(31, f"waits for {s.home} to be ready", level=Level.QUIET, again_s=1.0)
    return Step(31, f"{why}: it stays here", changes=(*s.claim_gate, *claims.rolled_back(s.me, s.record)), level=Level.WARNING)


def _recalled(s: Situation) -> Step:
    """An order to go elsewhere that this host has no time for. A migration under way is aborted then, as for any order taken back."""
    return Step(42, f"this host is being shut down: the order to go to {s.home} is taken back",
                changes=(*s.claim_gate, *claims.rolled_back(s.me, s.record)), level=Level.WARNING)


def _shut_down(s: Situation, why: str) -> Step:
    elapsed = s.timers.shutdown_s
    if elapsed is None:
        return Step(32, f"{why}: the guest is asked to power off", Verb.SHUT_DOWN, s.gate, again_s=1.0)
    if elapsed >= s.timers.shutdown_timeout_s:
        return Step(32, f"has not powered off in {s.timers.shutdown_timeout_s:.0f} s: its power goes off", Verb.DESTROY,
                    s.gate, Level.WARNING)
    asked_s = s.timers.asked_s or 0.0
    if asked_s >= ASK_EVERY_S:  # a guest that was booting has not heard the first
        return Step(32, "has not powered off yet: asked again", Verb.SHUT_DOWN, s.gate, Level.QUIET, again_s=1.0)
    return Step(32, "waits for the guest to power off", level=Level.QUIET,
                again_s=min(5.0, ASK_EVERY_S - asked_s, s.timers.shutdown_timeout_s - elapsed))


def _io_error(s: Situation) -> Step:
    if s.timers.resume_s is not None and s.timers.resume_s < RESUME_EVERY_S:
        return Step(34, "paused by an I/O error", level=Level.QUIET, again_s=RESUME_EVERY_S - s.timers.resume_s)
    return Step(34, "paused by an I/O error: tries to go on", Verb.RESUME, s.gate, Level.WARNING, RESUME_EVERY_S)


def _held_absent(s: Situation) -> Step:
    if s.attempts.doubt:
        return Step(37, "a start or a restart ended without an answer: looks again", level=Level.QUIET, again_s=2.0)
    if not s.record.exists:
        return Step(40, "its keys are gone, and it is not here", changes=claims.free(s.me, s.record, s.claim))
    if s.closing and (s.state is None or s.home is None or (s.state is VMState.START and s.homed_here)):
        return Step(43, "this host is being shut down, and it is not here any more: free", changes=claims.free(s.me, s.record, s.claim))
    if s.state is None or s.home is None:
        return Step(35, f"not here; its words are not understood ({_shown(s.record.state)})", level=Level.WARNING)
    if s.state is VMState.START and s.homed_here:
        if s.stopping:
            return Step(37, "this daemon is being stopped: it is started by the next", level=Level.QUIET)
        return _start(s)
    if s.state is VMState.RESTART or (s.state is VMState.MIGRATE and s.homed_here):
        return Step(38, f"{s.state.value}, and it does not run: start",
                    changes=_words(s, VMState.START, _returned(s) if s.homed_here else None))
    if s.state is VMState.SHUTDOWN:
        return Step(39, "it has shut down: stop", changes=claims.free(s.me, s.record, s.claim, VMState.STOP))
    return Step(40, f"{s.state.value}, and it is not here: free", changes=claims.free(s.me, s.record, s.claim))


def _start(s: Situation) -> Step:
    tried = s.attempts
    if tried.try_elsewhere and s.onward.target is not None:
        note = avoid.noted(s.record.uuid, s.onward.avoided, s.me.node, tried.reason)
        return Step(37, f"cannot be started on {s.me.node} ({tried.reason}): {s.onward.target} tries ({s.onward.reason})",
                    changes=claims.send_on(s.me, s.record, s.claim, s.onward.target, note), level=Level.WARNING)
    if tried.exhausted and not (tried.only_here and s.onward.untried):
        before = s.onward.avoided.told
        reason = tried.reason + (f"; tried before: {before}" if before else "")
        changes = (*claims.free(s.me, s.record, s.claim, VMState.FAILED), *avoid.forgotten(s.record.uuid, s.onward.avoided))
        return Step(37, f"failed: {reason}", changes=changes, level=Level.CRITICAL, failed=reason)
    if tried.wait_s > 0:
        return Step(37, "waits before the next start", level=Level.QUIET, again_s=tried.decides_s)
    return Step(37, "started", Verb.CREATE, s.gate)
