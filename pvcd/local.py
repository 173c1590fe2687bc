# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""What this host's libvirt shows about its domains, as values, and the verbs that the daemon needs of it. Pure.

`Hypervisor` is the seam between the daemon and libvirt: `pvcd.hypervisor` implements it on libvirt, the simulator on a model.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class Status(str, Enum):
    """What libvirt says of a domain. Everything but a clear answer is UNKNOWN, and UNKNOWN is never a reason to act."""

    UNKNOWN = "unknown"
    ABSENT = "absent"
    RUNNING = "running"
    PAUSED = "paused"
    IO_ERROR = "io-error"
    MIGRATING = "migrating"
    """Paused by a migration: a source after the data phase, or a destination's half copy. Whose it is, the claim says."""
    STUCK = "not resumed"
    """libvirt paused it for a migration or a snapshot, and could not resume it afterwards (libvirt 9.2 and later say so)."""
    CRASHED = "crashed"
    """Known to libvirt, its QEMU gone or its guest crashed."""


COPY = frozenset({Status.RUNNING, Status.PAUSED, Status.IO_ERROR, Status.STUCK})
"""A whole guest that executes, or would if it were resumed. A copy that has arrived by a migration is PAUSED until its node resumes it;
that it has arrived and was not paused by somebody, only the claim's operation says."""
HALTED = COPY - {Status.RUNNING}
"""A guest that does not execute is not migrated: a copy that arrives paused and is migrated again without having run breaks its QEMU."""


class Ending(str, Enum):
    """How a domain's QEMU ended, by libvirt's event."""

    UNKNOWN = "unknown"
    """not heard: it ended before this process listened, or the event was lost"""
    GUEST = "guest"
    """the guest powered off, or rebooted with on_reboot=destroy"""
    DESTROYED = "destroyed"
    """somebody switched it off through libvirt"""
    CRASHED = "crashed"
    """the guest crashed, or its QEMU ended without a word"""


class CallState(str, Enum):
    """How a migration call that this process started stands."""

    ACTIVE = "active"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True)
class Call:
    """A migration call of this process. `op` is the operation's id; `error` libvirt's words when it failed."""

    op: str
    state: CallState
    error: str = ""


@dataclass(frozen=True)
class Local:
    """One domain on this host. `job`: it is being migrated away; `detail`: why unknown; `moved`: bytes that this has moved, of a guest of `size`
    bytes, 0 if that is not known; `incoming`: it is being received; `slow`: its monitor does not answer, and calls that need it hang; `ending`: of
    an absent domain, how its last QEMU here ended, as far as this process has heard."""

    status: Status
    job: bool = False
    call: Call | None = None
    detail: str = ""
    moved: int = 0
    size: int = 0
    persistent: bool = False
    """libvirt itself keeps its definition: PVC has not started it"""
    slow: bool = False
    ending: Ending = Ending.UNKNOWN
    incoming: bool = False
    other_job: bool = False
    """libvirt does something else with it: a dump, a backup, a snapshot"""
    busy: bool = False
    """somebody waits for its monitor, so whether it is being migrated is not known"""
    left: bool = False
    """of an absent one: the call still runs, and its QEMU has ended because libvirt has the destination's word that the whole copy is there"""


@dataclass(frozen=True)
class Guest:
    """One row of the inventory of this host."""

    uuid: str
    name: str
    status: Status


@dataclass(frozen=True)
class Kept:
    """One domain that libvirt itself keeps (persistent)."""

    uuid: str
    name: str
    autostart: bool


class Hypervisor(Protocol):
    """Verbs on local domains. Each raises HypervisorError (a definite no) or HypervisorUnknown, unless it says otherwise."""

    def look(self, uuid: str) -> Local:
        """Never raises: what cannot be known is Status.UNKNOWN with its detail. Asks no guest's monitor, unless a migration job is active:
        a monitor that hangs then costs this call 30 s, and the answer says `slow`.
        """

    def inventory(self) -> tuple[Guest, ...]:
        """Every active domain of this host, PVC's or not. Asks no guest's monitor: one that hangs does not hold it up."""

    def starts_by_itself(self, uuid: str) -> bool:
        """libvirt keeps this running domain and starts it at each boot (persistent, with autostart)."""

    def kept(self) -> tuple[Kept, ...]:
        """The domains that libvirt itself keeps, running or not."""

    def create(self, xml: str) -> None:
        """Start a transient domain; returns when its guest runs."""

    def shut_down(self, uuid: str) -> None:
        """Ask the guest to power off (ACPI); returns within 2 s, also when its monitor hangs. An absent domain is no error."""

    def destroy(self, uuid: str) -> None:
        """End the domain's QEMU and return only when it is gone. An absent domain is no error."""

    def resume(self, uuid: str) -> None: ...

    def start_migration(self, uuid: str, op: str, destination: str, allowed: Callable[[], bool]) -> None:
        """Queue a live migration on a migration worker and return; `look(uuid).call` tells how it stands. The worker asks `allowed`
        right before it calls libvirt, on its own thread. The copy arrives paused.
        """

    def abort_migration(self, uuid: str) -> None:
        """Withdraw the call if it waits for its turn, and abort the active job; neither is no error."""

    def forget_call(self, uuid: str) -> None:
        """Drop the remembered result of the last call. Never raises."""


Inventory = Mapping[str, Guest]
