# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Sees a migrated guest's QEMU end 0.2 s before libvirt does. One thread per migration call, which ends with the call or with the process.

A source's libvirt that has heard from the destination kills its QEMU, and looks 0.2 s later whether that has helped; the guest is paused on
both sides until then. The process itself ends within some 20 ms, and the kernel tells that at once. Nothing is killed here.

Two things must be known before the copy here counts as gone: that its process has ended (a pidfd), and that libvirt had the destination's word
that the whole copy is there (phase `confirm3` of the job in its own record of the domain, which it writes before it acts on it, and by which it
would end the copy even after a restart). The second one tells it from a source that libvirt has woken because the word was lost, and whose guest
has then ended in whatever way: the copy at the destination is older than the disk in that case. Where libvirt's record is not there or
does not look as expected, nothing is known, and the end of the call tells what became of it.
"""
from __future__ import annotations

import os
import re
import select
import threading
from collections.abc import Callable
from pathlib import Path

RECORDS = Path("/run/libvirt/qemu")
_PID = re.compile(rb"<domstatus [^>]*\bpid='([1-9][0-9]*)'")
_LEAVES = re.compile(rb"<job [^>]*\basync='migration out' phase='confirm3'")
_LIMIT = 1 << 20
CALL_ENDED_S = 1.0


def _record(name: str, records: Path) -> bytes:
    """libvirt's record of a domain that is active, b'' if there is none that can be read. Raises nothing."""
    try:
        with (records / f"{name}.xml").open("rb") as file:
            return file.read(_LIMIT)
    except (OSError, ValueError):
        return b""


def _pid(record: bytes) -> int:
    found = _PID.search(record)
    return int(found[1]) if found else 0


class Departure:
    """The QEMU of one migration call. `left` turns true, once, when it has ended as a source's does that has been migrated; `notify` follows."""

    def __init__(self, name: str, pid: int, pidfd: int, notify: Callable[[], None], records: Path) -> None:
        self.left = False
        self._name, self._pid, self._fd, self._notify, self._records = name, pid, pidfd, notify, records
        self._over = threading.Event()
        threading.Thread(target=self._wait, name=f"departure-{pid}", daemon=True).start()

    def end(self) -> None:
        """The call has returned: libvirt knows now."""
        self._over.set()

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        try:
            while not self._over.is_set():
                if poll.poll(CALL_ENDED_S * 1000):
                    return self._ended()
        finally:
            os.close(self._fd)

    def _ended(self) -> None:
        record = _record(self._name, self._records)
        if _pid(record) == self._pid and _LEAVES.search(record):
            self.left = True
            self._notify()


def watch(name: str, same: Callable[[], bool], notify: Callable[[], None], records: Path = RECORDS) -> Departure | None:
    """Watch the process of an active domain; None if it cannot be told which one that is. `same`: asked when the process is known: is the
    domain still in the run that the caller means? Raises what `same` raises. (A pid that is another's by now harms nothing: its end is only
    believed with the record's word about the same pid, and that word comes after libvirt has killed it.)
    """
    pid = _pid(_record(name, records))
    try:
        pidfd = os.pidfd_open(pid) if pid and same() else -1
    except OSError:
        pidfd = -1
    return Departure(name, pid, pidfd, notify, records) if pidfd >= 0 else None
