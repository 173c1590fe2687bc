# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The guards of the protocol, each with a mutant that removes it. A suite that does not kill every one of them proves nothing."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

from pvcd import bmc_check, fence_plan, fencing, janitor, keepalive, liveness, questions, standing
from pvcd.bmc import Power, Reading
from pvcd.cluster import claims, controllers, fences, flush, records, schema, tries
from pvcd.cluster.records import ANY, Change, Check, Write
from pvcd.cluster.store import Store
from pvcd.local import Status
from pvcd.situation import Situation, Step, Verb

from .fakehypervisor import Fabric
from .mutant_tools import Mutation, filtered, planned, situated
from .mutants_hosts import OF_HOSTS, OF_STARTS


def no_mine() -> Any:
    """Transactions do not check their own node's fence."""
    return filtered(lambda c: None if isinstance(c, Check) and c.path.startswith(schema.FENCES + "/") else c)


def no_claim_version() -> Any:
    """Claims are written at whatever version they are."""
    def keep(change: Change) -> Change:
        if isinstance(change, (Write, Check)) and change.path.startswith(schema.CLAIMS + "/"):
            return replace(change, version=ANY)
        return change
    return filtered(keep)


def no_gate() -> Any:
    """Effects are not preceded by a check that all is still as it was decided on."""
    original = Store.apply

    def apply(self: Store, changes: Sequence[Change]) -> list[int | None]:
        return [None for _ in changes] if all(isinstance(change, Check) for change in changes) else original(self, changes)
    return mock.patch.object(Store, "apply", apply)


def no_keepalive_in_commit() -> Any:
    """The commit of a fence does not check the keepalive that was silent, and the judgement is late."""
    original = fences.committed

    def committed(*arguments: Any) -> tuple[Change, ...]:
        return tuple(c for c in original(*arguments) if not (isinstance(c, Check) and c.path.endswith("/keepalive")))
    return mock.patch.object(fences, "committed", committed)


def early_death() -> Any:
    """A node counts as dead as soon as its fence is committed."""
    def is_dead(self: records.View, name: str, inc: str) -> bool:
        fence = self.fence(name)
        return fence is not None and (fence.inc != inc or fence.phase in (schema.FencePhase.FENCED, schema.FencePhase.FENCING))
    return mock.patch.object(records.View, "is_dead", is_dead)


def no_read_back() -> Any:
    """A command that was sent counts as done: nobody reads the power status."""
    return mock.patch("sim.cluster.FakeIpmi.status", lambda _self, _bmc: Reading(Power.OFF))


def one_reading() -> Any:
    """The first reading of `off` is a proof."""
    original = fence_plan.plan

    def plan(fence: Any, learned: fence_plan.Learned, now: float, obstacle: str) -> fence_plan.Action:
        early = learned.asking is None and learned.sent is not None and learned.seen_off is not None
        return fence_plan.Action(fence_plan.Act.PROVE) if early else original(fence, learned, now, obstacle)
    return mock.patch.object(fence_plan, "plan", plan)


def no_identity() -> Any:
    """Nobody asks whose controller it is, and what it says of its machine is believed."""
    return mock.patch.object(controllers, "stranger", lambda *_arguments: "")


def shared_controllers() -> Any:
    """One controller may be several nodes': it is the recorded one, after all."""
    return mock.patch.object(controllers, "obstacle", lambda *_arguments: "")


def contradicted_controller() -> Any:
    """What a host sees of its controller from inside does not count."""
    return mock.patch.object(controllers, "verdict", lambda _card: controllers.Verdict.UNVERIFIED)


def no_gate_before_off() -> Any:
    """What was decided on may have changed while the controller said whose it is: nobody looks again before `off`."""
    original = questions.Questions._order

    def order(self: questions.Questions, question: Any, *rest: Any) -> Any:
        return original(self, replace(question, gate=()), *rest)
    return mock.patch.object(questions.Questions, "_order", order)


def slow_for_all() -> Any:
    """One question at a time: a controller that takes its time holds up all others."""
    original = questions.Questions.take
    return mock.patch.object(questions.Questions, "take", lambda self: None if self._under_way else original(self))


def no_hand_over() -> Any:
    """A janitor whose try has failed keeps the lock."""
    return mock.patch.object(fencing.Fencing, "_hand_over", lambda _self, _actor: None)


def no_pause() -> Any:
    """Tries follow each other at once."""
    return mock.patch.object(tries, "pause_s", lambda *_arguments: 0.0)


def power_on_is_believed() -> Any:
    """The order to switch on counts as done."""
    original = fence_plan.plan_on

    def plan_on(learned: fence_plan.Learned, now: float, obstacle: str) -> fence_plan.Action:
        return original(learned, now, obstacle) if learned.sent is None else fence_plan.Action(fence_plan.Act.DONE)
    return mock.patch.object(fence_plan, "plan_on", plan_on)


def one_checker() -> Any:
    """Each controller is tested by the node before it alone."""
    def chosen(self: bmc_check.BmcCheck, others: list[str], _now: float) -> str:
        return others[sum(name < self._node for name in others) % len(others)]
    return mock.patch.object(bmc_check.BmcCheck, "_chosen", chosen)


def identity_asked_once() -> Any:
    """A controller that did not say whose it is at the start is never asked again."""
    original = bmc_check.BmcCheck._own

    def own(self: bmc_check.BmcCheck, *arguments: Any) -> None:
        original(self, *arguments)
        self._own_due = None
    return mock.patch.object(bmc_check.BmcCheck, "_own", own)


def earlier_fence_remembered() -> Any:
    """What was learned of a node's earlier fence is taken for knowledge of the present one."""
    original = janitor.Janitor._forget

    def forget(self: janitor.Janitor, view: Any) -> None:
        kept = dict(self._learned)
        original(self, view)
        for name, learned in kept.items():
            fence = view.fence(name)
            if fence is not None:
                self._learned[name] = replace(learned, about=janitor.tries.about(fence))
    return mock.patch.object(janitor.Janitor, "_forget", forget)


def resumes_before_its_claim() -> Any:
    """The destination resumes what has arrived at once."""
    return planned(lambda s, step: replace(step, verb=Verb.RESUME, changes=s.claim_gate) if step.row == "D1" else step)


def takes_without_the_source() -> Any:
    """The destination takes the claim of what has arrived, without the source's transaction or a proof of its death."""
    def change(s: Situation, step: Step) -> Step:
        return replace(step, changes=taken(s)) if step.row == "D1" else step
    return planned(change)


def taken(s: Situation, *proved: Change) -> tuple[Change, ...]:
    """The destination's own transaction, run → {me, given}."""
    op = replace(s.claim.value.op, phase=schema.OpPhase.GIVEN)  # type: ignore[union-attr,type-var]
    return (s.me.mine, *proved, Write(schema.claim(s.record.uuid), records.Claim(s.me.node, s.me.inc, op).encode(), s.claim.version))


def takes_after_the_proof() -> Any:
    """The destination goes on with the life of a source that is proved dead, and may have executed since."""
    def change(s: Situation, step: Step) -> Step:
        if step.row != "D2":
            return step
        holder = s.claim.value.node  # type: ignore[union-attr]
        return replace(step, verb=Verb.NOTHING, changes=taken(s, *claims.proof(holder, s.view.fences[holder])))
    return planned(change)


def hands_over_while_paused() -> Any:
    """The source gives the claim away while its own copy is paused, and not gone."""
    def change(s: Situation, step: Step) -> Step:
        fence = s.view.fence(s.claim.value.op.dest) if step.row in ("S3", "S6") else None  # type: ignore[union-attr]
        if fence is None or s.local.status is not Status.MIGRATING:
            return step
        return replace(step, verb=Verb.NOTHING, changes=claims.hand_over(s.me, s.record.uuid, s.claim, fence.inc, ()))
    return planned(change)


def waits_for_libvirts_look() -> Any:
    """A process that has ended is not believed gone before libvirt has looked."""
    return situated(lambda s: replace(s, local=replace(s.local, left=False)))


def hands_over_before_the_end() -> Any:
    """A source that is paused by its migration counts as gone, although its process has not ended and libvirt may wake it."""
    def situation(s: Situation) -> Situation:
        call = s.local.call
        late = s.local.status is Status.MIGRATING and call is not None and s.local.job
        return replace(s, local=replace(s.local, status=Status.ABSENT, left=True)) if late else s
    return situated(situation)


def runs_on_arrival() -> Any:
    """libvirt is not told to leave the copy paused."""
    return mock.patch.object(Fabric, "arrival", Status.RUNNING)


def no_gate_before_the_resume() -> Any:
    """The destination resumes on what it has read."""
    return planned(lambda _s, step: replace(step, changes=()) if step.row == "D7" else step)


def no_patience_with_the_destination() -> Any:
    """Whoever recovers does not wait for a destination that may have the guest whole."""
    return mock.patch.object(records.View, "may_be_at", lambda _self, _op, _dead_s: None)


def endless_patience_with_the_destination() -> Any:
    """... or waits for ever."""
    def may_be_at(self: records.View, op: Any, _dead_s: float) -> str | None:
        return "it may" if op is not None and op.phase is schema.OpPhase.RUN and self.is_up(op.dest) else None
    return mock.patch.object(records.View, "may_be_at", may_be_at)


def waits_for_a_destination_that_is_not_up() -> Any:
    """A source whose copy is gone never starts it anew."""
    return planned(lambda s, step: replace(step, changes=()) if step.row == "S5" and not s.view.is_off(s.claim.value.op.dest)  # type: ignore[union-attr]
                    else step)


def migrates_on_when_cut_off() -> Any:
    """A source that does not reach ZooKeeper lets its migrations run."""
    return mock.patch("pvcd.VMInstance.VMInstance._abort_if_cut_off", lambda _self: None)


def no_look_before_the_call() -> Any:
    """A call that has waited for its turn is made whatever was ordered meanwhile."""
    return mock.patch("pvcd.VMInstance.VMInstance._may_migrate", lambda _self, _op: True)


def allows_any_call() -> Any:
    """A migration that no operation allows runs on."""
    return planned(lambda _s, step: replace(step, verb=Verb.NOTHING) if step.row == "S8" else step)


def stuck_is_paused() -> Any:
    """A source that libvirt could not resume is taken for paused by somebody."""
    def change(s: Situation, step: Step) -> Step:
        if step.row != "S6" or s.local.status is not Status.STUCK:
            return step
        return replace(step, verb=Verb.NOTHING, changes=claims.close(s.me, s.record, s.claim))
    return planned(change)


def halted_orders_stand() -> Any:
    """The order to migrate a guest that does not run is not taken back by its source."""
    def change(s: Situation, step: Step) -> Step:
        return replace(step, changes=claims.withdraw(s.me, s.record.uuid, s.claim)) if step.row == "S2" else step
    return planned(change)


def flush_orders_the_halted() -> Any:
    """A flush sends guests that do not run elsewhere, again and again."""
    return mock.patch("pvcd.NodeInstance.plan_flush", lambda me, cluster, recent, halted: flush.plan_flush(me, cluster, recent))


def late_arrivals_refuse_the_start() -> Any:
    """What has arrived in a boot that is not registered yet is taken for a guest of an older one."""
    return mock.patch("pvcd.registration.Registration._arrives", lambda *_arguments: False)


def older_daemons_are_migrated_from() -> Any:
    """The destination does not ask what the source speaks."""
    return mock.patch.object(schema, "PROTOCOL_VERSION", 1)


def no_rollback() -> Any:
    """A migration that failed leaves its order standing."""
    return mock.patch.object(claims, "rolled_back", lambda _me, _record: ())


def no_doubt() -> Any:
    """An absence after an unanswered start is believed at once."""
    return mock.patch("pvcd.attempts.AttemptLog.unanswered", lambda _self, _now: None)


def no_adoption() -> Any:
    """What runs without a claim is not adopted."""
    return planned(lambda _s, step: replace(step, verb=Verb.NOTHING, changes=()) if step.row == 7 else step)


def cold_rehoming() -> Any:
    """A VM that belongs elsewhere and runs here is destroyed instead of migrated."""
    return planned(lambda s, step: replace(step, verb=Verb.DESTROY, changes=s.gate) if step.row == 30 else step)


def no_objection() -> Any:
    """A node that is being fenced goes on with plain keepalives instead of objecting."""
    def answer(fence: records.FenceRecord, inc: str) -> standing.Answer:
        found = standing.answer(fence, inc)
        return standing.Answer.SILENT if found is standing.Answer.OBJECT else found
    return mock.patch.object(keepalive, "answer", answer)


def no_exit() -> Any:
    """A fenced incarnation goes on."""
    def answer(fence: records.FenceRecord, inc: str) -> standing.Answer:
        found = standing.answer(fence, inc)
        return standing.Answer.SILENT if found is standing.Answer.EXIT else found

    @contextmanager
    def both() -> Iterator[None]:
        with mock.patch.object(keepalive, "answer", answer), no_mine():
            yield
    return both()


def no_brake() -> Any:
    """Any number of nodes may be fenced at once."""
    return mock.patch.object(liveness, "max", lambda *_values, **_more: 99 if not _more else max(*_values, **_more), create=True)


def no_freshness() -> Any:
    """A node judges others while its own keepalives are not acknowledged, and its timers never start again."""
    @contextmanager
    def both() -> Iterator[None]:
        with mock.patch.object(liveness.Liveness, "is_fresh", lambda _self, _now: True), \
                mock.patch.object(liveness.Liveness, "_restart", lambda _self, _now: None):
            yield
    return both()


def no_resumption() -> Any:
    """A fence belongs to the janitor that began it: another leaves it alone."""
    original = janitor.Janitor._step

    def step(self: janitor.Janitor, actor: Any, seen: Any, name: str, now: float) -> tuple[float, bool]:
        fence = seen.view.fence(name)
        return original(self, actor, seen, name, now) if fence is not None and fence.by == self._node else (1.0, False)
    return mock.patch.object(janitor.Janitor, "_step", step)


def flushed_too_early() -> Any:
    """`flushed` is written while VMs are still on their way."""
    return mock.patch.object(flush.NodePlan, "done", property(lambda self: not self.orders and not self.blocked))


OF_MIGRATIONS: tuple[Mutation, ...] = (
    resumes_before_its_claim, takes_without_the_source, hands_over_while_paused, runs_on_arrival, no_gate_before_the_resume,
    no_patience_with_the_destination, endless_patience_with_the_destination, waits_for_a_destination_that_is_not_up, migrates_on_when_cut_off,
    no_look_before_the_call, allows_any_call, waits_for_libvirts_look, takes_after_the_proof, hands_over_before_the_end,
    stuck_is_paused, halted_orders_stand, flush_orders_the_halted, late_arrivals_refuse_the_start,
    older_daemons_are_migrated_from)
MUTANTS: tuple[Mutation, ...] = (
    no_mine, no_claim_version, no_gate, no_keepalive_in_commit, early_death, no_read_back, one_reading, no_identity, shared_controllers,
    contradicted_controller, no_gate_before_off, slow_for_all, no_hand_over, no_pause, power_on_is_believed, one_checker, identity_asked_once,
    earlier_fence_remembered, no_rollback, no_doubt, no_adoption, cold_rehoming, no_objection, no_exit,
    no_brake, no_freshness, no_resumption, flushed_too_early,
    *OF_MIGRATIONS, *OF_HOSTS, *OF_STARTS)
