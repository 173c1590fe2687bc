# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Decides, from a record, its claim, what libvirt shows and the cluster view, the one next step and its reason. Pure.

`plan_domain` is a table: the first row that matches wins, one step per visit, and every step says which row it was. Rows 1-16
are of a node that does not hold the claim, 17-27 of a holder with a migration operation, 28-41 of a holder without one.
(Recovery of what dead nodes held, rows 12, 14 and the janitor's half of 15, is planned for all VMs at once in
`pvcd.recovery_plan`.) Whatever is missing, unknown or malformed has no row: nothing is done.
"""
from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .cluster import claims, schema
from .cluster.claims import Actor
from .cluster.records import Change, Check, Claim, ClaimRecord, DomainRecord, Operation, View
from .cluster.schema import DomainState, OpPhase, Unknown, VMState
from .local import COPY, CallState, Local, Status

ORDER_PATIENCE_S = 30.0
"""A migration order that no operation follows, or a call that makes no progress, is given up after this long."""
CONVERGES = 20
"""A live migration that has moved so many times the guest's memory does not converge, slowed down as the guest is by then
(AUTO_CONVERGE adds a tenth with every pass over the memory that gains too little): aborted. Counted in passes and not in hours,
because how long a pass may take is a matter of the network."""
RESTART_S = 10.0
"""A daemon that is restarted is back after this long; an order to its node stands meanwhile."""
FLUSH_PATIENCE_S = 10.0
"""A flush sends a VM that waits for its start elsewhere; one that fits nowhere else is started here after this long."""
RESUME_EVERY_S = 30.0
MAX_ERRORS = 3
MAX_RESTARTS = 3


class Verb(str, Enum):
    """The effect of a step, after its changes were applied (a gate when they are only checks)."""

    NOTHING = "nothing"
    CREATE = "create"
    SHUT_DOWN = "shut down"
    DESTROY = "destroy"
    RESUME = "resume"
    MIGRATE = "migrate"
    ABORT = "abort"


class Level(str, Enum):
    """How loudly a step's reason is told; QUIET steps are not told again while they stay the same."""

    QUIET = "quiet"
    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True)
class Step:
    """What a plan returns. `again_s`: look again after so long even if nothing is heard."""

    row: int
    reason: str
    verb: Verb = Verb.NOTHING
    changes: tuple[Change, ...] = ()
    level: Level = Level.INFO
    again_s: float | None = None
    failed: str | None = None
    """Set when the step writes `failed`: the reason to keep."""


@dataclass(frozen=True)
class Timers:
    """How long, on this process's boot-time clock, something has been seen; None = it is not so now. Seconds."""

    tick_s: float = 5.0
    shutdown_timeout_s: float = 30.0
    migrating_s: float | None = None
    """paused by a migration"""
    ordered_s: float | None = None
    """the present order to go elsewhere stands and no operation follows"""
    stalled_s: float | None = None
    """the migration call has moved no byte"""
    unclaimed_s: float | None = None
    """it is wanted here and nobody holds it"""
    shutdown_s: float | None = None
    """since the guest was first asked to power off"""
    resume_s: float | None = None
    """since the last try to resume after an I/O error"""


@dataclass(frozen=True)
class Attempts:
    """Starts that went wrong in the last ten minutes."""

    errors: int = 0
    deaths: int = 0
    permanent: bool = False
    reason: str = ""
    wait_s: float = 0.0
    """back-off that is left"""
    doubt: bool = False
    """a create call ended without an answer: absence is not believed yet"""

    @property
    def exhausted(self) -> bool:
        return self.permanent or self.errors >= MAX_ERRORS or self.deaths > MAX_RESTARTS


@dataclass(frozen=True)
class Situation:
    """Everything one decision about one VM is taken on."""

    me: Actor
    record: DomainRecord
    claim: ClaimRecord
    local: Local
    view: View
    timers: Timers = Timers()
    attempts: Attempts = Attempts()
    unfit: str | None = None
    """why this node cannot take the VM in a migration (only looked at when it is ordered here)"""
    op_id: str = ""
    """identifier for a new operation"""

    @property
    def state(self) -> VMState | None:
        """The word, if it is known: unknown and missing words match no row."""
        return self.record.state if isinstance(self.record.state, VMState) else None

    @property
    def home(self) -> str | None:
        """`hypervisor`, if it is readable."""
        found = self.record.hypervisor
        return found if isinstance(found, str) else None

    @property
    def homed_here(self) -> bool:
        return self.home == self.me.node

    @property
    def homed_elsewhere(self) -> bool:
        return self.home not in (None, "", self.me.node)

    @property
    def copy(self) -> bool:
        return self.local.status in COPY

    @property
    def gate(self) -> tuple[Change, ...]:
        return claims.holding(self.me, self.record.uuid, self.claim, self.record)


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
    if claim.op is not None:
        return _in_migration(s, claim.op)
    return _held_present(s) if s.local.status is not Status.ABSENT else _held_absent(s)


# ------------------------------------------------------------------------------------------------ somebody else's claim

def _not_mine(s: Situation, claim: Claim) -> Step:
    uuid, status, op = s.record.uuid, s.local.status, claim.op
    dest = op if op is not None and op.dest == s.me.node and op.dinc == s.me.inc else None
    if dest is not None and dest.phase in (OpPhase.RUN, OpPhase.QUERY):
        if s.copy:
            return Step(1, f"arrived from {claim.node}", changes=claims.take(s.me, uuid, s.claim))
        if status is Status.MIGRATING and dest.phase is OpPhase.RUN:
            return Step(2, f"arriving from {claim.node}", level=Level.QUIET, again_s=1.0)
        if status is Status.MIGRATING:
            return Step(3, f"{claim.node} asks for it and it has not arrived: the half copy goes", Verb.DESTROY,
                        _claim_gate(s), Level.WARNING)
        if status is Status.ABSENT and dest.phase is OpPhase.QUERY:
            return Step(4, f"{claim.node} asks for it: it is not here", changes=claims.answer_none(s.me, uuid, s.claim))
    if dest is not None and dest.phase is OpPhase.READY and status is Status.ABSENT \
            and not (s.state is VMState.MIGRATE and s.homed_here):
        return Step(5, "the order to come here was withdrawn", changes=claims.withdraw(s.me, uuid, s.claim))
    if status is not Status.ABSENT:
        level = Level.CRITICAL if status is Status.RUNNING else Level.WARNING
        return Step(6, f"a copy is here ({status.value}) and {claim.node} holds the claim: it goes", Verb.DESTROY,
                    _claim_gate(s), level)
    return _ordered_here(s, claim)


def _claim_gate(s: Situation) -> tuple[Change, ...]:
    """The gate of what follows from the claim alone, whatever the words say."""
    return (s.me.mine, Check(schema.claim(s.record.uuid), s.claim.version))


def _ordered_here(s: Situation, claim: Claim) -> Step:
    """Nothing of it is here: is it to come here, live or from a dead holder?"""
    dead = s.view.is_dead(claim.node, claim.inc)
    if s.state is VMState.MIGRATE and s.homed_here and claim.op is None and not dead:
        if s.unfit is not None:
            return Step(13, f"cannot come here: {s.unfit}; stays on {claim.node}",
                        changes=claims.refuse(s.me, s.record, s.claim), level=Level.WARNING)
        return Step(13, f"ready to receive it from {claim.node}", changes=claims.offer(s.me, s.record, s.claim, s.op_id))
    if dead and s.homed_here and s.state is not None and s.view.is_ready(s.me.node) and _no_copy_elsewhere(s, claim):
        words = claims.order(s.record, recovered_word(s.state))
        changes = claims.recover(s.me, s.record, s.claim, claims.proofs(s.view, claim), words)
        return Step(15, f"{claim.node} is proved dead, and the VM belongs here: recovered", changes=changes)
    return Step(16, f"{claim.node} holds it", level=Level.QUIET)


def _no_copy_elsewhere(s: Situation, claim: Claim) -> bool:
    """The destination of a dead holder's migration may have the guest, unless it is proved dead too."""
    op = claim.op
    return op is None or op.phase in (OpPhase.READY, OpPhase.NONE) or s.view.is_dead(op.dest, op.dinc)


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
    if s.copy:
        return Step(7, f"it is here ({status.value}) and nobody holds it: adopted", changes=claims.adopt(s.me, uuid, s.claim))
    if status is not Status.ABSENT:
        return Step(8, f"a leftover is here ({status.value}): it goes", Verb.DESTROY, s.gate, Level.WARNING)
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
    if node.domainstate is DomainState.FLUSH and (s.timers.unclaimed_s or 0.0) < FLUSH_PATIENCE_S:
        return Step(9, "this node is being flushed: the flush sends it elsewhere", level=Level.QUIET, again_s=FLUSH_PATIENCE_S)
    silent = sorted(name for name in s.view.nodes if s.view.is_running(name) and not _speaks(s.view, name))
    if silent:
        return Step(9, f"waits: {', '.join(silent)} has not finished its start", level=Level.WARNING, again_s=1.0)
    return Step(9, "wanted here: claimed", changes=claims.acquire(s.me, s.record, s.claim))


def _speaks(view: View, name: str) -> bool:
    """The node has looked at what runs on it, and honours claims."""
    protocol = view.nodes[name].protocol
    return isinstance(protocol, int) and protocol >= 1


# -------------------------------------------------------------------------------------- my claim, a migration operation

def _in_migration(s: Situation, op: Operation) -> Step:
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
    if call is not None and call.op == op.id and call.state is CallState.SUCCEEDED:
        return Step(20, f"arrived on {op.dest}", changes=claims.hand_over(s.me, s.record.uuid, s.claim))
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


def _under_way(s: Situation, op: Operation) -> Step:
    """Row 19. libvirt resumes the source at the very moment its call errors: a pause that lasts is asked about before that."""
    if s.local.status is Status.MIGRATING:
        if (s.timers.migrating_s or 0.0) >= s.timers.tick_s:
            return Step(19, f"no word from {op.dest} since the guest was paused: has it got it?",
                        changes=claims.ask(s.me, s.record.uuid, s.claim), level=Level.WARNING)
    elif not _ordered(s, op):
        return Step(19, "the order was taken back: the migration is aborted", Verb.ABORT, again_s=1.0)
    elif (s.timers.stalled_s or 0.0) >= ORDER_PATIENCE_S:
        return Step(19, f"no progress for {ORDER_PATIENCE_S:.0f} s: the migration is aborted", Verb.ABORT, (), Level.WARNING, 1.0)
    elif s.local.size and s.local.moved > CONVERGES * s.local.size:
        return Step(19, f"{CONVERGES} times its memory was moved and it changes faster: the migration is aborted", Verb.ABORT, (), Level.WARNING, 1.0)
    return Step(19, f"under way to {op.dest}", level=Level.QUIET, again_s=1.0)


def _query(s: Situation, op: Operation) -> Step:
    status = s.local.status
    if status in COPY and not s.local.job:
        return Step(21, f"it runs here: the migration to {op.dest} did not happen{_why(s)}",
                    changes=claims.close(s.me, s.record, s.claim), level=Level.WARNING)
    if s.view.is_dead(op.dest, op.dinc):
        proof = claims.proof(op.dest, s.view.fences[op.dest])
        return Step(23, f"{op.dest} is proved dead: it does not have it",
                    changes=claims.answer_none(s.me, s.record.uuid, s.claim, proof), level=Level.WARNING)
    if status is Status.MIGRATING and (s.timers.migrating_s or 0.0) >= 2 * s.timers.tick_s:
        return Step(24, f"{op.dest} does not answer: the paused copy here goes before libvirt wakes it", Verb.DESTROY,
                    _claim_gate(s), Level.CRITICAL)
    return Step(25, f"waits for the answer of {op.dest}", level=Level.QUIET, again_s=1.0)


# ---------------------------------------------------------------------------------------------- my claim, no operation

def _held_present(s: Situation) -> Step:
    status = s.local.status
    if status is Status.CRASHED:
        return Step(36, "crashed: what is left of it goes", Verb.DESTROY, s.gate, Level.WARNING)
    if status is Status.MIGRATING:
        return Step(41, "paused by a migration that is over: it goes on", Verb.RESUME, s.gate, Level.WARNING)
    if not s.record.exists:
        return Step(35, "its keys are gone and it runs here: left alone", level=Level.WARNING)
    if s.state in (VMState.STOP, VMState.DELETE):
        return Step(33, f"{s.state.value}: its power goes off", Verb.DESTROY, s.gate)
    if s.state in (VMState.RESTART, VMState.SHUTDOWN):
        return _shut_down(s)
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
    return Step(28, "runs", level=Level.QUIET)


def _shown(word: object) -> str:
    return word.value if isinstance(word, Enum) else ("missing" if word is None else str(word))


def _words(s: Situation, state: VMState, lasthypervisor: str | None = None) -> tuple[Change, ...]:
    return (*_claim_gate(s), *claims.order(s.record, state, lasthypervisor=lasthypervisor))


def _returned(s: Situation) -> str | None:
    """'' to write into `lasthypervisor` of a VM that has come back to it, None to leave it."""
    return "" if s.record.lasthypervisor == s.me.node else None


def _leaving(s: Situation) -> Step:
    if s.state is VMState.START:
        return Step(30, f"belongs to {s.home} now: it goes there live", changes=_words(s, VMState.MIGRATE))
    why = None
    if not s.view.is_up(s.home or ""):
        why = f"{s.home} is not up"
    elif not s.view.is_running(s.home or "") and (s.timers.ordered_s or 0.0) >= RESTART_S:
        why = f"{s.home} does not run"
    elif (s.timers.ordered_s or 0.0) >= ORDER_PATIENCE_S:
        why = f"{s.home} has not answered for {ORDER_PATIENCE_S:.0f} s"
    if why is None:
        return Step(31, f"waits for {s.home} to be ready", level=Level.QUIET, again_s=1.0)
    return Step(31, f"{why}: it stays here", changes=(*_claim_gate(s), *claims.rolled_back(s.me, s.record)), level=Level.WARNING)


def _shut_down(s: Situation) -> Step:
    elapsed = s.timers.shutdown_s
    if elapsed is None:
        return Step(32, f"{_shown(s.state)}: the guest is asked to power off", Verb.SHUT_DOWN, s.gate, again_s=1.0)
    if elapsed >= s.timers.shutdown_timeout_s:
        return Step(32, f"has not powered off in {s.timers.shutdown_timeout_s:.0f} s: its power goes off", Verb.DESTROY,
                    s.gate, Level.WARNING)
    return Step(32, "waits for the guest to power off", level=Level.QUIET, again_s=min(5.0, s.timers.shutdown_timeout_s - elapsed))


def _io_error(s: Situation) -> Step:
    if s.timers.resume_s is not None and s.timers.resume_s < RESUME_EVERY_S:
        return Step(34, "paused by an I/O error", level=Level.QUIET, again_s=RESUME_EVERY_S - s.timers.resume_s)
    return Step(34, "paused by an I/O error: tries to go on", Verb.RESUME, s.gate, Level.WARNING, RESUME_EVERY_S)


def _held_absent(s: Situation) -> Step:
    if s.attempts.doubt:
        return Step(37, "a start or a restart ended without an answer: looks again", level=Level.QUIET, again_s=2.0)
    if not s.record.exists:
        return Step(40, "its keys are gone, and it is not here", changes=claims.free(s.me, s.record, s.claim))
    if s.state is None or s.home is None:
        return Step(35, f"not here; its words are not understood ({_shown(s.record.state)})", level=Level.WARNING)
    if s.state is VMState.START and s.homed_here:
        return _start(s)
    if s.state is VMState.RESTART or (s.state is VMState.MIGRATE and s.homed_here):
        return Step(38, f"{s.state.value}, and it does not run: start",
                    changes=_words(s, VMState.START, _returned(s) if s.homed_here else None))
    if s.state is VMState.SHUTDOWN:
        return Step(39, "it has shut down: stop", changes=claims.free(s.me, s.record, s.claim, VMState.STOP))
    return Step(40, f"{s.state.value}, and it is not here: free", changes=claims.free(s.me, s.record, s.claim))


def _start(s: Situation) -> Step:
    if s.attempts.exhausted:
        return Step(37, f"failed: {s.attempts.reason}", changes=claims.free(s.me, s.record, s.claim, VMState.FAILED),
                    level=Level.CRITICAL, failed=s.attempts.reason)
    if s.attempts.wait_s > 0:
        return Step(37, "waits before the next start", level=Level.QUIET, again_s=s.attempts.wait_s)
    return Step(37, "started", Verb.CREATE, s.gate)
