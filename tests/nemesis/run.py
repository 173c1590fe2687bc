# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The run: rounds of orders, one fault, healing and an audit; everything follows from the seed, except how fast things happen."""
from __future__ import annotations

import json
import random
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

from lablib.host import LabError, wait_for
from lablib.lab import Lab
from lablib.witness import Recorder

from . import faults
from .history import History

VMS = {f"nem{number}": f"hv{1 + number % 3}" for number in range(6)}
AUDIT_S = 150.0
DEADLY_SHARE = 0.4


class Nemesis:
    """`lab` is up and has no VMs of these names."""

    def __init__(self, lab: Lab, recorder: Recorder, history: History, seed: int, say: Callable[[str], None]) -> None:
        self.lab, self.recorder, self.history, self.say = lab, recorder, history, say
        self.dice = random.Random(seed)
        self._doubles: dict[str, int] = {}

    def prepare(self) -> None:
        for number, (vm, node) in enumerate(VMS.items()):
            self.lab.define(vm, node, disk=number % 2 == 0)
            self.lab.pvc("vm", "start", vm)
        for vm in VMS:
            wait_for(f"{vm} speaks", lambda vm=vm: self.recorder.testimony(vm).life, 60)  # type: ignore[misc]

    def round(self) -> None:
        """Orders, a fault in the middle of them, healing, an audit."""
        node = self.dice.choice(self.lab.names)
        kinds = faults.DEADLY if self.dice.random() < DEADLY_SHARE else faults.HARMLESS
        inject = self.dice.choice(kinds)
        planned = [self._order() for _ in range(self.dice.randrange(4))]
        lives = {vm: len(self.recorder.testimony(vm).lives) for vm in VMS}
        orders = threading.Thread(target=self._orders, args=(planned, self.dice.random()))
        orders.start()
        threading.Event().wait(self.dice.uniform(0, 2))
        injected = inject(faults.Target(self.lab, node, list(VMS), self.dice))
        self.history.add("fault", name=injected.name, node=node, may_die=injected.may_die)
        self.say(f"{injected.name} on {node}, {injected.hold_s:.0f} s")
        threading.Event().wait(injected.hold_s)
        injected.heal()
        orders.join()
        self._settle()
        self._audit(injected.name)
        if not injected.may_die and not injected.ends_lives:
            self._same_lives(lives, planned, injected.name)

    def _same_lives(self, lives: dict[str, int], planned: list[tuple[str, ...]], fault: str) -> None:
        """Nobody was ordered to end it, and no node may have died: the guest lives the life it lived before."""
        ended = {words[2] if words[2] != "-y" else words[3] for words in planned if words[1] in ("restart", "shutdown", "stop", "move")}
        for vm in sorted(set(VMS) - ended):
            if len(self.recorder.testimony(vm).lives) != lives[vm]:
                self.history.add("lost", what=f"{vm} lives another life after {fault}")

    def _order(self) -> tuple[str, ...]:
        vm, node = self.dice.choice(list(VMS)), self.dice.choice(self.lab.names)
        return self.dice.choice([
            ("vm", "migrate", vm), ("vm", "migrate", vm, "-t", node), ("vm", "unmigrate", vm), ("vm", "migrate", vm, "--cancel"),
            ("vm", "move", vm, "-t", node), ("vm", "restart", vm), ("vm", "shutdown", vm), ("vm", "stop", "-y", vm), ("vm", "start", vm),
            ("node", "flush", node), ("node", "ready", node)])

    def _orders(self, orders: list[tuple[str, ...]], pace: float) -> None:
        for words in orders:
            status, told = self._pvc(*words)
            self.history.add("order", words=words, status=status, told=told)
            threading.Event().wait(3 * pace)

    def _pvc(self, *words: str) -> tuple[int, str]:
        """The client on the first node that answers; its exit status, and what it said last."""
        for name in self.lab.names:
            try:
                done = self.lab.node(name).run("pvc", *words, check=False, timeout_s=40)
            except (LabError, subprocess.TimeoutExpired):
                continue  # it has no power, or is frozen
            return done.returncode, (done.stderr or done.stdout).strip()[-200:]
        return -1, "no node answers"

    # ------------------------------------------------------------------------------------------------------------- audits

    def _settle(self) -> None:
        """Heal everything that the fault may have left, and order every VM to run at home."""
        for name in self.lab.names:
            self._attempt(f"{name} has power", lambda name=name: self.lab.node(name).pid)  # type: ignore[misc]
            self._attempt(f"{name} is linked", lambda name=name: self.lab.heal(name) or True)  # type: ignore[misc]
        for name in self.lab.names:
            self.lab.await_services(name)
            self.lab.node(name).run("systemctl", "start", "libvirtd.service", "pvcd.service", check=False, timeout_s=90)
        self._attempt("every node runs and is up", lambda: all(row["daemonstate"] == "run" and row["fence"] == "up" for row in self._rows("node")))
        for name in self.lab.names:  # only now: a controller that answers earlier cuts the power of a node in doubt
            if self.lab.bmc(name).mode != "ok" or self.lab.bmc(name).pid is None:
                self.lab.bmc(name).set_mode("ok")
        for name in self.lab.names:
            self._attempt(f"{name} is ready", lambda name=name: self._pvc("node", "ready", name)[0] == 0)  # type: ignore[misc]
        self._attempt("every node is ready", lambda: all(row["domainstate"] == "ready" for row in self._rows("node")))
        self._attempt("every VM is ordered to run", self._started)

    def _started(self) -> bool:
        rows = self._rows("vm")
        for row in rows:
            if row["state"] in ("stop", "failed", "shutdown"):
                self._pvc("vm", "start", row["name"])
        return all(row["state"] in ("start", "migrate", "restart") for row in rows)

    def _rows(self, kind: str) -> list[dict[str, Any]]:
        """What `pvc node list` or `pvc vm list` shows. Raises LabError while it cannot be known."""
        found: list[dict[str, Any]] = json.loads(self.lab.node("hv1").run("pvc", kind, "list", "-f", "json", timeout_s=30).stdout)
        return found

    def _attempt(self, what: str, done: Callable[[], object]) -> None:
        def looked() -> object:
            try:
                return done()
            except LabError:
                return False  # ZooKeeper elects a leader
        try:
            wait_for(what, looked, AUDIT_S, 1)
        except LabError as late:
            self.history.add("lost", what=str(late))
            raise

    def _audit(self, fault: str) -> None:
        """Every VM is wanted, runs once, where its claim is, and speaks. Double lives are written down wherever they are seen."""
        spoken = {vm: len(life.times) if (life := self.recorder.testimony(vm).life) else 0 for vm in VMS}
        wrong = ["not looked at"]
        deadline = time.monotonic() + AUDIT_S
        while wrong and time.monotonic() < deadline:
            threading.Event().wait(1)
            wrong = self._wrong(spoken)
        self.history.add("audit", wrong=wrong)
        for vm in VMS:
            doubles = self.recorder.testimony(vm).doubles
            for double in doubles[self._doubles.get(vm, 0):]:
                self.history.add("double", what=f"{vm}: {double}, during {fault}")
            self._doubles[vm] = len(doubles)

    def _wrong(self, spoken: dict[str, int]) -> list[str]:
        try:
            running, rows = {name: self.lab.domains(name) for name in self.lab.names}, self._rows("vm")
        except LabError as error:
            return [str(error)]
        wrong = []
        for row in rows:
            vm = row.get("name", "?")
            here = [name for name in self.lab.names if vm in running[name]]
            if row["state"] != "start" or row.get("operation") or here != [row.get("held_by")] or row.get("hypervisor") not in here:
                wrong.append(f"{vm}: {row['state']} on {row.get('hypervisor')}, held by {row.get('held_by')}, runs on {here}")
            elif vm in VMS and (life := self.recorder.testimony(vm).life) and len(life.times) < 3 + spoken[vm] and len(life.times) >= spoken[vm]:
                wrong.append(f"{vm} does not speak")
        return wrong

    def tracebacks(self) -> None:
        for name in self.lab.names:
            text = self.lab.node(name).run("journalctl", "-u", "pvcd.service", "-o", "cat", "--no-pager", timeout_s=60).stdout
            if "Traceback" in text:
                self.history.add("traceback", what=name)
