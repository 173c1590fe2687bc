# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Directed schedules of the hand-off: the copy arrives paused, and runs only under its node's claim. Who dies, hangs or is cut off at which moment."""
from __future__ import annotations

from collections.abc import Callable

from pvcd.cluster import fences, schema
from pvcd.cluster.schema import OpPhase
from pvcd.local import Status

from .cluster import Cluster, Daemon
from .directed import VM, declared_off, finishing, once, operator, order, rest, turns, until, world
from .directed_faults import one_life, said, starts, up
from .fakehypervisor import Job


def arrived(lost: bool = False) -> tuple[Cluster, Job]:
    """A migration from a to c: the copy at c is whole and paused, and the source's too. `lost`: its reply is."""
    cluster = world()
    job = finishing(cluster)
    cluster.fabric.advance(job, lost=lost)
    assert cluster.hosts["c"].hypervisor.copies[VM].status is Status.PAUSED
    return cluster, job


def gone() -> Cluster:
    """... and the source's is gone, and its claim not yet."""
    cluster, job = arrived()
    cluster.fabric.advance(job)
    assert VM not in cluster.hosts["a"].hypervisor.copies
    return cluster


def dies(cluster: Cluster, name: str) -> None:
    """Loses its power, for good."""
    cluster.power_off(name)
    cluster.hosts[name].down_since = float("inf")


def phase(cluster: Cluster) -> OpPhase | None:
    claim = cluster.claim(VM)
    return claim.op.phase if claim is not None and claim.op is not None else None


def stays_down(cluster: Cluster, name: str) -> None:
    """pvcd ends there, and systemd does not start it."""
    cluster.stop_daemon(name)
    cluster.hosts[name].down_since = float("inf")


# ------------------------------------------------------------------------------------------------------------ the happy end

def arrives_paused_and_is_resumed() -> None:
    """The copy waits for the claim, and the source gives it when its own copy is gone; the life goes on."""
    cluster, job = arrived()
    turns(cluster, 5.0, "b", "c")
    assert not cluster.fabric.running(VM)
    cluster.fabric.advance(job)
    turns(cluster, 1.0, *cluster.names)
    one_life(cluster, "c")
    assert phase(cluster) is None
    rest(cluster)


def process_ends_before_libvirt_looks() -> None:
    """The source gives its claim when its process has ended; libvirt, which shows it paused for a while longer, is not asked to do anything."""
    cluster, job = arrived()
    turns(cluster, 2.0, *cluster.names)
    assert not cluster.fabric.running(VM)
    cluster.fabric.ends(job)
    turns(cluster, 1.0, *cluster.names)
    one_life(cluster, "c")
    assert phase(cluster) is None and VM in cluster.hosts["a"].hypervisor.copies and not said(cluster, "a copy is here")
    cluster.fabric.advance(job)
    turns(cluster, 1.0, *cluster.names)
    one_life(cluster, "c")
    rest(cluster)


def process_ends_and_its_daemon_dies() -> None:
    """The next one has no call, and waits until libvirt has looked."""
    cluster, job = arrived()
    cluster.stop_daemon("a")
    cluster.fabric.ends(job)
    cluster.start_daemon("a")
    turns(cluster, 2.0, *cluster.names)
    assert not cluster.fabric.running(VM)
    cluster.fabric.advance(job)
    turns(cluster, 5.0, *cluster.names)
    rest(cluster)


def process_ends_and_the_destination_is_not_up() -> None:
    """Nothing is aborted and nothing is started while libvirt still shows it; then as ever."""
    cluster, job = arrived()
    dies(cluster, "c")
    declared_off(cluster, "c")
    turns(cluster, 2.0, "a", "b")
    cluster.fabric.ends(job)
    turns(cluster, 2.0, "a", "b")
    assert not cluster.fabric.running(VM) and not job.aborted
    cluster.fabric.advance(job)
    turns(cluster, 10.0, "a", "b")
    once(cluster, "a")
    rest(cluster)


# ------------------------------------------------------------------------------------------------------- the reply is lost

def reply_lost_by_silence() -> None:
    """libvirt wakes the source after half a minute: it has the claim. The copy at the destination goes when the operation has ended."""
    cluster, _ = arrived(lost=True)
    turns(cluster, 45.0, *cluster.names)
    one_life(cluster, "a")
    assert VM not in cluster.hosts["c"].hypervisor.copies
    rest(cluster)


def reply_lost_by_a_reset() -> None:
    """libvirt wakes the source at once, and the destination's daemon stands still for as long as it likes (A21)."""
    cluster, job = arrived(lost=True)
    job.broken = True
    turns(cluster, 60.0, "a", "b")
    one_life(cluster, "a")
    rest(cluster)


def source_cannot_be_woken() -> None:
    """libvirt 9.2 and later say so (PAUSED 14): the source is resumed by its pvcd, and not taken for paused by somebody (A9)."""
    cluster, job = arrived(lost=True)
    job.broken, job.wakes = True, Status.STUCK
    turns(cluster, 10.0, *cluster.names)
    one_life(cluster, "a")
    assert said(cluster, "resumed here")
    rest(cluster)


def source_cut_off_while_both_are_paused() -> None:
    """The source is woken under its claim, and fenced with its guest on it: it goes on where it is recovered, and only after the proof."""
    cluster, _ = arrived(lost=True)
    cluster.hosts["a"].zk.cut()
    turns(cluster, 35.0, *cluster.names)
    one_life(cluster, "a")
    turns(cluster, 60.0, *cluster.names)
    once(cluster, "b", "c")
    rest(cluster)


def sources_libvirtd_is_killed_in_doubt() -> None:
    """After its restart nothing wakes the source but pvcd."""
    cluster, _ = arrived(lost=True)
    cluster.hosts["a"].hypervisor.libvirtd_dies()
    turns(cluster, 10.0, *cluster.names)
    one_life(cluster, "a")
    rest(cluster)


def sources_libvirtd_is_killed_after_the_reply() -> None:
    """The source's copy is gone: it is given away, and the life goes on."""
    cluster, _ = arrived()
    cluster.hosts["a"].hypervisor.libvirtd_dies()
    turns(cluster, 10.0, *cluster.names)
    one_life(cluster, "c")
    rest(cluster)


def destinations_libvirtd_is_killed() -> None:
    """Before the last step the copy there is lost, after it it stays paused; the life goes on at one of them."""
    cluster = world()
    job = finishing(cluster)
    cluster.hosts["c"].hypervisor.libvirtd_dies()
    cluster.fabric.advance(job)
    turns(cluster, 45.0, *cluster.names)
    one_life(cluster, "a")
    cluster = gone()
    cluster.hosts["c"].hypervisor.libvirtd_dies()
    turns(cluster, 10.0, *cluster.names)
    one_life(cluster, "c")
    rest(cluster)


# -------------------------------------------------------------------------------------------------------------- hosts die

def source_dies_with_a_whole_copy_elsewhere() -> None:
    """It may have woken its own before: the copy is not resumed, and after the proof the VM starts anew."""
    cluster, _ = arrived()
    dies(cluster, "a")
    turns(cluster, 20.0, *cluster.names)
    assert not cluster.fabric.running(VM)
    turns(cluster, 40.0, *cluster.names)
    once(cluster, "b", "c")
    assert starts(cluster) == 2
    rest(cluster)


def source_is_being_fenced() -> None:
    """`fencing` is no proof: the destination waits, and the source, which lives, is woken."""
    cluster, _ = arrived(lost=True)
    cluster.hosts["a"].bmc = "dead"
    store = operator(cluster)
    store.apply(fences.forced(store.view(), "a", "operator", store.keepalives(["a"])["a"].version, "now"))
    turns(cluster, 60.0, *cluster.names)
    one_life(cluster, "a")
    assert cluster.hosts["c"].hypervisor.copies[VM].status is Status.PAUSED
    cluster.power_off("a")
    cluster.hosts["a"].bmc = "ok"
    rest(cluster)


def source_dies_with_half_a_copy_elsewhere() -> None:
    """The half copy goes, and the VM is recovered."""
    cluster = world()
    finishing(cluster)
    dies(cluster, "a")
    turns(cluster, 60.0, *cluster.names)
    once(cluster, "b", "c")
    assert starts(cluster) == 2
    rest(cluster)


def destination_dies_before_it_is_given() -> None:
    """The source's copy is gone and nobody else can have it: it starts anew, at the source."""
    cluster = gone()
    dies(cluster, "c")
    turns(cluster, 90.0, *cluster.names)
    once(cluster, "a")
    assert starts(cluster) == 2
    rest(cluster)


def destination_dies_when_it_is_given() -> None:
    """It is the holder's death, and recovered as any."""
    cluster = gone()
    until(cluster, lambda: phase(cluster) is OpPhase.GIVEN, "a")
    dies(cluster, "c")
    turns(cluster, 90.0, *cluster.names)
    once(cluster, "a", "b")
    rest(cluster)


def both_hosts_die() -> None:
    """The third recovers it; nobody asks after the destination."""
    cluster = gone()
    dies(cluster, "a")
    dies(cluster, "c")
    for name in "ac":
        declared_off(cluster, name)
    turns(cluster, 60.0, "b")
    once(cluster, "b")
    rest(cluster)


def destination_is_not_up() -> None:
    """It is being fenced and its controller is dead: after half a minute the source starts it anew. The copy there never runs."""
    cluster = gone()
    stays_down(cluster, "c")
    cluster.hosts["c"].bmc = "dead"
    store = operator(cluster)
    store.apply(fences.forced(store.view(), "c", "operator", store.keepalives(["c"])["c"].version, "now"))
    turns(cluster, 25.0, "a", "b")
    assert not cluster.fabric.running(VM)
    turns(cluster, 20.0, "a", "b")
    once(cluster, "a")
    cluster.power_off("c")
    rest(cluster)


def destination_is_silent() -> None:
    """Up, and its libvirt gives no answer, while the source is dead: the janitor's patience ends, and what the silent one has goes later."""
    cluster, _ = arrived()
    dies(cluster, "a")
    cluster.hosts["c"].hypervisor.answers = False
    cluster.server.put(schema.node_key("c", "domainstate"), "flushed")
    declared_off(cluster, "a")
    turns(cluster, 25.0, "b", "c")
    assert not cluster.fabric.running(VM)
    turns(cluster, 20.0, "b", "c")
    once(cluster, "b")
    cluster.hosts["c"].hypervisor.answers = True
    turns(cluster, 20.0, "b", "c")
    assert VM not in cluster.hosts["c"].hypervisor.copies
    rest(cluster)


# ------------------------------------------------------------------------------------------------- daemons, and the network

def sources_daemon_is_away() -> None:
    """The guest is paused until it is back: nobody else may say that the source's copy is gone."""
    cluster, job = arrived()
    stays_down(cluster, "a")
    cluster.fabric.advance(job)
    turns(cluster, 9.0, "b", "c")
    assert not cluster.fabric.running(VM)
    cluster.start_daemon("a")
    turns(cluster, 3.0, *cluster.names)
    one_life(cluster, "c")
    rest(cluster)


def destinations_daemon_is_away() -> None:
    """The same, at the other side."""
    cluster = gone()
    stays_down(cluster, "c")
    turns(cluster, 9.0, "a", "b")
    assert not cluster.fabric.running(VM) and phase(cluster) is OpPhase.GIVEN
    cluster.start_daemon("c")
    turns(cluster, 3.0, *cluster.names)
    one_life(cluster, "c")
    rest(cluster)


def destinations_daemon_dies_between_the_resume_and_its_record() -> None:
    """The guest runs under `given`: the next process writes what is true."""
    cluster = gone()

    def interrupt(daemon: Daemon, what: str) -> None:
        if daemon.host.name == "c" and what == "commit" and cluster.fabric.running(VM) == ["c"] and phase(cluster) is OpPhase.GIVEN:
            cluster.stop_daemon("c")
    cluster.interrupt = interrupt
    turns(cluster, 5.0, *cluster.names)
    assert cluster.hosts["c"].daemon is None and phase(cluster) is OpPhase.GIVEN
    cluster.interrupt = lambda _daemon, _what: None
    rest(cluster)
    one_life(cluster, "c")


def source_cut_off_in_the_data_phase() -> None:
    """It aborts after two ticks: a guest that arrives now would be paused until the claim can move."""
    cluster = world()
    order(cluster, hypervisor="c", state="migrate")
    until(cluster, lambda: bool(cluster.fabric.jobs()), *cluster.names)
    job = cluster.fabric.jobs()[0]
    cluster.fabric.advance(job)
    cluster.hosts["a"].zk.cut()
    turns(cluster, 8.0, *cluster.names)
    assert not job.aborted
    turns(cluster, 5.0, *cluster.names)
    assert job.aborted
    cluster.fabric.advance(job)
    cluster.hosts["a"].zk.heal()
    turns(cluster, 10.0, *cluster.names)
    one_life(cluster, "a")
    assert up(cluster)
    rest(cluster)


def daemon_is_told_to_end_in_the_data_phase() -> None:
    """A long migration is aborted at the end of the stop: else the guest would be paused for as long as pvcd is away."""
    cluster = world()
    order(cluster, hypervisor="c", state="migrate")
    until(cluster, lambda: bool(cluster.fabric.jobs()), *cluster.names)
    job = cluster.fabric.jobs()[0]
    cluster.fabric.advance(job)
    daemon = cluster.hosts["a"].daemon
    assert daemon is not None and daemon.instances.in_flight() == [VM]
    daemon.instances.stay("pvcd is stopped")
    assert job.aborted
    stays_down(cluster, "a")
    cluster.fabric.advance(job)
    one_life(cluster, "a")
    cluster.hosts["a"].down_since = 0.0
    rest(cluster)


def destinations_daemon_is_stopped_in_the_data_phase() -> None:
    """Nobody there would resume what arrives: the source aborts."""
    cluster = world()
    order(cluster, hypervisor="c", state="migrate")
    until(cluster, lambda: bool(cluster.fabric.jobs()), *cluster.names)
    job = cluster.fabric.jobs()[0]
    cluster.fabric.advance(job)
    stays_down(cluster, "c")
    cluster.server.put(schema.node_key("c", "daemonstate"), "stop")
    turns(cluster, 8.0, "a", "b")
    assert not job.aborted
    turns(cluster, 5.0, "a", "b")
    assert job.aborted
    cluster.hosts["c"].down_since = 0.0
    rest(cluster)
    one_life(cluster, "a")


def source_cut_off_when_its_copy_is_gone() -> None:
    """Paused until it is linked again."""
    cluster = gone()
    cluster.hosts["a"].zk.cut()
    turns(cluster, 15.0, *cluster.names)
    assert not cluster.fabric.running(VM)
    cluster.hosts["a"].zk.heal()
    turns(cluster, 5.0, *cluster.names)
    one_life(cluster, "c")
    rest(cluster)


def source_cut_off_for_good_when_its_copy_is_gone() -> None:
    """... or until it is proved dead: nobody knows that it has not woken its copy, so the VM starts anew."""
    cluster = gone()
    cluster.hosts["a"].zk.cut()
    turns(cluster, 60.0, *cluster.names)
    once(cluster, "b", "c")
    assert starts(cluster) == 2
    rest(cluster)


SCHEDULES: tuple[Callable[[], None], ...] = (
    arrives_paused_and_is_resumed, process_ends_before_libvirt_looks, process_ends_and_its_daemon_dies, process_ends_and_the_destination_is_not_up,
    reply_lost_by_silence, reply_lost_by_a_reset, source_cannot_be_woken,
    source_cut_off_while_both_are_paused, sources_libvirtd_is_killed_in_doubt,
    sources_libvirtd_is_killed_after_the_reply, destinations_libvirtd_is_killed,
    source_dies_with_a_whole_copy_elsewhere, source_is_being_fenced, source_dies_with_half_a_copy_elsewhere,
    destination_dies_before_it_is_given, destination_dies_when_it_is_given, both_hosts_die, destination_is_not_up,
    destination_is_silent, sources_daemon_is_away, destinations_daemon_is_away,
    destinations_daemon_dies_between_the_resume_and_its_record, source_cut_off_in_the_data_phase,
    daemon_is_told_to_end_in_the_data_phase, destinations_daemon_is_stopped_in_the_data_phase,
    source_cut_off_when_its_copy_is_gone, source_cut_off_for_good_when_its_copy_is_gone)
