# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Directed schedules about starts that libvirt refuses: what passes is waited for, a host that can start nothing keeps no VM, guests that hang or
boot, and how a guest ended."""
from __future__ import annotations

import itertools

from pvcd.cluster import avoid, schema
from pvcd.cluster.records import MISSING, Value
from pvcd.local import Ending, Status

from .cluster import Cluster
from .directed import VM, once, order, rest, world

OTHERS = tuple(f"aaaa0000-0000-4000-8000-{number:012d}" for number in range(2, 6))


def _avoided(cluster: Cluster) -> avoid.Avoided:
    node = cluster.server.nodes.get(schema.avoid(VM))
    return avoid.read(MISSING if node is None else Value(node.data, node.version))


def _down(cluster: Cluster, name: str) -> None:
    """No power for the rest of the story: its controller answers `off`, and ignores `on`."""
    cluster.power_off(name)
    cluster.hosts[name].down_since = float("inf")


def _refusing(cluster: Cluster, name: str, why: str = "Cannot get interface MTU on 'br0': No such device") -> None:
    cluster.hosts[name].hypervisor.refuses_all = why


def a_lock_that_outlives_its_host() -> None:
    """The storage keeps the dead host's image lock for 90 s: the recovery waits for it instead of giving up."""
    cluster = world()
    cluster.fabric.lease_s = 90.0
    _down(cluster, "a")
    cluster.run(300.0)
    once(cluster)
    assert cluster.word(VM, "state") == "start"
    rest(cluster)


def storage_comes_later_than_the_hosts() -> None:
    """A power loss of the site: the storage is there again 8 minutes after the hosts. No VM is given up."""
    cluster = world()
    for name in cluster.names:
        cluster.power_off(name)
    cluster.run(10.0)
    for name in cluster.names:
        _refusing(cluster, name, "Cannot access storage file '/srv/nfs/vm.img': No such file or directory")
        cluster.power_on(name)
    cluster.run(480.0)
    assert cluster.word(VM, "state") == "start", cluster.word(VM, "state")
    reason = cluster.server.text(schema.vmmeta(VM)) or ""
    assert "Cannot access storage file" in reason, "why it waits is told meanwhile"
    for name in cluster.names:
        cluster.hosts[name].hypervisor.refuses_all = ""
    cluster.run(120.0)
    once(cluster)


def a_refusal_that_does_not_pass_is_given_up() -> None:
    """Ten minutes at home, then `failed` with the reason; a dozen tries, not thousands."""
    cluster = world(state="stop")
    _refusing(cluster, "a")
    order(cluster, state="start")
    cluster.run(590.0)
    assert cluster.word(VM, "state") == "start"
    cluster.run(90.0)
    assert cluster.word(VM, "state") == "failed" and cluster.claim(VM) is None
    assert "br0" in (cluster.server.text(schema.vmmeta(VM)) or "")
    assert 8 <= cluster.hosts["a"].hypervisor.creates <= 20, cluster.hosts["a"].hypervisor.creates
    assert cluster.word(VM, "hypervisor") == "a", "a VM at its home is not sent away"


def what_can_never_work_is_given_up_at_once() -> None:
    """The host lacks a feature, and the VM is at home."""
    cluster = world(state="stop")
    _refusing(cluster, "a", "unsupported configuration")
    cluster.hosts["a"].hypervisor.unsupported = True
    order(cluster, state="start")
    cluster.run(5.0)
    assert cluster.word(VM, "state") == "failed" and cluster.hosts["a"].hypervisor.creates == 1


def _recovered_onto_a_broken_node(unsupported: bool = False) -> Cluster:
    """b is the emptiest and can start nothing; a dies with five VMs."""
    cluster = world()
    for uuid in OTHERS:
        cluster.define(uuid, "a", name=f"vm{uuid[-1]}")
    cluster.run(5.0)
    cluster.hosts["b"].hypervisor.memory_mib = 32768
    cluster.run(12.0)
    _refusing(cluster, "b")
    cluster.hosts["b"].hypervisor.unsupported = unsupported
    cluster.power_off("a")
    cluster.hosts["a"].down_since = float("inf")
    cluster.server.put(schema.node_key("a", "domainstate"), "flushed")
    return cluster


def a_node_that_can_start_nothing() -> None:
    """It gets what the dead node had, as it is the emptiest; after a minute each VM goes on to the next node."""
    cluster = _recovered_onto_a_broken_node()
    cluster.run(200.0)
    assert cluster.hosts["b"].hypervisor.creates > 0, "the story is about nothing: b was not chosen"
    for uuid in (VM, *OTHERS):
        assert cluster.fabric.running(uuid) == ["c"], f"I2: {uuid} runs on {cluster.fabric.running(uuid)}, {cluster.word(uuid, 'state')}"
        assert cluster.word(uuid, "lasthypervisor") == "a", "its home is not forgotten"
    assert not _avoided(cluster).nodes, "what runs may be started anywhere again"


def a_feature_that_is_missing_sends_it_on_at_once() -> None:
    """No minute is spent where it can never work."""
    cluster = _recovered_onto_a_broken_node(unsupported=True)
    while cluster.hosts["b"].hypervisor.creates == 0:
        cluster.run(1.0)
    cluster.run(5.0)
    once(cluster, "c")


def no_node_can_start_it() -> None:
    """Each is tried once, never one twice, and the last for the whole window: then `failed`, with the reasons of all."""
    cluster = _recovered_onto_a_broken_node()
    _refusing(cluster, "c", "no secret with matching uuid")
    seen: list[str] = []
    for _ in range(900):
        cluster.run(1.0, 0.5)
        where = cluster.word(VM, "hypervisor") or ""
        if not seen or seen[-1] != where:
            seen.append(where)
    assert cluster.word(VM, "state") == "failed", cluster.word(VM, "state")
    assert sorted(seen) == sorted(set(seen)), f"to and fro: {seen}"
    reason = cluster.server.text(schema.vmmeta(VM)) or ""
    assert "br0" in reason and "no secret" in reason, reason
    assert not _avoided(cluster).nodes, "an operator's next order begins anew"


def the_second_recovery_knows_what_the_first_has_tried() -> None:
    """b could not start it; c dies as well, before it has: it does not go to b while a is there."""
    cluster = _recovered_onto_a_broken_node()
    _refusing(cluster, "c", "no secret with matching uuid")
    while cluster.word(VM, "hypervisor") != "c":
        cluster.run(1.0)
        assert cluster.now < 2000.0
    assert list(_avoided(cluster).nodes) == ["b"]
    cluster.server.put(schema.node_key("a", "domainstate"), "ready")
    cluster.power_on("a")
    cluster.run(20.0)
    _down(cluster, "c")
    cluster.run(60.0)
    once(cluster, "a")


def it_dies_right_after_it_was_sent_on() -> None:
    """The note and the order are one transaction: whoever goes on knows both."""
    cluster = _recovered_onto_a_broken_node()
    while cluster.word(VM, "hypervisor") != "b":
        cluster.run(1.0)
    while cluster.word(VM, "hypervisor") == "b":
        cluster.run(0.25)
        assert cluster.now < 2000.0
    assert list(_avoided(cluster).nodes) == ["b"]
    cluster.stop_daemon("b")
    cluster.run(60.0)
    once(cluster, "c")


def a_guest_that_boots_misses_the_first_request() -> None:
    """It is asked again every 10 s, and powers off instead of losing its power."""
    cluster = world()
    hypervisor = cluster.hosts["a"].hypervisor
    hypervisor.booting.add(VM)
    order(cluster, state="shutdown")
    cluster.run(15.0)
    hypervisor.booting.clear()
    cluster.run(10.0)
    assert cluster.word(VM, "state") == "stop" and not cluster.fabric.running(VM)
    assert not any(what == "destroyed" for _, _, uuid, what in cluster.fabric.events if uuid == VM)
    times = [at for at, _ in hypervisor.asked]
    assert len(times) in (2, 3) and all(later - earlier >= 10.0 for earlier, later in itertools.pairwise(times)), times


def a_guest_that_hangs_is_switched_off_at_its_deadline() -> None:
    """`restart` of a guest whose monitor hangs: its request leads to nothing, its deadline does."""
    cluster = world()
    cluster.hosts["a"].hypervisor.hung.add(VM)
    order(cluster, state="restart")
    cluster.run(20.0)
    assert cluster.fabric.running(VM) == ["a"]
    cluster.run(15.0)
    cluster.hosts["a"].hypervisor.hung.clear()
    cluster.run(10.0)
    once(cluster, "a")
    assert cluster.fabric.lives == 2


def a_guest_that_powers_itself_off_is_not_given_up() -> None:
    """Six times in ten minutes: its own reboot with on_reboot=destroy is no crash. A QEMU that dies is given up at the fourth."""
    for ending, state in ((Ending.GUEST, "start"), (Ending.CRASHED, "failed")):
        cluster = world()
        for _ in range(6):
            cluster.hosts["a"].hypervisor.qemu_dies(VM, ending)
            cluster.run(45.0)
        assert cluster.word(VM, "state") == state, (ending, cluster.word(VM, "state"))


def a_dump_is_waited_for_and_what_is_preserved_stays() -> None:
    """on_crash=coredump-destroy: libvirt writes the dump and ends the domain. preserve: nobody touches it until an order."""
    cluster = world()
    copy = cluster.hosts["a"].hypervisor.copies[VM]
    copy.status, copy.dumping = Status.CRASHED, True
    cluster.run(120.0)
    assert cluster.hosts["a"].hypervisor.copies.get(VM) is copy, "its dump was cut off"
    copy.dumping = False
    cluster.run(10.0)
    once(cluster, "a")
    xml = cluster.server.text(schema.domain_key(VM, "xml")) or ""
    cluster.server.put(schema.domain_key(VM, "xml"), xml.replace("</domain>", "<on_crash>preserve</on_crash></domain>"))
    kept = cluster.hosts["a"].hypervisor.copies[VM]
    kept.status = Status.CRASHED
    cluster.run(700.0)
    assert cluster.hosts["a"].hypervisor.copies.get(VM) is kept
    assert any("on_crash=preserve" in line for line in cluster.log)
    order(cluster, state="restart")
    cluster.run(10.0)
    once(cluster, "a")


SCHEDULES = (
    a_lock_that_outlives_its_host, storage_comes_later_than_the_hosts, a_refusal_that_does_not_pass_is_given_up,
    what_can_never_work_is_given_up_at_once, a_node_that_can_start_nothing, a_feature_that_is_missing_sends_it_on_at_once, no_node_can_start_it,
    the_second_recovery_knows_what_the_first_has_tried, it_dies_right_after_it_was_sent_on, a_guest_that_boots_misses_the_first_request,
    a_guest_that_hangs_is_switched_off_at_its_deadline, a_guest_that_powers_itself_off_is_not_given_up,
    a_dump_is_waited_for_and_what_is_preserved_stays)
