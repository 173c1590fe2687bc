# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""What holds for every slip, whatever its kind: nothing that runs is touched, no host loses its power, nobody is fenced, and people are told.

Also the signs of faults: what a test reads for itself before it believes that its fault is there.
"""
from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from lablib.host import LabError, wait_for
from lablib.lab import Lab, four_letter_word
from lablib.witness import Recorder

from .cluster import Life, fence_versions, phase

LEVELS = ("ok", "warning", "critical")


class Untouched:
    """From now on: these VMs live on, no host loses its power, and no controller is sent an order. `fences` too: no fence is written."""

    def __init__(self, lab: Lab, recorder: Recorder, *vms: str, fences: bool = True) -> None:
        self._lab = lab
        self._lives = [Life(lab, recorder, vm) for vm in vms]
        self._inits = {name: lab.node(name).init for name in lab.names}
        self._ordered = {name: lab.bmc(name).orders() for name in lab.names}
        self._fences = fence_versions(lab) if fences else {}

    def hosts(self) -> None:
        for name in self._lab.names:
            assert self._lab.node(name).init == self._inits[name], f"{name} has lost its power"
            assert self._lab.bmc(name).orders() == self._ordered[name], f"the controller of {name} was sent {self._lab.bmc(name).orders()[-1]}"

    def holds(self, for_s: float) -> None:
        """All of it, for so long; a host that loses its power is seen at once."""
        until = time.monotonic() + for_s
        while time.monotonic() < until:
            self.hosts()
            for life in self._lives:
                assert not life.testimony.doubles, life.testimony.doubles
            time.sleep(0.5)
        self.now()

    def now(self, gap_s: float = 1.5) -> None:
        """All of it, at this moment. `gap_s`: the longest silence of a guest that is allowed since the beginning."""
        self.hosts()
        for life in self._lives:
            life.goes_on(gap_s)
        if self._fences:
            assert fence_versions(self._lab) == self._fences, "a fence was written"
        else:
            assert {phase(self._lab, name) for name in self._lab.names} == {"up"}


def problems(lab: Lab, node: str | None = None) -> list[dict[str, Any]]:
    done = lab.pvc("status", "-f", "json", node=node, check=False, timeout_s=40)
    try:
        return list(json.loads(done.stdout)["problems"])
    except (ValueError, KeyError) as error:
        raise LabError(f"pvc status: {done.stderr or done.stdout}") from error


def told(lab: Lab, code: str, *names: str, level: str = "critical", node: str | None = None, timeout_s: float = 30) -> None:
    """`pvc status` has this problem, of this level or worse, with all of `names` in its words, and says what to do next."""
    def found() -> bool:
        return any(problem["code"] == code and LEVELS.index(problem["level"]) >= LEVELS.index(level) and problem["next"]
                   and all(name in f"{problem['subject']} {problem['text']} {problem['next']}" for name in names) for problem in problems(lab, node))
    try:
        wait_for(f"status tells of {code}: {' and '.join(names)}", found, timeout_s, 1)
    except LabError as late:
        raise AssertionError(f"{late}; it says {problems(lab, node)}") from late


# ---------------------------------------------------------------------------------------------------------------- signs

def said(lab: Lab, node: str, *words: str, since: float, timeout_s: float = 30) -> str:
    """A line of the node's pvcd since the moment `since` (time.time()) that has all the words; waits for it."""
    def line() -> str:
        out = lab.node(node).run("journalctl", "-u", "pvcd.service", f"--since=@{since:.0f}", "-o", "cat", "--no-pager").stdout
        return next((text for text in out.splitlines() if all(word in text for word in words)), "")
    return wait_for(f"pvcd of {node} says {words}", line, timeout_s, 0.5)


def main_process(lab: Lab, node: str, unit: str) -> tuple[str, str]:
    """The main process of a unit in the node, and its state as ps has it ('T': it is stopped)."""
    pid = lab.node(node).run("systemctl", "show", "-p", "MainPID", "--value", unit).stdout.strip()
    return pid, lab.node(node).run("ps", "-o", "stat=", "-p", pid, check=False).stdout.strip()


def stands_still(lab: Lab, node: str, unit: str) -> None:
    """The fault is there: the unit's main process is stopped."""
    wait_for(f"{unit} of {node} stands still", lambda: main_process(lab, node, unit)[1].startswith("T"), 5)


def serves(lab: Lab, node: str) -> bool:
    """The node's ZooKeeper server answers."""
    return "Mode:" in four_letter_word(lab.node_address(node), "srvr")


def transaction(lab: Lab) -> tuple[int, int]:
    """ZooKeeper's last transaction: the epoch of its leader, and the number in that epoch."""
    found = [int(line.split()[1], 16) for name in lab.names for line in four_letter_word(lab.node_address(name), "srvr").splitlines()
             if line.startswith("Zxid:")]
    if not found:
        raise LabError("no ZooKeeper server answers")
    return max(found) >> 32, max(found) & 0xFFFFFFFF


def configured(lab: Lab, node: str, script: str) -> None:
    """Change the node's pvcd.conf by sed's `script`, keep the old one beside it, and restart pvcd; that may be refused."""
    lab.node(node).run("sh", "-c", f"cp -n -p /etc/pvc/pvcd.conf /etc/pvc/pvcd.conf.kept && sed -i '{script}' /etc/pvc/pvcd.conf")
    changed = lab.node(node).run("cmp", "-s", "/etc/pvc/pvcd.conf", "/etc/pvc/pvcd.conf.kept", check=False).returncode
    assert changed == 1, "nothing in the configuration has changed"
    restarted(lab, node)


def restarted(lab: Lab, node: str) -> None:
    """Restart pvcd, which may rightly refuse to start: then it has tried."""
    lab.node(node).run("systemctl", "reset-failed", "pvcd.service", check=False)
    lab.node(node).run("systemctl", "restart", "pvcd.service", check=False, timeout_s=120)


def configured_back(lab: Lab, nodes: Sequence[str]) -> None:
    for node in nodes:
        lab.node(node).boot()
        lab.await_services(node)
        lab.node(node).run("sh", "-c", "test ! -e /etc/pvc/pvcd.conf.kept || mv /etc/pvc/pvcd.conf.kept /etc/pvc/pvcd.conf")
        restarted(lab, node)
