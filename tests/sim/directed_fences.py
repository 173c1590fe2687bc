# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Directed schedules about the death of nodes: silence, proof, controllers that lie, the brake, cold starts."""
from __future__ import annotations

from collections.abc import Sequence

from pvcd.cluster import schema
from pvcd.cluster.records import Change, Write

from .cluster import Cluster, Daemon
from .directed import VM, once, world


def silent(cluster: Cluster, name: str) -> None:
    cluster.hosts[name].zk.cut()


def cut_off_and_bmc_dead() -> None:
    """Nothing is started elsewhere while nothing is proved; when the network heals first, the node objects and keeps its guest."""
    cluster = unproved("dead")
    cluster.hosts["a"].zk.heal()
    cluster.run(10.0)
    assert '"phase":"up"' in (cluster.server.text(schema.fence("a")) or "")
    once(cluster, "a")
    assert sum("starts" in event[3] for event in cluster.fabric.events) == 1


def unproved(bmc: str) -> Cluster:
    """Five minutes without the network, and with such a controller: in `fencing`, never `fenced`, and its guest runs on."""
    cluster = world()
    silent(cluster, "a")
    cluster.hosts["a"].bmc = bmc
    cluster.run(300.0)
    once(cluster, "a")
    assert '"phase":"fencing"' in (cluster.server.text(schema.fence("a")) or "")
    return cluster


def controller_ignores_off() -> None:
    """Success is answered, and the machine stays on: never recovered."""
    unproved("ignore")


def controller_reports_off_once() -> None:
    """One reading of `off` proves nothing: the next one says on."""
    assert unproved("glitch").hosts["a"].bmc == "ignore"


def controller_of_another_machine() -> None:
    """The cables are mixed up: nobody may be told to switch off, least of all the machine that the controller belongs to."""
    assert all(host.power for host in unproved("wrong").hosts.values())


def controller_lies_and_the_node_is_linked() -> None:
    """Off is reported for a machine that writes keepalives again: the proof fails, because it checks the silent keepalive."""
    cluster = world()
    cluster.lies_possible = True
    silent(cluster, "a")
    cluster.hosts["a"].bmc = "lie"

    def interrupt(daemon: Daemon, what: str) -> None:
        zk = cluster.hosts["a"].zk
        if daemon.host.name != "a" and what == "ipmi status" and not zk.connected:
            zk.heal()  # the cable is plugged in again just now, and the very next thing is its keepalive
            owner = cluster.hosts["a"].daemon
            assert owner is not None
            owner.keepalive.wake()
            owner.due["keepalive"] = 0.0
            owner.turn()
    cluster.interrupt = interrupt
    cluster.run(120.0)
    assert cluster.fabric.running(VM) == ["a"], cluster.fabric.running(VM)
    assert not any("fenced: seen off" in line for line in cluster.log)


def janitor_dies_at_each_step() -> None:
    """Whoever does the fence is killed right before each of its writes and orders in turn: another finishes, and the VM lives one new life."""
    for step in range(60):
        cluster = world()
        cluster.power_off("a")
        cluster.hosts["a"].down_since = float("inf")
        cluster.run(25.0)
        seen, killed = 0, False

        def interrupt(daemon: Daemon, what: str, cluster: Cluster = cluster, wanted: int = step) -> None:
            nonlocal seen, killed
            fencing = '"phase":"up"' not in (cluster.server.text(schema.fence("a")) or "")
            if daemon.busy in ({"fence"}, {"bmc"}) and fencing and not killed:
                seen += 1
                if seen > wanted:
                    killed = True
                    cluster.say(f"{daemon.host.name}: killed before {what}")
                    cluster.stop_daemon(daemon.host.name)
        cluster.interrupt = interrupt
        cluster.run(60.0)
        once(cluster, "b", "c")
        assert sum("starts" in event[3] for event in cluster.fabric.events) == 2
        if not killed:
            assert step > 5
            return
    raise AssertionError("a fence has no end")


def two_of_three_silent() -> None:
    """The brake: nobody is fenced automatically while too many are silent, and nothing sticks afterwards."""
    cluster = world()
    silent(cluster, "b")
    silent(cluster, "c")
    cluster.run(120.0)
    assert all('"phase":"up"' in (cluster.server.text(schema.fence(name)) or "") for name in cluster.names)
    once(cluster, "a")
    cluster.hosts["b"].zk.heal()
    cluster.hosts["c"].zk.heal()
    cluster.run(30.0)
    assert all(cluster.server.text(schema.node_key(name, "daemonstate")) == "run" for name in cluster.names)


def boots_cold(cluster: Cluster) -> None:
    """All hosts lose power, and return after ten minutes."""
    for name in cluster.names:
        cluster.power_off(name)
        cluster.hosts[name].down_since = float("inf")
    cluster.run(600.0)
    for name in cluster.names:
        cluster.power_on(name)
    cluster.run(60.0)
    assert not any("the fence is committed" in line for line in cluster.log)


def whole_cluster_boots_cold() -> None:
    """Nobody is fenced, and every VM runs once, at home."""
    cluster = world()
    boots_cold(cluster)
    once(cluster, "a")


def zookeeper_away() -> None:
    """Everybody is cut off for 70 s: afterwards all timers start again, and nobody is fenced."""
    cluster = world()
    for host in cluster.hosts.values():
        host.zk.cut()
    cluster.run(70.0)
    for number, host in enumerate(cluster.hosts.values()):
        host.zk.heal()
        cluster.run(4.0 * number)
    cluster.run(30.0)
    once(cluster, "a")
    assert not any("the fence is committed" in line for line in cluster.log)


def keepalive_right_before_the_commit() -> None:
    """The link heals when the commit of the fence is on its way already: the keepalive comes first, and the commit does not count."""
    cluster, woke = world(), list[str]()
    silent(cluster, "a")
    cluster.hosts["a"].bmc = "dead"

    def guard(name: str) -> None:
        zk = cluster.hosts[name].zk
        original = zk.before_commit

        def before(changes: Sequence[Change]) -> None:
            daemon = cluster.hosts["a"].daemon
            if not woke and daemon is not None and any(change.path == schema.fence("a") and isinstance(change, Write) for change in changes):
                woke.append(name)
                cluster.hosts["a"].zk.heal()
                daemon.keepalive.round()
            original(changes)
        zk.before_commit = before
    guard("b")
    guard("c")
    cluster.run(60.0)
    assert woke and not any("the fence is committed" in line for line in cluster.log)
    assert '"phase":"up"' in (cluster.server.text(schema.fence("a")) or "")
    once(cluster, "a")


SCHEDULES = (
    keepalive_right_before_the_commit, cut_off_and_bmc_dead, controller_ignores_off, controller_reports_off_once, controller_of_another_machine,
    controller_lies_and_the_node_is_linked, janitor_dies_at_each_step, two_of_three_silent, whole_cluster_boots_cold, zookeeper_away)
