# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Keeps one domain as the cluster wants it on this node: gather, plan, act, write back. Runs on a reconcile worker.

The order of the reads matters: record and claim first, libvirt after them. What libvirt shows is then never older than the claim, so a copy
that has gone under a claim that was read is gone under it, and whatever moves the claim meanwhile fails the transaction.
"""
from __future__ import annotations

from dataclasses import replace

from . import onward
from .attempts import AttemptLog
from .cluster import avoid, definition, schema
from .cluster.claims import Actor, holding
from .cluster.errors import BadDefinition, Conflict, HypervisorError, HypervisorUnknown, OutcomeUnknown, Unreachable
from .cluster.placement import unfit
from .cluster.records import Check, Claim, ClaimRecord, DomainRecord, Operation, View
from .cluster.schema import DomainState, OpPhase, VMState
from .departure import Phase, plan_alone
from .environment import Environment
from .handoff import halted
from .local import COPY, HALTED, CallState, Ending, Local, Status
from .planner import plan_domain
from .situation import Level, Situation, Step, Timers, Verb

SOON_S = 0.0


class VMInstance:
    """One VM as this node sees it. Only one visit runs at a time (the reconciler sees to it), so there is no lock."""

    def __init__(self, uuid: str, env: Environment) -> None:
        self.uuid, self._env = uuid, env
        self.claim = ClaimRecord(None, -1)
        """as last read; others may look, for display and for the choice of what to visit"""
        self.local = Local(Status.UNKNOWN)
        self.known = True
        """`/domains/<uuid>` was there at the last visit"""
        self.outside = False
        """it runs here and is not PVC's: libvirt keeps its definition (row 44), or it has neither keys nor a holder"""
        self._attempts = AttemptLog()
        self._told = ""
        self._ran = False
        self._dest_down_since: float | None = None
        self._holder_dead_since: float | None = None
        self._read_at: float | None = None
        """when ZooKeeper last answered a visit"""
        self._ordered: tuple[str, int, float] | None = None
        self._moved: tuple[int, float] | None = None
        self._unclaimed_since: float | None = None
        self._shutdown_since: float | None = None
        self._asked_at: float | None = None
        self._crashed_since: float | None = None
        self._resumed_at: float | None = None
        self._first = True
        self.slow = False
        """its monitor does not answer: its visits are in the slow lane"""

    @property
    def key(self) -> tuple[str, str]:
        return ("domain", self.uuid)

    @property
    def held_here(self) -> bool:
        """This node holds the claim, as last read."""
        return isinstance(self.claim.value, Claim) and self.claim.value.node == self._env.node

    @property
    def settled_here(self) -> bool:
        """Held here, and no migration is under way, as last read."""
        return self.held_here and isinstance(self.claim.value, Claim) and self.claim.value.op is None

    @property
    def settled(self) -> bool:
        """It was looked at, and what runs of it here is claimed by somebody, or none of PVC's business."""
        if self.local.status is Status.UNKNOWN:
            return False
        return self.local.status is Status.ABSENT or self.claim.value is not None or not self.known or self.outside

    def reconcile(self) -> float | None:
        """One visit: at most one effect. Returns when to look again, in seconds."""
        if self._env.alone:
            return self._end_alone()
        actor = self._env.actor()
        if actor is None:
            return self._stand_still()
        try:
            situation = self._situation(actor)
        except (Unreachable, OutcomeUnknown):
            self._abort_if_cut_off("this node does not reach ZooKeeper")
            return 1.0
        if situation.local.slow is not self.slow:
            self._mark_slow(situation.local.slow)
            if self.slow:
                return SOON_S  # acts in the slow lane: what it asks of this guest may hang as well
        step = plan_domain(situation)
        self.outside = step.row == 44 or (step.row == 16 and not self.known and self.local.status is not Status.ABSENT)
        new = self._tell(step)
        try:
            return self._act(step, new)
        except Conflict as lost:
            # A fence or a node's word was moved, our own or another's: the keepalive thread answers that, or the view hears of it, within
            # a moment. Everything else is read at each visit, and looked at again now.
            return 1.0 if lost.path.startswith((schema.FENCES, schema.NODES)) else SOON_S
        except (Unreachable, OutcomeUnknown):
            return 1.0

    def _end_alone(self) -> float | None:
        """This host is being shut down, and ZooKeeper is away. What is not PVC's is left to the host."""
        if self.outside:
            return None
        now = self._env.clock()
        self.local = local = self._env.hypervisor.look(self.uuid)
        since = None if self._shutdown_since is None else now - self._shutdown_since
        step = plan_alone(local, since, self._env.shutdown_timeout_s)
        self._tell(step)
        if step.verb is not Verb.NOTHING:
            try:
                self._effect(step.verb)
            except (HypervisorError, HypervisorUnknown) as error:
                self._env.say(Level.WARNING, f"{self.uuid}: {step.verb.value}: {error}")
        return step.again_s

    # ------------------------------------------------------------------------------------------------------- gather

    def _situation(self, actor: Actor) -> Situation:
        env = self._env
        record, claim = env.store.domain_and_claim(self.uuid)
        if record.exists and not claim.exists:
            env.store.ensure_claim(self.uuid)
            record, claim = env.store.domain_and_claim(self.uuid)
        self.local = local = env.hypervisor.look(self.uuid)
        self.claim, self.known = claim, record.exists
        now, view = env.clock(), env.view()
        self._read_at = now
        self._observe(actor, record, claim, local, now)
        self._observe_others(actor, claim, view, now)
        s = Situation(actor, record, claim, local, view, self._timers(now), self._attempts.now(now),
                      op_id=env.new_id(), stopping=env.stopping, closing=env.phase in (Phase.CLOSE, Phase.END))
        if self._asked_to_receive(s):
            return replace(s, unfit=self._why_unfit(s))
        if local.status is Status.ABSENT and s.state is VMState.START and s.homed_here and (s.attempts.try_elsewhere or s.attempts.exhausted):
            return replace(s, onward=onward.look(env.store, s.view, record, actor.node))
        return replace(s, preserved=self._preserved()) if local.status is Status.CRASHED else s

    def _preserved(self) -> bool:
        try:
            return definition.parse(self._env.store.xml(self.uuid).data).on_crash == "preserve"
        except BadDefinition:
            return False

    def _observe(self, actor: Actor, record: DomainRecord, claim: ClaimRecord, local: Local, now: float) -> None:
        """Keep what the planner's timers and counters need: since when things are as they are."""
        held = isinstance(claim.value, Claim) and actor.holds(claim.value)
        op = claim.value.op if isinstance(claim.value, Claim) else None
        wanted = held and op is None and record.state is VMState.START and record.hypervisor == actor.node
        if self._first and held:
            # A create call of an earlier process may still be on its way: what we held before is not believed absent at once.
            self._attempts.unanswered(now)
        self._first = False
        if local.status is not Status.UNKNOWN:
            present = local.status in COPY
            if wanted and self._ran and not present:
                (self._attempts.quit if local.ending is Ending.GUEST else self._attempts.death)(now)
            self._ran = present and wanted
            self._attempts.seen(local.status is not Status.ABSENT, now)
        else:
            self._attempts.unseen()
        if record.state not in (VMState.START, VMState.MIGRATE) or record.hypervisor != actor.node:
            self._attempts.clear()
        if claim.value is not None or record.state is not VMState.START or record.hypervisor != actor.node:
            self._unclaimed_since = None
        elif self._unclaimed_since is None:
            self._unclaimed_since = now
        self._observe_order(record, held and op is None, now)
        if not local.job:
            self._moved = None
        elif self._moved is None or self._moved[0] != local.moved:
            self._moved = (local.moved, now)
        ending = record.state in (VMState.RESTART, VMState.SHUTDOWN) or self._env.phase is Phase.CLOSE
        if local.status not in COPY or not ending:
            self._shutdown_since = self._asked_at = None
        if local.status is not Status.CRASHED:
            self._crashed_since = None
        elif self._crashed_since is None:
            self._crashed_since = now
        if local.status is not Status.IO_ERROR:
            self._resumed_at = None
        if op is None or op.dest != actor.node:
            self._env.arrivals.release(self.uuid)
        if op is None:
            self._env.hypervisor.forget_call(self.uuid)

    def _observe_others(self, actor: Actor, claim: ClaimRecord, view: View, now: float) -> None:
        """Since when a node that this VM depends on is not there; and whether this VM could be migrated."""
        held = claim.value if isinstance(claim.value, Claim) else None
        mine = held is not None and actor.holds(held)
        down = held is not None and mine and held.op is not None and not view.is_running(held.op.dest)
        self._dest_down_since = (self._dest_down_since or now) if down else None
        dead = held is not None and not mine and view.is_dead(held.node, held.inc)
        self._holder_dead_since = (self._holder_dead_since or now) if dead else None
        if mine and self.local.status in HALTED:
            self._env.halted[self.uuid] = halted(self.local.status)
        else:
            self._env.halted.pop(self.uuid, None)

    def _abort_if_cut_off(self, why: str) -> None:
        """The rule of a source that has not reached ZooKeeper for two ticks. A guest that arrives now is paused until the claim can move."""
        if self._read_at is not None and self._env.clock() - self._read_at >= 2 * self._env.tick_s:
            self.stay(why)

    def _stand_still(self) -> float | None:
        """This node may not act: it is being fenced, another host has its name, ZooKeeper was taken back. That may last until a person has
        looked, so a guest that still leaves stays, as it does where ZooKeeper is not reached.
        """
        self._abort_if_cut_off("this node may not act now")
        claim = self.claim.value
        return 1.0 if self.held_here and isinstance(claim, Claim) and claim.op is not None else None

    def stay(self, why: str) -> None:
        """Abort a migration away from here whose memory still moves: the guest runs on here. Waits for libvirt. Never raises."""
        claim = self.claim.value
        if not self.held_here or not isinstance(claim, Claim) or claim.op is None or claim.op.phase is not OpPhase.RUN:
            return
        local = self._env.hypervisor.look(self.uuid)
        calls = local.call is not None and local.call.state is CallState.ACTIVE
        if local.status is not Status.RUNNING or not (local.job or calls):
            return
        self._env.say(Level.WARNING, f"{self.uuid}: {why}: the migration is aborted, the guest stays here")
        try:
            self._env.hypervisor.abort_migration(self.uuid)
        except (HypervisorError, HypervisorUnknown) as error:
            self._env.say(Level.WARNING, f"{self.uuid}: abort: {error}")

    def _observe_order(self, record: DomainRecord, waiting: bool, now: float) -> None:
        if not waiting or record.state is not VMState.MIGRATE:
            self._ordered = None
            return
        order = (str(record.hypervisor), record.version("state"))
        if self._ordered is None or self._ordered[:2] != order:
            self._ordered = (*order, now)

    def _timers(self, now: float) -> Timers:
        def since(at: float | None) -> float | None:
            return None if at is None else now - at
        return Timers(self._env.tick_s, self._env.shutdown_timeout_s, since(self._ordered[2] if self._ordered else None),
                      since(self._moved[1] if self._moved else None), since(self._dest_down_since), since(self._holder_dead_since),
                      since(self._unclaimed_since), since(self._shutdown_since), since(self._resumed_at),
                      since(self._asked_at), since(self._crashed_since))

    def _asked_to_receive(self, s: Situation) -> bool:
        claim = s.claim.value
        return (isinstance(claim, Claim) and claim.node != s.me.node and claim.op is None and s.state is VMState.MIGRATE
                and s.homed_here and s.local.status is Status.ABSENT)

    def _why_unfit(self, s: Situation) -> str | None:
        """Why this node cannot take the VM now, or None: then its memory is set aside until it has arrived."""
        if self._env.stopping:
            return "the daemon is being stopped"
        why = unfit(s.view, s.me.node)
        if why is not None and not self._comes_home(s.view):
            return why
        try:
            found = definition.parse(self._env.store.xml(self.uuid).data)
        except BadDefinition as error:
            return str(error)
        try:
            guests = self._env.hypervisor.inventory()
        except (HypervisorError, HypervisorUnknown) as error:
            return f"libvirt: {error}"
        if any(guest.name == found.name and guest.uuid != self.uuid for guest in guests):
            return f"another VM of the name {found.name} runs here"
        own, pages = s.view.nodes[s.me.node], found.memory_mib.pages
        free = own.hugepages_mib.get(pages, 0) if pages else own.memfree_mib
        if not isinstance(free, int):
            return "free memory unknown"
        if not self._env.arrivals.promise(self.uuid, found.memory_mib, free):
            return f"needs {found.memory_mib} MiB of the {free} MiB free here{' in huge pages' if pages else ''}"
        return None

    def _comes_home(self, view: View) -> bool:
        """A node in `unflush` receives what it has called home, although it is not `ready` for others yet."""
        return view.is_running(self._env.node) and view.nodes[self._env.node].domainstate is DomainState.UNFLUSH

    # ---------------------------------------------------------------------------------------------------------- act

    def _act(self, step: Step, new: bool) -> float | None:
        """Apply the step's changes, then do its effect. Nothing is decided after an effect: the next visit looks.

        `new`: the step differs from the last visit's, so it is kept in the history and with the VM.
        """
        if step.verb is Verb.CREATE:
            return self._create(step)
        acts = step.level is not Level.QUIET and (bool(step.changes) or step.verb is not Verb.NOTHING)
        if new and acts:
            self._keep_reason(step)
        if step.row == "S3" and self.local.size:
            self._keep_progress()
        if step.changes:
            self._env.store.apply(step.changes)
        noted = new and acts
        if noted and step.verb is not Verb.RESUME:
            self._env.note(self.uuid, step.verb.value if step.verb is not Verb.NOTHING else "decided", step.reason)
        if step.verb is Verb.NOTHING:
            return SOON_S if any(not isinstance(change, Check) for change in step.changes) else step.again_s
        try:
            self._effect(step.verb)
        except (HypervisorError, HypervisorUnknown) as error:
            return self._failed(step, error)
        if noted and step.verb is Verb.RESUME:  # after it: a guest that has arrived waits for it
            self._env.note(self.uuid, step.verb.value, step.reason)
        return SOON_S if step.again_s is None else step.again_s

    def _keep_reason(self, step: Step) -> None:
        """Before the words change: whoever waits for them reads the reason at once. It is only for people."""
        if step.failed is not None or step.level in (Level.WARNING, Level.CRITICAL):
            self._env.store.write_meta(self.uuid, {"reason": step.failed or step.reason, "at": self._env.utc()})

    def _keep_progress(self) -> None:
        claim = self.claim.value
        assert isinstance(claim, Claim) and claim.op is not None
        self._env.store.write_meta(self.uuid, {"op": claim.op.id, "moved_mib": self.local.moved >> 20, "size_mib": self.local.size >> 20})

    def _effect(self, verb: Verb) -> None:
        hypervisor, now = self._env.hypervisor, self._env.clock()
        if verb is Verb.SHUT_DOWN:
            self._shutdown_since, self._asked_at = now if self._shutdown_since is None else self._shutdown_since, now
            hypervisor.shut_down(self.uuid)
        elif verb is Verb.DESTROY:
            hypervisor.destroy(self.uuid)
        elif verb is Verb.RESUME:
            self._resumed_at = now
            hypervisor.resume(self.uuid)
        elif verb is Verb.ABORT:
            hypervisor.abort_migration(self.uuid)
        elif verb is Verb.MIGRATE:
            claim = self.claim.value
            assert isinstance(claim, Claim) and claim.op is not None
            op = claim.op
            hypervisor.start_migration(self.uuid, op.id, op.dest, lambda: self._may_migrate(op))

    def _may_migrate(self, op: Operation) -> bool:
        """Asked right before the call, which may have waited for its turn: is it still this operation's, and still ordered? Runs on a
        migration worker; blocks for two answers of ZooKeeper. Never raises.
        """
        actor = self._env.actor()
        if actor is None:
            return False
        try:
            record, claim = self._env.store.domain_and_claim(self.uuid)
            held = claim.value
            if not isinstance(held, Claim) or not actor.holds(held) or held.op is None:
                return False
            if (held.op.id, held.op.phase) != (op.id, OpPhase.RUN) or record.state is not VMState.MIGRATE or record.hypervisor != op.dest:
                return False
            self._env.store.apply(holding(actor, self.uuid, claim, record))
        except (Conflict, Unreachable, OutcomeUnknown):
            return False
        return True

    def _create(self, step: Step) -> float | None:
        raw = self._env.store.xml(self.uuid).data
        try:
            found = definition.parse(raw)
            if found.uuid != self.uuid:
                raise BadDefinition(f"The definition is of another VM ({found.uuid}).")
        except BadDefinition as error:
            self._attempts.error(self._env.clock(), f"bad definition: {error}", permanent=True, hopeless=True)
            return SOON_S
        assert raw is not None
        self._env.store.apply(step.changes)
        try:
            self._env.hypervisor.create(raw.decode("utf-8"))
        except HypervisorError as error:
            self._attempts.error(self._env.clock(), str(error), error.permanent, error.hopeless)
            self._env.refused_starts[self.uuid] = (str(error), self._env.clock())
            self._env.say(Level.WARNING, f"{self.uuid}: not started: {error}")
            self._env.store.write_meta(self.uuid, {"reason": f"not started: {error}", "at": self._env.utc()})
            return SOON_S
        except HypervisorUnknown as error:
            self._attempts.unanswered(self._env.clock())
            return self._failed(step, error)
        self._forget_avoided()
        self._env.refused_starts.pop(self.uuid, None)
        self._env.note(self.uuid, "started", f"wanted on {self._env.node}")
        return SOON_S

    def _forget_avoided(self) -> None:
        """It runs: where it could not be started before counts no more. A note that stays is only a preference."""
        try:
            avoided = self._env.store.avoided([self.uuid])[self.uuid]
            self._env.store.apply(avoid.forgotten(self.uuid, avoided))
        except (Conflict, Unreachable, OutcomeUnknown):
            return

    def _failed(self, step: Step, error: HypervisorError | HypervisorUnknown) -> float:
        """An effect did not come about, or nobody knows: say so, look again later; the next visit decides afresh."""
        if isinstance(error, HypervisorUnknown):
            self._mark_slow(error.slow)
        self._env.say(Level.WARNING, f"{self.uuid}: {step.verb.value}: {error}")
        self._env.store.write_meta(self.uuid, {"reason": f"{step.verb.value}: {error}", "at": self._env.utc()})
        return step.retry_s

    def _mark_slow(self, slow: bool) -> None:
        self.slow = slow
        self._env.mark_slow(self.key, slow)

    def _tell(self, step: Step) -> bool:
        """One line per change: a reason that stays the same is not repeated. True if the step is not the last visit's."""
        text = f"{self.uuid}: {schema.printable(step.reason)}"
        new, self._told = text != self._told, text
        if new and step.level is not Level.QUIET:
            self._env.say(step.level, text)
        return new
