# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""How ZooKeeper's servers are written, learned and left, on real ones; and that a client without a server neither waits nor queues."""
from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from pvcd import ensemble
from pvcd.cluster.endpoint import Server, parse
from pvcd.cluster.errors import Conflict, OutcomeUnknown, PVCError, Unreachable
from pvcd.cluster.records import ANY, MISSING, Check, Create, Value, Write
from pvcd.cluster.store import Store
from pvcd.cluster.zk import ZooKeeper
from pvcd.ensemble import Ensemble
from pvcd.keepalive import RETRY_S
from pvcd.situation import Level

from .cluster import pvc
from .servers import ZooKeeperServer, free_port, three_servers

SESSION_S, CALL_S, TICK_S = 4.0, 0.8, 1.0
"""What pvcd lives by at keepalive_interval = 1: the shortest silence that gets a node fenced is 6 s."""


def until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not within the deadline"
        time.sleep(0.02)


class Node:
    """What pvcd has of ZooKeeper: the local server configured, the ensemble learned, and a keepalive each tick, whose times are kept."""

    def __init__(self, hosts: str, state: Path) -> None:
        self.zk = ZooKeeper(hosts, SESSION_S, CALL_S)
        self.said: list[tuple[Level, str]] = []
        self.published: list[str] = []
        self.ensemble = Ensemble(self.zk, state, lambda level, text: self.said.append((level, text)), self.published.append)
        self.ensemble.recall()
        self.times: list[float] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, daemon=True)

    def start(self) -> None:
        self.zk.start(10)
        self.ensemble.refresh()
        if self.zk.read("/alive") == MISSING:
            self.zk.commit([Create("/alive")])
        self._thread.start()

    def _keep_alive(self) -> None:
        while not self._ended.is_set():
            started = time.monotonic()
            try:
                self.zk.read("/alive")
                self.zk.commit([Write("/alive", b"1", ANY)])
                self.times.append(time.monotonic())
                pause_s = TICK_S
            except PVCError:
                pause_s = min(RETRY_S, TICK_S)
            self._ended.wait(max(0.0, started + pause_s - time.monotonic()))

    def longest_gap(self, since: float) -> float:
        """The longest time without a keepalive from `since` until now."""
        times = [max(time for time in self.times if time <= since), *(time for time in self.times if time > since), time.monotonic()]
        return max(later - earlier for earlier, later in itertools.pairwise(times))

    def stop(self) -> None:
        self._ended.set()
        self._thread.join(10)
        self.zk.stop()


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ZooKeeperServer]]:
    found = three_servers(tmp_path_factory.mktemp("ensemble"))
    yield found
    for server in found:
        server.stop()


@pytest.fixture
def of_three(three: list[ZooKeeperServer], monkeypatch: pytest.MonkeyPatch) -> list[ZooKeeperServer]:
    """127.0.0.1 is this host, the others are not."""
    monkeypatch.setattr(ensemble, "is_here", lambda address: address == "127.0.0.1")
    return three


def test_the_stop_and_the_freeze_of_the_local_server_cost_seconds(of_three: list[ZooKeeperServer], tmp_path: Path) -> None:
    """A11. Only the local server is configured. It is killed for a while, then frozen for longer than a node may be silent."""
    local = of_three[0]
    node = Node(local.hosts, tmp_path)
    node.start()
    try:
        assert node.zk.server == Server("127.0.0.1", local.port) and node.published == [",".join(server.hosts for server in of_three)]
        until(lambda: len(node.times) > 1)
        killed = time.monotonic()
        local.stop()
        until(lambda: node.times[-1] > killed + 3)
        assert node.longest_gap(killed) < 2 * TICK_S and node.zk.server != Server("127.0.0.1", local.port)
        local.start()
        node.zk._handler.drop()  # a disconnection later it is back on its own server, or on one of the others
        until(lambda: node.zk.connected and node.times[-1] > killed + 5)
        used = next(server for server in of_three if server.hosts == str(node.zk.server))
        frozen = time.monotonic()
        used.freeze(True)
        until(lambda: time.monotonic() > frozen + 8, 10)
        assert node.longest_gap(frozen) < 3.5 * TICK_S and str(node.zk.server) != used.hosts
    finally:
        for server in of_three:
            server.freeze(False)
        node.stop()


@pytest.mark.parametrize("frozen", [False, True])
def test_a_start_while_the_local_server_is_down(of_three: list[ZooKeeperServer], tmp_path: Path, frozen: bool) -> None:
    """A11. What was learned is kept for the next start."""
    local = of_three[0]
    first = Node(local.hosts, tmp_path)
    first.start()
    first.stop()
    local.freeze(True) if frozen else local.stop()
    try:
        again = Node(local.hosts, tmp_path)
        started = time.monotonic()
        again.start()
        assert time.monotonic() - started < 5
        again.stop()
        other = Node(f"{local.hosts},127.0.0.1:1", tmp_path)
        assert set(other.ensemble.known) == {Server("127.0.0.1", local.port), Server("127.0.0.1", 1)}, "learned for another configuration"
    finally:
        local.freeze(False) if frozen else local.start()


def test_one_server_alone_is_told(server: ZooKeeperServer, tmp_path: Path) -> None:
    node = Node(server.hosts, tmp_path)
    node.start()
    node.ensemble.refresh()
    node.stop()
    assert [level for level, text in node.said] == [Level.WARNING] and server.hosts in node.said[0][1] and node.published == [server.hosts]


def test_below_a_path_that_is_created_and_beside_the_list_of_servers(of_three: list[ZooKeeperServer], tmp_path: Path) -> None:
    """C8, A11. A path that does not exist is told, `pvc init` creates it, and the ensemble is learned from outside of it."""
    place = f"127.0.0.1:1,{of_three[1].hosts}/prod/pvc"
    zk = ZooKeeper(place, SESSION_S, CALL_S)
    zk.start(10)
    assert not zk.has_root() and not Store(zk).is_cluster()
    assert "no PVC cluster" in pvc(place, "node", "list").stderr
    done = pvc(place, "init", "--yes")
    assert done.returncode == 0, done.stderr
    assert zk.has_root() and Store(zk).is_cluster()
    zk.create_root()
    zk.commit([Create("/claims/a", b"1"), Create("/claims/b")])
    assert zk.read_many(["/claims/a", "/claims/b", "/claims/c"]) == {
        "/claims/a": Value(b"1", 0), "/claims/b": Value(b"", 0), "/claims/c": MISSING}
    rings: list[None] = []
    zk.watch_value("/claims/a", lambda: rings.append(None))
    until(lambda: bool(rings))
    zk.commit([Write("/claims/a", b"2", 0)])
    until(lambda: len(rings) > 1)
    assert zk.ensemble().count(b"server.") == 3
    outside = ZooKeeper(of_three[0].hosts, SESSION_S, CALL_S)
    outside.start(10)
    outside.sync("/prod")
    assert outside.read("/prod/pvc/claims/a").data == b"2"
    outside.stop()
    zk.stop()


def test_an_ipv6_address(tmp_path: Path) -> None:
    """C8, and the four-letter words of `pvc status`."""
    server = ZooKeeperServer(tmp_path, address="::1")
    server.start()
    try:
        zk = ZooKeeper(f"localhost:1, [0::1]:{server.port}", SESSION_S, CALL_S)
        zk.start(10)
        assert zk.read("/zookeeper").data == b"" and zk.server == Server("::1", server.port)
        zk.stop()
        assert pvc(server.hosts, "init", "--yes").returncode == 0
        assert f"[::1]:{server.port} standalone" in pvc(server.hosts, "status").stdout
    finally:
        server.stop()


CALLS: dict[str, Callable[[ZooKeeper], object]] = {
    "read": lambda zk: zk.read("/a"), "read_many": lambda zk: zk.read_many(["/a", "/b"]), "children": lambda zk: zk.children("/"),
    "sync": lambda zk: zk.sync("/"), "commit": lambda zk: zk.commit([Check("/a", 0)]), "ensemble": lambda zk: zk.ensemble()}


@pytest.mark.parametrize("call", CALLS)
def test_without_a_server_each_call_ends_at_once(call: str) -> None:
    """A12. kazoo queues while it is not connected: the 279th call hung for ever, and `stop` after it."""
    zk = ZooKeeper("127.0.0.1:1", 10.0, 4.0)
    zk._client.start_async()
    done: list[float] = []

    def ask() -> None:
        for _ in range(1000):
            started = time.monotonic()
            with pytest.raises(Unreachable):
                CALLS[call](zk)
            done.append(time.monotonic() - started)
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(30)
    assert len(done) == 1000 and max(done) < 1.0 and not zk._client._queue
    started = time.monotonic()
    zk.stop()
    assert time.monotonic() - started < 5


def test_after_half_an_hour_without_zookeeper_it_is_as_before(tmp_path: Path) -> None:
    """A12. Half an hour has 9,000 calls of the keepalive, timer and workers; they are made as fast as it goes, from several threads."""
    server = ZooKeeperServer(tmp_path)
    server.start()
    zk = ZooKeeper(server.hosts, SESSION_S, CALL_S)
    zk.start(10)
    zk.commit([Create("/a"), Create("/b")])
    rings: list[None] = []
    zk.watch_value("/a", lambda: rings.append(None))
    until(lambda: bool(rings))
    server.stop()

    def ask() -> None:
        for number in range(3000):
            with pytest.raises((Unreachable, OutcomeUnknown)):
                zk.read("/a") if number % 2 else zk.commit([Write("/b", b"stale", ANY)])
    threads = [threading.Thread(target=ask, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    server.start()
    until(lambda: zk.connected, 5)
    assert zk.read("/b") == Value(b"", 0), "nothing that was decided during the outage is sent after it"
    before = len(rings)
    zk.commit([Write("/a", b"1", 0)])
    until(lambda: len(rings) > before)
    zk.stop()
    server.stop()


def test_stop_returns_while_the_server_is_frozen(tmp_path: Path) -> None:
    server = ZooKeeperServer(tmp_path)
    server.start()
    zk = ZooKeeper(server.hosts, 10.0, CALL_S)
    zk.start(10)
    server.freeze(True)
    started = time.monotonic()
    zk.stop()
    assert time.monotonic() - started < 7
    server.freeze(False)
    server.stop()


@pytest.mark.parametrize("version", [2**31, 2**40, -2**31 - 1])
def test_a_version_that_cannot_be_is_never_sent(server: ZooKeeperServer, version: int) -> None:
    """A15. kazoo's thread ended with it, at each try."""
    zk = ZooKeeper(server.hosts, SESSION_S, CALL_S)
    zk.start(10)
    with pytest.raises(Conflict):
        zk.commit([Check("/zookeeper", version)])
    assert zk.connected and zk.read("/zookeeper") == Value(b"", 0)
    zk.stop()


def test_the_server_forgets_what_is_not_watched_any_more(tmp_path: Path) -> None:
    """B16. Three watches of each VM that was ever defined, on each node."""
    server = ZooKeeperServer(tmp_path)
    server.start()
    zk = ZooKeeper(server.hosts, SESSION_S, CALL_S)
    zk.start(10)
    rings: list[str] = []
    paths = [f"/gone/{number}" for number in range(30)]
    for path in (*paths, "/kept"):
        zk.watch_value(path, lambda path=path: rings.append(path))
    until(lambda: len(rings) == 31)
    assert server.word(b"wchs").endswith(b"Total watches:31\n")
    for path in paths:
        zk.unwatch(path)
    until(lambda: server.word(b"wchs").endswith(b"Total watches:1\n"))
    listeners = len(zk._client.state_listeners)
    assert listeners == 2, "the client's own, and the one of the watch that is left"
    zk.commit([Create("/kept")])
    until(lambda: rings.count("/kept") > 1)
    zk.watch_value("/gone", lambda: rings.append("/gone"))
    until(lambda: "/gone" in rings)
    zk.stop()
    server.stop()


def test_a_name_that_does_not_resolve_holds_up_nobody(server: ZooKeeperServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others' names are resolved on a thread that nobody waits for; kazoo is given addresses."""
    zk = ZooKeeper(server.hosts, SESSION_S, CALL_S)
    names = f"server.1=hv_1.invalid:{free_port()}:{free_port()}:participant\nserver.2=hv2:1:2:participant;0.0.0.0:{server.port}\n".encode()
    monkeypatch.setattr(ZooKeeper, "ensemble", lambda _self: names)
    monkeypatch.setattr(ensemble, "resolve", lambda asked: ("192.0.2.7",) if asked.host == "hv2" else ())
    monkeypatch.setattr(ensemble, "is_here", lambda address: address == "127.0.0.1")
    found = Ensemble(zk, tmp_path, lambda *_: None, lambda _: None)
    found.refresh()
    assert zk._client.hosts == [("127.0.0.1", server.port), ("192.0.2.7", server.port)]
    monkeypatch.setattr(ensemble, "resolve", lambda _: ())
    found.refresh()
    assert zk._client.hosts == [("127.0.0.1", server.port), ("192.0.2.7", server.port)], "what is known is kept"
    assert (tmp_path / "zookeeper").read_text() == f"{server.hosts}\n{server.hosts} 127.0.0.1\nhv2:{server.port} 192.0.2.7\n"
    assert parse(server.hosts) == zk.endpoint


def test_a_configured_name_and_its_listed_address_are_one_server_at_the_first_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a host that has never run: no name is known yet, and ZooKeeper lists addresses."""
    monkeypatch.setattr(ensemble, "resolve", lambda server: {"hv1": ("192.0.2.1",), "hv2": ("192.0.2.2",)}[server.host])
    used: list[list[str]] = []
    zk = SimpleNamespace(endpoint=parse("hv1:2181,hv2:2181"), server=None, use=lambda servers: used.append([str(one) for one in servers]),
                         ensemble=lambda: b"server.1=192.0.2.1:2888:3888;2181\nserver.2=192.0.2.2:2888:3888;2181\nserver.3=192.0.2.3:2888:3888;2181\n")
    found = Ensemble(zk, tmp_path, lambda *_: None, lambda _: None)  # type: ignore[arg-type]
    found.recall()
    found.refresh()
    assert [str(server) for server in found.known] == ["hv1:2181", "hv2:2181", "192.0.2.3:2181"]
    assert used[-1] == ["192.0.2.1:2181", "192.0.2.2:2181", "192.0.2.3:2181"]
