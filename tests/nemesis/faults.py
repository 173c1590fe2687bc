# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The faults. Each is planned first and done then, so that the history tells of it before anybody can feel it; it holds for some
seconds, is healed, and says who may be fenced, who must be, and whose guests may live a new life.

A controller that reports off for a machine that runs (`lie-off`) is not among them. While the machine is linked, its keepalives
undo the proof, and the simulator holds that. While it is cut off there is nobody left who could know better: PVC believes the
controller, starts the guests elsewhere, and they run twice until the machine is back. The contract says that it does not cover this
(FAULTS 43), so a double life would be no violation, and the nemesis has no way to tell a permitted one from a bug.
"""
from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lablib.host import LabError, wait_for
from lablib.lab import Lab, four_letter_word

from .garbage import Garbage

Act = Callable[[], object]
SURE_S = 60.0
"""A cut or a power cut that is held so long, with a controller that answers, must have ended in recovery: 30 s of silence, the last
keepalive up to 5 s before, an election if the leader is cut too, off and two readings, the start, and a guest that boots on a busy
machine. Seen: 27 to 45 s until the fence, and a guest speaks some seconds later."""
JUDGED_S = 50.0
"""A cut that is held so long must have been noticed: the fence is committed."""


def _nothing() -> None:
    return None


@dataclass
class Fault:
    """`inject` does it. `steps`: pauses, and what is done after each, while it holds; then `hold_s` more. `heal` ends it.

    `may_die`: nodes that may be fenced, and whose guests may live a new life, unless `spared` (no proof of death can come). `must_die`:
    they must be fenced and their VMs run elsewhere before it is healed. `must_object`: they must be in `fencing` before it is healed, and
    come back as they were. `ends_lives`: VMs whose QEMU dies. `blames` tells, before the healing, what is not as it must be; `detail` what the dice chose.
    `there`: a reading of its own, soon after `inject`, that the fault is there; the default is for what raises LabError if it cannot be done.
    """

    name: str
    hold_s: float
    inject: Act
    heal: Act = _nothing
    may_die: list[str] = field(default_factory=list)
    spared: bool = False
    must_die: list[str] = field(default_factory=list)
    must_object: list[str] = field(default_factory=list)
    ends_lives: list[str] = field(default_factory=list)
    steps: list[tuple[float, Act]] = field(default_factory=list)
    blames: Callable[[], list[str]] = list
    there: Callable[[], bool] = lambda: True
    detail: str = ""


@dataclass(frozen=True)
class Target:
    """What a fault is done to: the lab, the node it afflicts, the VMs, and the dice."""

    lab: Lab
    node: str
    vms: list[str]
    dice: random.Random

    def kill(self, unit: str, signal: str, node: str = "") -> None:
        self.lab.node(node or self.node).run("systemctl", "kill", "--kill-whom=main", "-s", signal, unit, check=False)

    @property
    def others(self) -> list[str]:
        return [name for name in self.lab.names if name != self.node]

    def shuffled(self) -> list[str]:
        return self.dice.sample(self.lab.names, len(self.lab.names))


# ------------------------------------------------------------------------------------- nobody may be fenced, no guest is touched

def pvcd_of(lab: Lab, node: str, unit: str = "pvcd.service") -> str:
    """The main process of pvcd, or of another unit, in the node; '0' if there is none."""
    return lab.node(node).run("systemctl", "show", "-p", "MainPID", "--value", unit).stdout.strip()


def stopped(pid: int) -> bool:
    """The process, as this machine numbers it, is stopped; or an order has ended it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return True


def _killed(t: Target, name: str, hold_s: float, unit: str) -> Fault:
    before: list[str] = []

    def inject() -> None:
        before[:] = [pvcd_of(t.lab, t.node, unit)]
        t.kill(unit, "KILL")
    return Fault(name, hold_s, inject, there=lambda: pvcd_of(t.lab, t.node, unit) not in before)


def _frozen(t: Target, name: str, hold_s: float, unit: str) -> Fault:
    def there() -> bool:
        return t.lab.node(t.node).run("ps", "-o", "stat=", "-p", pvcd_of(t.lab, t.node, unit), check=False).stdout.startswith("T")
    return Fault(name, hold_s, lambda: t.kill(unit, "STOP"), lambda: t.kill(unit, "CONT"), there=there)


def kill_pvcd(t: Target) -> Fault:
    return _killed(t, "pvcd killed", t.dice.uniform(2, 10), "pvcd.service")


def freeze_pvcd(t: Target) -> Fault:
    return _frozen(t, "pvcd frozen", 20, "pvcd.service")


def stop_pvcd(t: Target) -> Fault:
    def stop() -> None:
        t.lab.node(t.node).run("systemctl", "stop", "pvcd.service", timeout_s=90)
    return Fault("pvcd stopped", t.dice.uniform(5, 45), stop, lambda: _start(t, "pvcd.service"))


def _start(t: Target, unit: str) -> None:
    t.lab.node(t.node).run("systemctl", "start", unit, check=False, timeout_s=90)


def pvcd_rolling(t: Target) -> Fault:
    """As an upgrade does it: the next one only when the last one is back."""
    def restart(name: str) -> None:
        t.lab.node(name).run("systemctl", "restart", "pvcd.service", timeout_s=90)
        wait_for(f"pvcd of {name} is in run after a restart", lambda: t.lab.keys.text(f"/nodes/{name}/daemonstate") == "run", 60, 0.5)
    steps = [(t.dice.uniform(0, 3), lambda name=name: restart(name)) for name in t.shuffled()]  # type: ignore[misc]
    return Fault("pvcd restarted on one node after the other", 1, _nothing, steps=steps)


def kill_libvirtd(t: Target) -> Fault:
    return _killed(t, "libvirtd killed", t.dice.uniform(2, 10), "libvirtd.service")


def freeze_libvirtd(t: Target) -> Fault:
    return _frozen(t, "libvirtd frozen", t.dice.uniform(10, 60), "libvirtd.service")


def _servers_away(t: Target, name: str, nodes: list[str], hold_s: float) -> Fault:
    def inject() -> None:
        for node in nodes:
            t.lab.node(node).run("systemctl", "stop", "zookeeper.service", check=False)
            t.kill("zookeeper.service", "KILL", node)

    def heal() -> None:
        for node in nodes:
            t.lab.node(node).run("systemctl", "start", "zookeeper.service", check=False)
    return Fault(name, hold_s, inject, heal, there=lambda: not any("Mode:" in four_letter_word(t.lab.node_address(node), "srvr") for node in nodes))


def zookeeper_server_away(t: Target) -> Fault:
    return _servers_away(t, "one ZooKeeper server away", [t.node], t.dice.uniform(10, 60))


def zookeeper_leader_away(t: Target) -> Fault:
    leader = next((n for n in t.lab.names if "Mode: leader" in four_letter_word(t.lab.node_address(n), "srvr")), t.node)
    return _servers_away(t, "ZooKeeper's leader away", [leader], t.dice.uniform(10, 60))


def zookeeper_away(t: Target) -> Fault:
    return _servers_away(t, "all ZooKeeper servers away", list(t.lab.names), t.dice.uniform(20, 70))


def zk_rolling(t: Target) -> Fault:
    """Each waits until the one before it serves again, so the quorum is never lost; the leader may go more than once."""
    def restart(name: str) -> None:
        t.lab.node(name).run("systemctl", "restart", "zookeeper.service", timeout_s=90)
        wait_for(f"ZooKeeper on {name} serves after a restart", lambda: "Mode:" in four_letter_word(t.lab.node_address(name), "srvr"), 60, 0.5)
    steps = [(t.dice.uniform(0, 3), lambda name=name: restart(name)) for name in t.shuffled()]  # type: ignore[misc]
    return Fault("ZooKeeper restarted on one node after the other", 1, _nothing, steps=steps)


def short_cut(t: Target) -> Fault:
    return Fault("network cut for a short time", t.dice.uniform(3, 20), lambda: t.lab.cut(t.node), lambda: t.lab.heal(t.node))


def flapping(t: Target) -> Fault:
    """25 s down, 10 s up, three times. Each cut comes right after a keepalive: 25 s and the way back must be less than 30 s of silence."""
    def cut() -> None:
        _await_keepalive(t)
        t.lab.cut(t.node)

    def heal() -> None:
        t.lab.heal(t.node)
    return Fault("network flaps", 25, cut, heal, steps=[(25, heal), (10, cut), (25, heal), (10, cut)])


def _await_keepalive(t: Target) -> None:
    """Until it has just sent one. What is seen after a look that took long may be old."""
    value, looked = "", time.monotonic()

    def sent() -> bool:
        nonlocal value, looked
        before, since = value, looked
        value, looked = t.lab.keys.text(f"/nodes/{t.node}/keepalive"), time.monotonic()
        return "" not in (before, value) and value != before and looked - since < 1
    wait_for(f"{t.node} sends a keepalive", sent, 60)


def two_nodes_cut(t: Target) -> Fault:
    """Nobody has a quorum, so nobody can commit a fence; when all are back, everybody's silence starts again."""
    nodes = [t.node, t.dice.choice(t.others)]

    def each(act: Callable[[str], None]) -> None:
        for node in nodes:
            act(node)
    return Fault("two nodes cut", t.dice.uniform(35, 70), lambda: each(t.lab.cut), lambda: each(t.lab.heal), detail=" and ".join(nodes))


def frozen_node(t: Target) -> Fault:
    return Fault("node frozen for a short time", t.dice.uniform(3, 20), lambda: t.lab.node(t.node).freeze(True),
                 lambda: t.lab.node(t.node).freeze(False))


def migration_port_blocked(t: Target) -> Fault:
    return Fault("libvirt's port blocked", t.dice.uniform(5, 30), lambda: t.lab.block(t.node, 16509), lambda: t.lab.heal(t.node))


def packets_lost(t: Target) -> Fault:
    share = t.dice.uniform(0.05, 0.2)

    def there() -> bool:
        return len(re.findall(r"^\s*[1-9]\d* .*DROP", t.lab.node(t.node).run("iptables", "-nvxL").stdout, re.M)) == 2
    return Fault("packets lost", t.dice.uniform(10, 40), lambda: t.lab.lose(t.node, share), lambda: t.lab.heal(t.node), there=there)


def controller_dead(t: Target) -> Fault:
    return Fault("controller dead", t.dice.uniform(5, 30), lambda: t.lab.bmc(t.node).set_mode("dead"), lambda: t.lab.bmc(t.node).set_mode("ok"),
                 there=lambda: t.lab.bmc(t.node).pid is None)


def garbage_keys(t: Target) -> Fault:
    """Garbage in keys that are shown or that give orders: absence and nonsense are no orders, and nobody dies of them."""
    garbage = Garbage(t.lab, t.node, t.dice.choice(t.vms), t.dice)
    return Fault("garbage in keys", t.dice.uniform(8, 25), garbage.write, garbage.repair, blames=garbage.blames, detail=str(garbage))


def kill_qemu(t: Target) -> Fault:
    vm, killed = t.dice.choice(t.vms), [False]

    def kill() -> None:
        killed[:] = [t.lab.node(node).run("pkill", "-9", "-f", f"guest={vm},", check=False).returncode == 0 for node in t.lab.names]
    return Fault("a QEMU killed", 5, kill, ends_lives=[vm], detail=vm, there=lambda: any(killed))


# ------------------------------------------------------------------------------------------------------- the node may be fenced

def _long(t: Target, name: str, hold_s: float, inject: Act, heal: Act) -> Fault:
    return Fault(name, hold_s, inject, heal, [t.node], must_die=[t.node] if hold_s >= SURE_S else [])


def power_cut(t: Target) -> Fault:
    """PVC itself switches it on again, after the fence."""
    return _long(t, "power cut", t.dice.uniform(45, 75), lambda: t.lab.kill(t.node), _nothing)


def short_power_cut(t: Target) -> Fault:
    """It boots before anybody can have noticed: its VMs start where they were."""
    return Fault("power cut, and back at once", t.dice.uniform(1, 15), lambda: t.lab.kill(t.node), lambda: t.lab.node(t.node).boot(), [t.node])


def slow_controller(t: Target) -> Fault:
    def inject() -> None:
        t.lab.bmc(t.node).set_mode("slow")
        t.lab.cut(t.node)
    return _long(t, "network cut, slow controller", 75, inject, lambda: _healed(t))


def long_cut(t: Target) -> Fault:
    return _long(t, "network cut for a long time", t.dice.uniform(28, 75), lambda: t.lab.cut(t.node), lambda: _healed(t))


def cut_without_proof(t: Target) -> Fault:
    mode, hold_s = t.dice.choice(["dead", "dead", "wrong", "lie", "badpw"]), t.dice.uniform(40, 90)

    def inject() -> None:
        t.lab.bmc(t.node).set_mode(mode)
        t.lab.cut(t.node)
    return _unproved(t, f"network cut, controller {mode}", hold_s, inject, lambda: _healed(t))


def long_freeze(t: Target) -> Fault:
    """A suspended host: when it wakes, what it knows is old, and it must judge nobody by it."""
    def inject() -> None:
        t.lab.bmc(t.node).set_mode("dead")
        t.lab.node(t.node).freeze(True)
    return _unproved(t, "node frozen for a long time, controller dead", t.dice.uniform(40, 120), inject, lambda: t.lab.node(t.node).freeze(False))


def _unproved(t: Target, name: str, hold_s: float, inject: Act, heal: Act) -> Fault:
    """Its controller is mended only when every node is up again: one that answers earlier cuts the power of a node in doubt."""
    return Fault(name, hold_s, inject, heal, [t.node], spared=True, must_object=[t.node] if hold_s >= JUDGED_S else [])


def cut_from_zookeeper(t: Target) -> Fault:
    def inject() -> None:
        for port in (2181, 2888, 3888):
            t.lab.block(t.node, port)
    return _long(t, "cut from ZooKeeper only", t.dice.uniform(28, 75), inject, lambda: _healed(t))


def one_way_link(t: Target) -> Fault:
    direction = t.dice.choice(["INPUT", "OUTPUT"])
    return _long(t, f"link one way, no {direction.lower()}", t.dice.uniform(28, 75), lambda: t.lab.silence(t.node, direction), lambda: _healed(t))


def janitors_killed(t: Target) -> Fault:
    """Whoever fences is killed somewhere around the commit, the power-off, the proof or the recovery. How long it takes then is open:
    a pvcd that starts again has seen nobody silent yet."""
    first, second = sorted(t.dice.uniform(28, 38) for _ in t.others[:2])
    def kill(name: str) -> None:
        before = pvcd_of(t.lab, name)
        t.kill("pvcd.service", "KILL", name)
        wait_for(f"pvcd of {name} is killed", lambda: pvcd_of(t.lab, name) != before, 10)
    steps = [(after, lambda name=name: kill(name)) for after, name in zip((first, second - first), t.others)]  # type: ignore[misc]
    return Fault("power cut, and those who fence are killed", 60 - second, lambda: t.lab.kill(t.node), _nothing, [t.node], steps=steps)


def _healed(t: Target) -> None:
    """The network first: what was in doubt is settled with the node, before its controller answers again."""
    try:
        t.lab.heal(t.node)
    except LabError:
        return  # it is off, or boots just now, with a cable that is plugged in; the audit heals it once more


HARMLESS = (kill_pvcd, freeze_pvcd, stop_pvcd, pvcd_rolling, kill_libvirtd, freeze_libvirtd, zookeeper_server_away, zookeeper_leader_away,
            zookeeper_away, zk_rolling, short_cut, flapping, two_nodes_cut, frozen_node, migration_port_blocked, packets_lost, controller_dead,
            garbage_keys, kill_qemu)
DEADLY = (power_cut, short_power_cut, slow_controller, long_cut, cut_without_proof, long_freeze, cut_from_zookeeper, one_way_link, janitors_killed)
