# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The table of fences: what each move checks."""
from __future__ import annotations

import pytest

from pvcd.cluster import fences, schema
from pvcd.cluster.claims import Actor
from pvcd.cluster.records import Check, Create, Delete, Fence, FenceRecord, Hold, NodeRecord, View, Write, decode_fence
from pvcd.cluster.schema import FencePhase

ME = Actor("a", "a1/0", 7)
KEYS = {"": 0, "daemonstate": 3, "domainstate": 4, "keepalive": 50}


def view(phase: FencePhase, ka: int | None = None, forced: bool = False) -> View:
    nodes = {name: NodeRecord(name, versions=KEYS) for name in "abc"}
    found = {name: FenceRecord(Fence(f"{name}1/0", FencePhase.UP), 7) for name in "abc"}
    found["b"] = FenceRecord(Fence("b1/0", phase, ka=ka, forced=forced), 9)
    return View(nodes, found, Hold(version=2))


def moved(changes: tuple[object, ...]) -> Fence:
    new = next(c for c in changes if isinstance(c, Write) and c.path == schema.fence("b"))
    assert new.version == 9
    found = decode_fence(new.data)
    assert isinstance(found, Fence)
    return found


def test_the_commit_checks_the_silence_the_hold_and_every_fence_that_was_judged() -> None:
    changes = fences.committed(ME, view(FencePhase.UP), "b", 50, ["a", "b", "c"], "now")
    checks = {c.path: c.version for c in changes if isinstance(c, Check)}
    assert checks == {schema.fence("a"): 7, schema.fence("c"): 7, schema.node_key("b", "keepalive"): 50, schema.FENCES: 2}
    assert (moved(changes).phase, moved(changes).ka, moved(changes).forced) == (FencePhase.FENCING, 50, False)
    assert Write(schema.node_key("b", "daemonstate"), b"dead", 3) in changes


def test_a_fence_by_hand_checks_the_keepalive_that_the_proof_will_check() -> None:
    changes = fences.forced(view(FencePhase.UP), "b", "op", 50, "now")
    assert Check(schema.node_key("b", "keepalive"), 50) in changes and moved(changes).forced


@pytest.mark.parametrize(("method", "actor"), [("ipmi-off", ME), ("confirm", None)])
def test_the_proof_checks_that_no_keepalive_was_written_since(method: str, actor: Actor | None) -> None:
    changes = fences.proved(view(FencePhase.FENCING, ka=50), "b", "x", method, "now", actor)
    assert Check(schema.node_key("b", "keepalive"), 50) in changes
    assert (ME.mine in changes) is (actor is not None)
    assert moved(changes).phase is FencePhase.FENCED and moved(changes).method == method
    assert Write(schema.node_key("b", "domainstate"), b"flushed", 4) in changes


def test_the_objection_carries_the_keepalive_and_forgets_the_suspicion() -> None:
    alive = Write(schema.node_key("b", "keepalive"), b"1", -1)
    changes = fences.back_up("b", view(FencePhase.FENCING, ka=50).fences["b"], (alive,))
    assert alive in changes and (moved(changes).phase, moved(changes).ka, moved(changes).inc) == (FencePhase.UP, None, "b1/0")


def test_a_new_boot_a_rejoin_a_power_on_and_a_removal() -> None:
    old = view(FencePhase.FENCED).fences["b"]
    assert moved(fences.registered("b", old, "b2/0", "now")).inc == "b2/0"
    assert moved(fences.rejoined("b", old, "b1/1", "now")) == Fence("b1/1", FencePhase.UP, "b", "rejoin", since="now")
    on = fences.powered_on(ME, "b", old)
    assert on[0] == ME.mine and moved(on).on and moved(on).phase is FencePhase.FENCED


def test_a_removal_checks_that_the_node_stands_still_and_takes_its_keys() -> None:
    old, node = view(FencePhase.UP).fences["b"], view(FencePhase.UP).nodes["b"]
    changes = fences.removed(node, ["daemonstate", "keepalive", "odd"], old, "op", "now")
    assert (moved(changes).phase, moved(changes).method) == (FencePhase.REMOVED, "remove")
    at = {key: node.version(key) for key in ("daemonstate", "keepalive")}
    assert {change.path: change.version for change in changes if isinstance(change, Check)} == {
        schema.node_key("b", key): version for key, version in at.items()}
    assert [(change.path, change.version) for change in changes if isinstance(change, Delete)] == [
        (schema.node_key("b", "daemonstate"), at["daemonstate"]), (schema.node_key("b", "keepalive"), at["keepalive"]),
        (schema.node_key("b", "odd"), -1), (schema.node("b"), -1)]
    assert moved(fences.removed(node, [], view(FencePhase.FENCED).fences["b"], "op", "now")).method == "remove-fenced"
    assert isinstance(fences.removed(node, [], FenceRecord(None, -1), "op", "now")[2], Create)
