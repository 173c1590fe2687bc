# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Numbers from ZooKeeper are bounded, what goes there fits into its key, and the watchdog is fed whatever the interval is."""
from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kazoo.protocol.serialization import CheckVersion, Transaction
from sim.fakezk import FakeServer, FakeZooKeeper

from pvcd import keepalive, notify
from pvcd.cluster import schema
from pvcd.cluster.errors import Conflict, PVCError
from pvcd.cluster.records import Check, Create, Fence, Timing, Unknown, Value, decode_claim, decode_fence, decode_hold, decode_timing
from pvcd.cluster.schema import FencePhase
from pvcd.cluster.store import Store
from pvcd.keepalive import Keepalive
from pvcd.marks import Marks
from pvcd.standing import Standing

NUMBERS = st.integers() | st.integers(-2**80, 2**80) | st.floats() | st.booleans() | st.none() | st.text(max_size=3)


@given(NUMBERS, st.sampled_from(FencePhase))
def test_the_keepalive_in_a_fence_is_a_version_or_unknown(number: Any, phase: FencePhase) -> None:
    """A15: each janitor checks it in a transaction, each second, and kazoo's thread ended with what does not fit."""
    found = decode_fence(json.dumps({"v": 1, "inc": "x/0", "phase": phase.value, "ka": number}).encode())
    if isinstance(found, Fence):
        assert found.ka is None or (type(found.ka) is int and found.ka >= 0)
        Transaction([CheckVersion("/nodes/a/keepalive", found.ka or 0)]).serialize()
    else:
        assert isinstance(found, Unknown)


@pytest.mark.parametrize(("ka", "known"), [(0, True), (2**31 - 1, True), (2**31, False), (2**40, False), (-1, False), (True, False), (1.0, False)])
def test_which_versions_are_known(ka: object, known: bool) -> None:
    """-1 is ZooKeeper's word for any version: as a check it would hold always."""
    assert isinstance(decode_fence(json.dumps({"v": 1, "inc": "x/0", "phase": "fencing", "ka": ka}).encode()), Fence) is known


@given(NUMBERS, NUMBERS)
def test_the_numbers_of_all_other_records(one: Any, other: Any) -> None:
    timing = decode_timing(json.dumps({"tick": one, "fence_intervals": other}).encode())
    assert 0.5 <= timing.tick_s <= 60 and 3 <= timing.fence_intervals <= 100 and type(timing.tick_s) is float
    decode_hold(Value(json.dumps({"hold": one, "until": other}).encode(), 1))
    decode_claim(json.dumps({"v": one, "node": "a", "inc": "x", "op": {"id": "1", "phase": other, "dest": "b", "dinc": "y"}}).encode())
    for raw in (str(one).encode(), str(other).encode()):
        number, share = schema.decode_int(raw), schema.decode_float(raw)
        assert not isinstance(number, int) or abs(number) < 10**18
        assert not isinstance(share, float) or 0 <= share < 10**9
    assert decode_timing(b'{"tick":true,"fence_intervals":6}') == Timing() == decode_timing(b'{"tick":NaN,"fence_intervals":6}')


@pytest.mark.parametrize("version", [2**31, 2**64, -2**31 - 1])
def test_a_version_that_cannot_be_is_a_lost_race(version: int) -> None:
    zk = FakeZooKeeper(FakeServer(), "a")
    zk.commit([Create("/a")])
    with pytest.raises(Conflict):
        zk.commit([Check("/a", version)])


# --------------------------------------------------------------------------------------------------------------- sizes

def node(feed_s: float = 20.0, tick_s: float = 60.0, on_round: Callable[[], None] = lambda: None,
         clock: Callable[[], float] = lambda: 1.0) -> tuple[Keepalive, FakeServer, list[float]]:
    """Node `a`, up, with all keys."""
    server, acknowledged = FakeServer(), list[float]()
    zk = FakeZooKeeper(server, "a")
    for root in schema.ROOTS:
        server.put(root, b"")
    server.put(schema.node("a"), b"")
    for key in schema.NODE_KEY_NAMES:
        server.put(schema.node_key("a", key), b"")
    server.put(schema.fence("a"), Fence("boot/0", FencePhase.UP).encode())
    standing = Standing("a")
    standing.inc = "boot/0"
    return Keepalive(Store(zk), standing, Marks(zk, "a", "0" * 32), tick_s, clock, lambda: 7.0, lambda _level, _text: None, acknowledged.append,
                     lambda _why: None, lambda: None, lambda: None, on_round, lambda _reason: None, feed_s), server, acknowledged


@pytest.mark.parametrize("count", [0, 1771, 7084, 7085, 7086, 20000])
def test_a_keepalive_goes_out_however_many_vms_there_are(count: int) -> None:
    """A16: above 1,771 VMs the list did not fit, and the node was fenced."""
    uuids = sorted(f"{number:08x}-2222-4333-8444-555555555555" for number in range(count))
    beat, server, acknowledged = node()
    beat.leave({"runningdomains": " ".join(uuids), "domainscount": str(count), "libvirtstate": "é" * 5000})
    beat.round()
    raw = server.nodes[schema.node_key("a", "runningdomains")].data
    found = schema.decode_uuids(raw)
    assert acknowledged and isinstance(found, tuple) and list(found) == uuids[:len(found)] and len(raw) <= schema.LIST_LIMIT
    assert len(found) >= min(count, 7085) and server.text(schema.node_key("a", "domainscount")) == str(count)
    state = schema.decode_text(server.nodes[schema.node_key("a", "libvirtstate")].data)
    assert isinstance(state, str) and state == "é" * (schema.VALUE_LIMIT // 2)


@pytest.mark.parametrize("old", [b"", b"{}", json.dumps({"x": "y" * 4000}).encode(), b"\xff" * 4000, b"[" * 4000])
def test_what_is_told_of_a_vm_always_fits(old: bytes) -> None:
    """B16: a trouble with a long text ended the visit that was to tell it."""
    server = FakeServer()
    zk = FakeZooKeeper(server, "a")
    server.put(schema.VMMETA, b"")
    server.put(schema.vmmeta("u"), old)
    for text in ("short", "x" * 100_000, "\u2028" * 5000, "\U0001f600" * 5000, '"' * 5000, "\ud800" * 5000):
        Store(zk).write_meta("u", {"reason": text, "cause": text, "at": text, "op": text, "moved_mib": 7})
        assert Store(zk).meta("u")["moved_mib"] == 7 and Store(zk).meta("u")["reason"][:1] in text + "\\"
        assert len(server.nodes[schema.vmmeta("u")].data) <= schema.VALUE_LIMIT


# -------------------------------------------------------------------------------------------------------------- watchdog

@pytest.mark.parametrize(("environment", "feeding_s"), [
    ({"WATCHDOG_USEC": "20000000"}, 20 / 3), ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "7"}, 20 / 3),
    ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "8"}, 20.0), ({}, 20.0), ({"WATCHDOG_USEC": "x"}, 20.0), ({"WATCHDOG_USEC": "0"}, 20.0)])
def test_how_often_the_watchdog_is_fed(environment: dict[str, str], feeding_s: float) -> None:
    assert notify.feeding_s(environment, 7) == pytest.approx(feeding_s)


class Wake:
    """An event of a virtual clock: waiting takes the time it is told, and nobody wakes."""

    def __init__(self) -> None:
        self.now = 0.0

    def wait(self, timeout_s: float) -> bool:
        self.now += timeout_s
        return False

    def clear(self) -> None: ...

    def set(self) -> None: ...


@pytest.mark.parametrize("tick_s", [1.0, 5.0, 20.0, 60.0])
def test_the_watchdog_is_fed_between_two_keepalives(tick_s: float) -> None:
    """A13: with an interval above 20 s systemd killed pvcd every 20 s."""
    wake, fed = Wake(), [0.0]
    beat, _, acknowledged = node(20 / 3, tick_s, lambda: fed.append(wake.now), lambda: wake.now)
    beat._wake = wake  # type: ignore[assignment]
    beat._on_acknowledged = lambda now: (acknowledged.append(now), setattr(beat, "_stopping", len(acknowledged) >= 4))[0]  # type: ignore[func-returns-value]
    beat._run()
    assert acknowledged == [0.0, tick_s, 2 * tick_s, 3 * tick_s]
    assert max(later - earlier for earlier, later in itertools.pairwise(fed)) < 7


def test_a_keepalive_that_failed_is_tried_again_soon() -> None:
    """A11: the connection is back within seconds, a tick may be a minute."""
    wake, times = Wake(), list[float]()
    beat, _, _ = node(20 / 3, 60.0, lambda: None, lambda: wake.now)
    beat._wake = wake  # type: ignore[assignment]

    def fails() -> None:
        times.append(wake.now)
        beat._stopping = len(times) == 3
        raise PVCError("away")
    beat.round = fails  # type: ignore[method-assign]
    beat._run()
    assert times == [0.0, keepalive.RETRY_S, 2 * keepalive.RETRY_S]


def test_a_keepalive_thread_that_hangs_feeds_nobody() -> None:
    fed, hangs, entered = list[None](), threading.Event(), threading.Event()
    beat, _, _ = node(0.01, 1.0, lambda: fed.append(None))

    def hang() -> None:
        entered.set()
        hangs.wait(10)
    beat.round = hang  # type: ignore[method-assign]
    beat.thread.start()
    assert entered.wait(5) and not fed
    beat._stopping = True
    hangs.set()
    beat.thread.join(5)
    assert len(fed) >= 1
