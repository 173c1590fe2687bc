# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The faults. Each holds for some seconds, is healed, and says which nodes may be fenced and whether guests may live a new life."""
from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from lablib.host import LabError
from lablib.lab import Lab, four_letter_word

Heal = Callable[[], None]


@dataclass
class Injected:
    """`may_die`: nodes that may be fenced. `ends_lives`: a QEMU dies. `hold_s`: how long it lasts. `heal` ends it."""

    name: str
    hold_s: float
    heal: Heal
    may_die: list[str] = field(default_factory=list)
    ends_lives: bool = False


@dataclass(frozen=True)
class Target:
    """What a fault is done to: the lab, the node it afflicts, the VMs, and the dice."""

    lab: Lab
    node: str
    vms: list[str]
    dice: random.Random

    def kill(self, unit: str, signal: str, node: str = "") -> None:
        self.lab.node(node or self.node).run("systemctl", "kill", "--kill-whom=main", "-s", signal, unit, check=False)


def _nothing() -> None:
    return None


# ------------------------------------------------------------------------------------- nobody may be fenced, no guest is touched

def kill_pvcd(t: Target) -> Injected:
    t.kill("pvcd.service", "KILL")
    return Injected("pvcd killed", t.dice.uniform(2, 10), _nothing)


def freeze_pvcd(t: Target) -> Injected:
    t.kill("pvcd.service", "STOP")
    return Injected("pvcd frozen", 20, lambda: t.kill("pvcd.service", "CONT"))


def stop_pvcd(t: Target) -> Injected:
    t.lab.node(t.node).run("systemctl", "stop", "pvcd.service", timeout_s=90)
    return Injected("pvcd stopped", t.dice.uniform(5, 45), lambda: _start(t, "pvcd.service"))


def _start(t: Target, unit: str) -> None:
    t.lab.node(t.node).run("systemctl", "start", unit, check=False, timeout_s=90)


def kill_libvirtd(t: Target) -> Injected:
    t.kill("libvirtd.service", "KILL")
    return Injected("libvirtd killed", t.dice.uniform(2, 10), _nothing)


def freeze_libvirtd(t: Target) -> Injected:
    t.kill("libvirtd.service", "STOP")
    return Injected("libvirtd frozen", t.dice.uniform(10, 60), lambda: t.kill("libvirtd.service", "CONT"))


def _servers_away(t: Target, name: str, nodes: list[str], hold_s: float) -> Injected:
    for node in nodes:
        t.lab.node(node).run("systemctl", "stop", "zookeeper.service", check=False)
        t.kill("zookeeper.service", "KILL", node)

    def heal() -> None:
        for node in nodes:
            t.lab.node(node).run("systemctl", "start", "zookeeper.service", check=False)
    return Injected(name, hold_s, heal)


def zookeeper_server_away(t: Target) -> Injected:
    return _servers_away(t, "one ZooKeeper server away", [t.node], t.dice.uniform(10, 60))


def zookeeper_leader_away(t: Target) -> Injected:
    leader = next((n for n in t.lab.names if "Mode: leader" in four_letter_word(t.lab.node_address(n), "srvr")), t.node)
    return _servers_away(t, "ZooKeeper's leader away", [leader], t.dice.uniform(10, 60))


def zookeeper_away(t: Target) -> Injected:
    return _servers_away(t, "all ZooKeeper servers away", list(t.lab.names), t.dice.uniform(20, 70))


def short_cut(t: Target) -> Injected:
    t.lab.cut(t.node)
    return Injected("network cut for a short time", t.dice.uniform(3, 20), lambda: t.lab.heal(t.node))


def frozen_node(t: Target) -> Injected:
    t.lab.node(t.node).freeze(True)
    return Injected("node frozen for a short time", t.dice.uniform(3, 20), lambda: t.lab.node(t.node).freeze(False))


def migration_port_blocked(t: Target) -> Injected:
    t.lab.block(t.node, 16509)
    return Injected("libvirt's port blocked", t.dice.uniform(5, 30), lambda: t.lab.heal(t.node))


def packets_lost(t: Target) -> Injected:
    t.lab.lose(t.node, t.dice.uniform(0.05, 0.2))
    return Injected("packets lost", t.dice.uniform(10, 40), lambda: t.lab.heal(t.node))


def controller_dead(t: Target) -> Injected:
    t.lab.bmc(t.node).set_mode("dead")
    return Injected("controller dead", t.dice.uniform(5, 30), lambda: t.lab.bmc(t.node).set_mode("ok"))


# ------------------------------------------------------------------------------------------------------- the node may be fenced

def power_cut(t: Target) -> Injected:
    """PVC itself switches it on again, after the fence."""
    t.lab.kill(t.node)
    return Injected("power cut", 45, _nothing, [t.node])


def short_power_cut(t: Target) -> Injected:
    """It boots before anybody can have noticed: its VMs start where they were."""
    t.lab.kill(t.node)
    return Injected("power cut, and back at once", t.dice.uniform(1, 15), lambda: t.lab.node(t.node).boot(), [t.node])


def slow_controller(t: Target) -> Injected:
    t.lab.bmc(t.node).set_mode("slow")
    t.lab.cut(t.node)
    return Injected("network cut, slow controller", 60, lambda: _healed(t), [t.node])


def long_cut(t: Target) -> Injected:
    t.lab.cut(t.node)
    return Injected("network cut for a long time", t.dice.uniform(28, 75), lambda: _healed(t), [t.node])


def cut_without_proof(t: Target) -> Injected:
    mode = t.dice.choice(["dead", "dead", "wrong", "lie", "badpw"])
    t.lab.bmc(t.node).set_mode(mode)
    t.lab.cut(t.node)
    return Injected(f"network cut, controller {mode}", t.dice.uniform(40, 90), lambda: _healed(t), [t.node])


def cut_from_zookeeper(t: Target) -> Injected:
    for port in (2181, 2888, 3888):
        t.lab.block(t.node, port)
    return Injected("cut from ZooKeeper only", t.dice.uniform(28, 75), lambda: _healed(t), [t.node])


def one_way_link(t: Target) -> Injected:
    direction = t.dice.choice(["INPUT", "OUTPUT"])
    t.lab.silence(t.node, direction)
    return Injected(f"link one way, no {direction.lower()}", t.dice.uniform(28, 60), lambda: _healed(t), [t.node])


def janitors_killed(t: Target) -> Injected:
    """Whoever fences is killed somewhere around the commit, the power-off, the proof or the recovery."""
    t.lab.kill(t.node)
    others = [name for name in t.lab.names if name != t.node]
    timers = [threading.Timer(t.dice.uniform(28, 38), t.kill, ("pvcd.service", "KILL", name)) for name in others]
    for timer in timers:
        timer.start()

    return Injected("power cut, and those who fence are killed", 60, _nothing, [t.node])


def _healed(t: Target) -> None:
    """The network first: what was in doubt is settled with the node, before its controller answers again."""
    try:
        t.lab.heal(t.node)
    except LabError:
        return  # it is off, or boots just now, with a cable that is plugged in; the audit heals it once more


def kill_qemu(t: Target) -> Injected:
    vm = t.dice.choice(t.vms)
    for node in t.lab.names:
        t.lab.node(node).run("pkill", "-9", "-f", f"guest={vm},", check=False)
    return Injected("a QEMU killed", 5, _nothing, ends_lives=True)


HARMLESS = (kill_pvcd, freeze_pvcd, stop_pvcd, kill_libvirtd, freeze_libvirtd, zookeeper_server_away, zookeeper_leader_away, zookeeper_away,
            short_cut, frozen_node, migration_port_blocked, packets_lost, controller_dead, kill_qemu)
DEADLY = (power_cut, short_power_cut, slow_controller, long_cut, cut_without_proof, cut_from_zookeeper, one_way_link, janitors_killed)
