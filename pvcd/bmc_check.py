# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Tests management controllers before they are needed. Runs on the fence thread, and never waits for an answer.

Each node asks its own controller which machine it belongs to, again and again until it is told; and every five minutes
it asks one other node's, another one each time, or the one that nobody has asked for long. So each controller is asked
from every node.
"""

from __future__ import annotations

from collections.abc import Callable

from .bmc import Answer, Kind, Purpose, Question
from .cluster import controllers, schema
from .cluster.claims import Actor
from .cluster.controllers import Card
from .cluster.records import ANY, Change, Create, View, Write
from .cluster.schema import FencePhase
from .cluster.store import Store
from .cluster.tries import BACK_OFF_S
from .janitor import Snapshot, snapshot
from .questions import Questions
from .situation import Level

EVERY_S = 300.0
FIRST_S = 15.0
LOOK_S = 60.0
NEGLECTED_S = 2.5 * EVERY_S


class BmcCheck:
    """One question under way at a time."""

    def __init__(
        self, store: Store, questions: Questions, node: str, say: Callable[[Level, str], None], utc: Callable[[], str]
    ) -> None:
        self._store, self._questions, self._node, self._say, self._utc = store, questions, node, say, utc
        self._own_due: float | None = 0.0
        """when this node's own controller is asked again whose it is; None: it has told"""
        self._own_tries = 0
        self._due: float | None = None
        self._look = 0.0
        self._round = 0
        self._asking = False
        self._states: dict[str, tuple[int, float]] = {}
        """node → version of its `ipmistate`, and when it was first seen"""
        self._told: dict[str, str] = {}
        self._answers: list[Answer] = []

    def take_in(self, answers: list[Answer]) -> None:
        """Answers that came in; they are written at the next visit."""
        self._answers += answers

    def visit(self, actor: Actor, view: View, now: float) -> None:
        """Write what was answered, and ask what is due, if anything is."""
        if self._due is None:
            self._due = now + FIRST_S
        while self._answers:
            answer = self._answers.pop(0)
            self._asking = False
            if now - answer.answered > LOOK_S:
                continue  # a fence came in between, and what was true then is old
            self._answered(actor, answer, snapshot(self._store, view), now)
        if self._node not in view.nodes or self._asking:
            return
        if self._own_due is not None and now >= self._own_due:
            self._own_due = now + BACK_OFF_S[-1]
            self._ask(self._node, Kind.OWN, snapshot(self._store, view))
        elif now >= self._look:
            self._watch(snapshot(self._store, view), self._due, now)

    def _watch(self, seen: Snapshot, due: float, now: float) -> None:
        """Is this node's own controller another's, and is a check due?"""
        self._tell(self._node, controllers.obstacle(seen.cards, self._node))
        for name in seen.view.nodes:
            version, known = seen.values[name, "ipmistate"].version, self._states.get(name)
            self._states[name] = known if known is not None and known[0] == version else (version, now)
        others = [name for name in sorted(seen.view.nodes) if name != self._node and not _is_fenced(seen.view, name)]
        if now >= due:
            due = self._due = now + EVERY_S
            if others:
                self._ask(self._chosen(others, now), Kind.IDENTITY, seen)
        self._look = min(now + LOOK_S, due)

    def _chosen(self, others: list[str], now: float) -> str:
        """Another one each time, or the one whose state has not changed for long: its checker is gone."""
        neglected = [name for name in others if now - self._states[name][1] >= NEGLECTED_S]
        if neglected:
            return min(neglected, key=lambda name: self._states[name][1])
        self._round += 1
        return others[(sum(name < self._node for name in others) + self._round - 1) % len(others)]

    def _ask(self, name: str, kind: Kind, seen: Snapshot) -> None:
        self._asking = True
        self._questions.ask(Question(Purpose.CHECK, name, kind, seen.bmc(name)))

    # -------------------------------------------------------------------------------------------------------- answers

    def _answered(self, actor: Actor, answer: Answer, seen: Snapshot, now: float) -> None:
        if answer.node not in seen.cards:
            return
        found = controllers.guid(answer.guid)
        if answer.kind is Kind.OWN:
            self._own(actor, answer, seen.cards[self._node], now)
            return
        problem = answer.problem or controllers.stranger(seen.cards, answer.node, found, answer.addresses)
        self._tell(answer.node, problem)
        state = controllers.encode_state(
            seen.values[answer.node, "ipmistate"].data, self._node, self._utc(), problem, answer, found
        )
        self._put(actor, answer.node, "ipmistate", state, seen)

    def _own(self, actor: Actor, answer: Answer, card: Card, now: float) -> None:
        """A controller that does not say whose it is leaves what was recorded, and is asked again."""
        told = answer.guid is not None
        local, product = controllers.guid(answer.local), controllers.guid(answer.product)
        inside = controllers.encode_inside(
            local, product, controllers.host(answer.question.bmc.host) if told else card.told_by
        )
        changes = [self._change("ipmiinside", inside)]
        if told:
            changes.append(self._change("ipmiguid", controllers.guid(answer.guid).encode()))
        self._store.apply((actor.mine, *changes))
        self._own_due = None if told else now + BACK_OFF_S[min(self._own_tries, len(BACK_OFF_S) - 1)]
        self._own_tries += 1

    def _change(self, key: str, value: bytes) -> Change:
        """A key that only this node writes."""
        path = schema.node_key(self._node, key)
        return Write(path, value, ANY) if self._store.raw(path).data is not None else Create(path, value)

    def _put(self, actor: Actor, name: str, key: str, value: bytes, seen: Snapshot) -> None:
        path, version = schema.node_key(name, key), seen.values[name, key].version
        self._store.apply((actor.mine, Create(path, value) if version == ANY else Write(path, value, version)))

    def _tell(self, name: str, problem: str) -> None:
        """Once for each trouble, and once when it is over."""
        before, self._told[name] = self._told.get(name, ""), problem
        if problem and problem != before:
            self._say(
                Level.CRITICAL,
                f"{name}: its BMC is broken: {problem}: {name} cannot be fenced until it is repaired. "
                "Check it, and ipmi_* in that node's pvcd.conf; then, on that node: systemctl restart pvcd",
            )
        elif before and not problem:
            self._say(Level.INFO, f"{name}: its BMC answers again")


def _is_fenced(view: View, name: str) -> bool:
    """Its controller is the janitor's to ask."""
    fence = view.fence(name)
    return fence is not None and fence.phase is FencePhase.FENCING
