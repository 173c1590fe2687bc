# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Directed schedules about management controllers: whose they are, who reaches them, how long they take, and what they
forget.
"""

from __future__ import annotations

import json

from pvcd.cluster import fences, schema
from pvcd.cluster.store import Store

from .cluster import Cluster, Daemon
from .directed import VM, declared_off, once, operator, until, world
from .directed_fences import silent

OTHER = "bbbb0000-0000-4000-8000-000000000002"


def configured(home: str = "a", inside: bool = False, alias: dict[str, str] | None = None, **hostnames: str) -> Cluster:
    """As `world`, with these `ipmi_hostname`s."""
    found = Cluster()
    found.bmcs.configured.update(hostnames)
    found.bmcs.alias.update(alias or {})
    found.bmcs.inside = inside
    for node in found.names:
        found.start_daemon(node)
    found.run(30.0)
    found.define(VM, home)
    found.run(400.0)
    return found


def fence_of(cluster: Cluster, name: str) -> str:
    return cluster.server.text(schema.fence(name)) or ""


def tries_of(cluster: Cluster, name: str) -> list[str]:
    found = json.loads(cluster.server.text(schema.node_key(name, "fencetries")) or "{}")
    return [one["by"] for one in found.get("last", [])]


def said(cluster: Cluster, text: str) -> int:
    return sum(text in line for line in cluster.log)


def committed(cluster: Cluster, name: str) -> None:
    until(cluster, lambda: '"phase":"fencing"' in fence_of(cluster, name), *cluster.names)


def dies(cluster: Cluster, name: str) -> None:
    cluster.power_off(name)
    cluster.hosts[name].down_since = float("inf")


# --------------------------------------------------------------------------------------------------------- whose it is


def never_told(cluster: Cluster, why: str) -> None:
    """a is cut off, and its controller is somebody else's: nobody is switched off, nothing is proved, and it is said
    why.
    """
    assert said(cluster, f"a: its BMC is broken: {why}"), "A1: it is not said before it matters"
    silent(cluster, "a")
    cluster.run(200.0)
    assert not cluster.bmcs.offs, f"A1: {cluster.bmcs.offs}"
    assert all(host.power for host in cluster.hosts.values())
    assert '"phase":"fencing"' in fence_of(cluster, "a")
    once(cluster, "a")


def one_hostname_for_two_nodes() -> None:
    """a's configuration names b's controller: b is healthy, and must stay so."""
    never_told(configured(a="b"), "a and b have the same ipmi_hostname b")


def one_controller_under_two_names() -> None:
    """a's configuration names b's controller by another name, which leads to the same address."""
    never_told(configured(a="b-lom", alias={"b-lom": "b"}), "the BMCs of a and b have the same GUID")


def the_host_knows_better() -> None:
    """a's controller answers with a GUID that the host does not see from inside, and that no other node has told yet.
    """
    found = configured(a="c-lom", alias={"c-lom": "c"}, inside=True)
    never_told(found, "the BMCs of a and c have the same GUID")
    found = configured(inside=True)
    found.server.put(
        schema.node_key("a", "ipmiinside"), json.dumps({"local": "42" * 15 + "aa", "product": "", "host": "a"})
    )
    found.run(70.0)
    never_told(found, "a is not the BMC of a")


def the_owner_of_a_shared_controller_dies() -> None:
    """Whose death its `off` would prove cannot be told: no fence of b either, until the configuration is right."""
    cluster = configured("b", a="b")
    silent(cluster, "b")
    cluster.run(100.0)
    assert not cluster.bmcs.offs and '"phase":"fencing"' in fence_of(cluster, "b")
    cluster.bmcs.configured.clear()
    cluster.stop_daemon("a")
    cluster.run(400.0)
    once(cluster, "a", "c")


def controller_is_late_at_the_start() -> None:
    """B8: what it did not say at the start it is asked again, until it is known."""
    cluster = Cluster()
    cluster.hosts["a"].bmc = "dead"
    for node in cluster.names:
        cluster.start_daemon(node)
    cluster.run(60.0)
    assert not cluster.server.text(schema.node_key("a", "ipmiguid"))
    cluster.hosts["a"].bmc = "ok"
    cluster.run(330.0)
    assert cluster.server.text(schema.node_key("a", "ipmiguid")), "B8: never asked again"


# ---------------------------------------------------------------------------------------------------- time that passes


def objection_while_its_controller_thinks() -> None:
    """A8: the controller takes 15 s to say whose it is, and the network is back after 3: the node has objected, and is
    left alone.
    """
    cluster = world()
    cluster.bmcs.takes_s["a"] = 15.0
    silent(cluster, "a")
    committed(cluster, "a")
    cluster.run(3.0)
    cluster.hosts["a"].zk.heal()
    cluster.run(60.0)
    assert not cluster.bmcs.offs, "A8: a node that had objected was switched off"
    once(cluster, "a")
    assert '"phase":"up"' in fence_of(cluster, "a")


def objection_right_before_the_order() -> None:
    """A8: whatever was decided on, the fence is read again in the very moment before `off`."""
    cluster = world()
    silent(cluster, "a")
    seen: list[str] = []

    def interrupt(daemon: Daemon, what: str) -> None:
        if what == "gate" and daemon.busy == {"bmc"} and not seen:
            seen.append(what)
            cluster.hosts["a"].zk.heal()
            owner = cluster.hosts["a"].daemon
            assert owner is not None
            owner.due["keepalive"] = 0.0
            owner.turn()

    cluster.interrupt = interrupt
    cluster.run(90.0)
    assert seen and not cluster.bmcs.offs, "A8: a node that had objected was switched off"
    once(cluster, "a")


def slow_controller_holds_up_nobody() -> None:
    """Two of five die; the controller of the one takes 19 s for each answer. The other is fenced and recovered as ever.
    """
    cluster = Cluster(names=("a", "b", "c", "d", "e"))
    for node in cluster.names:
        cluster.start_daemon(node)
    cluster.run(30.0)
    cluster.define(VM, "a")
    cluster.define(OTHER, "b")
    cluster.run(10.0)
    cluster.bmcs.takes_s["a"] = 19.0
    dies(cluster, "a")
    dies(cluster, "b")
    for name in ("a", "b"):
        committed(cluster, name)
    cluster.run(6.0)
    assert '"phase":"fencing"' in fence_of(cluster, "a") and cluster.fabric.running(OTHER), (
        "A8: b waits for the controller of a"
    )
    cluster.run(90.0)
    once(cluster, "c", "d", "e", "a", "b")


def an_earlier_fence_is_forgotten() -> None:
    """What a janitor learned in a fence that ended by an objection says nothing about the next one."""
    cluster = world()
    cluster.hosts["a"].bmc = "glitch"
    silent(cluster, "a")

    def interrupt(_daemon: Daemon, what: str) -> None:
        if what == "ipmi status" and cluster.hosts["a"].bmc == "ignore" and not cluster.hosts["a"].zk.connected:
            cluster.hosts["a"].zk.heal()

    cluster.interrupt = interrupt
    cluster.run(50.0)
    assert '"phase":"up"' in fence_of(cluster, "a")
    cluster.interrupt = lambda _daemon, _what: None
    cluster.hosts["a"].bmc = "ok"
    silent(cluster, "a")
    cluster.run(60.0)
    assert cluster.bmcs.offs, "the second fence sent no `off`"
    once(cluster, "b", "c")


# ----------------------------------------------------------------------------------------------------------- who tries


def janitor_without_a_way() -> None:
    """B4: the janitor does not reach the controller, the other node does: it fences."""
    for janitor in ("b", "c"):
        cluster = world()
        cluster.bmcs.cut.add((janitor, "a"))
        dies(cluster, "a")
        cluster.run(60.0)
        assert '"phase":"fencing"' not in fence_of(cluster, "a"), f"B4: {janitor} keeps everybody waiting"
        once(cluster, "b", "c")


def nobody_has_a_way() -> None:
    """B4: both try in turn, rarely after a while; and when the controller answers, it is over."""
    cluster = world()
    cluster.hosts["a"].bmc = "dead"
    dies(cluster, "a")
    cluster.run(1800.0)
    assert set(tries_of(cluster, "a")) == {"b", "c"}
    count = json.loads(cluster.server.text(schema.node_key("a", "fencetries")) or "{}")["count"]
    assert 8 <= count <= 24, f"{count} tries in half an hour"
    assert cluster.server.nodes[schema.FENCES + "/a"].version < 6, "the fence itself is left alone"
    state = json.loads(cluster.server.text(schema.node_key("b", "ipmistate")) or "{}")
    assert cluster.now - float(state["at"][1:]) < 400.0, "B7: a fence without an end keeps everybody from testing the other controllers"
    cluster.hosts["a"].bmc = "ok"
    cluster.run(400.0)
    once(cluster, "b", "c", "a")
    assert '"phase":"fencing"' not in fence_of(cluster, "a")


def checker_is_gone() -> None:
    """B7: the node that tested a's controller is away: another takes over, and each controller is tested by more than
    one node.
    """
    cluster = world()
    cluster.run(1500.0)
    state = json.loads(cluster.server.text(schema.node_key("a", "ipmistate")) or "{}")
    assert len({state["by"], *state["seen"]}) == 2, "B4: one node alone tests it"
    cluster.stop_daemon("b")
    cluster.hosts["b"].down_since = float("inf")
    cluster.server.put(schema.node_key("b", "daemonstate"), "stop")
    cluster.run(2000.0)
    state = json.loads(cluster.server.text(schema.node_key("a", "ipmistate")) or "{}")
    assert state["by"] == "c" and cluster.now - float(state["at"][1:]) < 700.0, (
        f"B7: last tested by {state['by']} at {state['at']}"
    )


# ------------------------------------------------------------------------------------------------------------ power on


def controller_is_busy_at_the_power_on() -> None:
    """B6: it takes the order and the machine stays off: told, tried again, also by the next janitor, until it says on.
    """
    cluster = world()
    cluster.hosts["a"].bmc = "busy"
    dies(cluster, "a")
    cluster.run(100.0)
    assert not cluster.hosts["a"].power and said(cluster, "a: it is not switched on: a was told to switch on")
    holder = json.loads(cluster.server.text("/locks/fence") or "[]")[0]
    cluster.stop_daemon(holder)
    cluster.server.expire(holder)
    cluster.run(20.0)
    cluster.hosts["a"].bmc = "ok"
    cluster.run(400.0)
    assert cluster.hosts["a"].power and '"phase":"up"' in fence_of(cluster, "a"), "B6: it stays off"


def operator_switches_on() -> None:
    """B6: a node that an operator confirmed to be off is switched on when he asks, and only then."""
    cluster = world()
    dies(cluster, "a")
    declared_off(cluster, "a")
    cluster.run(100.0)
    assert not cluster.hosts["a"].power
    store: Store = operator(cluster)
    store.apply(fences.power_asked("a", store.view().fences["a"]))
    cluster.run(30.0)
    assert cluster.hosts["a"].power and '"phase":"up"' in fence_of(cluster, "a")


SCHEDULES = (
    one_hostname_for_two_nodes,
    one_controller_under_two_names,
    the_host_knows_better,
    the_owner_of_a_shared_controller_dies,
    controller_is_late_at_the_start,
    objection_while_its_controller_thinks,
    objection_right_before_the_order,
    slow_controller_holds_up_nobody,
    an_earlier_fence_is_forgotten,
    janitor_without_a_way,
    nobody_has_a_way,
    checker_is_gone,
    controller_is_busy_at_the_power_on,
    operator_switches_on,
)
