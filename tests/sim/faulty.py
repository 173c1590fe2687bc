# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The models with what goes wrong beside the protocol: single domains that hang, answers that take time, fail or are not to the point, paths
between two machines that are cut, image locks that outlive their host, guests that libvirt starts by itself. All off until a fault turns it on.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pvcd.cluster import definition
from pvcd.cluster.errors import HypervisorError, HypervisorUnknown
from pvcd.ipmi import Bmc, Power, Reading
from pvcd.local import Local, Status

from .fakehypervisor import Copy, Fabric, FakeHypervisor, Job
from .fakeipmi import FakeIpmi

if TYPE_CHECKING:
    from .cluster import Cluster, Daemon, Host

LOCKED = 'process exited while connecting to monitor: Failed to get "write" lock. Is another process using the image?'


class FaultyFabric(Fabric):
    """`apart`: pairs of machines whose direct path is cut; `stalled`: sources whose migrations move no byte; `locks`: VM → until when its
    image is locked for everybody.
    """

    apart: set[frozenset[str]]
    stalled: set[str]
    locks: dict[str, float]
    on_end: Callable[[str, str, Copy, str], None]
    on_refusal: Callable[[str, str, str], None]

    def advance(self, job: Job, lost: bool = False, resumed: bool = True) -> None:
        cut = frozenset((job.source, job.dest)) in self.apart
        source = self.hosts[job.source]
        if job.phase == "indoubt" and isinstance(source, FaultyHypervisor) and job.uuid in source.hung:
            job.seen = self.clock()  # a monitor that hangs is told nothing, by libvirt neither
            return
        if job.source in self.stalled and job.phase == "perform" and not job.aborted:
            return
        super().advance(job, lost or cut, resumed)


class FaultyHypervisor(FakeHypervisor):
    """`hung`: VMs whose monitor does not answer; `slow`: VM → seconds that its QEMU takes to die; `sick`: VMs that a resume does not help;
    `broken`: VMs that this host cannot start; `persistent`: VMs that libvirt starts at boot, with their names and MiB.
    """

    def __init__(self, fabric: FaultyFabric, name: str, memory_mib: int = 8192) -> None:
        super().__init__(fabric, name, memory_mib)
        self.world = fabric
        self.hung: set[str] = set()
        self.sick: set[str] = set()
        self.broken: set[str] = set()
        self.slow: dict[str, float] = {}
        self.persistent: dict[str, tuple[str, int]] = {}
        self.autostarted: set[str] = set()
        self.passes: Callable[[float, str], None] = lambda _seconds, _what: None

    def well(self) -> None:
        """Everything that is turned on here goes off again."""
        for faults in (self.hung, self.sick, self.broken, self.slow, self.persistent):
            faults.clear()

    def power_off(self) -> None:
        super().power_off()
        self.hung.clear()
        self.autostarted.clear()

    def power_on(self) -> None:
        super().power_on()
        for uuid, (name, memory_mib) in self.persistent.items():
            self.fabric.lives += 1
            self.autostarted.add(uuid)
            self.copies[uuid] = Copy(name, memory_mib, Status.RUNNING, self.fabric.lives, self.fabric.clock())
            self.fabric.say(self.name, uuid, f"starts life {self.fabric.lives}, by libvirt's autostart")

    def look(self, uuid: str) -> Local:
        if uuid in self.hung and self.answers and self.power:
            return Local(Status.UNKNOWN, call=self.calls.get(uuid), detail="its monitor does not answer")
        return super().look(uuid)

    def _verb(self, uuid: str, what: str) -> None:
        if uuid in self.hung and self.answers and self.power:
            self.passes(5.0, what)
        if uuid in self.hung and self.answers and self.power:
            raise HypervisorUnknown(f"{what}: its monitor does not answer", slow=True)

    def shut_down(self, uuid: str) -> None:
        self._verb(uuid, "shut down")
        super().shut_down(uuid)

    def destroy(self, uuid: str) -> None:
        self._verb(uuid, "destroy")
        if uuid in self.slow and uuid in self.copies:
            self.passes(self.slow[uuid], "destroy")
            if self.slow.get(uuid, 0.0) > 10.0:
                raise HypervisorUnknown("Failed to terminate process 42 with SIGKILL: Device or resource busy")
        super().destroy(uuid)

    def resume(self, uuid: str) -> None:
        self._verb(uuid, "resume")
        copy = self.copies.get(uuid)
        if copy is not None and copy.status is Status.IO_ERROR and uuid in self.sick:
            return  # it runs into the same error at once
        super().resume(uuid)

    def create(self, xml: str) -> None:
        uuid = definition.parse(xml.encode()).uuid or ""
        if uuid in self.broken and self.answers and self.power:
            self.before_effect("create")
            self.world.on_refusal(self.name, uuid, "node")
            raise HypervisorError("Cannot get interface MTU on 'br7': No such device")
        if self.world.locks.get(uuid, 0.0) > self.fabric.clock() and self.answers and self.power:
            self.before_effect("create")
            self.world.on_refusal(self.name, uuid, "lock")
            raise HypervisorError(LOCKED)
        if uuid in self.refuse:
            self.world.on_refusal(self.name, uuid, "definition")
        super().create(xml)

    def _remove(self, uuid: str, what: str) -> None:
        copy = self.copies.get(uuid)
        super()._remove(uuid, what)
        if copy is not None and what in ("destroyed", "powers off"):
            self.world.on_end(self.name, uuid, copy, what)
        self.autostarted.discard(uuid)


class FaultyIpmi(FakeIpmi):
    """`cluster.no_way`: (machine, controller) pairs without a route; `cluster.late`: controller → seconds for each question; `cluster.mute`:
    controllers that answer the next question with something else.
    """

    def __init__(self, cluster: Cluster, daemon: Daemon) -> None:
        super().__init__(cluster, daemon)
        self._world, self._me = cluster, daemon

    def _host(self, bmc: Bmc) -> Host | None:
        if (self._me.host.machine, bmc.host) in self._world.no_way:
            return None
        return super()._host(bmc)

    def _asked(self, bmc: Bmc, what: str) -> bool:
        """Takes its time. False: the answer is of no use."""
        late_s = self._world.late.get(bmc.host, 0.0)
        if late_s:
            self._me.passes(late_s, what)
        if bmc.host in self._world.mute:
            self._world.mute.discard(bmc.host)
            return False
        return True

    def status(self, bmc: Bmc) -> Reading:
        if not self._asked(bmc, "ipmi status"):
            return Reading(Power.UNKNOWN, "Error: Unable to establish IPMI v2 / RMCP+ session")
        return super().status(bmc)

    def off(self, bmc: Bmc) -> str:
        self._world.oracles.off_is_sent(self._me.host.machine, self._host(bmc))
        if not self._asked(bmc, "ipmi off"):
            return "Set Chassis Power Control to Down/Off failed: Node busy"
        return super().off(bmc)

    def on(self, bmc: Bmc) -> str:
        if not self._asked(bmc, "ipmi on"):
            return "Set Chassis Power Control to Up/On failed: Node busy"
        return super().on(bmc)

    def guid(self, bmc: Bmc) -> str | None:
        return super().guid(bmc) if self._asked(bmc, "ipmi guid") else None
