# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The guards of the protocol, each with a mutant that removes it. A suite that does not kill every one of them proves nothing."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

from pvcd import fencing, keepalive, liveness, planner, recovery_plan, standing
from pvcd.cluster import claims, fences, flush, records, schema
from pvcd.cluster.records import ANY, Change, Check, Write
from pvcd.cluster.store import Store
from pvcd.ipmi import Power, Reading
from pvcd.local import Status
from pvcd.situation import Situation, Step, Verb

Mutation = Callable[[], Any]


def _filtered(keep: Callable[[Change], Change | None]) -> Any:
    """Every transaction of every node goes through `keep`: a change is dropped, or another takes its place."""
    original = Store.apply

    def apply(self: Store, changes: Sequence[Change]) -> None:
        original(self, tuple(kept for change in changes if (kept := keep(change)) is not None))
    return mock.patch.object(Store, "apply", apply)


def no_mine() -> Any:
    """Transactions do not check their own node's fence."""
    return _filtered(lambda c: None if isinstance(c, Check) and c.path.startswith(schema.FENCES + "/") else c)


def no_claim_version() -> Any:
    """Claims are written at whatever version they are."""
    def keep(change: Change) -> Change:
        if isinstance(change, (Write, Check)) and change.path.startswith(schema.CLAIMS + "/"):
            return replace(change, version=ANY)
        return change
    return _filtered(keep)


def no_gate() -> Any:
    """Effects are not preceded by a check that all is still as it was decided on."""
    original = Store.apply

    def apply(self: Store, changes: Sequence[Change]) -> None:
        if not all(isinstance(change, Check) for change in changes):
            original(self, changes)
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
    return mock.patch("sim.cluster.FaultyIpmi.status", lambda _self, _bmc: Reading(Power.OFF))


def one_reading() -> Any:
    """The first reading of `off` is a proof."""
    original = fencing.Fencing._power

    def power(self: fencing.Fencing, actor: Any, view: Any, name: str, now: float) -> float:
        delay_s = original(self, actor, view, name, now)
        target = self._targets.get(name)
        return self._proved(actor, view, name, target, now) if target is not None and target.seen_off == now else delay_s
    return mock.patch.object(fencing.Fencing, "_power", power)


def no_identity() -> Any:
    """Nobody asks whose controller it is, and what it says of its machine is believed."""
    def stranger(_self: fencing.Fencing, _name: str, _bmc: Any) -> str:
        return ""
    return mock.patch.object(fencing.Fencing, "_stranger", stranger)


def no_query() -> Any:
    """A recoverer does not ask the destination of a dead source's migration."""
    original = recovery_plan._step

    def step(me: Any, view: Any, record: Any, claim: Any, *rest: Any) -> Any:
        held = claim.value
        if isinstance(held, records.Claim) and held.op is not None:
            claim = replace(claim, value=replace(held, op=None))
        return original(me, view, record, claim, *rest)
    return mock.patch.object(recovery_plan, "_step", step)


def _planned(change: Callable[[Situation, Step], Step]) -> Any:
    original = planner.plan_domain
    return mock.patch("pvcd.VMInstance.plan_domain", lambda s: change(s, original(s)))


def no_surrender() -> Any:
    """A source in doubt never gives its paused copy up."""
    def change(s: Situation, step: Step) -> Step:
        doubtful = step.verb is Verb.DESTROY and s.local.status is Status.MIGRATING
        return replace(step, verb=Verb.NOTHING, changes=()) if doubtful else step

    @contextmanager
    def both() -> Iterator[None]:
        with _planned(change), mock.patch("pvcd.doubt.Doubt.look", lambda *_arguments: None):
            yield
    return both()


def no_surrender_when_cut_off() -> Any:
    """A source that cannot ask leaves its paused copy to libvirt."""
    return mock.patch("pvcd.doubt.Doubt.look", lambda *_arguments: None)


def doubt_ends_with_the_process() -> Any:
    """A start that fails ends at once, and the next one counts from the beginning."""
    return mock.patch("pvcd.doubt.Doubt.pending", property(lambda _self: False))


def inheritance_counts_anew() -> Any:
    """A copy that an earlier process left in doubt gets the patience of a new one."""
    return mock.patch("pvcd.doubt.Doubt._inherited", property(lambda _self: set(), lambda _self, _uuids: None), create=True)


def no_later_life() -> Any:
    """The death of the life that agreed is taken as a proof that the machine has no copy."""
    def has_no_copy(view: records.View, op: records.Operation) -> bool:
        return op.phase in (schema.OpPhase.READY, schema.OpPhase.NONE) or view.is_dead(op.dest, op.dinc)
    return mock.patch.object(records.View, "has_no_copy", has_no_copy)


def no_rollback() -> Any:
    """A migration that failed leaves its order standing."""
    return mock.patch.object(claims, "rolled_back", lambda _me, _record: ())


def no_doubt() -> Any:
    """An absence after an unanswered start is believed at once."""
    return mock.patch("pvcd.attempts.AttemptLog.unanswered", lambda _self, _now: None)


def no_adoption() -> Any:
    """What runs without a claim is not adopted."""
    return _planned(lambda _s, step: replace(step, verb=Verb.NOTHING, changes=()) if step.row == 7 else step)


def cold_rehoming() -> Any:
    """A VM that belongs elsewhere and runs here is destroyed instead of migrated."""
    return _planned(lambda s, step: replace(step, verb=Verb.DESTROY, changes=s.gate) if step.row == 30 else step)


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
    original = fencing.Fencing._power

    def power(self: fencing.Fencing, actor: Any, view: Any, name: str, now: float) -> float:
        fence = view.fence(name)
        return original(self, actor, view, name, now) if fence is not None and fence.by == self._node else 1.0
    return mock.patch.object(fencing.Fencing, "_power", power)


def flushed_too_early() -> Any:
    """`flushed` is written while VMs are still on their way."""
    return mock.patch.object(flush.NodePlan, "done", property(lambda self: not self.orders and not self.blocked))


MUTANTS: tuple[Mutation, ...] = (
    no_mine, no_claim_version, no_gate, no_keepalive_in_commit, early_death, no_read_back, one_reading, no_identity, no_query,
    no_surrender, no_surrender_when_cut_off, doubt_ends_with_the_process, inheritance_counts_anew,
    no_later_life, no_rollback, no_doubt, no_adoption, cold_rehoming,
    no_objection, no_exit,
    no_brake, no_freshness, no_resumption, flushed_too_early)
