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


@pytest.mark.parametrize(("pause_s", "restarts"), [(14, False), (15, True), (100, True)])
def test_silence_that_nobody_watched_counts_for_nothing(pause_s: int, restarts: bool) -> None:
    """Its own keepalives went out, and it has looked at nobody: a pause of the observer (TESTAUDIT: liveness 59)."""
    o = Observer()
    o.run(20)
    o.dead = {"c"}
    o.run(20)
    for _ in range(pause_s):
        o.now += 1
        o.live.acknowledged(o.now)
    o.live.observe(o.now, o.versions)
    assert o.live.silent_s("c", o.now) == (0 if restarts else 20 + pause_s)
    assert (o.live.judge(view("a", "b", "c"), o.now, False).target is None) is restarts
    if restarts:
        o.run(29)
        assert o.live.judge(view("a", "b", "c"), o.now, False).target is None
        o.run(1)
        assert o.live.judge(view("a", "b", "c"), o.now, False).target == "c"


@pytest.mark.parametrize(("word", "counts"), [(DaemonState.INIT, True), (DaemonState.RUN, True), (DaemonState.DEAD, True), (DaemonState.STOP, False)])
def test_whose_silence_counts(word: DaemonState, counts: bool) -> None:
    """A node whose word is `dead` and whose fence is `up` again is fenced too, or its VMs wait for ever."""
    o = Observer()
    o.run(20)
    o.dead = {"c"}
    o.run(40)
    seen = view("a", "b", "c")
    seen = View({**seen.nodes, "c": NodeRecord("c", word, timing=Timing(5.0, 6), versions={"": 0})}, seen.fences)
    assert (o.live.judge(seen, o.now, False).target == "c") is counts


def test_a_newer_keepalive_in_the_view_is_a_sign_of_life() -> None:
    o = Observer()
    o.run(20)
    o.dead = {"c"}
    o.run(40)
    for ahead, target in ((0, "c"), (1, None)):
        seen = view("a", "b", "c")
        shown = NodeRecord("c", DaemonState.RUN, timing=Timing(5.0, 6), versions={"": 0, "keepalive": o.versions["c"] + ahead})
        assert o.live.judge(View({**seen.nodes, "c": shown}, seen.fences), o.now, False).target == target


def test_of_two_the_longer_silent_is_first_and_a_node_that_was_never_seen_is_not_judged() -> None:
    o = Observer()
    o.versions = dict.fromkeys("bcdef", 1)
    o.run(20)
    o.dead = {"d"}
    o.run(10)
    o.dead = {"c", "d"}
    o.run(40)
    found = o.live.judge(view(*"abcdef"), o.now, False)
    assert (found.target, found.silent_s) == ("d", o.live.silent_s("d", o.now)) and found.silent == ("c", "d")
    assert o.live.silent_s("x", o.now) == 0.0 and o.live.judge(view(*"abcdefx"), o.now, False).silent == ("c", "d")


def test_who_was_acknowledged_less_than_two_ticks_ago_is_fresh() -> None:
    for age, fresh in ((9.9, True), (10.0, False)):
        live = Liveness("a", 5.0)
        live.acknowledged(100.0)
        live.observe(100.0, {"b": 1})
        assert live.is_fresh(100.0 + age) is fresh
    live.acknowledged(110.0)
    assert not live.is_fresh(110.0), "it has not looked since the gap"
    live.observe(110.0, {"b": 1})
    assert live.is_fresh(110.0)


@pytest.mark.parametrize(("gap_s", "silent_s"), [(9.0, 29.0), (10.0, 25.0), (14.0, 25.0), (15.0, 0.0)])
def test_what_a_silence_grew_by_during_an_outage_of_ones_own(gap_s: float, silent_s: float) -> None:
    live = Liveness("a", 5.0)
    live.acknowledged(120.0)
    live.observe(100.0, {"b": 1})
    live.acknowledged(120.0 + gap_s)
    assert live.silent_s("b", 120.0 + gap_s) == silent_s
