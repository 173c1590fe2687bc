# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Offers a handful of verbs on local domains and turns libvirt's error codes into ours. With `connections`, the only room that
imports libvirt.

`migration_workers` threads sit in migration calls for minutes; everything else runs on the caller's thread, each call on a
connection of its own (`connections` says why). A stopped libvirtd errors after 6 s instead of never.

A QEMU that hangs is another matter. What libvirt answers from its own memory (lookup, isActive, state, controlInfo, the inventory of states)
takes 1 ms whatever the guest does. What asks the guest's monitor (balloon, ACPI, resume) hangs as long as QEMU does for the first
caller, and for 30 s for each one after it, jobInfo among them. So looks ask the monitor only while a migration runs.
"""
from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import libvirt

from .cluster.errors import HypervisorError, HypervisorUnknown
from .cluster.schema import printable
from .connections import Connections
from .departed import Departure, watch
from .local import Call, CallState, Ending, Guest, Kept, Local, Status

LOCAL_URI = "qemu+tcp://127.0.0.1:16509/system"
PEER_URI = "qemu+tcp://{}/system"
CALLERS = 24
"""Threads that ask libvirt at once, besides the migrations: the reconcile workers and their spares, the collector, the watch over
differences, the main one, and those that wait for a guest to take a request."""
HUNG_MS = 2000
"""A monitor that has not answered its caller for so long counts as hung."""
ASK_S, ASKED_AT_ONCE = 2.0, 4
"""So long a visit waits for a guest's monitor to take a request to power off, and so many that hang are left waiting (each takes one of libvirtd's
20 workers)."""

T = TypeVar("T")

_PAUSED_API_ERROR = 14
"""VIR_DOMAIN_PAUSED_API_ERROR of libvirt 9.2 and later; Debian 12's binding has no name for it."""
_PAUSED = {
    libvirt.VIR_DOMAIN_PAUSED_MIGRATION: Status.MIGRATING,
    # Both an incoming half copy and a domain whose start is not over: neither is a whole guest yet.
    libvirt.VIR_DOMAIN_PAUSED_STARTING_UP: Status.MIGRATING,
    libvirt.VIR_DOMAIN_PAUSED_IOERROR: Status.IO_ERROR,
    _PAUSED_API_ERROR: Status.STUCK,
    libvirt.VIR_DOMAIN_PAUSED_CRASHED: Status.CRASHED,
}
_STATES = {
    libvirt.VIR_DOMAIN_RUNNING: Status.RUNNING, libvirt.VIR_DOMAIN_BLOCKED: Status.RUNNING,
    libvirt.VIR_DOMAIN_SHUTDOWN: Status.RUNNING, libvirt.VIR_DOMAIN_PMSUSPENDED: Status.PAUSED,
    libvirt.VIR_DOMAIN_SHUTOFF: Status.ABSENT, libvirt.VIR_DOMAIN_CRASHED: Status.CRASHED,
}
_HOPELESS = {libvirt.VIR_ERR_XML_ERROR, libvirt.VIR_ERR_XML_DETAIL}
_PERMANENT = {libvirt.VIR_ERR_CONFIG_UNSUPPORTED, libvirt.VIR_ERR_OS_TYPE, libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_INVALID_ARG}
_ENDINGS = {libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED: Ending.DESTROYED, libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED: Ending.CRASHED,
            libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED: Ending.CRASHED}
_UNANSWERED = {libvirt.VIR_ERR_RPC, libvirt.VIR_ERR_INVALID_CONN, libvirt.VIR_ERR_NO_CONNECT}
_TRANSPORT = {libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE}
_FLAGS = (libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PEER2PEER | libvirt.VIR_MIGRATE_ABORT_ON_ERROR
          | libvirt.VIR_MIGRATE_AUTO_CONVERGE | libvirt.VIR_MIGRATE_PAUSED)
"""PAUSED: the copy at the destination does not run before its pvcd resumes it under its own claim (it excludes post-copy)."""


def status_of(state: int, reason: int) -> Status:
    """libvirt's state and reason as ours; states that mean nothing to us are UNKNOWN."""
    if state == libvirt.VIR_DOMAIN_PAUSED:
        return _PAUSED.get(reason, Status.PAUSED)
    return _STATES.get(state, Status.UNKNOWN)


def translated(error: libvirt.libvirtError) -> HypervisorError | HypervisorUnknown:
    """A definite no, or no answer: whatever the transport says, and timeouts, tell nothing about the domain."""
    code, text = error.get_error_code(), printable(error.get_error_message() or str(error))
    if code == libvirt.VIR_ERR_OPERATION_TIMEOUT:
        return HypervisorUnknown(text, slow=True)
    if code in _UNANSWERED or error.get_error_domain() in _TRANSPORT:
        return HypervisorUnknown(text)
    return HypervisorError(text, permanent=code in _PERMANENT, hopeless=code in _HOPELESS)


@dataclass(frozen=True)
class Job:
    """A migration call that waits for a worker."""

    uuid: str
    op: str
    destination: str
    allowed: Callable[[], bool]


class LibvirtHypervisor:
    """`notify(uuid)` on each lifecycle event and at the end of a migration call; `notify(None)` after a reconnection: look at
    everything. It is called on libvirt's and the migration threads and must only enqueue.
    """

    def __init__(self, notify: Callable[[str | None], None], migration_workers: int = 4, migrate_unsafe: bool = False,
                 uri: str = LOCAL_URI, migration_bandwidth_mib: int = 0) -> None:
        self.uri, self._notify, self._bandwidth_mib = uri, notify, migration_bandwidth_mib
        self._connections = Connections(uri, migration_workers + CALLERS, notify, self._heard)
        self._flags = _FLAGS | (libvirt.VIR_MIGRATE_UNSAFE if migrate_unsafe else 0)
        self._lock = threading.Lock()
        self._calls: dict[str, Call] = {}
        self._departures: dict[str, Departure] = {}
        """of the calls that run"""
        self._endings: dict[str, Ending] = {}
        self._asking: set[str] = set()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._queued: set[str] = set()
        """operations whose call waits for a worker"""
        self._workers = [threading.Thread(target=self._migrate, name=f"migration-{number}", daemon=True) for number in range(migration_workers)]

    def start(self, timeout_s: float) -> None:
        """Connect and start the threads. Raises HypervisorUnknown if libvirt does not answer within `timeout_s`."""
        for thread in self._workers:
            thread.start()
        self._connections.start(timeout_s)

    def stop(self) -> None:
        """No new calls; running migrations go on in libvirt."""
        self._connections.stop()
        for _ in self._workers:
            self._jobs.put(None)

    @property
    def threads(self) -> list[threading.Thread]:
        """Those that run until `stop`."""
        return [*self._workers, *self._connections.threads]

    @staticmethod
    def _domain(connection: Any, uuid: str) -> Any | None:
        """The domain if libvirt knows it and it is active, None if it definitely does not."""
        try:
            found = connection.lookupByUUIDString(uuid)
            return found if found.isActive() else None
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise translated(error) from error

    def _do(self, uuid: str, call: Callable[[Any], T]) -> T | None:
        """`call` on the domain; None if it is absent, before or meanwhile."""
        with self._connections.lend() as connection:
            domain = self._domain(connection, uuid)
            if domain is None:
                return None
            try:
                return call(domain)
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN or self._domain(connection, uuid) is None:
                    return None
                raise translated(error) from error

    # ----------------------------------------------------------------------------------------------------------- looks

    def look(self, uuid: str) -> Local:
        """See `local.Hypervisor`. Never raises."""
        with self._lock:
            call, ending, departure = self._calls.get(uuid), self._endings.get(uuid, Ending.UNKNOWN), self._departures.get(uuid)
        if departure is not None and departure.left:
            return Local(Status.ABSENT, call=call, left=True)  # libvirt would answer when it has looked itself
        try:
            seen = self._do(uuid, self._seen)
        except HypervisorUnknown as error:
            return Local(Status.UNKNOWN, call=call, detail=str(error), slow=error.slow)
        except HypervisorError as error:
            return Local(Status.UNKNOWN, call=call, detail=str(error))
        if seen is None:
            return Local(Status.ABSENT, call=call, ending=ending)
        return replace(seen, call=call)

    @classmethod
    def _seen(cls, domain: Any) -> Local:
        state, reason = domain.state()
        status = status_of(state, reason)
        busy_ms = cls._busy_ms(domain)
        job = {} if busy_ms is not None else cls._job(domain)
        active = job.get("type") in (libvirt.VIR_DOMAIN_JOB_BOUNDED, libvirt.VIR_DOMAIN_JOB_UNBOUNDED)
        leaves = active and job.get("operation") == libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT  # not a backup, dump or snapshot of somebody
        moved, size = (job.get("data_processed", 0), job.get("memory_total", 0)) if leaves else (0, 0)
        slow = busy_ms is not None and busy_ms >= HUNG_MS
        return Local(status, leaves, None, "" if status is not Status.UNKNOWN else "no state", moved, size, bool(domain.isPersistent()), slow,
                     incoming=active and "operation" not in job, other_job=active and "operation" in job and not leaves, busy=busy_ms is not None)

    @staticmethod
    def _busy_ms(domain: Any) -> int | None:
        """How long somebody has waited for this guest's monitor outside of any migration, in ms; None if nobody does. Never blocks."""
        try:
            state, _details, since_ms = domain.controlInfo()
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
                return None  # libvirt's test driver
            raise
        return int(since_ms) if state == libvirt.VIR_DOMAIN_CONTROL_OCCUPIED else None

    @staticmethod
    def _job(domain: Any) -> dict[str, Any]:
        """The statistics of the active job, with its type and operation; without an operation: it is being received."""
        try:
            return dict(domain.jobStats())
        except libvirt.libvirtError as error:
            # A destination has the job, and only the source has its statistics; libvirt's test driver has no jobs.
            kinds = {libvirt.VIR_ERR_OPERATION_UNSUPPORTED: {"type": libvirt.VIR_DOMAIN_JOB_UNBOUNDED}, libvirt.VIR_ERR_NO_SUPPORT: {}}
            if error.get_error_code() not in kinds:
                raise
            return kinds[error.get_error_code()]

    def inventory(self) -> tuple[Guest, ...]:
        """See `local.Hypervisor`. One request, of states only: anything more (the balloon) would wait for a monitor that hangs, and NOWAIT
        passes over a guest only when somebody waits for it already.
        """
        flags = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE
        try:
            with self._connections.lend() as connection:
                rows = connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE, 0 if self.uri.startswith("test:") else flags)
        except libvirt.libvirtError as error:
            raise translated(error) from error
        return tuple(Guest(domain.UUIDString(), domain.name(), status_of(stats.get("state.state", 0), stats.get("state.reason", 0)))
                     for domain, stats in rows if stats.get("state.state") != libvirt.VIR_DOMAIN_SHUTOFF)

    def live_definition(self, uuid: str) -> str | None:
        """The domain as it runs now, None if it does not. May wait as long as its guest's monitor hangs: only for a thread that may, too."""
        return self._do(uuid, lambda domain: str(domain.XMLDesc(0)))

    def _heard(self, uuid: str | None, event: int, detail: int) -> None:
        """A lifecycle event, on libvirt's thread; None: connections were lost, and events with them."""
        with self._lock:
            if uuid is None:
                self._endings.clear()
            elif event == libvirt.VIR_DOMAIN_EVENT_STARTED:
                self._endings.pop(uuid, None)
            elif event == libvirt.VIR_DOMAIN_EVENT_SHUTDOWN:  # comes before STOPPED; SIGTERM to QEMU says HOST
                guest = detail == libvirt.VIR_DOMAIN_EVENT_SHUTDOWN_GUEST
                self._endings[uuid] = Ending.GUEST if guest else Ending.UNKNOWN
            elif event == libvirt.VIR_DOMAIN_EVENT_STOPPED and detail in _ENDINGS:
                self._endings[uuid] = _ENDINGS[detail]

    def starts_by_itself(self, uuid: str) -> bool:
        """See `local.Hypervisor`. Asks no guest."""
        return bool(self._do(uuid, lambda domain: domain.isPersistent() and domain.autostart()))

    def kept(self) -> tuple[Kept, ...]:
        """See `local.Hypervisor`. Asks no guest."""
        try:
            with self._connections.lend() as connection:
                found = connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_PERSISTENT)
                return tuple(Kept(domain.UUIDString(), domain.name(), bool(domain.autostart())) for domain in found)
        except libvirt.libvirtError as error:
            raise translated(error) from error

    # ----------------------------------------------------------------------------------------------------------- verbs

    def create(self, xml: str) -> None:
        """See `local.Hypervisor`. The domain is transient: nothing on disk could start by itself after a reboot."""
        try:
            with self._connections.lend() as connection:
                connection.createXML(xml, 0)
        except libvirt.libvirtError as error:
            raise translated(error) from error

    def shut_down(self, uuid: str) -> None:
        """See `local.Hypervisor`. On a thread of its own: a guest that hangs would keep its visit from ever reaching the deadline."""
        with self._lock:
            if uuid in self._asking:
                return  # the last request still waits for the monitor, and is as good as another
            if len(self._asking) >= ASKED_AT_ONCE:
                raise HypervisorUnknown(f"{ASKED_AT_ONCE} guests do not take a request", slow=True)
            self._asking.add(uuid)
        failed: list[HypervisorError | HypervisorUnknown] = []
        thread = threading.Thread(target=self._ask_to_power_off, args=(uuid, failed), name=f"shutdown-{uuid[:8]}", daemon=True)
        thread.start()
        thread.join(ASK_S)
        if failed:
            raise failed[0]

    def _ask_to_power_off(self, uuid: str, failed: list[HypervisorError | HypervisorUnknown]) -> None:
        try:
            self._do(uuid, lambda domain: domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN))
        except (HypervisorError, HypervisorUnknown) as error:
            failed.append(error)
        finally:
            with self._lock:
                self._asking.discard(uuid)

    def destroy(self, uuid: str) -> None:
        """See `local.Hypervisor`. Raises HypervisorUnknown when libvirt says done and still shows the domain."""
        self._do(uuid, lambda domain: domain.destroy())
        if self._do(uuid, lambda _domain: True):
            raise HypervisorUnknown("it was destroyed and is still there")

    def resume(self, uuid: str) -> None:
        """See `local.Hypervisor`."""
        self._do(uuid, lambda domain: domain.resume())

    # ------------------------------------------------------------------------------------------------------ migrations

    def start_migration(self, uuid: str, op: str, destination: str, allowed: Callable[[], bool]) -> None:
        """See `local.Hypervisor`."""
        with self._lock:
            self._calls[uuid] = Call(op, CallState.ACTIVE)
            self._queued.add(op)
        self._jobs.put(Job(uuid, op, destination, allowed))

    def abort_migration(self, uuid: str) -> None:
        """See `local.Hypervisor`."""
        with self._lock:
            call = self._calls.get(uuid)
            waits = call is not None and call.op in self._queued
            if call is not None and waits:
                self._queued.discard(call.op)
                self._calls[uuid] = Call(call.op, CallState.FAILED, "it was withdrawn before its turn")
        if waits:
            self._notify(uuid)
            return
        try:
            self._do(uuid, lambda domain: domain.abortJob())
        except HypervisorError:
            return  # no job is active (any more)

    def forget_call(self, uuid: str) -> None:
        """See `local.Hypervisor`."""
        with self._lock:
            if uuid in self._calls and self._calls[uuid].state is not CallState.ACTIVE:
                del self._calls[uuid]

    def _migrate(self) -> None:
        while (job := self._jobs.get()) is not None:
            with self._lock:
                if job.op not in self._queued:
                    continue  # it was withdrawn
                self._queued.discard(job.op)
            call = self._call(job)
            with self._lock:
                self._calls[job.uuid] = call
                departure = self._departures.pop(job.uuid, None)
            if departure is not None:
                departure.end()
            self._notify(job.uuid)

    def _watch(self, connection: Any, domain: Any, uuid: str) -> None:
        """See `departed`. A number is one run of the domain, so the process that is read between two looks at it is that run's."""
        def same() -> bool:
            found = self._domain(connection, uuid)
            return found is not None and bool(found.ID() == number)
        number = domain.ID()
        departure = watch(domain.name(), same, lambda: self._notify(uuid))
        if departure is not None:
            with self._lock:
                self._departures[uuid] = departure

    def _call(self, job: Job) -> Call:
        """One live migration, peer to peer: it survives the death of this process. An error says nothing about who has the guest."""
        parameters = {libvirt.VIR_MIGRATE_PARAM_BANDWIDTH: self._bandwidth_mib} if self._bandwidth_mib else {}
        try:
            with self._connections.lend() as connection:
                domain = self._domain(connection, job.uuid)
                if domain is None:
                    return Call(job.op, CallState.FAILED, "it is not here")
                if not job.allowed():
                    return Call(job.op, CallState.FAILED, "the order was taken back, or could not be confirmed, right before the call")
                self._watch(connection, domain, job.uuid)
                domain.migrateToURI3(PEER_URI.format(job.destination), parameters, self._flags)
        except libvirt.libvirtError as error:
            return Call(job.op, CallState.FAILED, str(translated(error)))
        except (HypervisorError, HypervisorUnknown) as error:
            return Call(job.op, CallState.FAILED, str(error))
        return Call(job.op, CallState.SUCCEEDED)
