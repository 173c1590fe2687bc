# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The model of libvirt with what goes wrong beside the protocol: QEMUs that take their time to die, guests that somebody pauses, that run into
an I/O error or that libvirt starts by itself, paths between two machines that are cut. All off until a fault turns it on.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pvcd.cluster import definition
from pvcd.cluster.errors import HypervisorError, HypervisorUnknown
from pvcd.local import Status

from .fakehypervisor import Copy, Fabric, FakeHypervisor, Job

SIGKILL_S = 10.0
"""libvirt waits for a QEMU that it has killed for this long."""


@dataclass
class FaultyFabric(Fabric):
    """`apart`: pairs of machines whose direct path is cut; `stalled`: sources whose migrations move no byte."""

    apart: set[frozenset[str]] = field(default_factory=set)
    stalled: set[str] = field(default_factory=set)
    on_end: Callable[[str, str, Copy, str], None] = lambda _machine, _uuid, _copy, _what: None
    on_refusal: Callable[[str, str, str], None] = lambda _machine, _uuid, _why: None

    def advance(self, job: Job, lost: bool = False, resumed: bool = True) -> None:
        cut = frozenset((job.source, job.dest)) in self.apart
        if job.phase == "indoubt" and job.uuid in self.hosts[job.source].hung:
            job.seen = self.clock()  # a monitor that hangs is told nothing, by libvirt neither
            return
        if job.source in self.stalled and job.phase == "perform" and not job.aborted:
            return
        super().advance(job, lost or cut, resumed)


class FaultyHypervisor(FakeHypervisor):
    """`slow`: VM → seconds that its QEMU takes to die; `sick`: VM → its life, where somebody paused it, or its disk does not let it go on;
    `autostarts`: VMs whose definition libvirt keeps and starts at boot, with their names and MiB.
    """

    def __init__(self, fabric: FaultyFabric, name: str, memory_mib: int = 8192) -> None:
        super().__init__(fabric, name, memory_mib)
        self.world = fabric
        self.slow: dict[str, float] = {}
        self.sick: dict[str, int] = {}
        self.autostarts: dict[str, tuple[str, int]] = {}
        self.autostarted: set[str] = set()
        """VMs that libvirt has started at this boot, and nobody has claimed since"""
        self.passes: Callable[[float, str], None] = lambda _seconds, _what: None

    def ails(self, uuid: str) -> bool:
        """It does not execute, because of a person or of its disk."""
        copy = self.copies.get(uuid)
        return copy is not None and copy.status in (Status.PAUSED, Status.IO_ERROR) and self.sick.get(uuid) == copy.life

    def power_off(self) -> None:
        super().power_off()
        self.hung.clear()
        self.autostarted.clear()

    def power_on(self) -> None:
        super().power_on()
        for uuid, (name, memory_mib) in self.autostarts.items():
            self.fabric.lives += 1
            self.autostarted.add(uuid)
            self.copies[uuid] = Copy(name, memory_mib, Status.RUNNING, self.fabric.lives, self.fabric.clock(), True, autostart=True)
            self.fabric.say(self.name, uuid, f"starts life {self.fabric.lives}, by libvirt's autostart")

    def destroy(self, uuid: str) -> None:
        if uuid in self.slow and uuid in self.copies:
            self.passes(self.slow[uuid], "destroy")
            if self.slow.get(uuid, 0.0) > SIGKILL_S:
                raise HypervisorUnknown("Failed to terminate process 42 with SIGKILL: Device or resource busy")
        super().destroy(uuid)

    def resume(self, uuid: str) -> None:
        if uuid in self.hung:
            self.passes(5.0, "resume")
        copy = self.copies.get(uuid)
        if copy is not None and copy.status is Status.IO_ERROR and self.ails(uuid):
            return  # it runs into the same error at once
        super().resume(uuid)

    def create(self, xml: str) -> None:
        try:
            super().create(xml)
        except HypervisorError as error:
            if not error.hopeless:
                self.world.on_refusal(self.name, definition.parse(xml.encode()).uuid or "", str(error))
            raise
        finally:
            for uuid in self.autostarts.keys() & self.copies.keys():
                self.copies[uuid].persistent = self.copies[uuid].autostart = True

    def _remove(self, uuid: str, what: str) -> None:
        copy = self.copies.get(uuid)
        super()._remove(uuid, what)
        if copy is not None and what in ("destroyed", "powers off"):
            self.world.on_end(self.name, uuid, copy, what)
        self.autostarted.discard(uuid)
