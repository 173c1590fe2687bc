# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The fence thread's turn: commit the fence of a dead node, be the janitor or not, recover, switch on, test
controllers.

`visit` does one step of each and says when to come again; it blocks for ZooKeeper only. Whoever holds `/locks/fence` is
the janitor for everybody; what it has come to is in `/fences/<node>`, so that another goes on where it stops. Every
step may be repeated: a second `off` is harmless, and only what was read back counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from .bmc import Purpose
from .bmc_check import BmcCheck
from .cluster import fences, schema
from .cluster.claims import Actor
from .cluster.errors import Conflict, PVCError
from .cluster.history import Entry, record
from .cluster.records import Create, Delete, Value, View, Write
from .cluster.schema import FencePhase
from .cluster.store import Store
from .janitor import Janitor, Snapshot, snapshot
from .liveness import WARNING_TICKS, Judgement, Liveness
from .questions import Questions
from .recovery import Recoverer
from .situation import Level

IDLE_S = 1.0
POLL_S = 1.0


class Fencing:
    """`actor()` is None while this node may not act. `hold(view)` says whether automatic fencing is on hold now. `life`
    names this process: the lock of an earlier one outlives it by a session.
    """

    def __init__(
        self,
        store: Store,
        questions: Questions,
        liveness: Liveness,
        node: str,
        actor: Callable[[], Actor | None],
        view: Callable[[], View],
        hold: Callable[[View], bool],
        say: Callable[[Level, str], None],
        utc: Callable[[], str],
        fence_action: str,
        life: str,
    ) -> None:
        self._store, self._questions, self._liveness, self._node, self._actor = store, questions, liveness, node, actor
        self._view, self._hold, self._say, self._utc = view, hold, say, utc
        self._alarm = ""
        self._silent: set[str] = set()
        self._life = life
        self._check = BmcCheck(store, questions, node, say, utc)
        self._recoverer = Recoverer(store, node, say, utc)
        self._janitor = Janitor(store, questions, node, say, utc, fence_action)

    def visit(self, now: float) -> float:
        """One step; returns after how many seconds to visit again."""
        answers = self._questions.collect()
        self._janitor.take_in([answer for answer in answers if answer.question.purpose is not Purpose.CHECK])
        self._check.take_in([answer for answer in answers if answer.question.purpose is Purpose.CHECK])
        actor = self._actor()
        if actor is None:
            return IDLE_S
        try:
            committed = self._commit(actor, now)
            return self._clean(actor, self._store.view() if committed else self._view(), now)
        except Conflict:
            return POLL_S / 10  # somebody moved what this was decided on: look again at once
        except PVCError:
            return IDLE_S

    # -------------------------------------------------------------------------------------------------------- commit

    def _commit(self, actor: Actor, now: float) -> bool:
        """F1: whoever is fresh may commit; the transaction decides which of several does. True if we did."""
        view = self._view()
        found = self._liveness.judge(view, now, self._hold(view))
        self._warn(found, view)
        if found.target is None:
            return False
        view = self._store.view()  # the versions that the transaction checks are read afresh
        found = self._liveness.judge(view, now, self._hold(view))
        if found.target is None:
            return False
        self._store.apply(fences.committed(actor, view, found.target, found.version, found.judged, self._utc()))
        text = f"dead: silent for {found.silent_s:.1f} s; the fence is committed"
        self._say(Level.CRITICAL, f"{found.target}: {text}")
        record(self._store, found.target, Entry(self._utc(), self._node, text, f"by {self._node}"))
        return True

    def _warn(self, found: Judgement, view: View) -> None:
        if found.alarm and found.alarm != self._alarm:
            self._say(Level.CRITICAL, found.alarm)
        self._alarm = found.alarm
        for name in sorted(set(found.silent) - self._silent):
            timing = view.nodes[name].timing
            self._say(
                Level.WARNING,
                f"{name}: no keepalive for {WARNING_TICKS * timing.tick_s:g} s (it counts as dead after "
                f"{timing.fence_intervals * timing.tick_s:g} s)",
            )
        self._silent = set(found.silent)

    # ------------------------------------------------------------------------------------------------------- janitor

    def _clean(self, actor: Actor, view: View, now: float) -> float:
        """Everything after the commit, decided on one snapshot: fences first, then recovery, power on, and the checks
        of controllers.
        """
        concerned = [
            name
            for name in view.nodes
            if _phase(view, name) is FencePhase.FENCING or fences.wants_power(view.fences.get(name), "reboot")
        ]
        seen = snapshot(self._store, self._store.view()) if concerned else Snapshot(view, {}, {})
        fencing = [name for name in sorted(seen.view.nodes) if _phase(seen.view, name) is FencePhase.FENCING]
        self._janitor.watch(seen, fencing, now)
        delay_s = IDLE_S
        if self._is_janitor(actor, seen, fencing, now):
            delay_s = self._act(actor, seen, fencing, now)
        else:
            self._janitor.forget()
        self._check.visit(actor, seen.view, now)
        return delay_s

    def _act(self, actor: Actor, seen: Snapshot, fencing: list[str], now: float) -> float:
        delay_s, failed = self._janitor.visit(actor, seen, now)
        if delay_s == 0.0:
            self._recoverer.soon()
        self._recoverer.visit(actor, now)
        if seen.cards:
            self._janitor.power_on(actor, seen, now)
        others = any(
            seen.view.is_running(name) for name in seen.view.nodes if name != self._node and name not in fencing
        )
        if failed and not self._janitor.busy and others:
            self._hand_over(actor)
        return delay_s

    def _is_janitor(self, actor: Actor, seen: Snapshot, fencing: list[str], now: float) -> bool:
        """Hold the lock, or take it: from nobody, from an earlier process of ours, or from a node that may not act (a
        janitor that is itself being fenced holds its session, and would hold up its own fence). It is a convenience:
        what protects is in the fences.
        """
        turn, held = self._lock()
        if held.data == self._mine(actor):
            return True
        holder = _node_of(held.data) if held.data is not None else ""
        if holder and holder != self._node and seen.view.is_up(holder):
            return False
        if held.data is None and not self._janitor.wanted(seen, fencing, now):
            return False
        stale = (Delete(schema.FENCE_LOCK, held.version),) if held.data is not None else ()
        try:
            self._store.apply((actor.mine, turn, *stale, Create(schema.FENCE_LOCK, self._mine(actor), ephemeral=True)))
        except Conflict:
            return False
        return True

    def _lock(self) -> tuple[Write, Value]:
        """The lock, and what each move of it writes: a lock that was deleted and created has version 0 again, its
        parent's version only grows. The parent is read first: whoever moves the lock in between makes our own move
        fail.
        """
        parent = self._store.raw(schema.LOCKS)
        return Write(schema.LOCKS, b"", parent.version), self._store.raw(schema.FENCE_LOCK)

    def _hand_over(self, actor: Actor) -> None:
        """A try has failed here: the next node may reach the controller that this one cannot."""
        turn, held = self._lock()
        if held.data == self._mine(actor):
            self._store.apply((actor.mine, turn, Delete(schema.FENCE_LOCK, held.version)))

    def _mine(self, actor: Actor) -> bytes:
        return json.dumps([self._node, actor.inc, self._life]).encode()


def _phase(view: View, name: str) -> FencePhase | None:
    fence = view.fence(name)
    return fence.phase if fence else None


def _node_of(data: bytes) -> str:
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        return ""
    return value[0] if isinstance(value, list) and value and isinstance(value[0], str) else ""
