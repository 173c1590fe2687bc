# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Directed schedules of what the parts do to each other: a departure and an outage, a homecoming and a stopped node, two fences and one janitor."""
from __future__ import annotations

from pvcd.cluster import schema
from pvcd.cluster.schema import OpPhase

from .cluster import Cluster
from .directed import VM, order, rest, turns, until, world
from .directed_bmc import dies, fence_of
from .directed_departure import leaves, word
from .directed_faults import OTHER, one_life


def stops(cluster: Cluster, name: str) -> None:
    """`systemctl stop pvcd`, as far as the others can see; it stays so."""
    cluster.stop_daemon(name)
    cluster.hosts[name].down_since = float("inf")
    cluster.server.put(schema.node_key(name, "daemonstate"), "stop")


# ---------------------------------------------------------------------------------------------------------- the homecoming

def homecoming_from_a_node_that_is_stopped() -> None:
    """A VM that cannot come, because pvcd is stopped where it runs, keeps no node from taking VMs; it comes when that is back."""
    cluster = world()
    cluster.server.put(schema.node_key("a", "domainstate"), "flush")
    cluster.run(30.0)
    away = cluster.fabric.running(VM)[0]
    assert away != "a" and word(cluster, "a") == "flushed"
    stops(cluster, away)
    cluster.server.put(schema.node_key("a", "domainstate"), "unflush")
    cluster.run(90.0)
    assert word(cluster, "a") == "ready", f"B17: a is {word(cluster, 'a')} as long as {away} is stopped"
    one_life(cluster, away)
    cluster.hosts[away].down_since = cluster.now
    cluster.run(60.0)
    one_life(cluster, "a")


# ------------------------------------------------------------------------------------------------------------- the hand-off

def no_migration_to_a_daemon_that_stops() -> None:
    """It has said that it can take the VM, and is stopped before the source has begun: the guest would be paused there."""
    cluster = world()
    order(cluster, hypervisor="c", state="migrate")

    def offered() -> bool:
        claim = cluster.claim(VM)
        return claim is not None and claim.op is not None and claim.op.phase is OpPhase.READY
    until(cluster, offered, "c")
    stops(cluster, "c")
    cluster.run(60.0)
    one_life(cluster, "a")
    claim = cluster.claim(VM)
    assert claim is not None and claim.node == "a"


def source_that_may_not_act_in_the_data_phase() -> None:
    """ZooKeeper was restored, and nobody may move a claim until a person has looked: the guest must not arrive, and wait for that paused."""
    cluster = world()
    order(cluster, hypervisor="c", state="migrate")
    until(cluster, lambda: bool(cluster.fabric.jobs()), *cluster.names)
    job = cluster.fabric.jobs()[0]
    cluster.fabric.advance(job)
    cluster.server.put(schema.FENCES, '{"hold":true,"until":null,"by":"b","restored":true}')
    turns(cluster, 20.0, *cluster.names)
    assert job.aborted, "its guest would be paused for as long as nobody looks"
    cluster.run(300.0)
    one_life(cluster, "a")
    cluster.server.put(schema.FENCES, "")
    rest(cluster)
    one_life(cluster, "a")


def destination_is_shut_down_behind_its_offer() -> None:
    """A VM that is on its way to a host that is told to shut down, or to be flushed, at any moment of the way: it is sent on, in its one life."""
    for leaving in (True, False):
        for phase in ("ready", "prepare", "perform", "finish", "confirm"):
            cluster = _on_its_way(phase)
            if leaving:
                leaves(cluster, "c")
            else:
                cluster.server.put(schema.node_key("c", "domainstate"), "flush")
                cluster.run(60.0)
                assert word(cluster, "c") == "flushed"
            one_life(cluster, cluster.fabric.running(VM)[0])
            claim = cluster.claim(VM)
            assert cluster.fabric.running(VM) != ["c"] and claim is not None and claim.node != "c"


def _on_its_way(phase: str) -> Cluster:
    """A migration from a to c that has come so far."""
    cluster = world()
    order(cluster, hypervisor="c", state="migrate")
    until(cluster, lambda: _at(cluster, phase), *cluster.names)
    return cluster


def _at(cluster: Cluster, phase: str) -> bool:
    claim, jobs = cluster.claim(VM), cluster.fabric.jobs()
    if phase == "ready":
        return claim is not None and claim.op is not None
    if jobs and jobs[0].phase != phase:
        cluster.fabric.advance(jobs[0])
    return bool(jobs) and jobs[0].phase == phase


# ------------------------------------------------------------------------------------------------------------ outside PVC

def it_runs_outside_among_many() -> None:
    """More guests run outside PVC than a node can name: the one that PVC knows is named, so that nobody starts it elsewhere."""
    cluster = world("b", "stop")
    held = cluster.hosts["a"]
    for number in range(100):
        held.hypervisor.virsh_start(f"00000000-0000-4000-8000-{number:012d}", f"other-{number}", 1)
    held.hypervisor.virsh_start(VM, "old1")
    cluster.run(12.0)
    held.zk.cut()  # the node that has it hears of nothing for a moment
    order(cluster, state="start")
    cluster.run(8.0)
    held.zk.heal()
    cluster.run(30.0)
    one_life(cluster, cluster.fabric.running(VM)[0])


# ---------------------------------------------------------------------------------------------------------------- fences

def two_die_and_their_janitor_reaches_neither() -> None:
    """Five nodes, two die at once; each of two others reaches none of the controllers, the last one does."""
    for blind in (("a", "b"), ("a", "e"), ("b", "e")):
        cluster = Cluster(names=("a", "b", "c", "d", "e"))
        for node in cluster.names:
            cluster.start_daemon(node)
        cluster.run(12.0)
        for janitor in blind:
            for dead in ("c", "d"):
                cluster.bmcs.cut.add((janitor, dead))
        cluster.bmcs.takes_s.update(c=7.0, d=11.0)
        cluster.define(VM, "c")
        cluster.define(OTHER, "d", name="other")
        cluster.run(5.0)
        for dead in ("c", "d"):
            dies(cluster, dead)
        cluster.run(180.0)
        for dead in ("c", "d"):
            assert '"phase":"fencing"' not in fence_of(cluster, dead), f"B4: {dead} waits; blind are {blind}"


SCHEDULES = (homecoming_from_a_node_that_is_stopped, no_migration_to_a_daemon_that_stops, source_that_may_not_act_in_the_data_phase,
             destination_is_shut_down_behind_its_offer, it_runs_outside_among_many, two_die_and_their_janitor_reaches_neither)
