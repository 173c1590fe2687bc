# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The run: rounds of orders, one fault, healing and an audit; everything follows from the seed, except how fast things happen."""
from __future__ import annotations

import json
import random
import re
import threading
import time
from collections.abc import Callable
from itertools import takewhile
from typing import Any

from lablib.guests import guest_uuid
from lablib.host import LabError, wait_for
from lablib.journals import Journals
from lablib.lab import Lab
from lablib.witness import Recorder

from . import faults, orders, slips
from .checker import disk_trouble
from .history import History

VMS = {f"nem{number}": f"hv{1 + number % 3}" for number in range(6)}
DISKS = [vm for number, vm in enumerate(VMS) if number % 2 == 0]
"""These write to a shared disk too."""
HARMLESS, DEADLY = faults.HARMLESS + slips.HARMLESS, faults.DEADLY + slips.DEADLY
AUDIT_S = 150.0
THERE_S = 20.0
"""So soon after it was done a fault must be there, or the round is worth nothing."""
DEADLY_SHARE = 0.4
USED = """p=$(systemctl show -p MainPID --value pvcd.service)
echo $p/$(cut -d ' ' -f 22 /proc/$p/stat) $(sed -n 's/^VmRSS:\\s*\\([0-9]*\\).*/\\1/p; s/^Threads:\\s*//p' /proc/$p/status) $(ls /proc/$p/fd | wc -l)"""


class Nemesis:
    """`lab` is up and has no VMs of these names."""

    def __init__(self, lab: Lab, recorder: Recorder, history: History, journals: Journals, seed: int, say: Callable[[str], None]) -> None:
        self.lab, self.recorder, self.history, self.journals, self.say = lab, recorder, history, journals, say
        self.dice = random.Random(seed)
        self.operators = orders.Operators(lab, history)
        self._doubles: dict[str, int] = {}

    def prepare(self) -> None:
        for vm, node in VMS.items():
            self.lab.define(vm, node, disk=vm in DISKS)
            self.lab.pvc("vm", "start", vm)
        for vm in VMS:
            wait_for(f"{vm} speaks", lambda vm=vm: self.recorder.testimony(vm).life, 60)  # type: ignore[misc]
        self.history.add("begun", nodes=self.lab.names, vms={vm: guest_uuid(vm) for vm in VMS}, lives=self._lives())

    def round(self, kind: Callable[[faults.Target], faults.Fault] | None = None, node: str | None = None, ordering: bool = True) -> None:
        """Orders, a fault in the middle of them (`kind` on `node`, or a random one), healing, an audit."""
        node = node or self.dice.choice(self.lab.names)
        kind = kind or self.dice.choice(DEADLY if self.dice.random() < DEADLY_SHARE else HARMLESS)
        planned = orders.plan(self.dice, list(VMS), self.lab.names) if ordering else []
        fault = kind(faults.Target(self.lab, node, list(VMS), self.dice))
        giving = threading.Thread(target=self.operators.give, args=(planned, 3 * self.dice.random()))
        giving.start()
        threading.Event().wait(self.dice.uniform(0, 2))
        self.history.add("fault", name=fault.name, detail=fault.detail, node=node, may_die=fault.may_die, spared=fault.spared, must_die=fault.must_die,
                         must_object=fault.must_object, ends_lives=fault.ends_lives)
        self.say(f"{fault.name}{f' ({fault.detail})' if fault.detail else ''} on {node}, {fault.hold_s + sum(pause for pause, _ in fault.steps):.0f} s")
        power = self._power()
        self._hold(fault)
        giving.join()
        self._settle(power)
        self._audit(fault.name)

    def _hold(self, fault: faults.Fault) -> None:
        """Do it, and what comes after it; what must have happened by then is asked before anything is healed."""
        fault.inject()
        self._see(fault)
        for pause_s, act in fault.steps:
            threading.Event().wait(pause_s)
            act()
        threading.Event().wait(fault.hold_s)
        self.history.add("held", wrong=fault.blames(), lives=self._lives())
        fault.heal()
        self.history.add("healed")

    def _see(self, fault: faults.Fault) -> None:
        """Write down if it is not there: a fault that was not done proves nothing."""
        try:
            wait_for(f"{fault.name} is there", fault.there, THERE_S, 0.2)
        except LabError as absent:
            self.history.add("lost", what=str(absent))

    def _power(self) -> dict[str, int | None]:
        """The first process of each node: another one, and it has lost its power."""
        return {name: self.lab.node(name).init for name in self.lab.names}

    def _lives(self) -> dict[str, int]:
        return {vm: len(self.recorder.testimony(vm).lives) for vm in VMS}

    # ------------------------------------------------------------------------------------------------------------- audits

    def _settle(self, power: dict[str, int | None]) -> None:
        """Heal everything that the fault may have left, and order every VM to run at home."""
        for name in self.lab.names:
            self._attempt(f"{name} has power", lambda name=name: self.lab.node(name).pid)  # type: ignore[misc]
            self._attempt(f"{name} is linked", lambda name=name: self.lab.heal(name) or True)  # type: ignore[misc]
        for name in self.lab.names:
            self._attempt(f"ZooKeeper and libvirt of {name} serve", lambda name=name: self.lab.await_services(name) or True)  # type: ignore[misc]
            self.lab.node(name).run("systemctl", "start", "libvirtd.service", "pvcd.service", check=False, timeout_s=90)
        self._attempt("every node runs and is up", lambda: all(row["daemonstate"] == "run" and row["fence"] == "up" for row in self._rows("node")))
        settled = self.history.now
        self.history.add("settled", dark=[name for name, init in self._power().items() if init != power[name]])
        for name in self.lab.names:  # only now: a controller that answers earlier cuts the power of a node in doubt
            if self.lab.bmc(name).mode != "ok" or self.lab.bmc(name).pid is None:
                self.lab.bmc(name).set_mode("ok")
        for name in self.lab.names:
            self._attempt(f"{name} is ready", lambda name=name: self._pvc("node", "ready", name)[0] == 0)  # type: ignore[misc]
        self._attempt("every node is ready", lambda: all(row["domainstate"] == "ready" for row in self._rows("node")))
        self._attempt("every keepalive is seen again", lambda: self._keepalives_since(settled) >= set(self.lab.names))
        self._attempt("the VMs are looked at", self._found)
        self._attempt("every VM is ordered to run", self._started)

    def _keepalives_since(self, moment: float) -> set[str]:
        """Whose the sampler has seen. It connects again some seconds after the daemons do, and the judge takes it for blind until then."""
        later = takewhile(lambda event: event["at"] >= moment, reversed(self.history.events))
        return {event["path"].split("/")[2] for event in later if event["kind"] == "key" and event["path"].endswith("/keepalive")}

    def _found(self) -> bool:
        """Write down how the VMs are, before anything is repaired."""
        self.history.add("found", states={row["name"]: row["state"] for row in self._rows("vm")})
        return True

    def _started(self) -> bool:
        rows = self._rows("vm")
        for row in rows:
            if row["state"] in ("stop", "failed", "shutdown"):
                self._pvc("vm", "start", row["name"])
        return all(row["state"] in ("start", "migrate", "restart") for row in rows)

    def _pvc(self, *words: str) -> tuple[int, str]:
        """An order of the nemesis's own, which is none of an operator's."""
        status, told = self.operators.pvc(*words)
        if "Traceback" in told:
            self.history.add("traceback", what=f"pvc {' '.join(words)}: {told}")
        return status, told

    def _rows(self, kind: str) -> list[dict[str, Any]]:
        """What `pvc node list` or `pvc vm list` shows. Raises LabError while it cannot be known."""
        done = self.lab.node("hv1").run("pvc", kind, "list", "-f", "json", timeout_s=30, check=False)
        if "Traceback" in done.stderr:
            self.history.add("traceback", what=f"pvc {kind} list: {done.stderr}")
        if done.returncode:
            raise LabError(f"pvc {kind} list: {done.stderr.strip()}")
        found: list[dict[str, Any]] = json.loads(done.stdout)
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
        self.history.add("audit", wrong=wrong, lives=self._lives())
        for vm in VMS:
            doubles = self.recorder.testimony(vm).doubles
            for double in doubles[self._doubles.get(vm, 0):]:
                self.history.add("double", what=f"{vm}: {double}, during {fault}")
            self._doubles[vm] = len(doubles)
        for name in self.lab.names:
            self._uses(name)
        self._attempt("every journal is read", self.journals.followed)

    def _uses(self, name: str) -> None:
        """What the node's daemon uses. `pid` tells its start too: the first processes of each boot have the same numbers."""
        pid, *used = self.lab.node(name).run("sh", "-c", USED, check=False).stdout.split() or [""]
        if len(used) == 3:  # it is there
            self.history.add("pvcd", node=name, pid=pid, **dict(zip(("rss_kib", "threads", "fds"), map(int, used))))

    def _wrong(self, spoken: dict[str, int]) -> list[str]:
        try:
            running, rows = {name: self.lab.domains(name) for name in self.lab.names}, self._rows("vm")
        except LabError as error:
            return [str(error)]
        wrong = [f"{vm} is gone" for vm in VMS if vm not in [row.get("name") for row in rows]]
        for row in rows:
            vm = row.get("name", "?")
            here = [name for name in self.lab.names if vm in running[name]]
            if row["state"] != "start" or row.get("operation") or here != [row.get("held_by")] or row.get("hypervisor") not in here:
                wrong.append(f"{vm}: {row['state']} on {row.get('hypervisor')}, held by {row.get('held_by')}, runs on {here}")
            elif vm in VMS and (life := self.recorder.testimony(vm).life) and len(life.times) < 3 + spoken[vm] and len(life.times) >= spoken[vm]:
                wrong.append(f"{vm} does not speak")
        return wrong or [f"{vm}: {trouble}" for vm in DISKS if (trouble := self._disk_trouble(vm))]

    def _disk_trouble(self, vm: str) -> str:
        """The second witness: a copy that does not reach the serial file, or that writes beside the one that does, shows here."""
        with (self.lab.shared / "disks" / vm).open("rb") as disk:
            written = re.match(rb"boot=([0-9a-f]{8}) n=([0-9]+) ", disk.read(512))
        life = self.recorder.testimony(vm).life
        if life is None:
            return "it has never spoken"
        return disk_trouble((life.boot, life.last), (written[1].decode(), int(written[2])) if written else None)
