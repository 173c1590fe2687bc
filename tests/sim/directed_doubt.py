# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Directed schedules about the one moment in which nobody knows who has the guest: the reply to a migration's last step is lost."""
from __future__ import annotations

from collections.abc import Callable

from pvcd.cluster import fences

from .cluster import Cluster, Daemon
from .directed import VM, copied, declared_off, finishing, once, operator, order, rest, turns, world


def restarting(cluster: Cluster, seconds: float, name: str) -> None:
    """Everybody goes on; systemd starts the daemon of `name` 2 s after each of its ends."""
    end = cluster.now + seconds
    while cluster.now < end:
        turns(cluster, 2.0, *cluster.names)
        cluster.start_daemon(name)


def source_restarts_late_in_doubt() -> None:
    """The destination runs it and cannot say so; pvcd at the source is slow, dies before it has asked, and takes its time to start: found
    by seed 7273775. Two ticks of the new process's own would be more than libvirt waits.
    """
    cluster = world()
    cluster.fabric.advance(finishing(cluster), lost=True, resumed=True)
    cluster.hosts["c"].zk.cut()
    turns(cluster, 13.0, "c")
    cluster.stop_daemon("a")
    turns(cluster, 8.5, "c")
    cluster.start_daemon("a")
    turns(cluster, 12.0, "a", "c")
    once(cluster, "c")
    rest(cluster)


def reply_lost_all_linked() -> None:
    """The reply to the last step is lost; everybody is linked: the destination claims, the source drops its paused copy."""
    cluster = world()
    cluster.fabric.advance(finishing(cluster), lost=True, resumed=True)
    turns(cluster, 45.0, *cluster.names)
    once(cluster, "c")
    rest(cluster)


def reply_lost_source_cut() -> None:
    """... and the source is cut off from ZooKeeper: it destroys its own copy before libvirt wakes it."""
    cluster = world()
    job = finishing(cluster)
    cluster.hosts["a"].zk.cut()
    cluster.hosts["a"].bmc = "dead"
    cluster.fabric.advance(job, lost=True, resumed=True)
    turns(cluster, 45.0, *cluster.names)
    once(cluster, "c")
    rest(cluster)


def reply_lost_source_cut_and_its_daemon_dies() -> None:
    """... and pvcd dies there too: the new one reaches no ZooKeeper, knows no claim, and does the same by what libvirt shows."""
    cluster = world()
    job = finishing(cluster)
    cluster.hosts["a"].zk.cut()
    cluster.hosts["a"].bmc = "dead"
    cluster.fabric.advance(job, lost=True, resumed=True)
    cluster.stop_daemon("a")
    restarting(cluster, 45.0, "a")
    once(cluster, "c")
    rest(cluster)


def reply_lost_source_being_fenced() -> None:
    """... and an operator fences the source, whose controller is dead: linked, and not allowed to act."""
    cluster = world()
    job = finishing(cluster)
    _forced(cluster, "a")
    cluster.fabric.advance(job, lost=True, resumed=True)
    turns(cluster, 45.0, *cluster.names)
    once(cluster, "c")
    rest(cluster)


def reply_lost_source_being_fenced_and_its_daemon_dies() -> None:
    """... and the new daemon is refused again and again: it does not end while a copy is in doubt, or each would count from the beginning."""
    cluster = world()
    job = finishing(cluster)
    _forced(cluster, "a")
    cluster.fabric.advance(job, lost=True, resumed=True)
    cluster.stop_daemon("a")
    restarting(cluster, 45.0, "a")
    once(cluster, "c")
    rest(cluster)


def _forced(cluster: Cluster, name: str) -> None:
    cluster.hosts[name].bmc = "dead"
    store = operator(cluster)
    store.apply(fences.forced(store.view(), name, "operator", store.keepalives([name])[name].version, "now"))


def claim_moved_then_source_cut() -> None:
    """The destination has claimed while the source's libvirt hung; then the source is cut off: its paused copy goes all the same."""
    cluster = world()
    job = finishing(cluster)
    cluster.fabric.advance(job, lost=True, resumed=True)
    cluster.hosts["a"].hypervisor.answers = False
    turns(cluster, 6.0, *cluster.names)
    claim = cluster.claim(VM)
    assert claim is not None and claim.node == "c"
    cluster.hosts["a"].zk.cut()
    cluster.hosts["a"].bmc = "dead"
    cluster.hosts["a"].hypervisor.answers = True
    turns(cluster, 60.0, *cluster.names)
    once(cluster, "c")
    rest(cluster)


def reply_lost_destination_cut() -> None:
    """... and the destination, which runs the guest, is cut off: the source asks, nobody answers, and it gives its copy up."""
    cluster = world()
    job = finishing(cluster)
    cluster.hosts["c"].zk.cut()
    cluster.hosts["c"].bmc = "dead"
    cluster.fabric.advance(job, lost=True, resumed=True)
    turns(cluster, 45.0, *cluster.names)
    once(cluster, "c")
    rest(cluster)


def destination_reboots_before_the_call() -> None:
    """The start mark is written and the call comes late (a busy worker, or a TCP connect that is repeated): meanwhile the destination has lost
    power, was fenced and boots. The guest arrives in a life that nobody agreed with, and the reply is lost.
    """
    cluster = world()
    late: list[str] = []

    def interrupt(daemon: Daemon, what: str) -> None:
        if daemon.host.name == "a" and what == "migrate" and not late:
            late.append(what)
            cluster.power_off("c")
            cluster.hosts["c"].down_since = float("inf")
            turns(cluster, 1.0, "b")
            declared_off(cluster, "c")
            cluster.power_on("c")
            cluster.hosts["c"].down_since = float("inf")
    cluster.interrupt = interrupt
    order(cluster, hypervisor="c", state="migrate")
    cluster.fabric.advance(copied(cluster), lost=True, resumed=True)
    turns(cluster, 45.0, "a", "b")
    once(cluster, "c")
    cluster.hosts["c"].down_since = 0.0
    rest(cluster)


SCHEDULES: tuple[Callable[[], None], ...] = (
    reply_lost_all_linked, source_restarts_late_in_doubt, reply_lost_source_cut, reply_lost_source_cut_and_its_daemon_dies, reply_lost_source_being_fenced,
    reply_lost_source_being_fenced_and_its_daemon_dies, claim_moved_then_source_cut, reply_lost_destination_cut, destination_reboots_before_the_call)
