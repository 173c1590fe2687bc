# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The parts that react: a change in ZooKeeper nudges what it concerns, without the minute's look at everything; a node's flush and its last
word; the keepalive thread, which nothing ends.
"""
from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from sim.cluster import XML
from sim.fakehypervisor import Fabric, FakeHypervisor
from sim.fakezk import FakeServer, FakeZooKeeper
from test_daemon_parts import Beat

from pvcd.cluster import schema
from pvcd.cluster.claims import Actor
from pvcd.cluster.errors import Unreachable
from pvcd.cluster.records import Change, Check, Claim, Fence, Write
from pvcd.cluster.schema import DaemonState, FencePhase
from pvcd.cluster.store import Store
from pvcd.departure import Phase
from pvcd.environment import Environment
from pvcd.instances import DOMAINS, NODES, VIEW, Instances
from pvcd.local import Guest, Status
from pvcd.NodeInstance import LOOK_AGAIN_S, REFUSED_PAUSE_S, NodeInstance
from pvcd.situation import Level
from pvcd.view import ViewCache

UUID, OTHER = "11111111-2222-4333-8444-555555555555", "21111111-2222-4333-8444-555555555555"
HELD = Claim("a", "a1/0")


class Cluster:
    """Nodes a (this one) and b, and a VM that runs on a; `nudged` since the last look at it."""

    def __init__(self) -> None:
        self.server, self.now = FakeServer(), 1000.0
        self.zk = FakeZooKeeper(self.server, "a")
        self.store = Store(self.zk)
        self.store.ensure_roots()
        for name in "ab":
            self.server.put(schema.node(name), "hypervisor")
            for key, value in {"daemonstate": "run", "domainstate": "ready", "memfree": "4096", "protocol": "2", "libvirtstate": ""}.items():
                self.server.put(schema.node_key(name, key), value)
            for _ in range(3):
                self.server.put(schema.fence(name), Fence(f"{name}1/0", FencePhase.UP).encode())
        self.vm(UUID)
        self.said: list[tuple[Level, str]] = []
        self._nudged: list[tuple[str, str]] = []
        self.forgotten: list[tuple[str, str]] = []
        self.committed: list[tuple[Change, ...]] = []
        self.server.on_commit = lambda _client, changes: self.committed.append(tuple(changes))
        self.cache = ViewCache(self.store, lambda names: self.instances.view_changed(names))
        self.env = Environment("a", self.store, FakeHypervisor(Fabric(lambda: self.now), "a"), lambda: Actor("a", "a1/0", 2), self.cache.current,
                               lambda: self.now, lambda: "now", lambda level, text: self.said.append((level, text)), self._nudge,
                               lambda _key, _slow: None, lambda: "op1")
        self.instances = Instances(self.env, self.zk, self.cache, self.forgotten.append)

    def _nudge(self, key: tuple[str, str], delay_s: float = 0.0) -> None:
        assert delay_s == 0.0
        self._nudged.append(key)

    def vm(self, uuid: str, name: str = "web1", home: str = "a", claim: Claim | None = HELD, last: str = "") -> None:
        self.server.put(schema.claim(uuid), claim.encode() if claim else b"")
        self.server.put(schema.domain(uuid), name)
        for key, value in {"state": "start", "hypervisor": home, "lasthypervisor": last,
                           "xml": XML.format(name=name, uuid=uuid, memory_mib=512)}.items():
            self.server.put(schema.domain_key(uuid, key), value)

    @property
    def nudged(self) -> set[tuple[str, str]]:
        """What is visited now: watches have rung, and nothing else has happened."""
        self.server.deliver()
        found, self._nudged = set(self._nudged), []
        return found

    def started(self) -> Cluster:
        self.instances.start()
        for key in (NODES, VIEW, DOMAINS):
            self.instances.visit(key)
        assert self.nudged
        return self

    def put(self, path: str, data: str | bytes = b"x") -> set[tuple[str, str]]:
        self.server.put(path, data)
        return self.nudged


VM = ("domain", UUID)


def test_a_start_watches_both_lists_and_looks_at_everything() -> None:
    c = Cluster()
    c.instances.start()
    assert c.nudged == {NODES, VIEW, DOMAINS}
    assert DOMAINS in c.put(schema.domain(OTHER)) and NODES in c.put(schema.node("c"))


def test_a_change_of_what_it_is_decided_on_is_visited_at_once() -> None:
    c = Cluster().started()
    for path in (schema.domain_key(UUID, "state"), schema.domain_key(UUID, "hypervisor"), schema.claim(UUID)):
        assert c.put(path) == {VM}, path
    for path in (*(schema.node_key("b", key) for key in ("daemonstate", "domainstate", "protocol")), schema.fence("b")):
        assert c.put(path) == {VIEW}, path


def test_a_new_vm_and_a_new_node_are_visited_at_once_and_watched() -> None:
    c = Cluster().started()
    c.vm(OTHER)
    assert c.nudged == {DOMAINS}
    c.instances.visit(DOMAINS)
    assert c.nudged == {("domain", OTHER)} and c.put(schema.claim(OTHER)) == {("domain", OTHER)}
    assert c.put(schema.node("c")) == {NODES}
    c.instances.visit(NODES)
    assert c.nudged == {VIEW} and c.put(schema.fence("c")) == {VIEW}


def test_a_node_in_another_condition_is_visited_and_so_is_every_vm() -> None:
    c = Cluster().started()
    c.server.put(schema.node_key("b", "daemonstate"), "stop")
    c.instances.visit(VIEW)
    assert c.nudged == {VIEW, ("node", "b"), VM}
    c.server.put(schema.node_key("b", "memfree"), "1")
    c.instances.visit(VIEW)
    assert c.nudged == set(), "what changes at every tick is no change"


def test_the_minutes_look_visits_everything() -> None:
    c = Cluster().started()
    c.instances.resync()
    assert c.nudged == {NODES, VIEW, DOMAINS, VM}


def test_what_libvirt_shows_otherwise_is_visited() -> None:
    c = Cluster().started()
    c.instances.visit(VM)  # it has been looked at: held here, and not there
    _ = c.nudged
    assert c.instances.domains[UUID].held_here
    c.instances.inventory_seen([])
    assert c.nudged == {VM}, "held here and not there"
    c.instances.inventory_seen([Guest(UUID, "web1", Status.RUNNING)])
    known = c.instances.domains[UUID].local.status
    assert (c.nudged == {VM}) is (known is not Status.RUNNING)
    c.instances.inventory_seen([Guest(UUID, "web1", Status.CRASHED)])
    assert c.nudged == {VM}
    c.instances.inventory_seen([Guest(UUID, "web1", known), Guest(OTHER, "new", Status.RUNNING)])
    assert DOMAINS in c.nudged, "one that has no instance may be ours"


def test_a_vm_that_is_gone_is_not_watched_any_more() -> None:
    c = Cluster()
    c.server.put(schema.claim(UUID), b"")
    c.started()
    c.server.delete_tree(schema.domain(UUID))
    c.instances.visit(VM)
    c.instances.visit(DOMAINS)
    assert c.forgotten == [VM] and c.instances.domains == {}
    assert c.nudged and c.put(schema.claim(UUID)) == set()


def test_away_the_lists_are_looked_at_again_soon_and_nothing_is_taken_for_gone() -> None:
    c = Cluster().started()
    c.zk.cut()
    for key in (VIEW, NODES, DOMAINS):
        assert c.instances.visit(key) == 1.0
    c.zk.heal()
    c.server.nodes.pop(schema.DOMAINS)
    assert c.instances.visit(DOMAINS) is None and set(c.instances.domains) == {UUID}


# ------------------------------------------------------------------------------------------------------ flush and unflush

class Flushing(Cluster):
    """Node a with `word`, and nothing that watches."""

    def __init__(self, word: str, claim: Claim | None = HELD, home: str = "a", last: str = "") -> None:
        super().__init__()
        self.path = schema.node_key("a", "domainstate")
        self.server.put(self.path, word)
        self.vm(UUID, home=home, claim=claim, last=last)
        self.instance = NodeInstance("a", self.env)

    def look(self, after_s: float = 0.0) -> float | None:
        self.now += after_s
        self.cache.refresh()
        self.committed.clear()
        return self.instance.reconcile()


@pytest.mark.parametrize(("word", "final"), [("flush", "flushed"), ("unflush", "ready")])
def test_the_last_word_is_one_transaction_at_the_version_read(word: str, final: str) -> None:
    c = Flushing(word, Claim("b", "b1/0"), "b")
    assert c.look() is None
    assert c.committed[0] == (Check(schema.fence("a"), 2), Write(c.path, final.encode(), 1))
    assert (Level.INFO, f"a: {final}") in c.said


@pytest.mark.parametrize("meanwhile", ["an operator's word", "a fence"])
def test_the_last_word_does_not_overwrite_another(meanwhile: str) -> None:
    c = Flushing("flush", Claim("b", "b1/0"), "b")

    def comes_first(_changes: object) -> None:
        c.zk.before_commit = lambda _changes: None
        path, value = (c.path, b"ready") if meanwhile == "an operator's word" else (schema.fence("a"), Fence("a1/0", FencePhase.FENCING).encode())
        c.server.put(path, value)

    c.zk.before_commit = comes_first
    assert c.look() == LOOK_AGAIN_S
    assert c.server.text(c.path) == ("ready" if meanwhile == "an operator's word" else "flush") and not c.said


def test_an_order_is_given_once_and_its_vm_is_visited_at_once() -> None:
    c = Flushing("flush")
    assert c.look() == LOOK_AGAIN_S and c.instance.moving
    assert c.server.text(schema.domain_key(UUID, "state")) == "migrate" and c.server.text(schema.domain_key(UUID, "hypervisor")) == "b"
    assert VM in c.nudged
    for key, value in {"state": "start", "hypervisor": "a", "lasthypervisor": ""}.items():  # refused at the destination
        c.server.put(schema.domain_key(UUID, key), value)
    assert c.look(REFUSED_PAUSE_S - 1) == LOOK_AGAIN_S and c.committed == [] and not c.instance.moving
    assert c.look(1.0) == LOOK_AGAIN_S and c.committed, "tried again"


def test_an_order_that_lost_a_race_is_nobodys() -> None:
    c = Flushing("flush")
    c.zk.before_commit = lambda _changes: c.server.put(schema.domain_key(UUID, "state"), "stop")
    assert c.look() == LOOK_AGAIN_S
    assert c.server.text(schema.domain_key(UUID, "state")) == "stop" and VM not in c.nudged and not c.said


def test_a_definition_that_cannot_be_read_is_sent_away_too() -> None:
    c = Flushing("flush")
    c.server.put(schema.domain_key(UUID, "xml"), "<")
    c.look()
    assert c.server.text(schema.domain_key(UUID, "hypervisor")) == "b"


def test_an_unflush_calls_each_home_once_for_each_word() -> None:
    c = Flushing("unflush", Claim("b", "b1/0"), "b", "a")
    assert c.look() == LOOK_AGAIN_S and c.server.text(schema.domain_key(UUID, "hypervisor")) == "a"
    for key, value in {"state": "start", "hypervisor": "b"}.items():
        c.server.put(schema.domain_key(UUID, key), value)
    assert c.look() is None and c.server.text(c.path) == "ready", "refused once: it stays"
    c.server.put(c.path, "unflush")
    c.look()
    assert c.server.text(schema.domain_key(UUID, "hypervisor")) == "a", "another word, another call"


def test_who_may_not_act_flushes_nothing() -> None:
    c = Flushing("flush")
    c.env.actor = lambda: None
    assert c.look() is None and c.committed == []
    c.env.actor = lambda: Actor("a", "a1/0", 2)
    c.env.phase = Phase.CLOSE
    assert c.look() is None and c.committed == []
    c.instance = NodeInstance("b", c.env)
    assert c.look() is None and c.committed == []


# ----------------------------------------------------------------------------------------------------- the keepalive's loop

class Loop(Beat):
    """The loop with rounds that end as they are told; `rests` are the moments until which it rests."""

    def __init__(self, *rounds: Exception | None) -> None:
        super().__init__()
        self.rests: list[float] = []
        self.fed = 0
        left = list(rounds)

        def one() -> None:
            found = left.pop(0)
            self.keepalive._stopping = not left
            if found is not None:
                raise found

        def fed() -> None:
            self.fed += 1

        self.keepalive.round, self.keepalive._rest, self.keepalive._on_round = one, self.rests.append, fed  # type: ignore[method-assign]


def test_whatever_goes_wrong_in_a_round_the_next_one_comes() -> None:
    loop = Loop(None, ValueError("a bug"), Unreachable("away"), Unreachable("away"), KeyError("another"), None)
    loop.keepalive._run()
    assert loop.rests == [6.0, 6.0, 2.0, 2.0, 6.0, 6.0], "a second after an error of ZooKeeper, else a tick"
    assert loop.fed == 6, "the watchdog hears of every round"
    assert [level for level, _ in loop.said] == [Level.CRITICAL, Level.WARNING, Level.CRITICAL]
    assert "a bug" in loop.said[0][1] and "away" in loop.said[1][1] and "another" in loop.said[2][1]


def test_a_short_tick_is_not_made_longer() -> None:
    loop = Loop(Unreachable("away"))
    loop.keepalive._tick_s = 0.5
    loop.keepalive._run()
    assert loop.rests == [1.5]


def test_a_long_rest_feeds_the_watchdog_and_ends_when_woken() -> None:
    b = Beat()
    now, waits, fed = [100.0], list[float](), list[float]()

    class Event:
        woken_at = 1000.0

        def wait(self, seconds: float) -> bool:
            waits.append(seconds)
            now[0] += seconds
            return now[0] >= self.woken_at

    event: Callable[[], Event] = Event
    b.keepalive._wake, b.keepalive._clock, b.keepalive._on_round = event(), lambda: now[0], lambda: fed.append(now[0])  # type: ignore[assignment]
    b.keepalive._rest(150.0)
    assert (waits, fed) == ([20.0, 20.0, 10.0], [120.0, 140.0, 150.0])
    Event.woken_at = 170.0
    b.keepalive._rest(250.0)
    assert waits[3:] == [20.0], "woken"


def test_the_thread_goes_round_when_it_is_woken_and_ends_when_it_is_stopped() -> None:
    b, rounds = Beat(), threading.Semaphore(0)
    publish = b.keepalive.round

    def counted() -> None:
        publish()
        rounds.release()

    b.keepalive.round = counted  # type: ignore[method-assign]
    b.keepalive.thread.start()
    try:
        assert rounds.acquire(timeout=10), "the first at once"
        b.keepalive.wake()
        assert rounds.acquire(timeout=10), "not a tick later"
    finally:
        assert b.keepalive.stop(10)
    assert b.server.text(schema.node_key("a", "keepalive")) == "1234"


def test_the_keepalives_transaction_checks_the_fence_and_writes_at_the_version_looked_at() -> None:
    """Dropped, a plain keepalive would land after the fence has moved, and the proof of a forced fence never succeed."""
    b, found = Beat(), list[tuple[Change, ...]]()
    b.keepalive.leave({"memfree": "7"})
    b.keepalive.round()
    b.server.on_commit = lambda _client, changes: found.append(tuple(changes))
    alive, fence = b.version, b.server.nodes[schema.fence("a")].version
    b.keepalive.daemonstate = DaemonState.RUN
    b.keepalive.round()
    beat = (Write(schema.node_key("a", "keepalive"), b"1234", alive), Write(schema.node_key("a", "memfree"), b"7", -1))
    assert found.pop() == (Check(schema.fence("a"), fence), *beat)
    b.fence(Fence("b1/0", FencePhase.FENCING, ka=alive + 1))
    b.keepalive.round()
    beat = (Write(schema.node_key("a", "keepalive"), b"1234", alive + 1), beat[1])
    assert found.pop() == (Write(schema.fence("a"), Fence("b1/0", FencePhase.UP, "a").encode(), fence + 1), *beat,
                           Write(schema.node_key("a", "daemonstate"), b"run", -1))
    b.zk.before_commit = lambda _changes: b.fence(Fence("b1/0", FencePhase.FENCING, forced=True))
    before = b.version
    b.keepalive.round()
    assert b.version == before
