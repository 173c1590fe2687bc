# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""What PVC relies on in ZooKeeper and kazoo. Cases marked `both` run on the simulator's model too."""
from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kazoo.exceptions import UnimplementedError
from sim.fakezk import FakeServer, FakeZooKeeper

from pvcd.cluster.errors import Conflict, OutcomeUnknown, TooLarge, Unreachable
from pvcd.cluster.records import ANY, MISSING, Check, Create, Delete, Value, Write
from pvcd.cluster.zk import POOL_THREADS, ZooKeeper

from .servers import ZooKeeperServer


@pytest.fixture
def real(server: ZooKeeperServer) -> Iterator[ZooKeeper]:
    client = ZooKeeper(server.hosts, 4.0, 2.0)
    client.start(20)
    client.delete_tree("/t")
    client.commit([Create("/t")])
    yield client
    client.stop()


@pytest.fixture(params=["fake", "real"])
def both(request: pytest.FixtureRequest) -> Any:
    if request.param == "real":
        return request.getfixturevalue("real")
    client = FakeZooKeeper(FakeServer(), "fake")
    client.commit([Create("/t")])
    return client


def until(condition: Callable[[], Any], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not within the deadline"
        time.sleep(0.02)


def test_versions_and_existence(both: Any) -> None:
    assert both.read("/t/a") == MISSING and both.children("/t") == [] and both.children("/nowhere") is None
    both.commit([Create("/t/a", b"1"), Create("/t/b")])
    assert both.read_many(["/t/a", "/t/b", "/t/c"]) == {"/t/a": Value(b"1", 0), "/t/b": Value(b"", 0), "/t/c": MISSING}
    both.commit([Write("/t/a", b"2", 0), Write("/t/a", b"3", ANY)])
    assert both.read("/t/a") == Value(b"3", 2)
    assert both.children("/t") == ["a", "b"]


def test_the_versions_that_a_transaction_made_and_the_transactions_that_made_a_key(both: Any) -> None:
    """`czxid` tells a key that was made anew from the one that was read before; the versions tell one's own writes from another's."""
    assert both.commit([Create("/t/a", b"1"), Check("/t/a", 0), Write("/t/a", b"2", 0), Create("/t/b"), Delete("/t/b", ANY)]) == [
        0, None, 1, 0, None]
    assert both.commit([Check("/t/a", 1)]) == [None]
    first, = both.read_many(["/t/a"]).values()
    assert both.commit([Write("/t/a", b"2", ANY)]) == [2]
    second, = (both.read_many(["/t/a", "/t"])[path] for path in ["/t/a"])
    assert 0 < first.czxid == first.mzxid == second.czxid < second.mzxid and both.read("/t/a").mzxid == second.mzxid
    assert first == Value(b"2", 1) and MISSING.czxid == MISSING.mzxid == 0
    both.commit([Delete("/t/a", 2)])
    both.commit([Create("/t/a", b"1")])
    assert both.read("/t/a").czxid > second.mzxid


def test_many_keys_are_read_in_one_request_and_one_by_one_where_the_server_knows_no_better(real: ZooKeeper) -> None:
    real.commit([Create(f"/t/{number:03}", f"value {number}".encode()) for number in range(450)])
    real.commit([Write("/t/007", b"", 0), Write("/t/008", bytes(range(256)) * 15, ANY)])
    paths = [f"/t/{number:03}" for number in range(460)]
    as_one = real.read_many(paths)
    assert real._multi_read and as_one["/t/007"] == Value(b"", 1) and as_one["/t/008"].data == bytes(range(256)) * 15
    assert as_one["/t/449"] == Value(b"value 449", 0) and all(as_one[path] == MISSING for path in paths[450:])
    real._multi_read = False
    assert real.read_many(paths) == as_one


def test_a_server_without_multi_read(real: ZooKeeper, monkeypatch: pytest.MonkeyPatch) -> None:
    call = real._client._call

    def older(request: Any, result: Any) -> Any:
        return result.set_exception(UnimplementedError()) if request.type == 22 else call(request, result)
    monkeypatch.setattr(real._client, "_call", older)
    assert real.read_many(["/t", "/t/none"]) == {"/t": Value(b"", 0), "/t/none": MISSING} and not real._multi_read


@pytest.mark.parametrize(("changes", "path"), [
    ([Write("/t/a", b"x", 7)], "/t/a"), ([Write("/t/none", b"x", ANY)], "/t/none"), ([Create("/t/a")], "/t/a"),
    ([Check("/t/a", 7)], "/t/a"), ([Check("/t/none", ANY)], "/t/none"), ([Delete("/t", ANY)], "/t"), ([Delete("/t/a", 3)], "/t/a"),
    ([Create("/t/no/parent")], "/t/no/parent"),
    ([Write("/t/a", b"x", 0), Create("/t/new"), Check("/t/a", 0)], "/t/a")])
def test_a_lost_race_names_the_path_and_writes_nothing(both: Any, changes: list[Any], path: str) -> None:
    both.commit([Create("/t/a", b"1")])
    with pytest.raises(Conflict) as lost:
        both.commit(changes)
    assert lost.value.path == path
    assert both.read("/t/a") == Value(b"1", 0) and both.read("/t/new") == MISSING


def test_a_gate_is_a_transaction_of_checks_only(both: Any) -> None:
    both.commit([Create("/t/a", b"1"), Create("/t/b", b"1")])
    both.commit([Check("/t/a", 0), Check("/t/b", 0), Check("/t/b", ANY)])
    both.commit([Write("/t/b", b"2", 0)])
    with pytest.raises(Conflict):
        both.commit([Check("/t/a", 0), Check("/t/b", 0)])


def test_too_large_is_refused_before_it_is_sent(both: Any) -> None:
    both.commit([Create("/t/a")])
    with pytest.raises(TooLarge):
        both.commit([Write("/t/a", b"x" * 5000, 0)])
    assert both.read("/t/a") == Value(b"", 0)


def test_delete_tree(both: Any) -> None:
    both.commit([Create("/t/a"), Create("/t/a/b"), Create("/t/a/b/c")])
    both.delete_tree("/t/a")
    both.delete_tree("/t/a")
    assert both.children("/t") == []


def test_delete_tree_while_others_write_below_it(real: ZooKeeper, monkeypatch: pytest.MonkeyPatch) -> None:
    """`init --force` on a living cluster: daemons write their keys again as soon as these are gone."""
    listed, late = real.children, ["/t/a/late", "/t/a/later"]

    def children(path: str) -> list[str] | None:
        found = listed(path)
        if path == "/t/a" and late:
            real.commit([Create(late.pop())])
        return found
    monkeypatch.setattr(real, "children", children)
    real.commit([Create("/t/a"), Create("/t/a/b")])
    real.delete_tree("/t/a")
    assert not late and listed("/t") == []


def test_an_ephemeral_goes_with_its_session(server: ZooKeeperServer, real: ZooKeeper) -> None:
    other = ZooKeeper(server.hosts, 4.0, 2.0)
    other.start(20)
    other.commit([Create("/t/lock", b"me", ephemeral=True)])
    assert real.read("/t/lock") == Value(b"me", 0)
    other.stop()
    until(lambda: real.read("/t/lock") == MISSING)


def test_watches_ring_and_are_level_triggered(real: ZooKeeper) -> None:
    rings = {"value": 0, "list": 0}
    real.watch_value("/t/a", lambda: rings.__setitem__("value", rings["value"] + 1))
    real.watch_children("/t", lambda: rings.__setitem__("list", rings["list"] + 1))
    until(lambda: rings["value"] and rings["list"])
    before = dict(rings)
    real.commit([Create("/t/a", b"0")])
    until(lambda: rings["value"] > before["value"] and rings["list"] > before["list"])
    before = dict(rings)
    for number in range(50):
        real.commit([Write("/t/a", str(number).encode(), ANY)])
    until(lambda: rings["value"] > before["value"])
    real.unwatch("/t/a")
    real.commit([Write("/t/a", b"more", ANY)])
    before = dict(rings)
    real.commit([Write("/t/a", b"still more", ANY)])
    time.sleep(0.3)  # nothing may ring: there is nothing to wait for
    assert rings["value"] == before["value"]


def test_a_callback_that_raises_ends_no_watch(real: ZooKeeper, capfd: pytest.CaptureFixture[str]) -> None:
    """FAULTS 16. More of them than the pool has threads."""
    raised, rings = [0], [0]

    def faulty() -> None:
        raised[0] += 1
        raise TypeError("a fault of the callback")
    for number in range(POOL_THREADS + 2):
        real.watch_value(f"/t/faulty{number}", faulty)
    until(lambda: raised[0] == POOL_THREADS + 2)
    real.watch_value("/t/a", lambda: rings.__setitem__(0, rings[0] + 1))
    until(lambda: rings[0])
    real.commit([Create("/t/a", b"0"), Create("/t/faulty0", b"0")])
    until(lambda: rings[0] > 1)
    assert all(thread.is_alive() for thread in real.threads)
    assert "a fault of the callback" in capfd.readouterr().err


def test_a_list_is_watched_through_its_deletion(real: ZooKeeper) -> None:
    rings: list[float] = []
    real.watch_children("/t", lambda: rings.append(time.monotonic()))
    until(lambda: rings)
    real.delete_tree("/t")
    real.commit([Create("/t")])
    until(lambda: len(rings) > 1)
    time.sleep(0.3)
    before = len(rings)
    real.commit([Create("/t/again")])
    until(lambda: len(rings) > before)


def test_calls_are_bounded_while_the_server_is_frozen(server: ZooKeeperServer, real: ZooKeeper) -> None:
    real.commit([Create("/t/a", b"1")])
    server.freeze(True)
    try:
        for call in (lambda: real.read("/t/a"), lambda: real.children("/t"), lambda: real.commit([Write("/t/a", b"2", 0)])):
            started = time.monotonic()
            with pytest.raises((Unreachable, OutcomeUnknown)):
                call()
            assert time.monotonic() - started < 3.0
    finally:
        server.freeze(False)
    until(lambda: real.connected, 10)
    until(lambda: _answers(real), 10)
    assert real.read("/t/a").data in (b"1", b"2")  # its outcome was unknown: that is what it says


def _answers(client: ZooKeeper) -> bool:
    try:
        return client.read("/t/a") != MISSING
    except Unreachable:
        return False


def test_after_an_outage_it_is_back_within_seconds_and_watches_ring(server: ZooKeeperServer, real: ZooKeeper) -> None:
    """kazoo's default back-off doubles up to an hour. 300 watches come back on a handful of threads."""
    rings: list[str] = []
    for number in range(300):
        real.watch_value(f"/t/{number}", lambda: rings.append("ring"))
    until(lambda: len(rings) >= 300)
    threads = threading.active_count()
    server.stop()
    until(lambda: not real.connected)
    with pytest.raises(Unreachable):
        real.commit([Create("/t/never")])
    time.sleep(6)  # long enough for a back-off that doubles to have grown
    server.start()
    started = time.monotonic()
    until(lambda: real.connected, 5)
    assert time.monotonic() - started < 4
    most = max(threading.active_count() for _ in range(200) if not time.sleep(0.005))
    assert most <= threads + 4
    before = len(rings)
    real.commit([Create("/t/7", b"new")])
    until(lambda: len(rings) > before)
    assert real.read("/t/never") == MISSING


def test_a_client_that_gave_up_is_started_again(server: ZooKeeperServer, real: ZooKeeper) -> None:
    real._client.stop()
    until(lambda: real._client.client_state == "CLOSED")
    real.ensure_alive()
    until(lambda: real.connected, 10)
    assert real.read("/t") != MISSING


def test_a_server_that_hangs_is_left_although_requests_flow(server: ZooKeeperServer, tmp_path: Path) -> None:
    """kazoo alone stays with a frozen server as long as it is asked something more often than it would ping."""
    other = ZooKeeperServer(tmp_path)
    other.start()
    client = ZooKeeper(f"{server.hosts},{other.hosts}", 4.0, 0.8)
    client.start(20)
    first = server if client._client._connection._socket.getpeername()[1] == server.port else other
    first.freeze(True)
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                client.read("/zookeeper")
                break
            except Unreachable:
                assert time.monotonic() < deadline, "it stays with the frozen server"
                time.sleep(0.1)
    finally:
        first.freeze(False)
        client.stop()
        other.stop()


def test_a_host_that_is_cut_off_does_not_hold_up_the_others(server: ZooKeeperServer) -> None:
    """A listener whose queue is full answers no SYN, as a machine that is cut off does."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        for _ in range(4):
            client = ZooKeeper(f"127.0.0.1:{full.getsockname()[1]},{server.hosts}", 10.0, 2.0)
            started = time.monotonic()
            client.start(5.0)
            assert time.monotonic() - started < 4
            client.stop()
        for each in waiting:
            each.close()


def test_a_server_that_is_not_there_is_said_so_in_time() -> None:
    client = ZooKeeper("127.0.0.1:1", 4.0, 2.0)
    started = time.monotonic()
    with pytest.raises(Unreachable):
        client.start(2.0)
    assert time.monotonic() - started < 4
