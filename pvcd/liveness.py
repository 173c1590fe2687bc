# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Judges who is silent, whether this node is fresh enough to judge, and whether the brake holds. Pure; fed by the timer thread,
asked by the fence thread (a lock of the caller's keeps them apart).

Only a change of the keepalive's version counts, timed on this node's boot-time clock: no two clocks are ever compared. A node
that is in trouble itself judges nobody, and its timers start again.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .cluster.records import View
from .cluster.schema import DaemonState, FencePhase

FRESH_TICKS = 2.0
OUTAGE_TICKS = 3.0
WARNING_TICKS = 3.0
_COUNTED = (DaemonState.INIT, DaemonState.RUN, DaemonState.DEAD)


@dataclass(frozen=True)
class Judgement:
    """`target` may be fenced now, at keepalive version `version`, if every fence of `judged` stands; `alarm`: the brake holds."""

    target: str | None = None
    version: int = 0
    silent_s: float = 0.0
    judged: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()
    alarm: str = ""


class Liveness:
    """What node `me` has seen of the others' keepalives. Times are seconds of its boot-time clock."""

    def __init__(self, me: str, tick_s: float) -> None:
        self._me, self._tick_s = me, tick_s
        self._seen: dict[str, tuple[int, float]] = {}
        """node → keepalive version, and when it was first seen"""
        self._acknowledged: float | None = None
        self._observed: float | None = None
        self._must_look = True

    def acknowledged(self, now: float) -> None:
        """A keepalive of our own was acknowledged. What the others' silence grew by during an outage of ours does not count."""
        if self._acknowledged is not None:
            gap = now - self._acknowledged
            if gap >= OUTAGE_TICKS * self._tick_s:
                self._restart(now)
            elif gap >= FRESH_TICKS * self._tick_s:
                self._seen = {name: (version, min(now, since + gap - self._tick_s)) for name, (version, since) in self._seen.items()}
                self._must_look = True
        self._acknowledged = now

    def observe(self, now: float, keepalives: Mapping[str, int]) -> None:
        """The versions of the others' keepalives, just read."""
        if self._observed is not None and now - self._observed >= OUTAGE_TICKS * self._tick_s:
            self._restart(now)
        self._observed, self._must_look = now, False
        known = self._seen
        self._seen = {name: known[name] if name in known and known[name][0] == version else (version, now)
                      for name, version in keepalives.items() if name != self._me}

    def _restart(self, now: float) -> None:
        self._seen = {name: (version, now) for name, (version, _) in self._seen.items()}
        self._must_look = True

    def silent_s(self, name: str, now: float) -> float:
        """How long the present keepalive of `name` has stood; 0 for a node that was never seen."""
        found = self._seen.get(name)
        return now - found[1] if found else 0.0

    def is_fresh(self, now: float) -> bool:
        """Our own keepalives are acknowledged, and the others were read since our last trouble: we may judge."""
        return self._acknowledged is not None and now - self._acknowledged < FRESH_TICKS * self._tick_s and not self._must_look

    def judge(self, view: View, now: float, hold: bool) -> Judgement:
        """Who may be fenced now. Nodes without a known fence, or that have stopped, are never suspected."""
        counted = sorted(name for name, node in view.nodes.items() if node.daemonstate in _COUNTED and self._phase(view, name) in (
            FencePhase.UP, FencePhase.FENCING))
        silent = tuple(name for name in counted if self._is_silent(view, name, now, WARNING_TICKS))
        if not self.is_fresh(now):
            return Judgement(judged=tuple(counted))
        base = Judgement(judged=tuple(counted), silent=silent)
        if hold:
            return base
        overdue = [name for name in counted if name != self._me and self._phase(view, name) is FencePhase.UP and name in self._seen
                   and self._is_silent(view, name, now, view.nodes[name].timing.fence_intervals)]
        if not overdue:
            return base
        troubled = {name for name in counted if self._phase(view, name) is FencePhase.FENCING} | set(silent)
        allowed = max(1, (len(counted) - 1) // 2)
        if len(troubled) > allowed:
            return Judgement(judged=base.judged, silent=silent, alarm=(
                f"{', '.join(sorted(troubled))} of {len(counted)} nodes are silent or being fenced; {allowed} at once may be: "
                "nobody is fenced automatically"))
        target = max(overdue, key=lambda name: self.silent_s(name, now))
        return Judgement(target, self._seen[target][0], self.silent_s(target, now), base.judged, silent)

    def _is_silent(self, view: View, name: str, now: float, ticks: float) -> bool:
        """Silent for so many of the node's *own* ticks. A view that shows a newer keepalive than was observed is a sign of life."""
        seen = self._seen.get(name)
        if seen is not None and view.nodes[name].version("keepalive") > seen[0]:
            return False
        return name != self._me and self.silent_s(name, now) >= ticks * view.nodes[name].timing.tick_s

    @staticmethod
    def _phase(view: View, name: str) -> FencePhase | None:
        fence = view.fence(name)
        return fence.phase if fence else None
