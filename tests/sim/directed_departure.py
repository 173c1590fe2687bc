# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Directed schedules of a host that is shut down in order, against deaths, fences, orders and outages; and of guests that run outside PVC."""
from __future__ import annotations

from collections.abc import Callable

from pvcd.cluster import fences, schema
from pvcd.cluster.schema import DaemonState
from pvcd.departure import Phase
from pvcd.local import Status

from .cluster import Cluster, Daemon
from .directed import VM, declared_off, once, operator, order, rest, until, world
from .directed_faults import OTHER, one_life, said, starts

DEPARTURE = schema.node_key("a", "departure")


def word(cluster: Cluster, name: str, key: str = "domainstate") -> str | None:
    return cluster.server.text(schema.node_key(name, key))


def leaves(cluster: Cluster, name: str = "a", within_s: float = 400.0) -> None:
    """The host is told to shut down, and is off in a bounded time; it stays off."""
    cluster.shut_down_host(name)
    gone(cluster, name, within_s)


def gone(cluster: Cluster, name: str, within_s: float = 400.0) -> None:
    end = cluster.now + within_s
    while cluster.hosts[name].power:
        assert cluster.now < end, f"I2: {name} does not go off"
        cluster.run(0.5)


def boots(cluster: Cluster, name: str = "a", seconds: float = 60.0) -> None:
    cluster.power_on(name)
    cluster.run(seconds)


def home_again(cluster: Cluster) -> None:
    """After a boot: the VM is home, the node ready, and nothing tells of the departure any more."""
    assert cluster.fabric.running(VM) == ["a"] and cluster.word(VM, "hypervisor") == "a", f"I2: runs on {cluster.fabric.running(VM)}"
    assert word(cluster, "a") == "ready" and cluster.server.text(DEPARTURE) is None


# ------------------------------------------------------------------------------------------------------------ the phases

def a_reboot_is_one_life() -> None:
    """The VM goes elsewhere live, nobody is fenced, and it comes home live."""
    cluster = world()
    leaves(cluster)
    one_life(cluster, cluster.fabric.running(VM)[0])
    assert word(cluster, "a", "daemonstate") == "stop" and word(cluster, "a") == "flushed"
    cluster.run(60.0)
    assert not said(cluster, "being fenced") and not said(cluster, "the fence is committed"), "I9: an orderly shutdown was fenced"
    boots(cluster)
    home_again(cluster)
    one_life(cluster)


def what_fits_nowhere_powers_off_and_starts_again() -> None:
    """The word stays, the claim is freed, and nobody else starts it; the boot does."""
    cluster = world()
    for name in ("b", "c"):
        cluster.server.put(schema.node_key(name, "domainstate"), "flushed")
    cluster.run(2.0)
    leaves(cluster, within_s=60.0)
    assert cluster.word(VM, "state") == "start" and cluster.claim(VM) is None
    assert any("powers off" in event[3] for event in cluster.fabric.events), "I5: it was not asked"
    cluster.run(120.0)
    assert not cluster.fabric.running(VM)
    boots(cluster)
    home_again(cluster)
    assert starts(cluster) == 2


def a_deaf_guest_loses_its_power() -> None:
    """After shutdown_timeout, and not before."""
    cluster = world(name="deaf1")
    for name in ("b", "c"):
        cluster.server.put(schema.node_key(name, "domainstate"), "flushed")
    cluster.run(2.0)
    cluster.shut_down_host("a")
    until(cluster, lambda: bool(said(cluster, "asked to power off")), *cluster.names)
    at = cluster.now
    gone(cluster, "a", 120.0)
    ended = [event[0] for event in cluster.fabric.events if "destroyed" in event[3]]
    assert len(ended) == 1 and ended[0] - at >= 29.0
    assert cluster.claim(VM) is None


def all_hosts_at_once() -> None:
    """A UPS: all are in flush and nobody can receive; nobody waits long, and all run again afterwards."""
    cluster = world()
    cluster.define(OTHER, "b")
    cluster.run(3.0)
    at = cluster.now
    for name in cluster.names:
        cluster.shut_down_host(name)
    for name in cluster.names:
        gone(cluster, name, 60.0)
    assert cluster.now - at < 40.0
    for name in cluster.names:
        cluster.power_on(name)
    cluster.run(60.0)
    home_again(cluster)
    assert cluster.fabric.running(OTHER) == ["b"] and starts(cluster) == 2 == starts(cluster, OTHER)


def zookeeper_is_away() -> None:
    """It is waited for, no longer than half a minute; guests are ended without it, and the boot recovers the claim."""
    cluster = world()
    cluster.hosts["a"].zk.cut()
    cluster.shut_down_host("a")
    gone(cluster, "a", 60.0)
    assert any("powers off" in event[3] for event in cluster.fabric.events)
    cluster.hosts["a"].zk.heal()
    boots(cluster, seconds=120.0)
    once(cluster)


def zookeeper_goes_away_in_the_flush() -> None:
    """Nothing is doubled: the peers recover what the silent host held, the host ends what it still has."""
    cluster = world()
    cluster.define(OTHER, "a")
    cluster.run(3.0)
    cluster.shut_down_host("a")
    until(cluster, lambda: bool(cluster.fabric.jobs()), *cluster.names)
    cluster.hosts["a"].zk.cut()
    gone(cluster, "a", 200.0)
    cluster.hosts["a"].zk.heal()
    boots(cluster, seconds=120.0)
    once(cluster)


# ---------------------------------------------------------------------------------------------------------- against others

def an_operator_says_ready_meanwhile() -> None:
    """The word counts: no flush goes on, what is here is shut down, and nothing stays flushed after the boot."""
    cluster = world()
    for name in ("b", "c"):
        cluster.server.put(schema.node_key(name, "domainstate"), "flushed")
    cluster.run(2.0)
    cluster.shut_down_host("a")
    until(cluster, lambda: word(cluster, "a") == "flush", "b", "c", "a")
    cluster.server.delete_tree(DEPARTURE)
    cluster.server.put(schema.node_key("a", "domainstate"), "unflush")
    gone(cluster, "a", 30.0)
    boots(cluster)
    home_again(cluster)


def a_node_that_was_flushed_stays_flushed() -> None:
    """The operator's flush is not undone by the boot."""
    cluster = world()
    cluster.server.put(schema.node_key("a", "domainstate"), "flush")
    cluster.run(30.0)
    assert word(cluster, "a") == "flushed"
    leaves(cluster)
    boots(cluster)
    assert word(cluster, "a") == "flushed" and cluster.server.text(DEPARTURE) is None
    one_life(cluster, cluster.fabric.running(VM)[0])


def a_fence_meanwhile() -> None:
    """A node that is fenced while it leaves comes back flushed, as every fenced node: a person has to look at it."""
    cluster = world()
    for name in ("b", "c"):
        cluster.server.put(schema.node_key(name, "domainstate"), "flushed")
    cluster.run(2.0)
    cluster.shut_down_host("a")
    until(cluster, lambda: word(cluster, "a") == "flush" and cluster.server.text(DEPARTURE) is not None, *cluster.names)
    cluster.power_off("a")
    cluster.hosts["a"].down_since = float("inf")
    declared_off(cluster, "a")
    cluster.server.put(schema.node_key("b", "domainstate"), "ready")
    cluster.run(30.0)
    once(cluster, "b")
    boots(cluster)
    assert word(cluster, "a") == "flushed" and cluster.server.text(DEPARTURE) is None
    once(cluster, "b")


def orders_meanwhile() -> None:
    """What is ordered while the host leaves is obeyed there, or waits; it is never run twice or forgotten."""
    for state in ("stop", "shutdown", "restart", "start"):
        for phase in (Phase.FLUSH, Phase.CLOSE):
            cluster = world(name="deaf1" if phase is Phase.CLOSE else "")
            for name in ("b", "c"):
                cluster.server.put(schema.node_key(name, "domainstate"), "flushed")
            cluster.run(2.0)
            daemon = cluster.hosts["a"].daemon
            assert daemon is not None
            cluster.shut_down_host("a")
            until(cluster, lambda daemon=daemon, phase=phase: daemon.env.phase is phase, *cluster.names)
            order(cluster, state=state)
            gone(cluster, "a", 200.0)
            boots(cluster, seconds=120.0)
            if state in ("stop", "shutdown"):
                assert cluster.word(VM, "state") == "stop" and not cluster.fabric.running(VM)
            else:
                home_again(cluster)


def an_order_to_go_elsewhere_is_taken_back() -> None:
    """A migration that has no time left: the guest is shut down here, and is home here."""
    cluster = world()
    cluster.run(1.0)
    daemon = cluster.hosts["a"].daemon
    assert daemon is not None
    cluster.shut_down_host("a")
    until(cluster, lambda: bool(cluster.fabric.jobs()), *cluster.names)
    for job in cluster.fabric.jobs():
        job.moved = -10_000  # a guest that does not come to an end
    end = cluster.now + 500.0
    while cluster.hosts["a"].power:
        assert cluster.now < end, "I2: the host does not go off"
        cluster.run(0.5)
    assert any("powers off" in event[3] for event in cluster.fabric.events), "I5: the guest was not asked to power off"
    assert cluster.claim(VM) is None and cluster.word(VM, "hypervisor") == "a"
    boots(cluster, seconds=120.0)
    rest(cluster)


def nothing_is_received_or_started_by_a_host_that_leaves() -> None:
    """A VM that is to start at this home, or to come here, waits, or stays where it is."""
    cluster = world("b")
    cluster.define(OTHER, "a", "stop")
    cluster.run(3.0)
    for name in ("b", "c"):
        cluster.server.put(schema.node_key(name, "domainstate"), "flushed")
    cluster.run(2.0)
    cluster.shut_down_host("a")
    cluster.server.put(schema.domain_key(OTHER, "state"), "start")
    order(cluster, hypervisor="a", state="migrate")
    gone(cluster, "a", 60.0)
    one_life(cluster, "b")
    assert starts(cluster, OTHER) == 0 and cluster.claim(OTHER) is None
    boots(cluster)
    assert cluster.fabric.running(OTHER) == ["a"]


def death_before_each_effect() -> None:
    """pvcd dies before its n-th commit or effect of the departure, and its host goes off at once; the boot brings everything back."""
    for fits in (True, False):
        for step in range(1, 60):
            if not _dies(step, fits):
                break
        assert step > 5, "the schedule does not reach the departure"


def _dies(step: int, fits: bool) -> bool:
    """Whether the departure had that many steps."""
    cluster = world()
    if not fits:
        for name in ("b", "c"):
            cluster.server.put(schema.node_key(name, "domainstate"), "flushed")
        cluster.run(2.0)
    seen = [0]

    def interrupt(daemon: Daemon, _what: str) -> None:
        if daemon.host.name == "a" and daemon.env.phase is not None:
            seen[0] += 1
            if seen[0] == step:
                cluster.power_off("a")
                cluster.hosts["a"].down_since = float("inf")
    cluster.interrupt = interrupt
    cluster.shut_down_host("a")
    gone(cluster, "a")
    cluster.interrupt = lambda _daemon, _what: None
    cluster.run(20.0)
    if not fits:
        for name in ("b", "c"):
            cluster.server.put(schema.node_key(name, "domainstate"), "ready")
    boots(cluster, seconds=200.0)
    once(cluster)
    assert word(cluster, "a") in ("ready", "flushed") and cluster.server.text(DEPARTURE) is None
    return seen[0] >= step


def a_host_that_is_off_after_a_plain_stop_is_fenced_by_hand() -> None:
    """pvcd was stopped, then the host switched off: nobody recovers its VM until somebody says so; the command that `status` names does."""
    cluster = world()
    daemon = cluster.hosts["a"].daemon
    assert daemon is not None
    daemon._write_state(DaemonState.STOP)
    cluster.power_off("a")
    cluster.run(120.0)
    assert not cluster.fabric.running(VM)
    store = operator(cluster)
    view = store.view()
    store.apply(fences.forced(view, "a", "operator", store.keepalives(["a"])["a"].version, "now"))
    cluster.run(30.0)
    once(cluster, "b", "c")


# -------------------------------------------------------------------------------------------------------------- outside PVC

def what_runs_outside_is_never_switched_off() -> None:
    """Defined with `stop` while it runs as libvirt's own: nothing is done to it; `start` takes it over as it runs."""
    cluster = Cluster()
    for node in cluster.names:
        cluster.start_daemon(node)
    cluster.run(12.0)
    cluster.hosts["a"].hypervisor.virsh_start(VM, "old1")
    cluster.run(6.0)
    assert VM in (cluster.server.text(schema.node_key("a", "strangers")) or "")
    cluster.server.put(schema.domain(VM), "old1")  # its keys come one by one
    cluster.run(6.0)
    cluster.define(VM, "a", "stop", name="old1")
    cluster.run(120.0)
    one_life(cluster)
    assert VM in (cluster.server.text(schema.node_key("a", "strangers")) or "")
    order(cluster, state="start")
    cluster.run(20.0)
    one_life(cluster)
    claim = cluster.claim(VM)
    assert claim is not None and claim.node == "a"
    assert VM not in (cluster.server.text(schema.node_key("a", "strangers")) or "")


def what_runs_outside_is_not_started_elsewhere() -> None:
    """Homed on another node and ordered to start: the node that has it takes it, and it goes home live."""
    cluster = Cluster()
    for node in cluster.names:
        cluster.start_daemon(node)
    cluster.run(12.0)
    cluster.hosts["a"].hypervisor.virsh_start(VM, "old1")
    cluster.define(VM, "b", "stop", name="old1")
    cluster.run(12.0)
    held = cluster.hosts["a"].zk
    held.cut()  # the node that has it hears of nothing for a moment
    order(cluster, state="start")
    cluster.run(8.0)
    held.heal()
    cluster.run(30.0)
    one_life(cluster, cluster.fabric.running(VM)[0])


def a_leftover_of_libvirts_own_is_left_to_libvirt() -> None:
    """Paused, crashed: also then nothing is done to it."""
    for status in (Status.PAUSED, Status.CRASHED, Status.IO_ERROR):
        cluster = world("a", "stop")
        cluster.hosts["a"].hypervisor.virsh_start(VM, "old1")
        cluster.hosts["a"].hypervisor.copies[VM].status = status
        cluster.run(30.0)
        left = cluster.hosts["a"].hypervisor.copies.get(VM)
        assert left is not None and left.status is status, f"I5: what libvirt keeps was touched ({status.value})"


SCHEDULES: tuple[Callable[[], None], ...] = (
    a_reboot_is_one_life, what_fits_nowhere_powers_off_and_starts_again, a_deaf_guest_loses_its_power,
    all_hosts_at_once, zookeeper_is_away, zookeeper_goes_away_in_the_flush, an_operator_says_ready_meanwhile,
    a_node_that_was_flushed_stays_flushed, a_fence_meanwhile, orders_meanwhile,
    an_order_to_go_elsewhere_is_taken_back, nothing_is_received_or_started_by_a_host_that_leaves,
    death_before_each_effect, a_host_that_is_off_after_a_plain_stop_is_fenced_by_hand,
    what_runs_outside_is_never_switched_off, what_runs_outside_is_not_started_elsewhere,
    a_leftover_of_libvirts_own_is_left_to_libvirt)
