# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""A model of libvirt and QEMU on several hosts, with live migrations in steps and what goes wrong in each. No threads.

A migration goes prepare → perform → finish → confirm. In `finish` the source is paused, and the copy at the destination becomes whole and
stays paused. If the reply is lost, libvirt wakes the source by itself: at once when the connection breaks, after RESUME_S of silence.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from pvcd.cluster import definition
from pvcd.cluster.errors import BadDefinition, HypervisorError, HypervisorUnknown
from pvcd.local import Call, CallState, Ending, Guest, Kept, Local, Status

RESUME_S = 30.0
HALF_COPY_S = 33.0


@dataclass
class Copy:
    """One QEMU: `life` is its guest's boot, kept through a migration."""

    name: str
    memory_mib: int
    status: Status
    life: int
    since: float
    persistent: bool = False
    dumping: bool = False
    """libvirt writes a dump of it"""
    arrived: bool = False
    """it came by a migration; libvirt does not say so"""
    ended: bool = False
    """its process has ended, and libvirt has not looked yet"""
    stale: tuple[str, int] | None = None
    """where the guest has executed since this copy was made: the host and its boot"""
    autostart: bool = False
    """and libvirt starts it at each boot, if it is persistent"""


@dataclass
class Job:
    """One migration, on its source's libvirtd."""

    uuid: str
    op: str
    source: str
    dest: str
    phase: str = "prepare"
    since: float = 0.0
    moved: int = 0
    aborted: bool = False
    waited_s: float = 0.0
    """how long the source's libvirtd has waited in doubt; while it hangs its keepalive counts nothing"""
    seen: float = 0.0
    answered: bool = True
    broken: bool = False
    """its connection broke when the reply was lost: the source is woken at once"""
    wakes: Status = Status.RUNNING
    """what becomes of a source that libvirt wakes; STUCK: it could not (libvirt 9.2 and later say so)"""


@dataclass
class Fabric:
    """All hosts. `clock` is virtual time; `events` is what happened, newest last."""

    clock: Callable[[], float]
    hosts: dict[str, FakeHypervisor] = field(default_factory=dict)
    events: list[tuple[float, str, str, str]] = field(default_factory=list)
    lives: int = 0
    on_event: Callable[[str, str], None] | None = None
    lease_s: float = 0.0
    """the storage keeps the image locks of a host that has died for so long"""
    locked: dict[str, float] = field(default_factory=dict)
    """UUID → until when"""
    arrival: ClassVar[Status] = Status.PAUSED
    """what a whole copy does at the destination; RUNNING: without VIR_MIGRATE_PAUSED"""

    def running(self, uuid: str) -> list[str]:
        """Hosts on which the guest executes."""
        return [name for name, host in self.hosts.items() if uuid in host.copies and host.copies[uuid].status is Status.RUNNING]

    def say(self, host: str, uuid: str, what: str) -> None:
        self.events.append((self.clock(), host, uuid, what))
        if self.on_event is not None:
            self.on_event(host, uuid)

    def jobs(self) -> list[Job]:
        return [job for host in self.hosts.values() for job in host.jobs.values()]

    def advance(self, job: Job, lost: bool = False, resumed: bool = True) -> None:
        """One step of a migration. `lost`: what is sent in this step does not arrive; in `finish`, `resumed` says whether the
        destination was told before the reply was lost.
        """
        source, dest = self.hosts[job.source], self.hosts[job.dest]
        here, there = source.copies.get(job.uuid), dest.copies.get(job.uuid)
        step = getattr(self, f"_{job.phase}")
        step(job, source, dest, here, there, lost, resumed)

    def _prepare(self, job: Job, source: FakeHypervisor, dest: FakeHypervisor, here: Copy | None, there: Copy | None, lost: bool,
                 _resumed: bool) -> None:
        if lost or here is None or here.status is not Status.RUNNING or there is not None or not dest.answers or job.aborted:
            return self._end(job, source, "refused by the destination")
        dest.copies[job.uuid] = Copy(here.name, here.memory_mib, Status.MIGRATING, here.life, self.clock())
        job.phase, job.since = "perform", self.clock()
        return self.say(job.dest, job.uuid, "incoming")

    def _perform(self, job: Job, source: FakeHypervisor, dest: FakeHypervisor, here: Copy | None, there: Copy | None, lost: bool,
                 _resumed: bool) -> None:
        arrived = there is not None and there.status is Status.MIGRATING and dest.power
        if lost or not arrived or here is None or here.status not in (Status.RUNNING, Status.PAUSED) or job.aborted:
            return self._end(job, source, "failed in the data phase")
        job.moved += 1
        if job.moved >= 2:
            here.status, here.since = Status.MIGRATING, self.clock()
            job.phase, job.since = "finish", self.clock()
            self.say(job.source, job.uuid, "paused")
        return None

    def _finish(self, job: Job, source: FakeHypervisor, dest: FakeHypervisor, _here: Copy | None, there: Copy | None, lost: bool,
                resumed: bool) -> None:
        able = there is not None and there.status is Status.MIGRATING and dest.power and dest.answers
        if able and there is not None and (not lost or resumed):
            there.status, there.arrived = self.arrival, True
            self.say(job.dest, job.uuid, "arrives")
            dest.nudge(job.uuid)
        job.phase = "confirm" if able and not lost else "indoubt"
        job.since = job.seen = self.clock()
        if job.phase == "indoubt":
            self.say(job.source, job.uuid, "in doubt")
        del source

    def _confirm(self, job: Job, source: FakeHypervisor, _dest: FakeHypervisor, here: Copy | None, _there: Copy | None, _lost: bool,
                 _resumed: bool) -> None:
        if here is not None:
            del source.copies[job.uuid]
        del source.jobs[job.uuid]
        source.finished(job, CallState.SUCCEEDED, "")
        self.say(job.source, job.uuid, "gone")
        source.nudge(job.uuid)

    def ends(self, job: Job) -> None:
        """The source's libvirt has the destination's word and has killed its QEMU; it looks later (`_confirm`) whether that has helped."""
        source = self.hosts[job.source]
        if job.phase == "confirm" and job.uuid in source.copies:
            source.copies[job.uuid].ended = True
            self.say(job.source, job.uuid, "its process has ended")
            source.nudge(job.uuid)

    def _indoubt(self, job: Job, source: FakeHypervisor, _dest: FakeHypervisor, here: Copy | None, _there: Copy | None, _lost: bool,
                 _resumed: bool) -> None:
        if source.answers and job.answered:
            job.waited_s += self.clock() - job.seen
        job.seen, job.answered = self.clock(), source.answers
        if job.waited_s < RESUME_S and not job.broken:
            return
        if here is not None and here.status is Status.MIGRATING:
            here.status = job.wakes
            self.say(job.source, job.uuid, "libvirt wakes the source" if here.status is Status.RUNNING else "libvirt cannot wake the source")
        self._end(job, source, "the reply was lost")

    def _end(self, job: Job, source: FakeHypervisor, error: str) -> None:
        source.jobs.pop(job.uuid, None)
        source.finished(job, CallState.FAILED, error)
        self.say(job.source, job.uuid, f"migration ends: {error}")

    def sweep(self) -> None:
        """Half copies whose source has gone are killed by their own libvirtd after a while."""
        for name, host in self.hosts.items():
            for uuid, copy in list(host.copies.items()):
                fed = any(job.uuid == uuid and job.dest == name and job.phase != "indoubt" for job in self.jobs())
                own = any(job.uuid == uuid and job.source == name for job in self.jobs())
                if copy.status is Status.MIGRATING and not fed and not own and self.clock() - copy.since > HALF_COPY_S:
                    del host.copies[uuid]
                    self.say(name, uuid, "half copy killed by libvirt")


class FakeHypervisor:
    """One host's libvirt; implements `pvcd.local.Hypervisor`. `notify(uuid)` as the real one."""

    def __init__(self, fabric: Fabric, name: str, memory_mib: int = 8192) -> None:
        self.fabric, self.name, self.memory_mib = fabric, name, memory_mib
        self.copies: dict[str, Copy] = {}
        self.jobs: dict[str, Job] = {}
        self.calls: dict[str, Call] = {}
        self.power, self.answers = True, True
        self.busy, self.queue = False, list[tuple[str, str, str, Callable[[], bool]]]()
        """`busy`: no migration worker is free, and calls wait for their turn"""
        self.refuse: dict[str, str] = {}
        """UUID → libvirt's words when it is asked to start it"""
        self.refuses_all = ""
        """the same for any VM: a host that can start nothing"""
        self.unsupported = False
        """its refusals are definite for this host"""
        self.creates = 0
        self.refused: dict[str, float] = {}
        """UUID → since when each start of it was refused; since always, if what it asks for is not supported"""
        self.ends: dict[str, int] = {}
        """UUID → how often its QEMU has ended by itself"""
        self.hung: set[str] = set()
        """UUIDs whose monitor does not answer"""
        self.endings: dict[str, Ending] = {}
        self.asked: list[tuple[float, str]] = []
        """when the guest was asked to power off"""
        self.booting: set[str] = set()
        """guests that do not hear ACPI yet"""
        self.lock_held, self.resumes_refused = False, 0
        """somebody has the locks of the images: resumes are refused, and counted"""
        self.late_create = False
        """the next create succeeds, and its answer is lost"""
        self.notify: Callable[[str | None], None] = lambda _uuid: None
        self.before_effect: Callable[[str], None] = lambda _what: None
        """called when a verb is on its way to libvirt; what the others do in there comes first"""
        fabric.hosts[name] = self

    # ------------------------------------------------------------------------------------------------------- faults

    def power_off(self) -> None:
        for uuid in list(self.copies):
            self.fabric.locked[uuid] = self.fabric.clock() + self.fabric.lease_s
            self.fabric.say(self.name, uuid, "power off")
        self.power, self.copies, self.jobs, self.calls = False, {}, {}, {}
        self.queue.clear()

    def power_on(self) -> None:
        self.power, self.answers = True, True

    def forget_process(self) -> None:
        """pvcd has died: what it knew of its calls is gone, the jobs go on."""
        self.calls = {}
        self.queue.clear()

    def libvirtd_dies(self) -> None:
        """... and is started again: what it finds then was measured. Half copies and jobs are gone, a source that was paused stays paused."""
        for job in list(self.jobs.values()):
            if job.phase == "confirm":
                self.copies.pop(job.uuid, None)
            self.fabric._end(job, self, "the connection to libvirtd was lost")
        for job in self.fabric.jobs():
            copy = self.copies.get(job.uuid)
            if job.dest == self.name and copy is not None and copy.status is Status.MIGRATING:
                del self.copies[job.uuid]
                self.fabric.say(self.name, job.uuid, "half copy killed by libvirt")

    def virsh_start(self, uuid: str, name: str, memory_mib: int = 512) -> None:
        """Somebody starts a guest whose definition libvirt itself keeps."""
        self.fabric.lives += 1
        self.copies[uuid] = Copy(name, memory_mib, Status.RUNNING, self.fabric.lives, self.fabric.clock(), True)
        self.fabric.say(self.name, uuid, f"starts life {self.fabric.lives} outside PVC")
        self.nudge(uuid)

    def qemu_dies(self, uuid: str, ending: Ending = Ending.CRASHED) -> None:
        if uuid in self.copies and not self.copies[uuid].ended:
            del self.copies[uuid]
            self.endings[uuid] = ending
            self.ends[uuid] = self.ends.get(uuid, 0) + 1
            self.fabric.say(self.name, uuid, "QEMU dies" if ending is Ending.CRASHED else "ends by itself")
            job = self.jobs.get(uuid)
            if job is not None:
                self.fabric._end(job, self, "domain is not running")
            self.nudge(uuid)

    def finished(self, job: Job, state: CallState, error: str) -> None:
        """A migration is over; the process that called still knows of it, or not."""
        if job.uuid in self.calls and self.calls[job.uuid].op == job.op:
            self.calls[job.uuid] = Call(job.op, state, error)
            self.nudge(job.uuid)

    def nudge(self, uuid: str) -> None:
        self.notify(uuid)

    def _answer(self) -> None:
        if not self.answers or not self.power:
            raise HypervisorUnknown("libvirt does not answer")

    def free_mib(self) -> int:
        return self.memory_mib - sum(copy.memory_mib for copy in self.copies.values())

    # ---------------------------------------------------------------------------------------------------- local.Hypervisor

    def look(self, uuid: str) -> Local:
        call = self.calls.get(uuid)
        if not self.answers or not self.power:
            return Local(Status.UNKNOWN, call=call, detail="libvirt does not answer")
        copy, job = self.copies.get(uuid), self.jobs.get(uuid)
        incoming = any(j.uuid == uuid and j.dest == self.name and j.phase in ("perform", "finish") for j in self.fabric.jobs())
        if copy is None:
            return Local(Status.ABSENT, call=call, ending=self.endings.get(uuid, Ending.UNKNOWN))
        if copy.ended and job is not None and call is not None and call.op == job.op:  # seen only by the process whose call it is
            return Local(Status.ABSENT, call=call, left=True)
        return Local(copy.status, job is not None, call, moved=job.moved if job else 0, size=1 << 29 if job else 0, persistent=copy.persistent,
                     slow=uuid in self.hung, incoming=incoming and copy.status is Status.MIGRATING, other_job=copy.dumping)

    def inventory(self) -> tuple[Guest, ...]:
        self._answer()
        return tuple(Guest(uuid, copy.name, copy.status) for uuid, copy in sorted(self.copies.items()))

    def starts_by_itself(self, uuid: str) -> bool:
        self._answer()
        return uuid in self.copies and self.copies[uuid].persistent and self.copies[uuid].autostart

    def kept(self) -> tuple[Kept, ...]:
        self._answer()
        return tuple(Kept(uuid, copy.name, copy.autostart) for uuid, copy in sorted(self.copies.items()) if copy.persistent)

    def create(self, xml: str) -> None:
        self.before_effect("create")
        self._answer()
        try:
            found = definition.parse(xml.encode())
        except BadDefinition as error:
            raise HypervisorError(str(error), hopeless=True) from error
        self.creates += 1
        if found.uuid in self.refuse or self.refuses_all:
            self.refused.setdefault(found.uuid, self.fabric.clock())
            if self.unsupported:
                self.refused[found.uuid] = float("-inf")
            raise HypervisorError(self.refuse.get(found.uuid, self.refuses_all), permanent=self.unsupported)
        if self.fabric.locked.get(found.uuid, 0.0) > self.fabric.clock():
            self.refused.setdefault(found.uuid, self.fabric.clock())
            raise HypervisorError('Failed to get "write" lock. Is another process using the image?')
        if found.uuid in self.copies or any(copy.name == found.name for copy in self.copies.values()):
            raise HypervisorError(f"domain '{found.name}' already exists")
        self.fabric.lives += 1
        self.endings.pop(found.uuid, None)
        self.refused.pop(found.uuid, None)
        self.copies[found.uuid] = Copy(found.name, found.memory_mib, Status.RUNNING, self.fabric.lives, self.fabric.clock())
        self.fabric.say(self.name, found.uuid, f"starts life {self.fabric.lives}")
        self.nudge(found.uuid)
        if self.late_create:
            self.late_create = False
            raise HypervisorUnknown("the answer was lost")

    def shut_down(self, uuid: str) -> None:
        """The guest obeys at once, unless its name says that it is deaf."""
        self.before_effect("shut down")
        self._answer()
        self.asked.append((self.fabric.clock(), uuid))
        copy = self.copies.get(uuid)
        if copy is not None and not copy.name.startswith("deaf") and uuid not in self.booting | self.hung:
            self._remove(uuid, "powers off")

    def destroy(self, uuid: str) -> None:
        self.before_effect("destroy")
        self._answer()
        self._remove(uuid, "destroyed")

    def _remove(self, uuid: str, what: str) -> None:
        if self.copies.pop(uuid, None) is not None:
            self.fabric.say(self.name, uuid, what)
            job = self.jobs.get(uuid)
            if job is not None:
                self.fabric._end(job, self, "domain is not running")
            self.nudge(uuid)

    def resume(self, uuid: str) -> None:
        self.before_effect("resume")
        self._answer()
        if uuid in self.hung:
            raise HypervisorUnknown("its monitor does not answer", slow=True)
        copy = self.copies.get(uuid)
        if copy is not None and copy.ended:
            raise HypervisorError("its monitor is closed")
        if self.lock_held:
            self.resumes_refused += 1
            raise HypervisorError('Failed to get "write" lock')
        if copy is not None and copy.status is not Status.RUNNING:
            copy.status = Status.RUNNING
            self.fabric.say(self.name, uuid, "resumed")

    def start_migration(self, uuid: str, op: str, destination: str, allowed: Callable[[], bool]) -> None:
        self.calls[uuid] = Call(op, CallState.ACTIVE)
        self.queue.append((uuid, op, destination, allowed))

    def work(self) -> None:
        """A migration worker that is free takes its next call."""
        if self.busy or not self.queue:
            return None
        uuid, op, destination, allowed = self.queue.pop(0)
        if not allowed():
            self.calls[uuid] = Call(op, CallState.FAILED, "the order was taken back, or could not be confirmed, right before the call")
            return self.nudge(uuid)
        self.before_effect("migrate")
        if uuid in self.copies and uuid not in self.jobs and destination in self.fabric.hosts and self.power:
            self.jobs[uuid] = Job(uuid, op, self.name, destination, since=self.fabric.clock())
            return self.fabric.say(self.name, uuid, f"migrates to {destination}")
        self.calls[uuid] = Call(op, CallState.FAILED, "it is not here")
        return self.nudge(uuid)

    def abort_migration(self, uuid: str) -> None:
        for waiting in [call for call in self.queue if call[0] == uuid]:
            self.queue.remove(waiting)
            self.calls[uuid] = Call(waiting[1], CallState.FAILED, "it was withdrawn before its turn")
            self.nudge(uuid)
        self._answer()
        if uuid in self.jobs:
            self.jobs[uuid].aborted = True

    def forget_call(self, uuid: str) -> None:
        if uuid in self.calls and self.calls[uuid].state is not CallState.ACTIVE:
            del self.calls[uuid]
