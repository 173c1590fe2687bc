# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Directed schedules about calls that come late, orders that change in a migration, guests that do not run, and daemons of protocol 1."""
from __future__ import annotations

from collections.abc import Callable

from pvcd.cluster import schema
from pvcd.cluster.schema import OpPhase
from pvcd.local import Status

from .cluster import Cluster, Daemon
from .directed import VM, declared_off, once, order, rest, turns, until, world
from .directed_faults import one_life, said, starts
from .directed_handoff import arrived, dies, gone, phase, stays_down
from .fakehypervisor import Job

# --------------------------------------------------------------------------------------------------------------- late calls

def _reboots_before_the_call(registers: bool) -> Cluster:
    """The start mark is written, and the call comes late: meanwhile the destination has lost power and boots. The copy arrives whole in a
    life that nobody agreed with. `registers`: pvcd has said so before the copy arrives.
    """
    cluster = world()
    order(cluster, hypervisor="c", state="migrate")
    until(cluster, lambda: bool(cluster.fabric.jobs()), *cluster.names)
    job = cluster.fabric.jobs()[0]
    cluster.power_off("c")
    cluster.power_on("c")
    cluster.hosts["c"].down_since = float("inf")
    if registers:
        cluster.start_daemon("c")
        turns(cluster, 12.0, "c")
    for _ in range(5):
        cluster.fabric.advance(job)
    assert VM not in cluster.hosts["a"].hypervisor.copies and cluster.hosts["c"].hypervisor.copies[VM].status is Status.PAUSED
    return cluster


def arrives_in_a_later_life() -> None:
    """It is given to that life, and goes on."""
    cluster = _reboots_before_the_call(registers=True)
    turns(cluster, 10.0, *cluster.names)
    one_life(cluster, "c")
    rest(cluster)


def arrives_in_a_life_that_is_not_registered() -> None:
    """The claim is given to the boot before: the new one takes that for a death, not for a reason to refuse its start."""
    cluster = _reboots_before_the_call(registers=False)
    turns(cluster, 3.0, "a", "b")
    claim = cluster.claim(VM)
    assert claim is not None and (claim.node, claim.inc) == ("c", "c1/0")
    cluster.hosts["c"].down_since = 0.0
    cluster.run(30.0)
    once(cluster)
    rest(cluster)


def reboots_while_the_memory_moves() -> None:
    """The destination that agreed is dead: the migration is aborted, and the guest stays."""
    cluster = world()
    order(cluster, hypervisor="c", state="migrate")
    until(cluster, lambda: bool(cluster.fabric.jobs()), *cluster.names)
    job = cluster.fabric.jobs()[0]
    cluster.power_off("c")
    cluster.power_on("c")
    turns(cluster, 3.0, *cluster.names)
    cluster.start_daemon("c")
    turns(cluster, 15.0, *cluster.names)  # it watches for another host of its name first
    assert job.aborted
    rest(cluster)
    one_life(cluster, "a")


def a_call_that_no_operation_allows() -> None:
    """pvcd was killed behind its call: the operation is closed, and the call begins after all: it is aborted."""
    cluster = world()
    hypervisor = cluster.hosts["a"].hypervisor
    hypervisor.jobs[VM] = job = Job(VM, "opX", "a", "c")
    cluster.fabric.advance(job)
    hypervisor.nudge(VM)
    turns(cluster, 2.0, "a")
    assert job.aborted
    cluster.run(10.0)
    one_life(cluster, "a")
    rest(cluster)


def a_call_that_no_operation_allows_and_wins() -> None:
    """... or it is quicker: the claim is the source's, whose copy is gone, and what has arrived is a stray. The life is lost, and none runs twice."""
    cluster = world()
    stays_down(cluster, "a")
    cluster.hosts["a"].hypervisor.jobs[VM] = job = Job(VM, "opX", "a", "c")
    for _ in range(5):
        cluster.fabric.advance(job)
    turns(cluster, 5.0, "b", "c")
    assert not cluster.fabric.running(VM) and VM not in cluster.hosts["c"].hypervisor.copies
    cluster.hosts["a"].down_since = 0.0
    rest(cluster)


def a_stray_outlives_its_operation() -> None:
    """The source was woken, the destination's libvirt hangs and cannot be rid of the paused copy, and forgets that it had arrived; then the source
    dies, and the VM is recovered to that very node: what is there has old memory. Found by seed 52377.
    """
    cluster, job = arrived(lost=True)
    job.broken = True
    cluster.hosts["c"].hypervisor.answers = False
    turns(cluster, 10.0, *cluster.names)
    one_life(cluster, "a")
    dies(cluster, "a")
    declared_off(cluster, "a")
    order(cluster, hypervisor="c")
    turns(cluster, 5.0, "b")
    assert cluster.claim(VM) is None
    cluster.hosts["c"].hypervisor.libvirtd_dies()
    cluster.hosts["c"].hypervisor.answers = True
    turns(cluster, 10.0, "b", "c")
    once(cluster, "c")
    assert starts(cluster) == 2
    rest(cluster)


def the_source_restarts_between_order_and_offer() -> None:
    """What it speaks is checked by the offer, and was seen before its restart: the destination looks again, and not for ever. Found by seed 52589."""
    cluster = world()
    cluster.server.put(schema.node_key("a", "protocol"), "2")
    order(cluster, hypervisor="c", state="migrate")
    daemon = cluster.hosts["c"].daemon
    assert daemon is not None
    daemon.due["keepalive"] = cluster.now + 5.0  # nothing renews its view of the nodes in this very moment
    daemon.nudge(("domain", VM))
    daemon.turn()
    cluster.run(30.0)
    one_life(cluster, "c")


def claim_is_gone_right_before_the_resume() -> None:
    """The destination has decided to resume, and stands still; it is declared off, and b starts the VM: the gate stops the late resume."""
    cluster = gone()
    held: list[str] = []

    def interrupt(daemon: Daemon, what: str) -> None:
        if daemon.host.name == "c" and what in ("gate", "resume") and not held and phase(cluster) is OpPhase.GIVEN:
            held.append(what)
            declared_off(cluster, "c")
            order(cluster, hypervisor="b")
            turns(cluster, 10.0, "a", "b")
            assert cluster.fabric.running(VM) == ["b"]
    cluster.interrupt = interrupt
    turns(cluster, 10.0, *cluster.names)
    assert held
    once(cluster, "b")
    rest(cluster)


# ------------------------------------------------------------------------------------------------------------------- orders

def stopped_when_it_has_arrived() -> None:
    """Whoever has the claim obeys: the copy goes without having run."""
    cluster = gone()
    order(cluster, state="stop")
    turns(cluster, 5.0, *cluster.names)
    assert cluster.claim(VM) is None and not any(VM in host.hypervisor.copies for host in cluster.hosts.values())
    assert not [event for event in cluster.fabric.events if event[3] == "resumed"]


def cancelled_when_it_has_arrived() -> None:
    """It is resumed where it is, and sent back live."""
    cluster = gone()
    order(cluster, hypervisor="a", state="start")
    cluster.run(30.0)
    one_life(cluster, "a")
    rest(cluster)


def the_lock_is_somebody_elses() -> None:
    """The image of the copy that has arrived is locked: its resume is refused, tried each 2 s, and never forced."""
    cluster = gone()
    hypervisor = cluster.hosts["c"].hypervisor
    hypervisor.lock_held = True
    turns(cluster, 21.0, *cluster.names)
    assert not cluster.fabric.running(VM) and phase(cluster) is OpPhase.GIVEN
    assert 9 <= hypervisor.resumes_refused <= 13, hypervisor.resumes_refused
    hypervisor.lock_held = False
    turns(cluster, 3.0, *cluster.names)
    one_life(cluster, "c")
    rest(cluster)


def cancelled_in_the_queue() -> None:
    """All workers are busy for long: cancel, and stop, wait for none of them (B9)."""
    for words in ({"hypervisor": "a", "state": "start"}, {"state": "stop"}):
        cluster = world()
        hypervisor = cluster.hosts["a"].hypervisor
        hypervisor.busy = True
        order(cluster, hypervisor="c", state="migrate")
        until(cluster, lambda waiting=hypervisor.queue: bool(waiting), *cluster.names)  # type: ignore[misc]
        order(cluster, **words)
        turns(cluster, 3.0, *cluster.names)
        assert not hypervisor.queue and phase(cluster) is None
        assert cluster.fabric.running(VM) == (["a"] if "hypervisor" in words else [])
        hypervisor.busy = False
        turns(cluster, 3.0, *cluster.names)
        assert not cluster.fabric.jobs()


def late_withdrawal() -> None:
    """The order is taken back, and c about to withdraw its offer; it stands still while the order comes again, and the guest moves. Its
    transaction is late: nothing but the claim's version says so.
    """
    cluster = world()
    order(cluster, hypervisor="c", state="migrate")
    until(cluster, lambda: phase(cluster) is OpPhase.READY, "b", "c")
    order(cluster, hypervisor="a", state="start")
    held: list[str] = []

    def interrupt(daemon: Daemon, what: str) -> None:
        if daemon.host.name == "c" and what == "commit" and not held and "domain" in {key[0] for key in daemon.queue._running}:
            held.append(what)
            order(cluster, hypervisor="c", state="migrate")
            until(cluster, lambda: bool(cluster.fabric.jobs()), "a")
            job = cluster.fabric.jobs()[0]
            for _ in range(5):
                cluster.fabric.advance(job)
            until(cluster, lambda: phase(cluster) is OpPhase.GIVEN, "a")
            daemon.keepalive.round()
    cluster.interrupt = interrupt
    turns(cluster, 10.0, "b", "c")
    assert held
    cluster.run(30.0)
    one_life(cluster, "c")
    rest(cluster)


def the_order_changes_right_before_the_call() -> None:
    """The worker looks at the order right before it calls."""
    cluster = world()
    hypervisor = cluster.hosts["a"].hypervisor
    hypervisor.busy = True
    order(cluster, hypervisor="c", state="migrate")
    until(cluster, lambda: bool(hypervisor.queue), *cluster.names)
    order(cluster, state="stop")
    hypervisor.busy = False
    hypervisor.work()
    assert not cluster.fabric.jobs()
    turns(cluster, 3.0, *cluster.names)
    assert cluster.claim(VM) is None


# --------------------------------------------------------------------------------------- guests that do not run, older daemons

def halted_guests_are_refused_once() -> None:
    """Paused, in an I/O error, or stuck: the order is taken back with the reason, in a handful of transactions (B1)."""
    for status in (Status.PAUSED, Status.IO_ERROR, Status.STUCK):
        for words in ({"hypervisor": "c", "state": "migrate"}, {"hypervisor": "c"}):
            cluster = world()
            cluster.hosts["a"].hypervisor.copies[VM].status = status
            cluster.hosts["a"].hypervisor.lock_held = status is Status.IO_ERROR  # each try to resume it fails
            cluster.run(1.0)
            written = cluster.server.zxid
            order(cluster, **words)
            turns(cluster, 30.0, *cluster.names)
            assert (cluster.word(VM, "state"), cluster.word(VM, "hypervisor")) == ("start", "a"), status
            assert said(cluster, "does not run is not migrated") in (1, 2) and not cluster.fabric.jobs()
            assert cluster.server.zxid - written < 40, cluster.server.zxid - written
            assert cluster.hosts["a"].hypervisor.copies[VM].status is status


def halted_guests_are_refused_once_by_a_late_look() -> None:
    """... also where the pause comes between the order and the offer (row S2)."""
    cluster = world()
    order(cluster, hypervisor="c", state="migrate")
    turns(cluster, 1.0, "b", "c")
    assert phase(cluster) is OpPhase.READY
    cluster.hosts["a"].hypervisor.copies[VM].status = Status.PAUSED
    turns(cluster, 30.0, *cluster.names)
    assert (cluster.word(VM, "state"), cluster.word(VM, "hypervisor"), phase(cluster)) == ("start", "a", None)
    assert said(cluster, "does not run is not migrated") == 1


def guest_ends_before_its_offer_is_seen() -> None:
    """... or its QEMU ends there: the destination starts it. An offer that is only withdrawn is made again, as fast as ZooKeeper answers (B1)."""
    for leftover in (False, True):
        cluster = world()
        order(cluster, hypervisor="c", state="migrate")
        turns(cluster, 1.0, "b", "c")
        assert phase(cluster) is OpPhase.READY
        hypervisor, written = cluster.hosts["a"].hypervisor, cluster.server.zxid
        if leftover:
            hypervisor.copies[VM].status = Status.CRASHED
        else:
            hypervisor.qemu_dies(VM)
        for _ in range(4):
            cluster.hosts["a"].daemon.turn(1)  # type: ignore[union-attr]
            turns(cluster, 1.0, "c")
        turns(cluster, 30.0, *cluster.names)
        assert cluster.word(VM, "hypervisor") == ("a" if leftover else "c") and cluster.word(VM, "state") == "start"
        assert cluster.server.zxid - written < 60, cluster.server.zxid - written
        rest(cluster)


def halted_guests_block_a_flush() -> None:
    """A flush names it, and orders nothing, for as long as it is so; resumed, it leaves."""
    cluster = world()
    hypervisor = cluster.hosts["a"].hypervisor
    hypervisor.copies[VM].status = Status.PAUSED
    hypervisor.nudge(VM)
    cluster.run(2.0)
    cluster.server.put(schema.node_key("a", "domainstate"), "flush")
    cluster.run(120.0)
    assert said(cluster, "flush: to") == 0 and said(cluster, "is not migrated") == 1
    assert cluster.server.text(schema.node_key("a", "domainstate")) == "flush"
    hypervisor.resume(VM)
    hypervisor.nudge(VM)
    cluster.run(30.0)
    once(cluster, "b", "c")
    assert starts(cluster) == 1 and cluster.server.text(schema.node_key("a", "domainstate")) == "flushed"


def paused_by_hand_in_the_data_phase() -> None:
    """Nothing tells of it at the destination: it goes on there."""
    cluster = world()
    order(cluster, hypervisor="c", state="migrate")
    until(cluster, lambda: bool(cluster.fabric.jobs()), *cluster.names)
    cluster.fabric.advance(cluster.fabric.jobs()[0])
    cluster.hosts["a"].hypervisor.copies[VM].status = Status.PAUSED
    cluster.run(10.0)
    one_life(cluster, "c")


def an_older_source_is_refused() -> None:
    """Only 2 and 2 migrate live: with a daemon of protocol 1 the guest would run before the claim has moved."""
    cluster = world()
    cluster.server.put(schema.node_key("a", "protocol"), "1")
    turns(cluster, 1.0, *cluster.names)
    order(cluster, hypervisor="c", state="migrate")
    turns(cluster, 10.0, "b", "c")
    assert (cluster.word(VM, "state"), cluster.word(VM, "hypervisor"), phase(cluster)) == ("start", "a", None)
    assert said(cluster, "older pvcd") == 1


def _old_operation(cluster: Cluster, word: str) -> None:
    claim = cluster.claim(VM)
    assert claim is not None
    op = f'{{"id":"old","phase":"{word}","dest":"c","dinc":"c1/0"}}'
    cluster.server.put(schema.claim(VM), f'{{"v":1,"node":"{claim.node}","inc":"{claim.inc}","op":{op}}}')


def an_older_destinations_offer_is_taken_back() -> None:
    cluster = world()
    stays_down(cluster, "c")
    order(cluster, hypervisor="c", state="migrate")
    _old_operation(cluster, "ready")
    turns(cluster, 5.0, "a", "b")
    assert (cluster.word(VM, "state"), cluster.word(VM, "hypervisor"), phase(cluster)) == ("start", "a", None)
    one_life(cluster, "a")


def upgraded_in_the_middle() -> None:
    """An operation of protocol 1: a running copy at the destination has the guest, and takes the claim; the source's paused copy goes."""
    for word in ("run", "query"):
        for source_first in (False, True):
            cluster = world()
            cluster.strict = False
            cluster.stop_daemon("a")
            cluster.stop_daemon("c")
            cluster.hosts["a"].down_since = cluster.hosts["c"].down_since = float("inf")
            hypervisors = cluster.hosts["a"].hypervisor, cluster.hosts["c"].hypervisor
            hypervisors[1].copies[VM] = hypervisors[0].copies.pop(VM)
            order(cluster, hypervisor="c", state="migrate")
            _old_operation(cluster, word)
            for name in "ac" if source_first else "ca":
                cluster.start_daemon(name)
                turns(cluster, 2.0, *cluster.names)
            rest(cluster)
            one_life(cluster, "c")


SCHEDULES: tuple[Callable[[], None], ...] = (
    arrives_in_a_later_life, arrives_in_a_life_that_is_not_registered, reboots_while_the_memory_moves,
    a_call_that_no_operation_allows, a_call_that_no_operation_allows_and_wins, a_stray_outlives_its_operation, the_source_restarts_between_order_and_offer,
    claim_is_gone_right_before_the_resume, stopped_when_it_has_arrived,
    cancelled_when_it_has_arrived, the_lock_is_somebody_elses, cancelled_in_the_queue,
    late_withdrawal, the_order_changes_right_before_the_call, halted_guests_are_refused_once,
    halted_guests_are_refused_once_by_a_late_look, guest_ends_before_its_offer_is_seen, halted_guests_block_a_flush, paused_by_hand_in_the_data_phase,
    an_older_source_is_refused, an_older_destinations_offer_is_taken_back, upgraded_in_the_middle)
