# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The orders of operators: single ones, storms of flush and ready, many migrations at once, two operators at one VM."""
from __future__ import annotations

import random
import subprocess
import threading
from collections.abc import Sequence

from lablib.host import LabError
from lablib.lab import Lab

from .history import History

Order = tuple[str, ...]
Together = list[Order]
"""Orders that are given at the same moment, each by a client on another node."""

CLIENT_S = 40.0


def plan(dice: random.Random, vms: Sequence[str], nodes: Sequence[str]) -> list[Together]:
    """What is ordered in one round."""
    kind = dice.random()
    if kind < 0.1:
        return [[("node", word, dice.choice(nodes))] for word in ("flush", "ready", "flush", "flush", "ready", "ready")]
    if kind < 0.2:
        return [[("vm", "migrate", vm) for vm in vms], [("vm", "unmigrate", vm) for vm in vms if dice.random() < 0.5]]
    if kind < 0.35:
        vm = dice.choice(vms)
        return [[_of_a_vm(dice, vm, nodes), _of_a_vm(dice, vm, nodes)] for _ in range(dice.randrange(1, 3))]
    return [[_single(dice, vms, nodes)] for _ in range(dice.randrange(4))]


def _single(dice: random.Random, vms: Sequence[str], nodes: Sequence[str]) -> Order:
    if dice.random() < 2 / 11:
        return ("node", dice.choice(["flush", "ready"]), dice.choice(nodes))
    return _of_a_vm(dice, dice.choice(vms), nodes)


def _of_a_vm(dice: random.Random, vm: str, nodes: Sequence[str]) -> Order:
    node = dice.choice(nodes)
    found: Order = dice.choice([
        ("vm", "migrate", vm), ("vm", "migrate", vm, "-t", node), ("vm", "unmigrate", vm), ("vm", "migrate", vm, "--cancel"),
        ("vm", "move", vm, "-t", node), ("vm", "restart", vm), ("vm", "shutdown", vm), ("vm", "stop", "-y", vm), ("vm", "start", vm)])
    return found


class Operators:
    """Gives orders, and writes down what became of each."""

    def __init__(self, lab: Lab, history: History) -> None:
        self._lab, self._history = lab, history

    def give(self, planned: list[Together], pace_s: float) -> None:
        for together in planned:
            clients = [threading.Thread(target=self._give, args=(words, number)) for number, words in enumerate(together)]
            for client in clients:
                client.start()
            for client in clients:
                client.join()
            threading.Event().wait(pace_s)

    def _give(self, words: Order, number: int) -> None:
        status, told = self.pvc(*words, first=number)
        self._history.add("order", words=words, status=status, told=told if "Traceback" in told else told[-200:])

    def pvc(self, *words: str, first: int = 0) -> tuple[int, str]:
        """The client on the first node that answers, from the `first`th on; its exit status (-1 = not known), and what it said."""
        names = self._lab.names[first % len(self._lab.names):] + self._lab.names[:first % len(self._lab.names)]
        for name in names:
            try:
                done = self._lab.node(name).run("pvc", *words, check=False, timeout_s=CLIENT_S)
            except (LabError, subprocess.TimeoutExpired):
                continue  # it has no power, or is frozen
            return done.returncode, (done.stderr or done.stdout).strip()
        return -1, "no node answers"
