# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Carries the plan of a fence out: asks controllers, writes the proof, tells, hands over. Runs on the fence thread of
the janitor.

It blocks for ZooKeeper only. What it has learned of a fence lives in this process; the tries that gave no proof live
beside the fence, so that each node knows whose turn it is. A try that fails is the next node's turn: one that cannot
reach a controller holds up nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from . import fence_plan
from .bmc import Answer, Bmc, Kind, Purpose, Question
from .cluster import controllers, fences, schema, tries
from .cluster.claims import Actor
from .cluster.controllers import Card
from .cluster.errors import Conflict
from .cluster.history import Entry, record
from .cluster.records import ANY, Check, Claim, Fence, FenceRecord, Value, View
from .cluster.schema import FencePhase
from .cluster.store import Store
from .cluster.tries import Tries, Try
from .fence_plan import Act, Learned
from .questions import Questions
from .situation import Level

KEYS = (*controllers.KEYS, "ipmiusername", "ipmipassword", tries.KEY)


@dataclass(frozen=True)
class Snapshot:
    """One look at the cluster: all that a visit decides on. `values`: the KEYS of every node."""

    view: View
    values: Mapping[tuple[str, str], Value]
    cards: Mapping[str, Card]

    def bmc(self, name: str) -> Bmc:
        host, user, password = (
            schema.decode_text(self.values[name, key].data) for key in ("ipmihostname", "ipmiusername", "ipmipassword")
        )
        return Bmc(*(text if isinstance(text, str) else "" for text in (host, user, password)))

    def obstacle(self, name: str) -> str:
        """Why nothing may be sent to the controller of `name`."""
        return self.bmc(name).problem or controllers.obstacle(self.cards, name)


def snapshot(store: Store, view: View) -> Snapshot:
    """Read what is recorded of all controllers."""
    paths = {(name, key): schema.node_key(name, key) for name in view.nodes for key in KEYS}
    found = store.raw_many(paths.values())
    values = {place: found[path] for place, path in paths.items()}
    cards = {name: controllers.card({key: values[name, key].data for key in controllers.KEYS}) for name in view.nodes}
    return Snapshot(view, values, cards)


class Janitor:
    """`about` of what was learned names the fence; what was learned of an earlier fence of the same node is forgotten.
    """

    def __init__(
        self,
        store: Store,
        questions: Questions,
        node: str,
        say: Callable[[Level, str], None],
        utc: Callable[[], str],
        fence_action: str,
    ) -> None:
        self._store, self._questions, self._node, self._say, self._utc = store, questions, node, say, utc
        self._fence_action = fence_action
        self._learned: dict[str, Learned] = {}
        self._powering: dict[str, Learned] = {}
        self._pauses: dict[str, tuple[float, int]] = {}
        """power-ons that gave no sign: when the next try may begin, and how many there were"""
        self._first_seen: dict[str, tuple[tuple[str, int, int], float]] = {}
        self._told: dict[str, str] = {}
        self._answers: list[Answer] = []

    @property
    def busy(self) -> bool:
        """A try is under way: the lock stays here."""
        return bool(self._learned)

    def take_in(self, answers: list[Answer]) -> None:
        """Answers that came in; they are looked at with the next snapshot, which is newer than they are."""
        self._answers += answers

    def forget(self) -> None:
        """This node is not the janitor any more."""
        self._learned, self._powering, self._answers = {}, {}, []

    # ----------------------------------------------------------------------------------------------------- whose turn

    def tries(self, seen: Snapshot, name: str) -> Tries:
        fence = seen.view.fence(name)
        assert fence is not None
        return tries.decode(seen.values[name, tries.KEY], fence)

    def candidates(self, seen: Snapshot, name: str) -> list[str]:
        """Who could fence `name`."""
        return [
            node
            for node in sorted(seen.view.nodes)
            if node != name and (node == self._node or seen.view.is_running(node))
        ]

    def watch(self, seen: Snapshot, fencing: list[str], now: float) -> None:
        """Keep when each state of the tries was first seen: pauses count on this node's clock. Each node does it,
        janitor or not.
        """
        found = {}
        for name in fencing:
            fence, tried = seen.view.fence(name), self.tries(seen, name)
            assert fence is not None
            state = (tries.about(fence), tried.version, tried.count)
            known = self._first_seen.get(name)
            found[name] = known if known is not None and known[0] == state else (state, now)
        self._first_seen = found

    def due(self, seen: Snapshot, name: str, now: float) -> bool:
        """This node may begin a try now, if it is the janitor."""
        tried, candidates = self.tries(seen, name), self.candidates(seen, name)
        mine = tries.next_node(tried, candidates) in ("", self._node)
        return not tried.count or fence_plan.is_due(
            now, self._first_seen[name][1], tries.pause_s(tried, len(candidates)), mine
        )

    def wanted(self, seen: Snapshot, fencing: list[str], now: float) -> bool:
        """Should this node be the janitor? Whoever comes first, but after a failed try the next."""
        turns = [tries.next_node(self.tries(seen, name), self.candidates(seen, name)) for name in fencing]
        return not turns or "" in turns or self._node in turns or any(self.due(seen, name, now) for name in fencing)

    # ---------------------------------------------------------------------------------------------------------- fence

    def visit(self, actor: Actor, seen: Snapshot, now: float) -> tuple[float, bool]:
        """One step of everything that is due; when to look again, and whether a try has failed here."""
        fencing = [name for name in sorted(seen.view.nodes) if _phase(seen.view, name) is FencePhase.FENCING]
        self._forget(seen.view)
        self._learn(seen)
        delays, failed = [], False
        for name in fencing:
            if name in self._learned or self.due(seen, name, now):
                delay, gave_up = self._step(actor, seen, name, now)
                delays.append(delay)
                failed |= gave_up
        return min(delays, default=fence_plan.POLL_S), failed

    def _forget(self, view: View) -> None:
        """What is not about the fence that stands now is gone."""
        for kept in (self._learned, self._powering):
            for name, learned in list(kept.items()):
                fence = view.fence(name)
                if fence is None or tries.about(fence) != learned.about:
                    del kept[name]

    def _learn(self, seen: Snapshot) -> None:
        answers, self._answers = self._answers, []
        for answer in answers:
            kept = self._learned if answer.question.purpose is Purpose.FENCE else self._powering
            learned = kept.get(answer.node)
            if learned is None or learned.about != answer.question.about or learned.asking is not answer.kind:
                continue
            kept[answer.node] = fence_plan.learn(learned, answer, seen.cards)
            if answer.sent and answer.kind is Kind.OFF:
                self._tell(answer.node, Level.WARNING, f"power off was sent to {answer.question.bmc.host}")
            elif answer.kind is Kind.OFF:
                self._say(
                    Level.WARNING,
                    f"{answer.node}: power off was not sent ({answer.said}): PVC looks at its fence again",
                )

    def _step(self, actor: Actor, seen: Snapshot, name: str, now: float) -> tuple[float, bool]:
        fence = seen.view.fences[name]
        assert isinstance(fence.value, Fence)
        learned = self._learned.setdefault(name, Learned(tries.about(fence.value), now))
        action = fence_plan.plan(fence.value, learned, now, seen.obstacle(name))
        if action.act is Act.ASK and action.kind is not None:
            gate = (actor.mine, Check(schema.fence(name), fence.version), *_silent(name, fence.value))
            self._ask(self._learned, Purpose.FENCE, seen, name, action.kind, gate)
        elif action.act is Act.PROVE:
            return self._prove(actor, seen, name, learned, now)
        elif action.act is Act.GIVE_UP:
            return self._give_up(actor, seen, name, action.why)
        return action.again_s, False

    def _ask(
        self, kept: dict[str, Learned], purpose: Purpose, seen: Snapshot, name: str, kind: Kind, gate: tuple[Check, ...]
    ) -> None:
        learned = kept[name]
        kept[name] = replace(learned, asking=kind)
        address = "" if kind is Kind.IDENTITY else learned.address
        self._questions.ask(
            Question(
                purpose, name, kind, seen.bmc(name), address, gate if kind in (Kind.OFF, Kind.ON) else (), learned.about
            )
        )

    def _prove(self, actor: Actor, seen: Snapshot, name: str, learned: Learned, now: float) -> tuple[float, bool]:
        try:
            self._store.apply(fences.proved(seen.view, name, self._node, "ipmi-off", self._utc(), actor))
        except Conflict as lost:
            if lost.path == schema.node_key(name, "keepalive"):
                return self._give_up(
                    actor, seen, name, f"its BMC {learned.address} says off, and it sends keepalives: the BMC is wrong"
                )
            raise
        del self._learned[name]
        self._tell(name, Level.CRITICAL, f"fenced: seen off twice, {now - learned.since:.1f} s after the commit")
        return 0.0, False

    def _give_up(self, actor: Actor, seen: Snapshot, name: str, why: str) -> tuple[float, bool]:
        """F8: nothing of it is started elsewhere; the next node tries, with a pause after each round, for ever, and
        loudly.
        """
        tried, candidates = self.tries(seen, name), self.candidates(seen, name)
        del self._learned[name]
        new = Try(self._node, self._utc(), why)
        after = replace(tried, count=tried.count + 1, last=(*tried.last, new))
        self._store.apply(tries.added(name, seen.view.fences[name], tried, new, actor.mine))
        self._first_seen.pop(name, None)
        pause = tries.pause_s(after, len(candidates))
        then = f"{tries.next_node(after, candidates)} tries next" + (f" in {pause:g} s" if pause else "")
        self._say(
            Level.CRITICAL,
            f"{name}: fencing, not confirmed: {why}: its VMs wait, and {then}. "
            f"If it is off for certain: pvc node confirm-off {name}",
        )
        if self._told.get(name) != why:
            self._note(name, "fencing, not confirmed", why)
        self._told[name] = why
        return 0.0, True

    # ------------------------------------------------------------------------------------------------------- power on

    def power_on(self, actor: Actor, seen: Snapshot, now: float) -> bool:
        """F11: after the recovery, what was proved by its controller, or what an operator asks for; until it says on.
        True while any waits.
        """
        waiting = [
            name
            for name in sorted(seen.view.nodes)
            if fences.wants_power(seen.view.fences.get(name), self._fence_action)
        ]
        self._pauses = {name: pause for name, pause in self._pauses.items() if name in waiting}
        if not waiting:
            return False
        named = {
            (claim.value.node, claim.value.inc)
            for claim in self._store.claims().values()
            if isinstance(claim.value, Claim)
        }
        for name in waiting:
            fence = seen.view.fences[name]
            assert isinstance(fence.value, Fence)
            recovered = fence.value.asked or (name, fence.value.inc) not in named
            if recovered and now >= self._pauses.get(name, (now, 0))[0]:
                self._power_on(actor, seen, name, fence, now)
        return True

    def _power_on(self, actor: Actor, seen: Snapshot, name: str, fence: FenceRecord, now: float) -> None:
        assert isinstance(fence.value, Fence)
        learned = self._powering.setdefault(name, Learned(tries.about(fence.value), now))
        action = fence_plan.plan_on(learned, now, seen.obstacle(name))
        if action.act is Act.ASK and action.kind is not None:
            self._ask(
                self._powering,
                Purpose.POWER_ON,
                seen,
                name,
                action.kind,
                (actor.mine, Check(schema.fence(name), fence.version)),
            )
            if action.kind is Kind.ON and name not in self._pauses:
                self._tell(name, Level.INFO, f"power on is sent to {seen.bmc(name).host}")
        elif action.act is Act.DONE:
            self._store.apply(fences.powered_on(actor, name, fence))
            del self._powering[name]
            self._tell(name, Level.INFO, "it is on: its BMC says so")
        elif action.act is Act.GIVE_UP:
            del self._powering[name]
            count = self._pauses.get(name, (0.0, 0))[1]
            pause = tries.BACK_OFF_S[min(count, len(tries.BACK_OFF_S) - 1)]
            self._pauses[name] = (now + pause, count + 1)
            self._say(Level.WARNING, f"{name}: it is not switched on: {action.why}: PVC tries again in {pause:g} s")
            if not count:
                self._note(name, "it is not switched on", action.why)

    # -------------------------------------------------------------------------------------------------------- telling

    def _tell(self, name: str, level: Level, text: str) -> None:
        self._say(level, f"{name}: {text}")
        self._note(name, text, f"by {self._node}")

    def _note(self, name: str, what: str, why: str) -> None:
        record(self._store, name, Entry(self._utc(), self._node, what, why))


def _phase(view: View, name: str) -> FencePhase | None:
    fence = view.fence(name)
    return fence.phase if fence else None


def _silent(name: str, fence: Fence) -> tuple[Check, ...]:
    """The keepalive that was silent at the commit still is the last."""
    return () if fence.ka is None or fence.ka == ANY else (Check(schema.node_key(name, "keepalive"), fence.ka),)
