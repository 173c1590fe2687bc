# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Who is silent, who may judge, and the brake."""
from __future__ import annotations

import pytest

from pvcd.cluster.records import Fence, FenceRecord, NodeRecord, Timing, View
from pvcd.cluster.schema import DaemonState, FencePhase
from pvcd.liveness import Liveness


def view(*names: str, stopped: tuple[str, ...] = (), phases: dict[str, FencePhase] | None = None, tick_s: float = 5.0) -> View:
    nodes = {name: NodeRecord(name, DaemonState.STOP if name in stopped else DaemonState.RUN, timing=Timing(tick_s, 6), versions={"": 0})
             for name in names}
    fences = {name: FenceRecord(Fence(f"{name}/0", (phases or {}).get(name, FencePhase.UP)), 1) for name in names}
    return View(nodes, fences)


class Observer:
    """Node a, whose own keepalives are acknowledged every tick while `linked`, and which looks every second."""

    def __init__(self) -> None:
        self.live, self.now = Liveness("a", 5.0), 0.0
        self.versions = {"b": 1, "c": 1}
        self.linked = True
        self.dead: set[str] = set()

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += 1
            if self.now % 5 == 0:
                self.versions = {name: version + (name not in self.dead) for name, version in self.versions.items()}
                if self.linked:
                    self.live.acknowledged(self.now)
            if self.linked:
                self.live.observe(self.now, self.versions)


def test_thirty_seconds_of_silence_and_not_one_less() -> None:
    o = Observer()
    o.run(20)
    o.dead = {"c"}
    o.run(29)
    assert o.live.judge(view("a", "b", "c"), o.now, False).target is None
    o.run(1)
    found = o.live.judge(view("a", "b", "c"), o.now, False)
    assert (found.target, found.version, found.judged) == ("c", o.versions["c"], ("a", "b", "c"))


def test_a_hold_a_stop_and_an_unknown_fence_protect() -> None:
    o = Observer()
    o.run(20)
    o.dead = {"c"}
    o.run(60)
    assert o.live.judge(view("a", "b", "c"), o.now, True).target is None
    assert o.live.judge(view("a", "b", "c", stopped=("c",)), o.now, False).target is None
    unknown = view("a", "b", "c")
    fences = {name: fence for name, fence in unknown.fences.items() if name != "c"}
    assert o.live.judge(View(unknown.nodes, fences), o.now, False).target is None


def test_the_nodes_own_timing_counts() -> None:
    o = Observer()
    o.run(20)
    o.dead = {"c"}
    o.run(40)
    assert o.live.judge(view("a", "b", "c", tick_s=10.0), o.now, False).target is None


@pytest.mark.parametrize("outage_s", [12, 16, 70, 600])
def test_an_outage_of_ones_own_counts_against_nobody(outage_s: int) -> None:
    """Not during it, not right after it, and a node that comes back in time is never suspected."""
    o = Observer()
    o.run(20)
    o.linked = False
    o.dead = {"b", "c"}
    o.run(outage_s)
    assert o.live.judge(view("a", "b", "c"), o.now, False).target is None
    o.linked = True
    o.run(10)
    assert o.live.judge(view("a", "b", "c"), o.now, False).target is None
    assert o.live.silent_s("b", o.now) <= 10 + 6


def test_a_stale_judge_judges_nobody() -> None:
    live = Liveness("a", 5.0)
    for second in range(100):
        live.observe(float(second), {"b": 1})
    assert not live.is_fresh(99.0) and live.judge(view("a", "b"), 99.0, False).target is None


@pytest.mark.parametrize(("count", "silent", "allowed"), [
    (2, 1, True), (3, 1, True), (3, 2, False), (4, 1, True), (4, 2, False), (5, 2, True), (5, 3, False), (7, 3, True), (7, 4, False)])
def test_the_brake(count: int, silent: int, allowed: bool) -> None:
    names = [chr(ord("a") + number) for number in range(count)]
    o = Observer()
    o.versions = dict.fromkeys(names[1:], 1)
    o.run(20)
    o.dead = set(names[1:1 + silent])
    o.run(40)
    found = o.live.judge(view(*names), o.now, False)
    assert (found.target is not None) is allowed and bool(found.alarm) is not allowed


def test_a_node_that_is_fenced_makes_room_for_the_next_and_one_being_fenced_does_not() -> None:
    o = Observer()
    o.run(20)
    o.dead = {"b", "c"}
    o.run(40)
    assert o.live.judge(view("a", "b", "c", phases={"b": FencePhase.FENCED}), o.now, False).target == "c"
    assert o.live.judge(view("a", "b", "c", phases={"b": FencePhase.FENCING}), o.now, False).target is None


def test_three_silent_ticks_are_told_by_who_may_judge() -> None:
    o = Observer()
    o.run(20)
    o.dead = {"c"}
    o.run(14)
    assert o.live.judge(view("a", "b", "c"), o.now, False).silent == ()
    o.run(1)
    assert o.live.judge(view("a", "b", "c"), o.now, False).silent == ("c",)
    assert o.live.judge(view("a", "b", "c"), o.now, True).silent == ("c",), "a hold hides nothing"
    assert o.live.judge(view("a", "b", "c"), o.now + 10, False).silent == (), "in trouble itself"
