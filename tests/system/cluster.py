# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""What the system tests ask of a lab's cluster, in words of their own."""
from __future__ import annotations

import json
import re
import time
from itertools import pairwise
from typing import Any

from lablib import guests
from lablib.host import wait_for
from lablib.lab import Lab
from lablib.witness import Recorder, Testimony

GAP_S = 1.0
"""A life goes on if its counter is never silent for longer."""
CROWDED_S = 2.0
"""Where several guests move at once: four emulated guests, twice each, share two cores, and the longest silence is 0.4 to 1.2 s of
waiting for the processor. Longer, and a guest has waited for a daemon."""


def started(lab: Lab, vm: str, node: str, **options: Any) -> None:
    """Define and start a guest, and wait until it speaks."""
    lives = len(lab.testimony(vm).lives)
    lab.define(vm, node, **options)
    lab.pvc("vm", "start", vm, "--wait", timeout_s=60)
    lab.await_life(vm, lives + 1)


def info(lab: Lab, vm: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lab.pvc("vm", "info", vm, "-f", "json").stdout)
    return found


def words(lab: Lab, vm: str) -> tuple[str, str, str]:
    """state, hypervisor, lasthypervisor."""
    found = info(lab, vm)
    return found["state"], found["hypervisor"], found["lasthypervisor"] or ""


def nodes(lab: Lab) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(lab.pvc("node", "list", "-f", "json").stdout)}


def settles(lab: Lab, vm: str, *wanted: str, timeout_s: float = 60) -> None:
    """Wait until state, hypervisor, lasthypervisor begin with `wanted`."""
    folder = f"/domains/{guests.guest_uuid(vm)}"
    keys = [f"{folder}/{key}" for key in ("state", "hypervisor", "lasthypervisor")][:len(wanted)]
    wait_for(f"{vm} is {wanted}", lambda: tuple(lab.keys.text(key) for key in keys) == wanted, timeout_s)


def word(lab: Lab, node: str, key: str) -> str:
    """A key of a node, as it is now."""
    return lab.keys.text(f"/nodes/{node}/{key}")


def phase(lab: Lab, node: str) -> str:
    """The phase of a node's fence; '' while ZooKeeper elects a leader."""
    found = lab.keys.text(f"/fences/{node}")
    return str(json.loads(found)["phase"]) if found else ""


def fence_versions(lab: Lab) -> dict[str, int]:
    """How often the fence of each node has been written: a commit that was taken back at once shows too. Waits for ZooKeeper."""
    def read() -> dict[str, int]:
        found = {name: lab.keys.version(f"/fences/{name}") for name in lab.names}
        return {} if None in found.values() else found  # type: ignore[return-value]
    return wait_for("ZooKeeper answers", read, 60, 0.5)


def nobody_is_fenced(lab: Lab, for_s: float) -> None:
    """For a while no fence is written; what nobody can read meanwhile counts afterwards."""
    before, until = fence_versions(lab), time.monotonic() + for_s
    while time.monotonic() < until:
        assert all(phase(lab, name) in ("up", "") for name in lab.names)
        time.sleep(0.5)
    assert fence_versions(lab) == before and {phase(lab, name) for name in lab.names} == {"up"}


def janitor(lab: Lab, *others: str) -> str:
    """The node that holds the lock of those who fence, once there is one, and it is none of `others`."""
    def holder() -> str:
        found = lab.keys.text("/locks/fence")
        return next((name for name in lab.names if f'"{name}"' in found and name not in others), "")
    return wait_for("somebody holds the lock of those who fence", holder, 60, 0.05)


def claimed_by(lab: Lab, vm: str) -> str:
    """The node that holds the VM's claim; '' if it is free."""
    found = lab.keys.text(f"/claims/{guests.guest_uuid(vm)}")
    return str(json.loads(found)["node"]) if found else ""


def where(lab: Lab, vm: str) -> list[str]:
    """The nodes on which libvirt shows the VM."""
    return [name for name in lab.names if lab.node(name).pid and vm in lab.domains(name)]


def main_pid(lab: Lab, node: str) -> str:
    """The process that systemd takes for the node's pvcd; '0' if there is none."""
    return lab.node(node).run("systemctl", "show", "-p", "MainPID", "--value", "pvcd.service").stdout.strip()


def heard(recorder: Recorder, vm: str, lives: int) -> None:
    """The recorder is a moment behind the file."""
    wait_for(f"the recorder hears life {lives} of {vm}", lambda: len(recorder.testimony(vm).lives) >= lives, 5)


def listening(recorder: Recorder, vm: str) -> None:
    """Wait until the guest has been up for a moment: before that it does not hear its power button."""
    wait_for(f"{vm} listens to its power button", lambda: (life := recorder.testimony(vm).life) is not None and life.last * guests.PERIOD_S >= 1.5, 20)


class Life:
    """Watches one VM from now on: the same life goes on, without a silence over GAP_S."""

    def __init__(self, lab: Lab, recorder: Recorder, vm: str) -> None:
        self.vm, self._recorder = vm, recorder
        written = lab.testimony(vm).life
        assert written is not None
        wait_for(f"the recorder hears {vm}", lambda: self.testimony.life and self.testimony.life.boot == written.boot, 5)
        life = self.testimony.life
        assert life is not None
        self._boot, self._seen, self._lives = life.boot, len(life.times), len(self.testimony.lives)

    @property
    def testimony(self) -> Testimony:
        return self._recorder.testimony(self.vm)

    def speaks(self, lines: int = 3, timeout_s: float = 10) -> None:
        """Wait until the guest has spoken some more."""
        life = self.testimony.life
        assert life is not None
        before = len(life.times)
        wait_for(f"{self.vm} goes on speaking", lambda: len(life.times) >= before + lines, timeout_s)

    def goes_on(self, gap_s: float = GAP_S) -> float:
        """Still the same life; returns its longest silence since the watch began, seconds."""
        self.speaks()
        life = self.testimony.life
        assert life is not None and life.boot == self._boot and len(self.testimony.lives) == self._lives, "it lives another life"
        assert not self.testimony.doubles, self.testimony.doubles
        times = life.times[max(0, self._seen - 1):]
        longest = max(b - a for a, b in pairwise(times))
        assert longest <= gap_s, f"{self.vm} was silent for {longest:.2f} s"
        assert life.missing == 0
        return longest


def slowed(lab: Lab, vm: str, node: str, mib_s: int = 8) -> None:
    """Let the next migration of a VM last some 10 s, for faults in the middle of it."""
    lab.node(node).run("virsh", "-q", "migrate-setspeed", vm, str(mib_s))


def migrating(lab: Lab, vm: str, node: str) -> None:
    """Wait until libvirt on `node` moves the VM's memory. The job alone begins before there is a QEMU at the destination."""
    wait_for(f"{vm} is being migrated",
             lambda: re.search(r"Data processed:\s+[1-9]", lab.node(node).run("virsh", "-q", "domjobinfo", vm, check=False).stdout), 20)


def in_flight(lab: Lab, vm: str, node: str) -> bool:
    """libvirt on `node` moves the VM's memory at this moment."""
    return bool(re.search(r"Data remaining:\s+[1-9]", lab.node(node).run("virsh", "-q", "domjobinfo", vm, check=False).stdout))


def moving(lab: Lab, recorder: Recorder, vm: str, mib_s: int = 8) -> Life:
    """A guest in the middle of a slow migration from hv1 to hv2."""
    started(lab, vm, "hv1")
    life = Life(lab, recorder, vm)
    slowed(lab, vm, "hv1", mib_s)
    lab.pvc("vm", "migrate", vm, "-t", "hv2")
    migrating(lab, vm, "hv1")
    return life


def timed(call: Any) -> float:
    started_at = time.monotonic()
    call()
    return time.monotonic() - started_at
