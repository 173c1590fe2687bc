# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Directed schedules about claims and migrations: the ones that random search finds rarely or never. Each builds its world, and raises if a promise breaks."""
from __future__ import annotations

from collections.abc import Callable

from pvcd.cluster import fences, schema
from pvcd.cluster.errors import HypervisorUnknown
from pvcd.cluster.records import Claim
from pvcd.cluster.schema import OpPhase
from pvcd.cluster.store import Store
from pvcd.local import Status

from .cluster import Cluster, Daemon
from .fakehypervisor import Job
from .fakezk import FakeZooKeeper

VM = "aaaa0000-0000-4000-8000-000000000001"


def world(home: str = "a", state: str = "start", name: str = "") -> Cluster:
    """Three nodes in `run`, one VM at `home`, at rest."""
    found = Cluster()
    for node in found.names:
        found.start_daemon(node)
    found.run(12.0)
    found.define(VM, home, state, name=name)
    found.run(3.0)
    if state == "start":
        assert found.fabric.running(VM) == [home]
    return found


def order(cluster: Cluster, **words: str) -> None:
    """Words written from outside; `state` comes last, as it is the trigger."""
    for key in sorted(words, reverse=True, key=lambda key: key != "state"):
        cluster.server.put(schema.domain_key(VM, key), words[key])


def turns(cluster: Cluster, seconds: float, *names: str, step_s: float = 0.25) -> None:
    """Only `names` go on; migrations stand still, but libvirt wakes a source in doubt."""
    end = cluster.now + seconds
    while cluster.now < end:
        cluster.pass_time(step_s)
        cluster.server.deliver()
        for job in cluster.fabric.jobs():
            if job.phase == "indoubt":
                cluster.fabric.advance(job)
        for name in names:
            daemon = cluster.hosts[name].daemon
            if daemon is not None:
                daemon.turn()


def until(cluster: Cluster, condition: Callable[[], bool], *names: str) -> None:
    """Let `names` go on until something is so; a minute is enough for everything."""
    end = cluster.now + 60.0
    while not condition():
        assert cluster.now < end, "I2: nothing comes of it"
        turns(cluster, 0.25, *names)


def finishing(cluster: Cluster) -> Job:
    """A migration from a to c whose memory has moved: the source is paused, the destination about to be told."""
    order(cluster, hypervisor="c", state="migrate")
    return copied(cluster)


def copied(cluster: Cluster) -> Job:
    """Wait for the one migration, and let its memory move."""
    until(cluster, lambda: bool(cluster.fabric.jobs()), *cluster.names)
    job = cluster.fabric.jobs()[0]
    for _ in range(4):
        if job.phase != "finish":
            cluster.fabric.advance(job)
    assert job.phase == "finish"
    return job


def operator(cluster: Cluster) -> Store:
    return Store(FakeZooKeeper(cluster.server, "operator"))


def declared_off(cluster: Cluster, name: str) -> None:
    """An operator fences a node by hand and confirms at once that it is off, which is not true."""
    store = operator(cluster)
    view = store.view()
    version = store.keepalives([name])[name].version
    store.apply(fences.forced(view, name, "operator", version, "now"))
    store.apply(fences.proved(store.view(), name, "operator", "confirm", "now"))


def once(cluster: Cluster, *where: str) -> None:
    running = cluster.fabric.running(VM)
    assert len(running) == 1 and (not where or running[0] in where), f"I2: runs on {running}, not on {where}"


def rest(cluster: Cluster, seconds: float = 120.0) -> None:
    """Everything heals, and comes to rest."""
    for host in cluster.hosts.values():
        host.bmc, host.hypervisor.answers = "ok", True
        if not host.zk.connected:
            host.zk.heal()
        cluster.power_on(host.name)
    cluster.run(seconds)
    state, home, claim = cluster.word(VM, "state"), cluster.word(VM, "hypervisor"), cluster.claim(VM)
    assert state == "start" and cluster.fabric.running(VM) == [home], f"I2: {state} at {home}, runs on {cluster.fabric.running(VM)}"
    assert claim is not None and claim.node == home and claim.op is None


# ------------------------------------------------------------------------------------------------- hand-off of a migration

def destination_dies_in_the_last_step() -> None:
    """The source is paused in doubt; when the destination is proved dead, the source's copy goes on, or starts again."""
    cluster = world()
    job = finishing(cluster)
    cluster.power_off("c")
    cluster.hosts["c"].down_since = float("inf")
    cluster.fabric.advance(job, lost=True, resumed=False)
    cluster.run(90.0)
    once(cluster)
    rest(cluster)


def source_host_vanishes_in_the_data_phase() -> None:
    """The half copy is never the guest: it is destroyed, and the VM recovered."""
    cluster = world()
    order(cluster, hypervisor="c", state="migrate")
    until(cluster, lambda: bool(cluster.fabric.jobs()), *cluster.names)
    cluster.fabric.advance(cluster.fabric.jobs()[0])
    assert cluster.hosts["c"].hypervisor.look(VM).status is Status.MIGRATING
    cluster.power_off("a")
    cluster.hosts["a"].down_since = float("inf")
    cluster.run(90.0)
    once(cluster, "b", "c")
    rest(cluster)


def source_daemon_dies_while_the_call_runs() -> None:
    """The job goes on without its caller; afterwards nobody knows of a call, and the destination is asked."""
    cluster = world()
    job = finishing(cluster)
    cluster.stop_daemon("a")
    cluster.fabric.advance(job)
    cluster.fabric.advance(job)
    cluster.run(20.0)
    once(cluster, "c")
    rest(cluster)


def refused_for_ever() -> None:
    """The destination's libvirt refuses every migration: tried once per order, not for ever."""
    cluster = world()
    cluster.hosts["c"].hypervisor.answers = True
    calls = 0
    order(cluster, hypervisor="c", state="migrate")
    for _ in range(400):
        turns(cluster, 0.25, *cluster.names)
        for job in cluster.fabric.jobs():
            calls += 1
            cluster.fabric.advance(job, lost=True)
    assert calls == 1, f"{calls} calls"
    assert cluster.word(VM, "state") == "start" and cluster.word(VM, "hypervisor") == "a"
    once(cluster, "a")


def stop_during_a_migration() -> None:
    """`stop` aborts the data phase; whoever then holds the claim stops it."""
    cluster = world()
    order(cluster, hypervisor="c", state="migrate")
    until(cluster, lambda: bool(cluster.fabric.jobs()), *cluster.names)
    cluster.fabric.advance(cluster.fabric.jobs()[0])
    order(cluster, state="stop")
    cluster.run(30.0)
    assert not cluster.fabric.running(VM) and cluster.claim(VM) is None and cluster.word(VM, "state") == "stop"


def ready_withdrawn() -> None:
    """Another target while the first destination is ready: its operation is withdrawn, and the VM goes to the second."""
    cluster = world()
    order(cluster, hypervisor="c", state="migrate")
    until(cluster, lambda: (claim := cluster.claim(VM)) is not None and claim.op is not None, "c")
    claim = cluster.claim(VM)
    assert claim is not None and claim.op is not None and claim.op.phase is OpPhase.READY
    order(cluster, hypervisor="b", state="migrate")
    cluster.run(30.0)
    once(cluster, "b")


# ------------------------------------------------------------------------------------------------------- claims and words

def late_offer_of_an_old_claim() -> None:
    """c has decided to receive from a; before it writes, the VM is stopped and started on b: the late write must fail."""
    cluster = world()
    held: list[Daemon] = []

    def interrupt(daemon: Daemon, what: str) -> None:
        if daemon.host.name != "c" or what != "commit" or held or cluster.word(VM, "state") != "migrate":
            return
        held.append(daemon)
        order(cluster, state="stop")
        turns(cluster, 5.0, "a")
        order(cluster, hypervisor="b", state="start")
        turns(cluster, 5.0, "b")
        assert cluster.fabric.running(VM) == ["b"]
    cluster.interrupt = interrupt
    order(cluster, hypervisor="c", state="migrate")
    turns(cluster, 5.0, "c")
    assert held
    claim = cluster.claim(VM)
    assert isinstance(claim, Claim) and (claim.node, claim.op) == ("b", None), f"I3: {claim}"
    order(cluster, hypervisor="a", state="start")
    cluster.run(60.0)
    once(cluster, "a")


def late_hand_over() -> None:
    """The source hands over to c; before it writes, it was declared dead, c has gone on, the VM was stopped and started on b: b keeps it."""
    cluster = world()
    job = finishing(cluster)
    cluster.fabric.advance(job)
    cluster.fabric.advance(job)
    held: list[str] = []

    def interrupt(daemon: Daemon, what: str) -> None:
        if daemon.host.name == "a" and what == "commit" and not held and "domain" in {key[0] for key in daemon.queue._running}:
            held.append(what)
            declared_off(cluster, "a")
            turns(cluster, 3.0, "c")
            assert cluster.fabric.running(VM) == ["c"]
            order(cluster, state="stop")
            turns(cluster, 3.0, "c")
            order(cluster, hypervisor="b", state="start")
            turns(cluster, 3.0, "b")
            assert cluster.fabric.running(VM) == ["b"]
    cluster.interrupt = interrupt
    turns(cluster, 10.0, "a")
    assert held
    cluster.run(30.0)
    once(cluster, "b")


def flush_tells_the_truth() -> None:
    """`flushed` is written when nothing is there any more, not before."""
    cluster = world()
    cluster.server.put(schema.node_key("a", "domainstate"), "flush")
    while cluster.server.text(schema.node_key("a", "domainstate")) == "flush":
        cluster.run(0.25)
        assert cluster.now < 1100.0
    assert not cluster.hosts["a"].hypervisor.copies, "I12: called flushed, and not empty"
    once(cluster, "b", "c")


def late_acquire_of_a_fenced_node() -> None:
    """A worker of a has decided to acquire; a is declared off and comes back as a new incarnation: the old one writes nothing."""
    cluster = world(state="stop")
    done: list[str] = []

    def interrupt(daemon: Daemon, what: str) -> None:
        if daemon.host.name != "a" or what != "commit" or done or cluster.word(VM, "state") != "start" or daemon.standing.actor() is None:
            return
        done.append(what)
        declared_off(cluster, "a")
    cluster.interrupt = interrupt
    order(cluster, state="start")
    daemon = cluster.hosts["a"].daemon
    assert daemon is not None
    cluster.server.deliver()
    daemon.due["keepalive"] = float("inf")  # its keepalive thread has not noticed yet
    daemon.turn()
    assert done
    claim = cluster.claim(VM)
    assert claim is None, f"I3: a fenced incarnation has acquired: {claim}"
    rest(cluster)


def worker_wakes_after_its_node_was_fenced() -> None:
    """A worker of a stands right before createXML; a is declared off, b starts the VM; the process of a exits before it wakes."""
    cluster = world(state="stop")
    held: list[str] = []

    def interrupt(daemon: Daemon, what: str) -> None:
        if daemon.host.name != "a" or what != "create" or held:
            return
        held.append(what)
        declared_off(cluster, "a")
        cluster.run(60.0)
    cluster.interrupt = interrupt
    order(cluster, state="start")
    cluster.run(10.0)
    assert held
    once(cluster)
    rest(cluster)


def gate_before_a_late_start() -> None:
    """a has claimed and is about to start; right before the gate the VM is sent to b: a must not start it."""
    cluster = world(state="stop")
    held: list[str] = []

    def interrupt(daemon: Daemon, what: str) -> None:
        claim = cluster.claim(VM)
        if daemon.host.name == "a" and what in ("gate", "create") and not held and claim is not None and claim.node == "a":
            held.append(what)
            order(cluster, hypervisor="b", state="start")
    cluster.interrupt = interrupt
    order(cluster, state="start")
    cluster.run(20.0)
    assert held
    assert [event for event in cluster.fabric.events if event[1] == "a" and "starts" in event[3]] == []
    once(cluster, "b")


def unanswered_start() -> None:
    """The answer to createXML is lost and libvirt hangs; the VM is sent elsewhere: the claim is kept until absence was seen twice."""
    cluster = world(state="stop")
    hypervisor = cluster.hosts["a"].hypervisor
    create, late = hypervisor.create, []

    def unanswered(xml: str) -> None:
        """libvirtd has not finished: the domain will appear later."""
        create(xml)
        late.append(hypervisor.copies.pop(VM))
        raise HypervisorUnknown("the answer was lost")
    hypervisor.create = unanswered  # type: ignore[method-assign]
    order(cluster, state="start")
    turns(cluster, 1.0, "a")
    hypervisor.create = create  # type: ignore[method-assign]
    order(cluster, hypervisor="b", state="start")
    turns(cluster, 8.0, "a", "b")
    hypervisor.copies[VM] = late[0]
    cluster.fabric.say("a", VM, "the late domain appears")
    cluster.run(60.0)
    once(cluster, "b")


def running_without_a_claim() -> None:
    """Coming from 0.1: the guest runs on a, nobody holds a claim, and its home is b: a adopts it, and it goes home live."""
    cluster = Cluster()
    for name in cluster.names:
        cluster.start_daemon(name)
    cluster.run(12.0)
    cluster.define(VM, "b", "stop")
    cluster.hosts["a"].hypervisor.create(cluster.server.text(schema.domain_key(VM, "xml")) or "")
    order(cluster, state="start")
    turns(cluster, 3.0, "a")
    cluster.run(60.0)
    once(cluster, "b")
    assert not any("destroyed" in event[3] for event in cluster.fabric.events)


def rehomed_while_running() -> None:
    """0.1 writes a new `hypervisor` under a running VM in `start`: it goes there live, and lives on."""
    cluster = world()
    order(cluster, hypervisor="c")
    cluster.run(60.0)
    once(cluster, "c")
    assert sum("starts" in event[3] for event in cluster.fabric.events) == 1


SCHEDULES: tuple[Callable[[], None], ...] = (
    destination_dies_in_the_last_step, source_host_vanishes_in_the_data_phase, source_daemon_dies_while_the_call_runs, refused_for_ever,
    stop_during_a_migration, ready_withdrawn, late_hand_over, flush_tells_the_truth, late_offer_of_an_old_claim,
    late_acquire_of_a_fenced_node, worker_wakes_after_its_node_was_fenced, gate_before_a_late_start, unanswered_start,
    running_without_a_claim, rehomed_while_running)
