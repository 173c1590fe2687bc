# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""`--wait`: what counts as done, what as given up, and what is told meanwhile; on the model of ZooKeeper."""
from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from client import OTHER, UUID
from sim.fakezk import FakeServer, FakeZooKeeper

from pvc import waiting
from pvc.waiting import State
from pvcd.cluster import schema
from pvcd.cluster.errors import Failed, TimedOut
from pvcd.cluster.records import Claim, Operation
from pvcd.cluster.schema import DomainState, OpPhase
from pvcd.cluster.store import Store

ON_A = Claim("a", "a1/0")
TO_B = Operation("op1", OpPhase.READY, "b", "b1/0")


class World:
    """One VM, web1, and two nodes."""

    def __init__(self, state: str = "start", home: str = "a", claim: Claim | None = ON_A, shown: str = UUID, last: str = "") -> None:
        self.server = FakeServer()
        zk = FakeZooKeeper(self.server, "client")
        self.cluster: Any = SimpleNamespace(store=Store(zk), zk=zk)
        self.cluster.store.ensure_roots()
        for name in "ab":
            self.node(name, domainstate="ready", runningdomains=shown if name == "a" else "")
        self.server.put(schema.domain(UUID), "web1")
        self.words(state=state, hypervisor=home, lasthypervisor=last)
        self.claimed(claim)

    def node(self, name: str, **words: str) -> None:
        self.server.put(schema.node(name), "hypervisor")
        for key, value in words.items():
            self.server.put(schema.node_key(name, key), value)

    def words(self, uuid: str = UUID, **words: str) -> None:
        for key, value in words.items():
            self.server.put(schema.domain_key(uuid, key), value)

    def claimed(self, claim: Claim | None, uuid: str = UUID) -> None:
        self.server.put(schema.claim(uuid), claim.encode() if claim else b"")

    def reason(self, **meta: object) -> None:
        self.cluster.store.write_meta(UUID, {**self.cluster.store.meta(UUID), **meta})

    def start(self, target: str | None = None) -> State:
        return waiting.for_start(self.cluster, UUID, target)()

    def stop(self) -> State:
        return waiting.for_stop(self.cluster, UUID)()


def test_a_start_is_done_when_its_home_holds_it_and_shows_it() -> None:
    assert World().start() == State(True, "web1: runs on a")
    assert World().start("a").done
    for world in (World(claim=None), World(shown=""), World(shown=OTHER), World(home="b"), World(state="migrate"), World(state="restart"),
                  World(claim=Claim("a", "a1/0", TO_B)), World(state="shutdown")):
        assert not world.start().done


def test_what_a_start_tells_meanwhile() -> None:
    assert World(claim=None).start().text == "web1: waits for its node"
    assert World(shown="").start().text == "web1: start on a" and World(state="migrate", home="b").start().text == "web1: migrate on a"
    assert World(claim=Claim("a", "a1/0", TO_B)).start().text == "web1: migrating from a to b (ready)"
    given = Claim("b", "b1/0", Operation("op1", OpPhase.GIVEN, "b", "b1/0"))
    assert World(state="migrate", home="b", claim=given).start().text == "web1: has arrived on b"


@pytest.mark.parametrize("state", ["stop", "delete", "odd"])
def test_a_start_that_was_ordered_otherwise(state: str) -> None:
    with pytest.raises(Failed, match="VM 'web1' got another order meanwhile: its state is '" + state):
        World(state=state).start()


def test_a_start_that_failed_or_stays_says_why() -> None:
    world = World(state="failed")
    with pytest.raises(Failed, match=r"^VM 'web1' failed: no reason is known$"):
        world.start()
    world.reason(reason="no disk")
    with pytest.raises(Failed, match=r"^VM 'web1' failed: no disk$"):
        world.start()
    world.words(state="start")
    with pytest.raises(Failed, match=r"^VM 'web1' stays on a: no disk$"):
        world.start("b")
    world.words(state="migrate")
    assert not world.start("b").done, "an order under way is no refusal"


def test_how_far_a_migration_is() -> None:
    run = Claim("a", "a1/0", Operation("op1", OpPhase.RUN, "b", "b1/0"))
    world = World("migrate", "b", run)
    assert world.start().progress == ""
    world.reason(op="op1", moved_mib=30, size_mib=60)
    assert world.start().progress == ": 50 % (30 of 60 MiB)"
    world.reason(op="op1", moved_mib=90, size_mib=60)
    assert world.start().progress == ": 100 % (90 of 60 MiB)"
    for meta in ({"op": "op0"}, {"op": "op1", "moved_mib": "x"}, {"moved_mib": 1, "size_mib": 0}, {"size_mib": "x"}):
        world.reason(**meta)
        assert world.start().progress == "", meta
    world.reason(op="op1", moved_mib=1, size_mib=1)
    assert world.start().progress == ": 100 % (1 of 1 MiB)"
    world.claimed(Claim("a", "a1/0", TO_B))
    assert world.start().progress == "", "it has not begun"
    world.claimed(ON_A)
    assert world.start().progress == ""


def test_a_stop_is_done_when_nobody_holds_it() -> None:
    for state in ("stop", "delete", "failed"):
        assert World(state, claim=None).stop() == State(True, "web1: stopped")
        assert World(state).stop() == State(False, f"web1: {state} on a")
    assert not World("shutdown", claim=None).stop().done and not World("shutdown").stop().done
    gone = World("stop", claim=None)
    gone.server.delete_tree(schema.domain(UUID))
    assert gone.stop().done


@pytest.mark.parametrize("state", ["start", "restart", "migrate", "odd"])
def test_a_stop_that_was_ordered_otherwise(state: str) -> None:
    with pytest.raises(Failed, match=rf"^VM 'web1' got another order meanwhile: its state is '{state}"):
        World(state).stop()


def flush(world: World) -> waiting.Look:
    return waiting.for_node(world.cluster, "a", DomainState.FLUSHED)


def test_a_flush_counts_what_is_still_here() -> None:
    world = World()
    for number in range(3):
        world.claimed(ON_A, f"{number}1111111-2222-4333-8444-555555555550")
    world.claimed(Claim("b", "b1/0"), OTHER)
    world.node("a", domainstate="flush")
    look = flush(world)
    assert look() == State(False, "a: flush, 4 VMs here", f"  [{'-' * 20}]")
    world.claimed(Claim("b", "b1/0"))
    assert look() == State(False, "a: flush, 3 VMs here", f"  [{'#' * 5}{'-' * 15}]")
    world.node("a", domainstate="flushed")
    assert look() == State(True, "a: flushed")
    empty = World(claim=None)
    empty.node("a", domainstate="flush")
    assert flush(empty)() == State(False, "a: flush, 0 VMs here", f"  [{'-' * 20}]")


def test_a_node_that_was_ordered_otherwise() -> None:
    world = World()
    for word in ("ready", "odd"):
        world.node("a", domainstate=word)
        with pytest.raises(Failed, match=rf"^Node a got another order meanwhile: its domain state is '{word}"):
            flush(world)()


def test_an_unflush_names_what_did_not_come_home() -> None:
    world = World(home="b", claim=Claim("b", "b1/0"), last="a")
    world.reason(reason="no room")
    ready = waiting.for_node(world.cluster, "a", DomainState.READY)
    assert ready() == State(True, "a: ready; web1 stays on b: no room")
    assert waiting.for_node(world.cluster, "a", DomainState.READY, bring_back=False)() == State(True, "a: ready")
    for words in ({"state": "stop"}, {"state": "start", "lasthypervisor": "c"}, {"lasthypervisor": "a", "hypervisor": "a"}):
        world.words(**words)
        assert ready() == State(True, "a: ready"), words
    world.node("a", domainstate="unflush")
    assert ready() == State(False, "a: unflush, 0 VMs here")


# ------------------------------------------------------------------------------------------------------------ the waiting

class Moments:
    """A clock that goes on by what is waited for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, wakes: bool = False) -> None:
        self.now, self.waits = 50.0, list[float]()
        monkeypatch.setattr(waiting.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(waiting.threading, "Event", lambda: self)

    def clear(self) -> None: ...

    def set(self) -> None: ...

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


def test_it_looks_each_second_until_it_is_done_and_tells_each_state_once(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    world, moments = World(), Moments(monkeypatch)
    states = [State(False, "one", " 1 %"), State(False, "one", " 2 %"), State(False, ""), State(False, "two"), State(True, "done")]
    waiting.wait(world.cluster, lambda: states.pop(0), 30.0, waiting.domain_paths(UUID))
    assert moments.waits == [1.0] * 4 and capsys.readouterr().err == "one\ntwo\ndone\n"
    assert set(world.cluster.zk.values) == {schema.domain_key(UUID, "state"), schema.domain_key(UUID, "hypervisor"), schema.claim(UUID)}


def test_on_a_terminal_one_line_is_written_again(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    world, _ = World(), Moments(monkeypatch)
    monkeypatch.setattr(waiting.sys.stderr, "isatty", lambda: True, raising=False)
    states = [State(False, "one", " 1 %"), State(False, "one", " 2 %"), State(True, "done")]
    waiting.wait(world.cluster, lambda: states.pop(0), 30.0, [])
    shown = capsys.readouterr().err.replace("\r", "").replace("\033[K", "|")
    assert shown.endswith("\n") and "done" in shown and shown.count("\n") == 1


def test_it_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    world, moments = World(), Moments(monkeypatch)
    with pytest.raises(TimedOut, match=r"^Not done after 2.5 s \(still\)"):
        waiting.wait(world.cluster, lambda: State(False, "still"), 2.5, [])
    assert moments.waits == [1.0, 1.0, 0.5]


def test_a_change_wakes_it() -> None:
    """A real event, which the watch sets: what is done within the first look's wait is seen then, and not when the time is over."""
    world = World()
    looks: list[State] = [State(False, "one"), State(True, "done")]

    def look() -> State:
        if len(looks) == 2:
            world.server.put(schema.claim(UUID), b"")
            assert world.server.deliver()
        return looks.pop(0)
    waiting.wait(world.cluster, look, 30.0, waiting.domain_paths(UUID))
    assert looks == []
