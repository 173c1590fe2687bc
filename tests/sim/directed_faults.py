# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Directed schedules named after rows of the table of faults: guests that end by themselves, keys that are garbage or gone, links that
flap, hosts that sleep.
"""
from __future__ import annotations

from pvcd.cluster import schema
from pvcd.cluster.errors import HypervisorUnknown
from pvcd.cluster.schema import DOMAIN_KEY_NAMES, NODE_KEY_NAMES
from pvcd.local import Status

from .cluster import TICK_S, Cluster, Daemon
from .directed import VM, once, order, rest, turns, world

OTHER = "aaaa0000-0000-4000-8000-000000000002"
GARBAGE = (b"\xff\xfe", b"\x1b[2J\x1b]0;x\x07", b"x" * 100_000, b"", None)
"""None: the key is deleted."""


def starts(cluster: Cluster, uuid: str = VM) -> int:
    return sum(event[2] == uuid and "starts" in event[3] for event in cluster.fabric.events)


def one_life(cluster: Cluster, node: str = "a") -> None:
    """Nothing was done to the guest: it runs where it ran, in its first life."""
    once(cluster, node)
    assert starts(cluster) == 1, f"I5: life {starts(cluster)}"


def said(cluster: Cluster, text: str) -> int:
    return sum(text in line for line in cluster.log)


def up(cluster: Cluster) -> bool:
    return all('"phase":"up"' in (cluster.server.text(schema.fence(name)) or "") for name in cluster.names)


# ------------------------------------------------------------------------------------------------------------------ guests

def guest_powers_itself_off() -> None:
    """11: it is to run, so it runs again, on the same host."""
    cluster = world()
    cluster.hosts["a"].hypervisor._remove(VM, "powers itself off")
    cluster.run(6.0)
    once(cluster, "a")
    assert starts(cluster) == 2


def guest_crashes() -> None:
    """11: QEMU keeps a crashed guest; its rest goes, and it is started again, on the same host."""
    cluster = world()
    cluster.hosts["a"].hypervisor.copies[VM].status = Status.CRASHED
    cluster.run(12.0)
    once(cluster, "a")
    assert starts(cluster) == 2


def qemu_cannot_be_killed() -> None:
    """12: the claim stays with the host that has it, and nothing is started elsewhere, whatever is ordered."""
    cluster = world()
    hypervisor = cluster.hosts["a"].hypervisor

    def destroy(_uuid: str) -> None:
        raise HypervisorUnknown("Failed to terminate process 42 with SIGKILL: Device or resource busy")
    hypervisor.destroy = destroy  # type: ignore[method-assign]
    order(cluster, state="stop")
    cluster.run(60.0)
    one_life(cluster)
    cluster.server.put(schema.node_key("a", "domainstate"), "flush")
    cluster.run(60.0)
    one_life(cluster)
    assert cluster.server.text(schema.node_key("a", "domainstate")) == "flush"
    claim = cluster.claim(VM)
    assert claim is not None and claim.node == "a"
    assert said(cluster, "Failed to terminate process")


# -------------------------------------------------------------------------------------------------------------------- keys

def garbage_in_the_keys_of_a_vm() -> None:
    """86, 88: whatever a key holds, nothing is done with the guest, other VMs start, and repaired keys are obeyed again."""
    for key in DOMAIN_KEY_NAMES:
        for value in GARBAGE:
            cluster = world()
            definition = cluster.word(VM, "xml") or ""
            garbled(cluster, schema.domain_key(VM, key), value)
            cluster.define(OTHER, "a", name="other")
            cluster.run(8.0)
            one_life(cluster)
            assert cluster.fabric.running(OTHER) == ["a"], f"{key}: the other VM waits"
            order(cluster, xml=definition, lasthypervisor="", hypervisor="a", state="start")
            cluster.run(8.0)
            one_life(cluster)
            rest(cluster, 12.0)


def garbage_in_the_keys_of_a_node() -> None:
    """86, 88: nobody is fenced, no guest is touched, and what a daemon writes itself comes back."""
    own = {"keepalive", "memfree", "timing"}
    for value in GARBAGE:
        cluster = world()
        for key in NODE_KEY_NAMES:
            before = cluster.server.text(schema.node_key("a", key)) or ""
            garbled(cluster, schema.node_key("a", key), value)
            cluster.run(11.0)
            one_life(cluster)
            if value is not None and key not in own:
                cluster.server.put(schema.node_key("a", key), before)
        cluster.server.delete_tree(schema.node_key("a", "daemonstate"))
        cluster.run(60.0)
        one_life(cluster)
        assert up(cluster) and not said(cluster, "the fence is committed")
        assert cluster.server.text(schema.node_key("a", "daemonstate")) == "run"


def garbled(cluster: Cluster, path: str, value: bytes | None) -> None:
    if value is None:
        cluster.server.delete_tree(path)
    else:
        cluster.server.put(path, value)


def a_running_vm_loses_its_keys() -> None:
    """89: absence is no order. It runs on, held by its claim."""
    cluster = world()
    cluster.server.delete_tree(schema.domain(VM))
    cluster.run(130.0)
    one_life(cluster)
    claim = cluster.claim(VM)
    assert claim is not None and claim.node == "a"
    cluster.define(VM, "a")
    cluster.run(12.0)
    one_life(cluster)


def all_keys_are_wiped() -> None:
    """90: /nodes and /domains are made anew under a running cluster: nothing stops, and the nodes write their keys again."""
    cluster = world()
    for root in (schema.NODES, schema.DOMAINS):
        cluster.server.delete_tree(root)
    cluster.run(20.0)
    for root in (schema.NODES, schema.DOMAINS):
        if root not in cluster.server.nodes:
            cluster.server.put(root, "")
    cluster.run(130.0)
    one_life(cluster)
    assert [cluster.server.text(schema.node_key(name, "daemonstate")) for name in cluster.names] == ["run"] * 3
    assert up(cluster)


def a_child_that_is_no_vm() -> None:
    """91: told once by each node, and ignored."""
    cluster = world()
    cluster.server.put(f"{schema.DOMAINS}/lost+found", "")
    cluster.run(130.0)
    assert said(cluster, "lost+found is not a VM") == 3
    one_life(cluster)
    cluster.define(OTHER, "b")
    cluster.run(5.0)
    assert cluster.fabric.running(OTHER) == ["b"]


# ------------------------------------------------------------------------------------------------------------------- nodes

def link_flaps() -> None:
    """34: 20 s without, 10 s with: never silent for 30 s, so never fenced; it is told each time."""
    cluster = world()
    zk = cluster.hosts["a"].zk
    for _ in range(10):
        zk.cut()
        cluster.run(20.0)
        zk.heal()
        cluster.run(10.0)
    assert up(cluster) and not said(cluster, "the fence is committed")
    assert said(cluster, "a: no keepalive for") >= 10
    one_life(cluster)


def link_is_back_right_after_the_commit() -> None:
    """36: the first keepalive is the objection, and the power stays on."""
    cluster = world()
    cluster.hosts["a"].zk.cut()
    cluster.hosts["a"].bmc = "dead"  # so that nobody is quicker
    end = cluster.now + 60.0
    while not said(cluster, "the fence is committed"):
        assert cluster.now < end
        cluster.run(0.25)
    cluster.hosts["a"].zk.heal()
    cluster.run(8.0)
    cluster.hosts["a"].bmc = "ok"
    cluster.run(60.0)
    assert up(cluster) and said(cluster, "it objected")
    one_life(cluster)


def two_see_it_at_the_same_moment() -> None:
    """35: right before one commits, the other does; the transaction lets one of them, and one janitor works."""
    cluster = world()
    cluster.power_off("a")
    cluster.hosts["a"].down_since = float("inf")
    first: list[str] = []

    def interrupt(daemon: Daemon, what: str) -> None:
        overdue = cluster.now - cluster.hosts["a"].last_keepalive >= 6 * TICK_S
        if what == "commit" and daemon.busy == {"fence"} and overdue and not first:
            first.append(daemon.host.name)
            other = cluster.hosts["c" if first == ["b"] else "b"].daemon
            assert other is not None
            other.due["fence"] = other.due["timer"] = 0.0
            other.turn()
    cluster.interrupt = interrupt
    cluster.run(120.0)
    assert first and said(cluster, "the fence is committed") == 1 and said(cluster, "fenced: seen off twice") == 1
    assert not said(cluster, f"{first[0]} critical: a: dead"), "the one that came second has lost"
    once(cluster, "b", "c")
    assert starts(cluster) == 2


def a_host_sleeps() -> None:
    """53: asleep for ten minutes with a controller that is dead. Awake, it judges nobody by its old observations; it objects."""
    cluster = world()
    cluster.hosts["a"].bmc = "dead"
    turns(cluster, 600.0, "b", "c")
    one_life(cluster)
    cluster.run(60.0)
    assert said(cluster, "the fence is committed") == 1, "only a's, by its peers"
    assert up(cluster) and said(cluster, "it objected")
    one_life(cluster)


def the_brake_is_told() -> None:
    """37: half of four nodes are silent: nobody is fenced, and why is said."""
    cluster = Cluster(("a", "b", "c", "d"))
    for node in cluster.names:
        cluster.start_daemon(node)
    cluster.run(12.0)
    cluster.define(VM, "a")
    cluster.run(3.0)
    for name in ("a", "b"):
        cluster.hosts[name].zk.cut()
    cluster.run(120.0)
    assert up(cluster) and said(cluster, "nobody is fenced automatically")
    one_life(cluster)
    for name in ("a", "b"):
        cluster.hosts[name].zk.heal()
    cluster.run(30.0)
    assert up(cluster)
    one_life(cluster)


def the_janitor_loses_its_session() -> None:
    """27: it lives, and its lock is gone, at each of its steps: somebody finishes, and the node that boots again is left alone."""
    for step in range(40):
        cluster = world()
        cluster.power_off("a")
        cluster.hosts["a"].down_since = float("inf")
        cluster.run(25.0)
        seen = 0

        def interrupt(daemon: Daemon, _what: str, cluster: Cluster = cluster, wanted: int = step) -> None:
            nonlocal seen
            if daemon.busy == {"fence"}:
                seen += 1
                if seen == wanted + 1:
                    cluster.server.expire(daemon.host.name)
        cluster.interrupt = interrupt
        cluster.run(60.0)
        once(cluster, "b", "c")
        assert starts(cluster) == 2 and cluster.hosts["a"].power and cluster.hosts["a"].boot == 2
        if seen <= step:
            assert step > 5
            return
    raise AssertionError("a fence has no end")


SCHEDULES = (guest_powers_itself_off, guest_crashes, qemu_cannot_be_killed, garbage_in_the_keys_of_a_vm, garbage_in_the_keys_of_a_node,
             a_running_vm_loses_its_keys, all_keys_are_wiped, a_child_that_is_no_vm, link_flaps, link_is_back_right_after_the_commit,
             two_see_it_at_the_same_moment, a_host_sleeps, the_brake_is_told, the_janitor_loses_its_session)
