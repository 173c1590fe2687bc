# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Makes the kazoo client: the one place of its options, and of what kazoo does otherwise than PVC needs it.

No call may block, and none may wait in a queue for a connection: what is sent minutes after it was decided on, decides nothing.
"""
from __future__ import annotations

import logging
import os
import queue
import socket
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from kazoo.client import KazooClient
from kazoo.exceptions import EXCEPTIONS, ConnectionClosedError, KazooException
from kazoo.handlers.threading import SequentialThreadingHandler
from kazoo.protocol.serialization import write_string
from kazoo.recipe.watchers import ChildrenWatch, DataWatch
from kazoo.retry import KazooRetry

from .endpoint import Endpoint, Server, shown

POOL_THREADS = 4
CONNECT_S = 1.0

# kazoo logs every lost connection with a traceback; what matters of it reaches people through the state callback.
_silent = logging.getLogger("pvcd.kazoo")
_silent.addHandler(logging.NullHandler())
_silent.propagate = False
_silent.setLevel(logging.CRITICAL + 1)


class NotConnected(ConnectionClosedError):  # type: ignore[misc]
    """Nothing was sent. For kazoo's own watches it is a closed connection: they read again at the next one."""


class UnknownError(KazooException):  # type: ignore[misc]
    """An error that kazoo does not know (a throttled request, a watch that is not there): its connection thread would end with it."""


EXCEPTIONS.default_factory = lambda: UnknownError


class _Wake:
    """What kazoo wakes its connection thread with, both ends: one count for each request.

    kazoo's socket pair is full after 279 requests that the thread has not taken, and then it blocks the caller, for minutes while no
    server answers. A counter is never full.
    """

    def __init__(self) -> None:
        self._counter = os.eventfd(0, os.EFD_SEMAPHORE | os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        return self._counter

    def send(self, data: bytes) -> int:
        os.eventfd_write(self._counter, len(data))
        return len(data)

    def recv(self, _size: int) -> bytes:
        os.eventfd_read(self._counter)
        return b"\0"

    def close(self) -> None:
        counter, self._counter = self._counter, -1
        if counter >= 0:
            os.close(counter)


class Handler(SequentialThreadingHandler):  # type: ignore[misc]
    """kazoo starts one thread per watch at every reconnection (10,000 watches: 10,005 threads, 12.7 s): a small pool instead."""

    def __init__(self) -> None:
        super().__init__()
        self._socket: Any = None
        self.address: Server | None = None
        """the server that is connected to, or was tried last"""
        self.connections = 0
        """tried so far: the number of the present one"""
        self._tasks: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = queue.SimpleQueue()
        self.workers = [threading.Thread(target=self._work, name=f"zookeeper-{number}", daemon=True) for number in range(POOL_THREADS)]
        for worker in self.workers:
            worker.start()

    def spawn(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if isinstance(getattr(func, "__self__", None), (DataWatch, ChildrenWatch)):
            return self.pool(func, *args, **kwargs)
        return super().spawn(func, *args, **kwargs)

    def create_connection(self, *args: Any, **kwargs: Any) -> Any:
        """kazoo waits a whole session timeout for one server's TCP answer: a host that is cut off would hold up all the others."""
        kwargs["timeout"] = min(kwargs.get("timeout") or CONNECT_S, CONNECT_S)
        self.connections += 1
        self.address = Server(*(kwargs.get("address") or args[0])[:2])
        self._socket = super().create_connection(*args, **kwargs)
        return self._socket

    @staticmethod
    def create_socket_pair() -> tuple[_Wake, _Wake]:
        wake = _Wake()
        return wake, wake

    def drop(self) -> None:
        """End the present connection, not the session: kazoo connects again, to another server."""
        try:
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it has ended already

    def pool(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Run `func` on a thread of the pool, soon."""
        self._tasks.put((func, args, kwargs))

    def _work(self) -> None:
        while True:
            func, args, kwargs = self._tasks.get()
            try:
                func(*args, **kwargs)
            except KazooException:
                # A watch that could not be read: kazoo reads it again at the next reconnection, and the resync looks anyway.
                continue
            except Exception:
                # A callback's own fault is told, and must not end the watches that share this thread. What it was about to do, the
                # resync does.
                traceback.print_exc()


class Client(KazooClient):  # type: ignore[misc]
    """kazoo queues requests while it is not connected, and sends them when it is again: here they fail at once, with NotConnected."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._gate = threading.Lock()
        super().__init__(*args, **kwargs)

    def _call(self, request: Any, async_object: Any) -> Any:
        with self._gate:
            if self._live.is_set():
                return super()._call(request, async_object)
        async_object.set_exception(NotConnected("not connected"))
        return False

    def _notify_pending(self, state: Any) -> None:
        """Whatever is queued fails. The connection counts as lost before this is called: behind it nothing can be queued."""
        with self._gate:
            super()._notify_pending(state)


class RemoveWatch:
    """ZooKeeper's removeWatches (3.5 and newer, operation 18), which kazoo does not have: a key's watch for its data, or for any change."""

    type = 18
    watcher = None
    ANY = 3

    def __init__(self, path: str) -> None:
        self.path = path

    def serialize(self) -> bytes:
        return bytes(write_string(self.path) + self.ANY.to_bytes(4, "big"))

    @staticmethod
    def deserialize(_answer: bytes, _offset: int) -> bool:
        return True


def make(endpoint: Endpoint, session_timeout_s: float) -> Client:
    """Not started. The servers are tried in their order at each connection."""
    # kazoo's default doubles the delay up to an hour: after a 70 s outage most nodes would be away long enough to be fenced.
    retry = KazooRetry(max_tries=-1, delay=0.1, backoff=1.5, max_delay=1.0)
    return Client(hosts=str(endpoint), timeout=session_timeout_s, connection_retry=retry, handler=Handler(), read_only=False,
                  randomize_hosts=False, logger=_silent)


def put_last(client: Client, server: Server) -> None:
    """The others come first at the next connection: a server that was lost may be frozen, and that takes its time to see."""
    lost = (server.host, server.port)
    client.hosts = [*(each for each in client.hosts if each != lost), *(each for each in client.hosts if each == lost)]


def set_servers(client: Client, servers: Sequence[Server], chroot: str) -> None:
    """Where it connects the next time; the present connection stays."""
    client.set_hosts(shown(servers) + chroot)
