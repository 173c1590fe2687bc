# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""More faults: what people and hosts do by mistake. A controller of another node in the configuration, a host with another name, suspended and
hung guests, the shipped default of one local ZooKeeper server when that server is away.
"""
from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress

from lablib.guests import guest_uuid
from lablib.host import LabError
from lablib.lab import Lab, four_letter_word

from .faults import Fault, Target, pvcd_of, stopped

CONF = "/etc/pvc/pvcd.conf"
WRITES_S = 50.0
"""So many transactions a second, over a whole fault, are work without end: orders and a flush of six VMs are some hundred in all."""


def _configure(t: Target, script: str) -> None:
    """Change pvcd.conf by sed's `script` and restart pvcd, which may rightly refuse to start."""
    t.lab.node(t.node).run("sh", "-c", f"cp -n -p {CONF} {CONF}.kept; sed -i '{script}' {CONF}; ! cmp -s {CONF} {CONF}.kept")
    _restart(t)


def _configure_back(t: Target) -> None:
    t.lab.node(t.node).run("sh", "-c", f"test ! -e {CONF}.kept || mv {CONF}.kept {CONF}")
    _restart(t)


def _restart(t: Target) -> None:
    """It may fail, and is tried: the caller's sign is what it reads afterwards."""
    t.lab.node(t.node).run("sh", "-c", "systemctl reset-failed pvcd.service; systemctl restart pvcd.service", check=False, timeout_s=120)


def miswired_controller(t: Target) -> Fault:
    """The node names another node's controller, and is cut off: that node's power proves nothing, and nobody may touch it."""
    other, hold_s = t.dice.choice(t.others), t.dice.uniform(40, 60)

    def inject() -> None:
        _configure(t, f"s/^ipmi_hostname = .*/ipmi_hostname = {other}-lom/")
        t.lab.cut(t.node)

    def heal() -> None:
        t.lab.heal(t.node)
        _configure_back(t)

    def there() -> bool:
        return f"{other}-lom" in t.lab.node(t.node).run("grep", "^ipmi_hostname", CONF).stdout
    return Fault("network cut, the controller is another node's", hold_s, inject, heal, [t.node], spared=True, detail=other, there=there)


def renamed_host(t: Target) -> Fault:
    """pvcd starts under another name: it does not join, and no guest is touched."""
    def name(new: str) -> None:
        t.lab.node(t.node).run("sh", "-c", f"systemctl stop pvcd.service; hostname {new}; echo {new} > /etc/hostname", timeout_s=90)

    def inject() -> None:
        name("hv9")
        _restart(t)

    def heal() -> None:
        name(t.node)
        for room in ("nodes", "fences"):
            if t.lab.keys.version(f"/{room}/hv9") is not None:
                t.lab.keys.delete_tree(f"/{room}/hv9")
        _restart(t)

    def blames() -> list[str]:
        return [f"{t.node} has joined as hv9"] if t.lab.keys.version("/nodes/hv9") is not None else []

    def there() -> bool:
        return t.lab.node(t.node).run("hostname").stdout.strip() == "hv9"
    return Fault("host renamed", t.dice.uniform(15, 40), inject, heal, blames=blames, there=there)


def local_zookeeper_away(t: Target) -> Fault:
    """The node's only server is its own, as the shipped configuration has it; the server is stopped, or stands still, for longer than the rule."""
    frozen = t.dice.random() < 0.5

    def inject() -> None:
        _configure(t, "s/^zookeeper = .*/zookeeper = 127.0.0.1:2181/")
        if frozen:
            t.kill("zookeeper.service", "STOP")
        else:
            t.lab.node(t.node).run("systemctl", "stop", "zookeeper.service", timeout_s=60)

    def heal() -> None:
        t.kill("zookeeper.service", "CONT")
        t.lab.node(t.node).run("systemctl", "start", "zookeeper.service", timeout_s=60)
        _configure_back(t)

    def there() -> bool:
        return "Mode:" not in four_letter_word(t.lab.node_address(t.node), "srvr")
    return Fault(f"the only configured server {'frozen' if frozen else 'stopped'}", t.dice.uniform(40, 75), inject, heal, there=there)


def paused_guests(t: Target) -> Fault:
    """Somebody suspends two of them by virsh. They stay suspended wherever orders bring them, and nobody writes without end."""
    vms, begun = t.dice.sample(t.vms, 2), [0.0, 0.0]

    def suspend() -> None:
        begun[:] = [time.monotonic(), _transactions(t.lab)]
        for vm in vms:
            for node in t.lab.names:
                t.lab.node(node).run("virsh", "-q", "suspend", vm, check=False)  # it is on one of them, or on its way: see `there`

    def resume() -> None:
        for vm in vms:
            for node in t.lab.names:
                if _reason(t.lab, node, vm) == "paused (user)" and _may_resume(t.lab, node, vm):
                    t.lab.node(node).run("virsh", "-q", "resume", vm, check=False)  # the audit hears whether it speaks

    def there() -> bool:
        return any(_reason(t.lab, node, vm).startswith("paused") for vm in vms for node in t.lab.names)

    def blames() -> list[str]:
        rate = (_transactions(t.lab) - begun[1]) / (time.monotonic() - begun[0])
        return [f"{rate:.0f} transactions a second were written while {' and '.join(vms)} were suspended"] if rate > WRITES_S else []
    return Fault("guests suspended", t.dice.uniform(20, 40), suspend, resume, blames=blames, detail=" and ".join(vms), there=there)


def _reason(lab: Lab, node: str, vm: str) -> str:
    return lab.node(node).run("virsh", "-q", "domstate", "--reason", vm, check=False).stdout.strip()


def _may_resume(lab: Lab, node: str, vm: str) -> bool:
    """Only where its claim is, and not in the middle of a hand-over: a copy that has arrived waits for pvcd, not for an operator."""
    try:
        claim = json.loads(lab.keys.text(f"/claims/{guest_uuid(vm)}") or "{}")
    except ValueError:
        return False
    return claim.get("node") == node and not claim.get("op")


def _transactions(lab: Lab) -> int:
    """All that ZooKeeper has ever written, as its last transaction's number says; an epoch counts as none."""
    for name in lab.names:
        for line in four_letter_word(lab.node_address(name), "srvr").splitlines():
            if line.startswith("Zxid:"):
                return int(line.split()[1], 16) & 0xFFFFFFFF
    raise LabError("no ZooKeeper server answers")


def hung_guests(t: Target) -> Fault:
    """Up to three QEMUs of the node stand still, and its pvcd is killed: the new one sends keepalives, whatever its guests do not answer."""
    qemus: list[int] = []
    before: list[str] = []

    def inject() -> None:
        machine = t.lab.node(t.node)
        before[:] = [pvcd_of(t.lab, t.node)]
        qemus[:] = [pid for vm in t.vms for pid in machine.processes(f"guest={vm},")][:3]
        for pid in qemus:
            os.kill(pid, signal.SIGSTOP)
        t.kill("pvcd.service", "KILL")

    def heal() -> None:
        for pid in qemus:
            with suppress(ProcessLookupError):  # an order has ended it meanwhile
                os.kill(pid, signal.SIGCONT)

    def there() -> bool:
        return all(stopped(pid) for pid in qemus) and pvcd_of(t.lab, t.node) not in before
    return Fault("guests hung, pvcd killed", t.dice.uniform(40, 60), inject, heal, there=there)


HARMLESS = (renamed_host, local_zookeeper_away, paused_guests, hung_guests)
DEADLY = (miswired_controller,)
