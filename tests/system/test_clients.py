# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Clients against each other, and a client that knows only 0.1's keys and words."""
from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from client01 import verbs
from kazoo.client import KazooClient

from lablib import guests
from lablib.host import wait_for
from lablib.lab import Lab
from lablib.witness import Recorder
from pvcd.cluster import requests
from pvcd.cluster.errors import Conflict
from pvcd.cluster.store import Store
from pvcd.cluster.zk import ZooKeeper

from .cluster import Life, listening, settles, where, words

RACES = 200


def test_two_clients_writing_opposite_orders(lab: Lab) -> None:
    """Both read the same, and each sends the VM somewhere else: one wins each race, the other is told, and no state is half of each."""
    lab.define("duel1", "hv1")
    uuid = guests.guest_uuid("duel1")
    clients = [ZooKeeper(lab.zookeeper, 10, 5) for _ in range(2)]
    for client in clients:
        client.start(10)
    won, told = [0, 0], [0, 0]
    barrier = threading.Barrier(2, timeout=30)
    errors: list[BaseException] = []

    def fight(number: int) -> None:
        store = Store(clients[number])
        try:
            for _ in range(RACES):
                barrier.wait()
                record, view = store.domain(uuid), store.view()
                target = next(name for name in (("hv2", "hv1"), ("hv3", "hv1"))[number] if name != record.hypervisor)
                order = requests.move(record, view, target)
                barrier.wait()
                try:
                    store.apply(order.changes)
                    won[number] += 1
                except Conflict:
                    told[number] += 1
        except BaseException as error:
            errors.append(error)
            barrier.abort()
    threads = [threading.Thread(target=fight, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for client in clients:
        client.stop()
    assert not errors
    assert sum(won) == sum(told) == RACES and min(won) > 0, (won, told)
    state, hypervisor, last = words(lab, "duel1")
    assert (state, last) == ("stop", "") and hypervisor in lab.names


def test_the_loser_of_a_race_is_told_by_the_command(lab: Lab) -> None:
    """The command's own words, with a version that is behind: what was told 0 comes true, what was told 4 does not."""
    lab.define("duel2", "hv1")
    home, told = "hv1", []
    for round_ in range(5):
        away = "hv2" if home == "hv1" else "hv1"
        codes: dict[str, int] = {}

        def order(verb: str, *argv: str, codes: dict[str, int] = codes) -> None:
            codes[verb] = lab.pvc("vm", verb, "duel2", *argv, check=False).returncode
        threads = [threading.Thread(target=order, args=words) for words in (("start",), ("move", "-t", away))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(codes.values()) <= {0, 4} and 0 in codes.values(), codes
        home = away if codes["move"] == 0 else home
        settles(lab, "duel2", "stop" if codes["start"] else "start", home, "")
        lab.pvc("vm", "stop", "duel2", "--wait")
        told.append(codes)
    print(told)


@pytest.fixture
def old(lab: Lab) -> Iterator[Any]:
    client = KazooClient(lab.zookeeper)
    client.start(timeout=10)
    yield client
    client.stop()
    client.close()


def test_a_client_of_0_1_drives_the_cluster(lab: Lab, recorder: Recorder, old: Any) -> None:
    xml = guests.kernel_guest("old1").encode()
    verbs.define(old, xml, "hv1")
    verbs.start(old, "old1")
    lab.await_life("old1")
    assert where(lab, "old1") == ["hv1"]
    life = Life(lab, recorder, "old1")
    verbs.migrate(old, "old1", "hv2")
    settles(lab, "old1", "start", "hv2", "hv1")
    verbs.unmigrate(old, "old1")
    settles(lab, "old1", "start", "hv1", "")
    verbs.move(old, "old1", "hv3")
    settles(lab, "old1", "start", "hv3", "")
    verbs.flush(old, "hv3")
    wait_for("hv3 is flushed", lambda: verbs.read(old, "/nodes/hv3/domainstate") == "flushed", 60)
    assert where(lab, "old1") != ["hv3"]
    verbs.ready(old, "hv3")
    settles(lab, "old1", "start", "hv3", "")
    wait_for("hv3 is ready", lambda: verbs.read(old, "/nodes/hv3/domainstate") == "ready", 30)
    life.goes_on()
    verbs.restart(old, "old1")
    lab.await_life("old1", 2)
    settles(lab, "old1", "start", "hv3")
    listening(recorder, "old1")
    verbs.shutdown(old, "old1")
    settles(lab, "old1", "stop")
    wait_for("it is off", lambda: where(lab, "old1") == [], 10)
    verbs.start(old, "old1")
    lab.await_life("old1", 3)
    verbs.stop(old, "old1")
    wait_for("it is off", lambda: where(lab, "old1") == [], 10)
    verbs.undefine(old, "old1")
    assert lab.pvc("vm", "list", "-f", "name").stdout.split() == []
    claims = json.loads(lab.node("hv1").run("/usr/bin/python3", "-c", _CLAIMS).stdout)
    assert claims[guests.guest_uuid("old1")] == ""


_CLAIMS = """
import json
from kazoo.client import KazooClient
client = KazooClient("127.0.0.1:2181")
client.start()
print(json.dumps({name: client.get("/claims/" + name)[0].decode() for name in client.get_children("/claims")}))
client.stop()
"""
