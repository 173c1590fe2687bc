# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Keeps connections to the local libvirt open, and lends each to one thread at a time.

libvirt's client lets threads share a connection, but when its keepalive gives up while two of them wait for an answer, the
process crashes or both wait until libvirtd is back (libvirt 9.0, seen with a stopped libvirtd). One caller per connection has its
error after 6 s (keepalive 2 x 2 s). An open takes 1 ms.
"""
from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import libvirt

from .cluster.errors import HypervisorUnknown
from .cluster.schema import printable

RECONNECT_S = (0.1, 0.5, 1.0, 2.0)


def _deaf(_uuid: str | None, _event: int, _detail: int) -> None:
    """Nobody wants to know what the events say."""


class Connections:
    """`size` connections to lend, and one that only listens. `notify(uuid)` on each lifecycle event, `notify(None)` when connections
    were lost and are back: look at everything. `heard(uuid, event, detail)` comes right before it and says what the event was (None, 0, 0:
    events may have been lost). Both are called on this object's threads and must not wait.
    """

    def __init__(self, uri: str, size: int, notify: Callable[[str | None], None], heard: Callable[[str | None, int, int], None] = _deaf) -> None:
        self.uri, self._size, self._notify, self._heard = uri, size, notify, heard
        self._lock = threading.Lock()
        self._open: dict[int, Any] = {}
        self._free: list[int] = []
        self._lost: list[Any] = []
        self._number, self._listener = 0, -1
        self._broken, self._complete, self._stopping = threading.Event(), threading.Event(), False
        self._error = "not connected yet"
        self.threads = [threading.Thread(target=target, name=name, daemon=True)
                        for name, target in (("libvirt-events", self._run_events), ("libvirt-reconnect", self._reconnect))]

    def start(self, timeout_s: float) -> None:
        """Connect and start the threads. Raises HypervisorUnknown if libvirt does not answer within `timeout_s`."""
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        libvirt.virEventRegisterDefaultImpl()
        for thread in self.threads:
            thread.start()
        self._broken.set()
        if not self._complete.wait(timeout_s):
            raise HypervisorUnknown(self._error)

    def stop(self) -> None:
        """No connection is opened any more; calls under way go on."""
        self._stopping = True
        self._broken.set()

    @contextmanager
    def lend(self) -> Iterator[Any]:
        """A connection for one thread, until the block ends. Does not wait: raises HypervisorUnknown if there is none."""
        with self._lock:
            if not self._free:
                raise HypervisorUnknown(self._error if len(self._open) <= self._size else "all connections to libvirt are in use")
            number = self._free.pop()
            connection = self._open[number]
        try:
            yield connection
        finally:
            with self._lock:
                if number in self._open:
                    self._free.append(number)

    def _run_events(self) -> None:
        while not self._stopping:
            libvirt.virEventRunDefaultImpl()

    def _reconnect(self) -> None:
        """Only this thread opens, because an open has no timeout: one that hangs holds up nobody else."""
        failures = 0
        while not self._stopping:
            self._broken.wait(None if failures == 0 else RECONNECT_S[min(failures, len(RECONNECT_S)) - 1])
            self._broken.clear()
            with self._lock:
                lost, self._lost = self._lost, []
            lost.clear()  # here and not in their close callback, where libvirt still uses them
            try:
                while len(self._open) <= self._size and not self._stopping:
                    self._add()
            except libvirt.libvirtError as error:
                self._error = printable(str(error))
                failures += 1
                continue
            failures = 0
            self._complete.set()
            self._heard(None, 0, 0)
            self._notify(None)

    def _add(self) -> None:
        connection = libvirt.open(self.uri)
        self._number += 1
        listens = self._listener not in self._open
        with self._lock:
            self._open[self._number] = connection
        try:
            if not self.uri.startswith("test:"):
                connection.setKeepAlive(2, 2)
                connection.registerCloseCallback(self._closed, self._number)
            if listens:
                connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._event, None)
        except libvirt.libvirtError:
            with self._lock:
                self._lost.append(self._open.pop(self._number, None))
            raise
        if listens:
            self._listener = self._number
            return
        with self._lock:
            if self._number in self._open:
                self._free.append(self._number)

    def _closed(self, _connection: Any, _reason: int, number: int) -> None:
        with self._lock:
            self._lost.append(self._open.pop(number, None))
            if number in self._free:
                self._free.remove(number)
        self._error = "connection to libvirtd lost"
        self._broken.set()

    def _event(self, _connection: Any, domain: Any, event: int, detail: int, _opaque: Any) -> None:
        self._heard(domain.UUIDString(), event, detail)
        self._notify(domain.UUIDString())
