# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Hosts and a ZooKeeper that are not what they say: two hosts of one name, renamed hosts, a restored copy, a node removed too early."""
from __future__ import annotations

from collections.abc import Callable

from pvcd.cluster import fences, schema
from pvcd.cluster.errors import Conflict
from pvcd.cluster.records import Fence, decode_hold
from pvcd.cluster.schema import DaemonState

from .cluster import Cluster, Daemon
from .directed import VM, once, operator, order, rest, turns, world
from .fakezk import Node


def _lives(cluster: Cluster) -> int:
    return sum("starts" in event[3] for event in cluster.fabric.events)


def _untouched(cluster: Cluster, where: str, lives: int) -> None:
    once(cluster, where)
    assert _lives(cluster) == lives, "a guest was started anew"
    assert not any("destroyed" in event[3] for event in cluster.fabric.events), "a guest was destroyed"


# ------------------------------------------------------------------------------------------------------ two hosts of one name

def copy_of_a_living_host() -> None:
    """A cloned host boots while the original sends keepalives: its boot is no proof of anybody's death."""
    cluster = world()
    clone = cluster.copy_of("a")
    cluster.run(60.0)
    assert clone.refused and clone.daemon is None
    _untouched(cluster, "a", 1)


def copy_that_starts_again_and_again() -> None:
    """Also when somebody starts it by hand, at every moment of the original's tick."""
    cluster = world()
    clone = cluster.copy_of("a")
    for pause_s in (3.0, 4.25, 5.5, 11.0):
        cluster.run(pause_s + 10.0)
        assert clone.refused
        clone.refused = False
    _untouched(cluster, "a", 1)


def original_awakes_while_the_copy_joins() -> None:
    """The watch is over and nothing has moved; the original's keepalive comes before the copy's registration does."""
    cluster = world()
    original = cluster.hosts["a"].daemon
    assert original is not None
    clone, awake = cluster.copy_of("a"), [""]

    def interrupt(daemon: Daemon, what: str) -> None:
        if daemon.host is clone and what == "commit" and cluster.server.text(schema.node_key("a", "incarnation")) == "a77/0" and awake[0] == "":
            awake[0] = "now"
            original.keepalive.round()
    cluster.interrupt = interrupt
    cluster.start_daemon("a2")
    turns(cluster, 12.0, "a2", "b", "c")
    assert awake == ["now"], "the copy has not come as far as its registration"
    cluster.run(60.0)
    _untouched(cluster, "a", 1)


def boot_is_still_a_proof() -> None:
    """A host that is alone under its name comes back after a quick reboot, and its VM with it."""
    cluster = world()
    cluster.power_off("a")
    cluster.power_on("a")
    cluster.run(60.0)
    once(cluster)
    rest(cluster)


def copy_of_a_running_host() -> None:
    """Two that share even the boot (a snapshot of a virtual hypervisor): they see each other's keepalives, and neither acts nor dies."""
    cluster = world(state="stop")
    twin = cluster.copy_of("a")
    twin.boot = cluster.hosts["a"].boot
    cluster.run(40.0)
    order(cluster, state="start")
    cluster.run(60.0)
    assert not cluster.fabric.running(VM), "acted on although there are two"
    assert cluster.server.text(schema.node_key("a", "daemonstate")) == "run", "fenced"
    cluster.power_off("a2")
    cluster.hosts["a2"].down_since = float("inf")
    cluster.run(120.0)
    once(cluster, "a")


# --------------------------------------------------------------------------------------------------- ZooKeeper is taken back

def _moved(cluster: Cluster) -> dict[str, Node]:
    """A backup is taken, and then the VM moves from a to b."""
    backup = cluster.server.copy()
    cluster.run(10.0)
    order(cluster, hypervisor="b", state="migrate")
    cluster.run(30.0)
    once(cluster, "b")
    return backup


def _warned(cluster: Cluster) -> bool:
    return decode_hold(cluster.server.nodes[schema.FENCES].value).restored


def restored_while_all_run() -> None:
    """The claim names a again, and a lives: nobody starts or destroys anything, nobody is fenced."""
    cluster = world()
    cluster.server.restore(_moved(cluster))
    cluster.run(180.0)
    _untouched(cluster, "b", 1)
    assert _warned(cluster)


def restored_while_all_daemons_are_stopped() -> None:
    """As careful people do it: the daemons are stopped, ZooKeeper is restored, the daemons start."""
    cluster = world()
    backup = _moved(cluster)
    for name in cluster.names:
        cluster.stop_daemon(name)
    cluster.server.restore(backup)
    cluster.run(180.0)
    _untouched(cluster, "b", 1)
    assert all(cluster.hosts[name].refused for name in cluster.names)


def restored_while_one_was_away_for_long() -> None:
    """c was stopped before the copy was taken: its own mark is older than the data, and the others' warning holds it back."""
    cluster = world()
    cluster.stop_daemon("c")
    cluster.hosts["c"].down_since = float("inf")
    cluster.server.put(schema.node_key("c", "daemonstate"), "stop")
    cluster.run(10.0)
    cluster.server.restore(_moved(cluster))
    cluster.run(7.0)
    cluster.hosts["c"].down_since = cluster.now
    cluster.run(180.0)
    assert cluster.hosts["c"].refused
    _untouched(cluster, "b", 1)


def worker_is_not_faster_than_the_look() -> None:
    """The connection is new; a's worker visits the VM before a's keepalive has looked what is behind it."""
    cluster = world()
    backup = _moved(cluster)
    cluster.server.restore(backup)
    for name in ("a", "b"):
        daemon = cluster.hosts[name].daemon
        assert daemon is not None
        daemon.keepalive.round = lambda: None  # type: ignore[method-assign]
    turns(cluster, 30.0, "a", "b")
    _untouched(cluster, "b", 1)


def last_transactions_are_lost() -> None:
    """The servers lose what they had acknowledged last: the move of the claim, and nothing that is older."""
    cluster = world()
    order(cluster, hypervisor="b", state="migrate")
    while cluster.fabric.running(VM) != ["b"]:
        claim = cluster.claim(VM)
        if claim is None or claim.node == "a":
            backup = cluster.server.copy()
        cluster.run(0.25)
    cluster.server.restore(backup)
    cluster.run(120.0)
    _untouched(cluster, "b", 1)


def everything_is_lost() -> None:
    """An empty ZooKeeper is no new cluster to who has been in an old one."""
    cluster = world()
    cluster.server.restore({})
    cluster.run(40.0)
    for name in cluster.names:
        cluster.stop_daemon(name)
    cluster.run(60.0)
    assert all(cluster.hosts[name].refused for name in cluster.names) and not cluster.server.nodes
    _untouched(cluster, "a", 1)


def way_out() -> None:
    """As the message says: each VM where the claims say, marks away, fencing on hold, start."""
    cluster = world()
    cluster.server.restore(_moved(cluster))
    cluster.run(30.0)
    cluster.hosts["b"].hypervisor._remove(VM, "stopped by hand")
    for name in cluster.names:
        cluster.stop_daemon(name)
        cluster.hosts[name].mark = type(cluster.hosts[name].mark)()
    store = operator(cluster)
    store.apply(fences.held(store.view().hold, True, None, "op"))
    for name in cluster.names:
        cluster.hosts[name].refused = False
    cluster.run(60.0)
    store.apply(fences.held(store.view().hold, False, None, "op"))
    rest(cluster)


def servers_restart_and_elect() -> None:
    """No mark is taken back: the VMs and the nodes notice nothing."""
    cluster = world()
    for _ in range(3):
        cluster.server.restart()
        cluster.run(7.0)
        cluster.stop_daemon("b")
        cluster.hosts["c"].zk.lag(True)
        cluster.run(7.0)
    order(cluster, hypervisor="c", state="migrate")
    cluster.run(40.0)
    once(cluster, "c")
    assert not _warned(cluster) and not any(host.refused for host in cluster.hosts.values())


def keys_are_wiped() -> None:
    """`pvc init` of a cluster that lives, and of one whose daemons are stopped: the keys are made anew, which takes nothing back."""
    cluster = world()
    for stopped in (False, True):
        for name in cluster.names:
            if stopped:
                cluster.stop_daemon(name)
            cluster.server.delete_tree(schema.node(name))
        cluster.run(30.0)
        assert not any(host.refused for host in cluster.hosts.values()) and not _warned(cluster)
        assert all(cluster.server.text(schema.node_key(name, "daemonstate")) == "run" for name in cluster.names)
    _untouched(cluster, "a", 1)


# ------------------------------------------------------------------------------------------------------- removed too early

def _stopped(cluster: Cluster, name: str) -> None:
    daemon = cluster.hosts[name].daemon
    assert daemon is not None
    daemon._write_state(DaemonState.STOP)
    cluster.stop_daemon(name)
    cluster.hosts[name].down_since = float("inf")
    cluster.run(3.0)


def _removal(cluster: Cluster, name: str) -> Callable[[], None]:
    """What an operator has decided on, and types the confirmation for."""
    store = operator(cluster)
    view, keys = store.view(), store.node_key_names(name)
    return lambda: store.apply(fences.removed(view.nodes[name], keys, view.fences[name], "op", "now")) and None


def removed_while_it_comes_back() -> None:
    """The prompt is open; the node starts, and a VM on it: the removal is not done."""
    cluster = world(state="stop")
    _stopped(cluster, "a")
    removal = _removal(cluster, "a")
    cluster.start_daemon("a")
    cluster.run(5.0)
    order(cluster, state="start")
    cluster.run(5.0)
    once(cluster, "a")
    try:
        removal()
        raise AssertionError("removed although it is alive")
    except Conflict:
        cluster.run(90.0)
    _untouched(cluster, "a", 1)
    rest(cluster)


def removed_and_back_with_its_own() -> None:
    """Removed by other means (an old client) while its guest runs: what its own claim allows is its own when it comes back."""
    cluster = world()
    cluster.server.put(schema.fence("a"), Fence("a1/0", schema.FencePhase.REMOVED, method=fences.REMOVED).encode())
    cluster.run(60.0)
    _untouched(cluster, "a", 1)
    assert '"phase":"up"' in (cluster.server.text(schema.fence("a")) or ""), "it does not join"
    rest(cluster)


# -------------------------------------------------------------------------------------------------------- started by libvirt

def started_by_libvirt_at_boot() -> None:
    """a reboots quickly, and libvirt starts the guest before pvcd has looked: no claim allows it, and nothing waits for ever."""
    cluster = world()
    cluster.hosts["a"].hypervisor.autostarts[VM] = (f"vm{VM[:4]}", 512)
    cluster.power_off("a")
    cluster.power_on("a")
    cluster.run(25.0)
    assert cluster.server.text(schema.node_key("a", "incarnation")) == "a2/0", "it does not join"
    cluster.run(35.0)
    once(cluster)
    rest(cluster)




SCHEDULES: tuple[Callable[[], None], ...] = (
    copy_of_a_living_host, copy_that_starts_again_and_again, original_awakes_while_the_copy_joins, boot_is_still_a_proof, copy_of_a_running_host,
    restored_while_all_run, restored_while_all_daemons_are_stopped, restored_while_one_was_away_for_long, worker_is_not_faster_than_the_look,
    last_transactions_are_lost, everything_is_lost, way_out, servers_restart_and_elect, keys_are_wiped, removed_while_it_comes_back,
    removed_and_back_with_its_own, started_by_libvirt_at_boot)
