# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The order and its gate, the plan of a fence carried out, two janitors on one ZooKeeper, and the worker threads."""
from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from sim.fakezk import FakeServer, FakeZooKeeper

from pvcd import questions
from pvcd.bmc import Bmc, Kind, Power, Purpose, Question, Reading
from pvcd.cluster import schema
from pvcd.cluster.claims import Actor
from pvcd.cluster.records import Change, Check, Create, Delete, Fence, Write, decode_fence
from pvcd.cluster.schema import FencePhase
from pvcd.cluster.store import Store
from pvcd.fencing import Fencing
from pvcd.liveness import Judgement
from pvcd.questions import Questions
from pvcd.registration import LATE_POWER_OFF_S
from pvcd.situation import Level

# ---------------------------------------------------------------------------------------------- the order and its gate


def test_a_node_that_boots_waits_longer_than_an_order_can_be_under_way() -> None:
    assert questions.GATE_S + questions.OFF_CALL_S + questions.ACTS_S < LATE_POWER_OFF_S


class Controllers:
    """One that does as it is told, and keeps what it was told. `wait` is called in each of its answers."""

    def __init__(self, wait: Callable[[str], None] = lambda _host: None) -> None:
        self.told: list[str] = []
        self.power = Power.ON
        self.known = True
        self._wait = wait

    def addresses(self, bmc: Bmc) -> tuple[str, ...]:
        return (bmc.host,)

    def status(self, bmc: Bmc) -> Reading:
        self._wait(bmc.host)
        return Reading(self.power)

    def guid(self, _bmc: Bmc) -> str | None:
        return None

    def off(self, bmc: Bmc, deadline_s: float) -> str:
        assert deadline_s == questions.OFF_CALL_S
        self.told.append(f"off {bmc.host}")
        self.power = Power.OFF
        return "ok"

    def on(self, bmc: Bmc) -> str:
        self.told.append(f"on {bmc.host}")
        self.power = Power.ON
        return "ok"

    def cipher(self, _bmc: Bmc) -> int | None:
        return 17 if self.known else None

    def local_guid(self) -> str | None:
        return None

    def product_uuid(self) -> str:
        return ""


class World:
    """ZooKeeper with nodes a, b, c; b is in `fencing` at keepalive 0. `now` is everybody's clock."""

    def __init__(self) -> None:
        self.server, self.now = FakeServer(), 1000.0
        self.said: list[str] = []
        self.store = Store(FakeZooKeeper(self.server, "setup"))
        self.store.ensure_roots()
        for name in "abc":
            self.server.put(schema.node(name), "hypervisor")
            values = {
                "daemonstate": "run",
                "domainstate": "ready",
                "keepalive": "1",
                "ipmihostname": f"{name}-lom",
                "ipmiusername": "u",
                "ipmipassword": "p",
            }
            for key, value in values.items():
                self.server.put(schema.node_key(name, key), value)
            for _ in range(3):  # versions that a stale one can be told from
                self.server.put(schema.fence(name), Fence(f"{name}1/0", FencePhase.UP).encode())
        self.suspect()

    def suspect(self, since: str = "t0") -> None:
        version = self.server.nodes[schema.node_key("b", "keepalive")].version
        self.server.put(schema.fence("b"), Fence("b1/0", FencePhase.FENCING, "a", ka=version, since=since).encode())

    def fence(self) -> Fence:
        found = decode_fence(self.server.nodes[schema.fence("b")].data)
        assert isinstance(found, Fence)
        return found

    def node(self, name: str, controllers: Controllers, fence_action: str = "reboot", life: str = "1") -> Node:
        return Node(self, name, controllers, fence_action, life)


class Quiet:
    """A liveness that suspects nobody."""

    def judge(self, *_arguments: object) -> Judgement:
        return Judgement()


class Node:
    """One node's fence thread and its workers, turned by hand."""

    def __init__(self, world: World, name: str, controllers: Controllers, fence_action: str, life: str) -> None:
        self.world, self.zk = world, FakeZooKeeper(world.server, name)
        store = Store(self.zk)
        self.version = world.server.nodes[schema.fence(name)].version
        self.questions = Questions(controllers, store, lambda: world.now, lambda: None, lambda _name: None, workers=0)

        def say(_level: Level, text: str) -> None:
            world.said.append(f"{name}: {text}")

        self.fencing = Fencing(
            store,
            self.questions,
            Quiet(),
            name,
            lambda: Actor(name, f"{name}1/0", self.version),  # type: ignore[arg-type]
            store.view,
            lambda _view: False,
            say,
            lambda: f"t{world.now:.0f}",
            fence_action,
            life,
        )

    def turn(self, seconds: float = 1.0) -> None:
        self.world.now += seconds
        self.fencing.visit(self.world.now)
        while (question := self.questions.take()) is not None:
            self.questions.finish(self.questions.answer(question))
            self.fencing.visit(self.world.now)


def turns(node: Node, count: int) -> None:
    for _ in range(count):
        node.turn()


def test_a_fence_switches_off_proves_and_switches_on() -> None:
    world, bmc = World(), Controllers()
    turns(world.node("a", bmc), 12)
    assert bmc.told == ["off b-lom", "on b-lom"] and world.fence().phase is FencePhase.FENCED and world.fence().on


def test_fence_action_off_leaves_it_off_until_an_operator_asks() -> None:
    from pvcd.cluster import fences

    world, bmc = World(), Controllers()
    node = world.node("a", bmc, "off")
    turns(node, 12)
    assert bmc.told == ["off b-lom"] and world.fence().phase is FencePhase.FENCED and not world.fence().on
    world.store.apply(fences.power_asked("b", world.store.fence("b")))
    turns(node, 4)
    assert bmc.told == ["off b-lom", "on b-lom"] and world.fence().on and not world.fence().asked


@pytest.mark.parametrize("change", ["fence", "keepalive", "mine", "late", "unreachable", "cipher"])
def test_the_gate_is_the_last_thing_before_off(change: str) -> None:
    world, bmc = World(), Controllers()
    node = world.node("a", bmc)

    def meanwhile(changes: Any) -> None:
        if not all(isinstance(one, Check) for one in changes):
            return
        if change == "fence":
            world.server.put(schema.fence("b"), Fence("b1/0", FencePhase.UP).encode())
        elif change == "keepalive":
            world.server.put(schema.node_key("b", "keepalive"), "2")
        elif change == "mine":
            world.server.put(schema.fence("a"), Fence("a1/0", FencePhase.FENCING).encode())
        elif change == "late":
            world.now += questions.GATE_S + 1
        elif change == "unreachable":
            node.zk.lose = "before"

    node.zk.before_commit = meanwhile
    bmc.known = change != "cipher"
    turns(node, 10)
    assert bmc.told == [] and world.fence().phase is not FencePhase.FENCED


def test_an_earlier_fence_of_the_same_node_is_forgotten() -> None:
    world, bmc = World(), Controllers()
    node = world.node("a", bmc)
    node.turn()
    assert bmc.told == ["off b-lom"] and world.fence().phase is FencePhase.FENCING
    world.server.put(
        schema.node_key("b", "keepalive"), "2"
    )  # it objects, and is silent again before anybody has looked
    world.suspect("t1")
    bmc.power = Power.ON
    turns(node, 3)
    assert bmc.told[:2] == ["off b-lom", "off b-lom"]


def test_what_a_controller_says_of_a_machine_that_sends_keepalives_is_no_proof() -> None:
    world, bmc = World(), Controllers()
    node = world.node("a", bmc)
    node.turn()
    assert bmc.told == ["off b-lom"]
    world.server.put(schema.node_key("b", "keepalive"), "2")
    turns(node, 5)
    assert world.fence().phase is FencePhase.FENCING and any(
        "it sends keepalives: the BMC is wrong" in line for line in world.said
    )


def test_a_failed_try_is_kept_and_the_next_node_takes_over() -> None:
    world, dead, bmc = World(), Controllers(), Controllers()
    dead.power = Power.UNKNOWN
    a, c = world.node("a", dead), world.node("c", bmc)
    a.turn()
    assert json.loads(world.server.text(schema.FENCE_LOCK) or "[0]")[0] == 0, "the lock is given up"
    shown = json.loads(world.server.text(schema.node_key("b", "fencetries")) or "{}")
    assert [one["by"] for one in shown["last"]] == ["a"] and "does not answer" in shown["last"][0]["why"]
    for _ in range(8):
        a.turn(0.5)
        c.turn(0.5)
    assert bmc.told[0] == "off b-lom" and world.fence().phase is FencePhase.FENCED and world.fence().by == "c"


def test_the_lock_is_not_taken_by_a_node_that_may_not_act() -> None:
    world = World()
    node = world.node("a", Controllers())
    node.version -= 1  # its fence has moved, and it does not know yet
    node.turn()
    assert schema.FENCE_LOCK not in world.server.nodes


def test_a_stale_lock_is_deleted_and_a_fresh_one_is_not() -> None:
    """Two nodes find the lock of a dead janitor: the second does not delete the fresh lock of the first, which has
    version 0 as the stale one had.
    """
    world = World()
    world.server.put(schema.FENCE_LOCK, json.dumps(["b", "b1/0", "x"]))
    a, c = world.node("a", Controllers()), world.node("c", Controllers())

    def first(changes: Any) -> None:
        c.zk.before_commit = lambda _changes: None
        a.turn(0.0)
        assert world.server.nodes[schema.FENCE_LOCK].version == 0

    c.zk.before_commit = first
    c.turn(0.0)
    assert json.loads(world.server.text(schema.FENCE_LOCK) or "[]")[0] == "a"


# -------------------------------------------------------------------------------------------------- whole transactions


def told(world: World) -> list[tuple[Change, ...]]:
    found: list[tuple[Change, ...]] = []
    world.server.on_commit = lambda _client, changes: found.append(tuple(changes))
    return found


def test_the_whole_of_a_lock_and_of_a_hand_over() -> None:
    world, dead = World(), Controllers()
    dead.power = Power.UNKNOWN
    for _ in range(4):
        world.server.put(schema.FENCE_LOCK, json.dumps(["b", "b1/0", "x"]))
    world.store.apply((Write(schema.LOCKS, b"", 0),))
    mine = Check(schema.fence("a"), 2)
    lock = Create(schema.FENCE_LOCK, json.dumps(["a", "a1/0", "1"]).encode(), ephemeral=True)
    found = told(world)
    world.node("a", dead).turn()
    assert found[0] == (mine, Write(schema.LOCKS, b"", 1), Delete(schema.FENCE_LOCK, 3), lock)
    given_up = [changes for changes in found if any(isinstance(one, Delete) for one in changes)][1:]
    assert given_up == [(mine, Write(schema.LOCKS, b"", 2), Delete(schema.FENCE_LOCK, 0))]


def test_a_lock_of_an_earlier_process_is_given_up_at_its_version() -> None:
    world, dead = World(), Controllers()
    dead.power = Power.UNKNOWN
    for _ in range(3):
        world.server.put(schema.FENCE_LOCK, json.dumps(["a", "a1/0", "1"]))
    found = told(world)
    world.node("a", dead).turn()
    assert (Check(schema.fence("a"), 2), Write(schema.LOCKS, b"", 0), Delete(schema.FENCE_LOCK, 2)) in found


def test_the_whole_of_the_gates_before_off_and_on() -> None:
    world, bmc = World(), Controllers()
    found = told(world)
    mine, version = Check(schema.fence("a"), 2), world.server.nodes[schema.fence("b")].version
    silent = Check(schema.node_key("b", "keepalive"), 0)
    turns(world.node("a", bmc), 12)
    gates = [changes for changes in found if all(isinstance(one, Check) for one in changes)]
    assert bmc.told == ["off b-lom", "on b-lom"]
    assert gates == [(mine, Check(schema.fence("b"), version), silent), (mine, Check(schema.fence("b"), version + 1))]


def test_the_whole_of_what_a_check_of_a_controller_writes() -> None:
    world, bmc = World(), Controllers()
    world.server.put(schema.fence("b"), Fence("b1/0", FencePhase.UP).encode())
    found, node, mine = told(world), world.node("a", bmc), Check(schema.fence("a"), 2)
    for _ in range(40):
        node.turn(60.0)
    for key in ("ipmistate", "ipmiinside"):
        written = [changes for changes in found if any(one.path.endswith(key) for one in changes)]
        by_path: dict[str, list[Change]] = {}
        for changes in written:
            assert len(changes) == 2 and changes[0] == mine, changes
            by_path.setdefault(changes[1].path, []).append(changes[1])
        assert by_path and any(len(one) > 1 for one in by_path.values())
        for writes in by_path.values():
            expected = [-1 if key == "ipmiinside" else number for number in range(len(writes) - 1)]
            assert isinstance(writes[0], Create) and [one.version for one in writes[1:] if isinstance(one, Write)] == expected


# ------------------------------------------------------------------------------------------------------------- threads


def test_a_slow_controller_holds_up_no_other_and_not_the_fence_thread() -> None:
    world, slow, started = World(), threading.Event(), threading.Event()

    def wait(host: str) -> None:
        if host == "slow":
            started.set()
            assert slow.wait(20)

    woken, beats = threading.Event(), set[str]()
    asked = Questions(Controllers(wait), world.store, lambda: world.now, woken.set, beats.add)
    asked.start()
    try:
        asked.ask(Question(Purpose.FENCE, "a", Kind.STATUS, Bmc("slow", "u", "p")))
        assert started.wait(10)
        asked.ask(Question(Purpose.FENCE, "a", Kind.STATUS, Bmc("slow", "u", "p"), about="second"))
        asked.ask(Question(Purpose.FENCE, "b", Kind.STATUS, Bmc("quick", "u", "p")))
        assert woken.wait(10)
        assert [found.node for found in asked.collect()] == ["b"], "b waits for the controller of a"
        woken.clear()
        slow.set()
        assert woken.wait(10)
    finally:
        slow.set()
        asked.stop()
    for thread in asked.threads:
        thread.join(10)
        assert not thread.is_alive()
    assert len(asked.threads) == questions.WORKERS and beats <= {thread.name for thread in asked.threads}


def test_checks_leave_workers_to_fences() -> None:
    asked = Questions(Controllers(), World().store, lambda: 0.0, lambda: None, lambda _name: None, workers=0)
    check, other, fence = (
        Question(purpose, name, Kind.STATUS, Bmc("h", "u", "p"))
        for purpose, name in ((Purpose.CHECK, "a"), (Purpose.CHECK, "c"), (Purpose.FENCE, "a"))
    )
    for question in (check, other, fence):
        asked.ask(question)
    assert [asked.take(), asked.take(), asked.take()] == [fence, check, None]
