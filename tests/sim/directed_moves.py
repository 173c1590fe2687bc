# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Directed schedules named after rows of the table of faults: what goes wrong, or is ordered, in the middle of a migration or a start."""
from __future__ import annotations

from collections.abc import Callable, Sequence

from pvcd.cluster import schema
from pvcd.cluster.records import Change, Write
from pvcd.local import Status

from .cluster import Cluster, Daemon
from .directed import VM, once, order, rest, turns, until, world
from .directed_faults import OTHER, one_life, said, starts, up
from .directed_fences import boots_cold
from .fakehypervisor import Job

PHASES = ("prepare", "perform", "finish", "indoubt")


def at(phase: str) -> tuple[Cluster, Job]:
    """A migration from a to c that has come as far as `phase`; in `indoubt` the last reply is lost, and the destination runs."""
    cluster = world()
    order(cluster, hypervisor="c", state="migrate")
    until(cluster, lambda: bool(cluster.fabric.jobs()), *cluster.names)
    job = cluster.fabric.jobs()[0]
    for _ in range(8):
        if job.phase != phase:
            cluster.fabric.advance(job, lost=job.phase == "finish")
    assert job.phase == phase
    return cluster, job


def settled(cluster: Cluster, *homes: str) -> None:
    """At rest, running once, at one of these."""
    cluster.run(90.0)
    once(cluster, *homes)
    assert up(cluster) and not said(cluster, "the fence is committed")


# -------------------------------------------------------------------------------------------------------------- 62-70, 84

def source_qemu_is_killed() -> None:
    """62-70: in each phase. Its guest is gone, or has arrived at the destination; it ends up running once."""
    for phase in PHASES:
        cluster, _ = at(phase)
        cluster.hosts["a"].hypervisor.qemu_dies(VM)
        settled(cluster)
        assert starts(cluster) == (1 if phase == "indoubt" else 2), phase
        rest(cluster)


def destination_qemu_is_killed() -> None:
    """62-70: until the destination was told to go on, the source's guest loses nothing."""
    for phase in PHASES[:3]:
        cluster, _ = at(phase)
        cluster.hosts["c"].hypervisor.qemu_dies(VM)
        settled(cluster)
        assert starts(cluster) == 1, phase
        rest(cluster)


def destination_libvirt_hangs() -> None:
    """62-70: for a minute, in each phase. Only where the source is paused and in doubt meanwhile is the guest's life lost."""
    for phase in PHASES:
        cluster, _ = at(phase)
        cluster.hosts["c"].hypervisor.answers = False
        cluster.run(60.0)
        cluster.hosts["c"].hypervisor.answers = True
        settled(cluster)
        assert starts(cluster) == 1 or phase in ("perform", "finish"), phase
        rest(cluster)


def ordered_in_the_middle(words: Callable[[Cluster], None], ends: Callable[[Cluster], None]) -> None:
    for phase in PHASES:
        cluster, _ = at(phase)
        words(cluster)
        cluster.run(120.0)
        ends(cluster)
        assert up(cluster)


def stop_in_the_middle() -> None:
    """84: it ends everywhere, and its claim is free."""
    def ends(cluster: Cluster) -> None:
        assert cluster.fabric.running(VM) == [] and cluster.word(VM, "state") == "stop"
        assert not any(VM in host.hypervisor.copies for host in cluster.hosts.values()) and cluster.claim(VM) is None
    ordered_in_the_middle(lambda cluster: order(cluster, state="stop"), ends)


def another_target_in_the_middle() -> None:
    """84: in its first life it gets where the last order wants it."""
    ordered_in_the_middle(lambda cluster: order(cluster, hypervisor="b", state="migrate"), lambda cluster: one_life(cluster, "b"))


def undefine_in_the_middle() -> None:
    """84: `delete` ends it everywhere, whoever has it."""
    def ends(cluster: Cluster) -> None:
        assert not any(VM in host.hypervisor.copies for host in cluster.hosts.values())
    ordered_in_the_middle(lambda cluster: order(cluster, state="delete"), ends)


# ------------------------------------------------------------------------------------------------------------------ 79, 81

def memory_does_not_move() -> None:
    """79: a job that stands still is given up, and the guest stays."""
    cluster, job = at("perform")
    turns(cluster, 60.0, *cluster.names)
    assert job.aborted
    settled(cluster, "a")
    one_life(cluster)


def memory_changes_faster_than_it_moves() -> None:
    """79: a job that moves for ever is given up after some twenty times the guest's memory, and not before."""
    cluster, job = at("perform")
    size = 1 << 29
    for times in range(1, 40):
        job.moved += size
        turns(cluster, 2.0, *cluster.names)
        assert job.aborted is (times > 20) or times in (20, 21), times
    settled(cluster, "a")
    one_life(cluster)


def migrations_cross() -> None:
    """81: two VMs change places."""
    cluster = world()
    cluster.define(OTHER, "b", name="other")
    cluster.run(5.0)
    order(cluster, hypervisor="b", state="migrate")
    cluster.server.put(schema.domain_key(OTHER, "hypervisor"), "a")
    cluster.server.put(schema.domain_key(OTHER, "state"), "migrate")
    cluster.run(60.0)
    one_life(cluster, "b")
    assert cluster.fabric.running(OTHER) == ["a"] and starts(cluster, OTHER) == 1


def zookeeper_is_away_in_the_middle() -> None:
    """17, 21: the migration goes on, nobody is fenced, and afterwards the words are true."""
    for phase in PHASES[:3]:
        cluster, _ = at(phase)
        for host in cluster.hosts.values():
            host.zk.cut()
        cluster.run(20.0)
        for host in cluster.hosts.values():
            host.zk.heal()
        settled(cluster)
        assert starts(cluster) == 1, phase
        rest(cluster)


# ------------------------------------------------------------------------------------------------------------------- starts

def libvirt_goes_away_in_a_start() -> None:
    """9: QEMU is there: it is kept. It is not: it is started again, on the same host."""
    for there in (True, False):
        cluster = world(state="stop")
        hypervisor = cluster.hosts["a"].hypervisor
        hypervisor.late_create = True

        def interrupt(daemon: Daemon, what: str, cluster: Cluster = cluster, there: bool = there) -> None:
            if what == "create" and not there:
                cluster.hosts["a"].hypervisor.answers = False
        cluster.interrupt = interrupt
        order(cluster, state="start")
        cluster.run(2.0)
        cluster.interrupt = lambda _daemon, _what: None
        hypervisor.answers = False
        cluster.run(15.0)
        hypervisor.answers = True
        hypervisor.late_create = False
        cluster.run(20.0)
        one_life(cluster)
        assert hypervisor.copies[VM].status is Status.RUNNING


def six_vms_after_a_cold_start() -> None:
    """56: all hosts lose power and return: each VM lives one more life at home, and nobody is fenced."""
    cluster = Cluster()
    for node in cluster.names:
        cluster.start_daemon(node)
    cluster.run(12.0)
    homes = {f"aaaa0000-0000-4000-8000-00000000010{number}": "abc"[number % 3] for number in range(6)}
    for number, (uuid, home) in enumerate(homes.items()):
        cluster.define(uuid, home, name=f"cold{number}")
    cluster.run(10.0)
    boots_cold(cluster)
    for uuid, home in homes.items():
        assert cluster.fabric.running(uuid) == [home] and starts(cluster, uuid) == 2, uuid
    assert up(cluster)


# ------------------------------------------------------------------------------------------------------------------ flushes

def flush_seen_while_the_node_may_not_act() -> None:
    """The word is first seen while the fence of the node was moved; nothing tells when it may act again."""
    cluster = world()
    daemon = cluster.hosts["a"].daemon
    assert daemon is not None
    daemon.standing.set_down()
    cluster.server.put(schema.node_key("a", "domainstate"), "flush")
    cluster.server.deliver()
    daemon.queue.run_due(100)
    daemon.cache.refresh()
    daemon.queue.run_due(100)
    assert daemon.instances.nodes["a"]._word is None
    cluster.run(40.0)
    assert cluster.server.text(schema.node_key("a", "domainstate")) == "flushed"


def same_word_again_before_it_is_read() -> None:
    """`unflush` is ordered again right after the node has written `ready`, before anybody has read that."""
    cluster, again = world(), list[str]()
    zk = cluster.hosts["a"].zk
    original = zk.commit

    def commit(changes: Sequence[Change], unseen: bool = False) -> list[int | None]:
        made = original(changes, unseen)
        path = schema.node_key("a", "domainstate")
        if not again and any(isinstance(change, Write) and change.path == path and change.data == b"ready" for change in changes):
            again.append(path)
            cluster.server.put(path, "unflush")
        return made
    zk.commit = commit  # type: ignore[method-assign]
    cluster.server.put(schema.node_key("a", "domainstate"), "unflush")
    cluster.run(20.0)
    assert again and cluster.server.text(schema.node_key("a", "domainstate")) == "ready"


SCHEDULES = (source_qemu_is_killed, destination_qemu_is_killed, destination_libvirt_hangs, stop_in_the_middle, another_target_in_the_middle,
             undefine_in_the_middle, memory_does_not_move, memory_changes_faster_than_it_moves, migrations_cross, zookeeper_is_away_in_the_middle,
             libvirt_goes_away_in_a_start, six_vms_after_a_cold_start, flush_seen_while_the_node_may_not_act, same_word_again_before_it_is_read)
