# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The one ZooKeeper client of a process: reconnects for ever, bounded calls, bulk reads, watches that only ring.

Every call returns within `call_timeout_s`: kazoo's plain calls block without limit while the connection is suspended. There is
one KazooClient per process for ever; a second one in a listener is a second session. Watch callbacks run on kazoo's callback
thread, which all watches share: they must only enqueue.
"""
from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kazoo.client import KazooState
from kazoo.exceptions import (
    ConnectionClosedError,
    KazooException,
    NodeExistsError,
    NoNodeError,
    NotEmptyError,
    RolledBackError,
    RuntimeInconsistency,
    SessionExpiredError,
    UnimplementedError,
)
from kazoo.handlers.threading import KazooTimeoutError
from kazoo.protocol import serialization
from kazoo.security import OPEN_ACL_UNSAFE

from . import kazooclient, schema
from .endpoint import Endpoint, Server, parse
from .errors import GONE, Conflict, OutcomeUnknown, TooLarge, Unreachable
from .multiread import MultiRead
from .records import ANY, MISSING, Change, Check, Create, Delete, Value, Write

TRANSACTION_LIMIT = 900 * 1024
READS_AT_ONCE, DEFINITIONS_AT_ONCE = 200, 50
STOP_S = 3.0
VERSIONS = range(-2**31, 2**31)
"""What a version can be; kazoo's thread ends with what does not fit into its four bytes."""
ENSEMBLE = "/zookeeper/config"
"""ZooKeeper's own list of its servers; it lies outside any chroot."""


class ZooKeeper:
    """`on_state(connected)` is called on kazoo's thread at each change and must only enqueue. Times are seconds.

    `guarded`: nothing is written on a connection that was not admitted, since the data behind it may be older than what was seen.
    """

    def __init__(self, hosts: str | Endpoint, session_timeout_s: float, call_timeout_s: float,
                 on_state: Callable[[bool], None] | None = None, guarded: bool = False) -> None:
        self.endpoint = parse(hosts) if isinstance(hosts, str) else hosts
        self._call_timeout_s, self._on_state = call_timeout_s, on_state
        self._answered, self._patience_s = time.monotonic(), session_timeout_s / 3
        self._client = kazooclient.make(self.endpoint, session_timeout_s)
        self._handler: kazooclient.Handler = self._client.handler
        self._client.add_listener(self._state_changed)
        self._stopping = False
        self._guarded, self._admitted = guarded, 0
        self._multi_read = True
        self._watched: dict[str, list[Any]] = {}
        self._created: dict[str, int] = {}

    # -------------------------------------------------------------------------------------------------- the connection

    def start(self, timeout_s: float) -> None:
        """Connect. Raises Unreachable after `timeout_s`; nothing is left behind then."""
        self._client.start_async().wait(timeout_s)
        if not self._client.connected:
            self._handler.drop()  # kazoo's thread may wait a whole session timeout for a server that accepts and then says nothing
            self.stop()
            raise Unreachable(f"no answer from {self.endpoint} within {timeout_s:g} s")

    def stop(self) -> None:
        """End the session; ephemeral keys go with it. Takes 2 x STOP_S at most: kazoo itself waits for a server that does not answer, or
        for the resolution of a name. Its thread ends with the process then, and the session by itself.
        """
        self._stopping = True
        ender = threading.Thread(target=self._end, name="zookeeper-stop", daemon=True)
        ender.start()
        if self.connected:
            ender.join(STOP_S)
        self._handler.drop()
        ender.join(STOP_S)

    def _end(self) -> None:
        try:
            self._client.stop()
            self._client.close()
        except KazooException:
            return  # kazoo has waited for its own thread in vain: nothing more can be ended

    def use(self, servers: Sequence[Server]) -> None:
        """Connect to these the next time, in this order; the present connection stays. Any thread."""
        if servers:
            kazooclient.set_servers(self._client, servers, self.endpoint.chroot)

    @property
    def server(self) -> Server | None:
        """The server that is connected to, or was tried last."""
        return self._handler.address

    def ensemble(self) -> bytes:
        """What ZooKeeper's own list of its servers holds; empty where there is none, or it may not be read. Raises Unreachable."""
        try:
            data, _ = self._ask(serialization.GetData(ENSEMBLE, None))
        except NoNodeError:
            return b""
        return bytes(data)

    def has_root(self) -> bool:
        """The path below which the cluster's keys are is there. Raises Unreachable."""
        return not self.endpoint.chroot or self.children("/") is not None

    def create_root(self) -> None:
        """Create that path, unless it is there. Raises Unreachable."""
        names = self.endpoint.chroot.split("/")[1:]
        for depth in range(1, len(names) + 1):
            try:
                self._ask(serialization.Create("/" + "/".join(names[:depth]), b"", OPEN_ACL_UNSAFE, 0))
            except NodeExistsError:
                continue

    def _ask(self, request: Any) -> Any:
        """A request for a path as it is, without the chroot."""
        result = self._client.handler.async_result()
        self._client._call(request, result)
        return self._answer(result, time.monotonic() + self._call_timeout_s)

    def ensure_alive(self) -> None:
        """Start the client again if kazoo gave up (2.8.0: one failed name resolution during a reconnection ends it). Non-blocking."""
        if self._client.client_state == "CLOSED" and not self._stopping:
            self._client.start_async()

    @property
    def connected(self) -> bool:
        return bool(self._client.connected)

    @property
    def connection(self) -> int:
        """The number of the present connection: another one for each that is opened, before anything is sent on it."""
        return self._handler.connections

    @property
    def admitted(self) -> bool:
        """The present connection may be written on."""
        return not self._guarded or self._admitted == self.connection

    def admit(self, connection: int) -> None:
        """What is behind this connection was looked at: it may be written on."""
        self._admitted = connection

    @property
    def threads(self) -> list[threading.Thread]:
        """Those that run the watches, for ever."""
        return self._handler.workers

    @property
    def last_zxid(self) -> int:
        """The newest transaction seen on this connection; 0 before the first answer."""
        return int(self._client.last_zxid or 0)

    def _state_changed(self, state: str) -> None:
        if state != KazooState.CONNECTED and self.server is not None:
            kazooclient.put_last(self._client, self.server)
        if self._on_state is not None and not self._stopping:
            self._on_state(state == KazooState.CONNECTED)

    # ----------------------------------------------------------------------------------------------------------- reads

    def read(self, path: str) -> Value:
        """One key; MISSING if it does not exist. Raises Unreachable."""
        return self.read_many([path])[path]

    def read_many(self, paths: Iterable[str]) -> dict[str, Value]:
        """Many keys: not a consistent snapshot. Raises Unreachable."""
        wanted, found = list(dict.fromkeys(paths)), dict[str, Value]()
        most = DEFINITIONS_AT_ONCE if any(path.endswith("/xml") for path in wanted) else READS_AT_ONCE
        for start in range(0, len(wanted), most):
            batch = wanted[start:start + most]
            many = self._multi_read and len(batch) > 1
            found.update(zip(batch, self._read_as_one(batch) if many else self._read_each(batch)))
        return found

    def _read_as_one(self, batch: list[str]) -> list[Value]:
        """In one request, where the server knows how."""
        try:
            answers = self._ask(MultiRead([f"{self._client.chroot}{path}" for path in batch]))
        except UnimplementedError:
            self._multi_read = False
            return self._read_each(batch)
        other = next((answer for answer in answers if isinstance(answer, Exception) and not isinstance(answer, NoNodeError)), None)
        if other is not None:
            raise Unreachable(f"ZooKeeper does not answer ({type(other).__name__})")
        return [MISSING if isinstance(answer, NoNodeError) else _value(*answer) for answer in answers]

    def _read_each(self, batch: list[str]) -> list[Value]:
        """Pipelined on the connection."""
        deadline, found = time.monotonic() + self._call_timeout_s, []
        for result in [self._client.get_async(path) for path in batch]:
            try:
                data, stat = self._answer(result, deadline)
                found.append(_value(data, stat))
            except NoNodeError:
                found.append(MISSING)
        return found

    def children(self, path: str) -> list[str] | None:
        """Names below `path`, sorted; None if it does not exist. Raises Unreachable."""
        try:
            return sorted(self._answer(self._client.get_children_async(path), time.monotonic() + self._call_timeout_s))
        except NoNodeError:
            return None

    def sync(self, path: str) -> None:
        """Let this connection's server catch up with the leader. Raises Unreachable."""
        self._answer(self._client.sync_async(path), time.monotonic() + self._call_timeout_s)

    def _answer(self, result: Any, deadline: float) -> Any:
        try:
            found = result.get(timeout=max(0.001, deadline - time.monotonic()))
        except (NoNodeError, NodeExistsError, UnimplementedError):
            self._answered = time.monotonic()
            raise
        except (KazooTimeoutError, KazooException) as error:
            self._lose_patience(error)
            raise Unreachable(f"ZooKeeper does not answer ({type(error).__name__})") from error

        self._answered = time.monotonic()
        return found

    def _lose_patience(self, error: Exception) -> None:
        """kazoo pings only when it is idle: while requests flow it never notices that its server is dead, until TCP gives up after
        minutes. So a connection on which nothing was answered for a third of the session is dropped.
        """
        if isinstance(error, KazooTimeoutError) and time.monotonic() - self._answered >= self._patience_s:
            self._answered = time.monotonic()
            self._handler.drop()

    # ---------------------------------------------------------------------------------------------------------- writes

    def commit(self, changes: Sequence[Change], unseen: bool = False) -> list[int | None]:
        """Apply all changes or none, in one transaction. Returns the version that each change gave its key; None for a check and a delete.
        `unseen`: also on a connection that was not admitted.

        Raises Conflict (a version or an existence is not as decided on), TooLarge and Unreachable (nothing was sent), or
        OutcomeUnknown (sent, and the answer was lost).
        """
        check_sizes(changes)
        check_versions(changes)
        if not self._client.connected:
            raise Unreachable("not connected to ZooKeeper; nothing was written")
        if not (unseen or self.admitted):
            raise Unreachable("what this connection to ZooKeeper shows was not compared with what was seen before; nothing was written")
        transaction = self._client.transaction()
        for change in changes:
            _add(transaction, change)
        try:
            # kazoo returns a transaction's errors in the list of its results, and raises nothing.
            results = transaction.commit_async().get(timeout=self._call_timeout_s)
        except (SessionExpiredError, ConnectionClosedError) as error:
            raise Unreachable("the connection to ZooKeeper has ended; nothing was written") from error
        except (KazooTimeoutError, KazooException) as error:
            self._lose_patience(error)
            raise OutcomeUnknown(f"ZooKeeper's answer was lost ({type(error).__name__}): it may have been written") from error
        self._answered = time.monotonic()
        for change, result in zip(changes, results):
            if isinstance(result, Exception) and not isinstance(result, (RolledBackError, RuntimeInconsistency)):
                raise Conflict(change.path, _CONFLICTS.get(type(result), type(result).__name__))
        return [_written(change, result) for change, result in zip(changes, results)]

    def delete_tree(self, path: str) -> None:
        """Delete a key and everything below it in one transaction; nothing if it does not exist.

        Tried again while others write below it: a daemon that lives writes its own keys again as soon as some are gone. Raises what
        `commit` raises; Conflict after as long as one call may take.
        """
        deadline = time.monotonic() + self._call_timeout_s
        while True:
            doomed = self._tree(path)
            try:
                if doomed:
                    self.commit([Delete(key, ANY) for key in doomed])
                return
            except Conflict:
                if time.monotonic() >= deadline:
                    raise

    def _tree(self, path: str) -> list[str]:
        """The keys below `path`, and itself last; empty if it does not exist."""
        names = self.children(path)
        if names is None:
            return []
        return [key for name in names for key in self._tree(f"{path}/{name}")] + [path]

    # --------------------------------------------------------------------------------------------------------- watches

    def watch_value(self, path: str, callback: Callable[[], None]) -> None:
        """Call `callback` once now and after each change of the key's existence or value, until `unwatch`. Does not block."""
        token = self._watched[path] = list[Any]()

        def changed(_data: bytes | None, _stat: object) -> bool | None:
            return self._ring(path, token, callback)
        self._handler.pool(lambda: self._arm(path, token, self._client.DataWatch(path), changed))

    def watch_children(self, path: str, callback: Callable[[], None]) -> None:
        """Call `callback` once now and after each change of the list. Survives deletion of `path` (kazoo's own watch does not)."""
        token = self._watched[path] = list[Any]()

        def listed(_children: list[str]) -> bool | None:
            return self._ring(path, token, callback)

        def exists(_data: bytes | None, stat: Any) -> bool | None:
            created = 0 if stat is None else stat.czxid
            if created and created != self._created.get(path):
                self._handler.pool(lambda: self._arm(path, token, self._client.ChildrenWatch(path), listed))
            self._created[path] = created
            return self._ring(path, token, callback)
        self._handler.pool(lambda: self._arm(path, token, self._client.DataWatch(path), exists))

    def _arm(self, path: str, token: list[Any], watch: Any, function: Callable[..., bool | None]) -> None:
        """Pool thread. An `unwatch` that comes meanwhile may find the watch or miss it."""
        if self._watched.get(path) is token:
            token.append(watch)
            watch(function)
        if self._watched.get(path) is not token:
            self._disarm(path, token)

    def unwatch(self, path: str) -> None:
        """The callback is not called any more; the server forgets the watch too. Does not block."""
        self._handler.pool(self._disarm, path, self._watched.pop(path, []))

    def _disarm(self, path: str, token: list[Any]) -> None:
        """Pool thread. kazoo has no such call: a watch of its own goes only with the next change, which a deleted key never sees."""
        full = f"{self._client.chroot}{path}"
        for watch in token:
            with watch._run_lock:
                watch._stopped = True
            self._client.remove_listener(watch._session_watcher)
            for watchers in (self._client._data_watchers, self._client._child_watchers):
                watchers.get(full, set()).discard(watch._watcher)
        if token and path not in self._watched:
            self._client._call(kazooclient.RemoveWatch(full), self._client.handler.async_result())

    def _ring(self, path: str, token: object, callback: Callable[[], None]) -> bool | None:
        """False tells kazoo to forget the watch."""
        if self._stopping or self._watched.get(path) is not token:
            return False
        callback()
        return None


_CONFLICTS: dict[type[Exception], str] = {NoNodeError: GONE, NodeExistsError: "exists already", NotEmptyError: "has new keys below it"}


def _add(transaction: Any, change: Change) -> None:
    if isinstance(change, Check):
        transaction.check(change.path, change.version)
    elif isinstance(change, Write):
        transaction.set_data(change.path, change.data, version=change.version)
    elif isinstance(change, Create):
        transaction.create(change.path, change.data, ephemeral=change.ephemeral)
    else:
        transaction.delete(change.path, version=change.version)


def _value(data: bytes, stat: Any) -> Value:
    return Value(data, stat.version, stat.czxid, stat.mzxid)


def _written(change: Change, result: Any) -> int | None:
    """The version that a transaction gave a key: what this change alone has made, not what is there by now."""
    if isinstance(change, Write):
        return int(result.version)
    return 0 if isinstance(change, Create) else None


def check_versions(changes: Sequence[Change]) -> None:
    """A version that no key can have is as good as another version than the key's: Conflict, and nothing is sent."""
    for change in changes:
        if not isinstance(change, Create) and change.version not in VERSIONS:
            raise Conflict(change.path, f"version {change.version} cannot be")


def check_sizes(changes: Sequence[Change]) -> None:
    """A value near 1 MiB drops the connection: it is refused before it is sent."""
    total = 0
    for change in changes:
        size = len(change.data) if isinstance(change, (Write, Create)) else 0
        total += size + len(change.path)
        if size > schema.limit_of(change.path):
            raise TooLarge(f"{change.path}: {size} bytes; at most {schema.limit_of(change.path)} are allowed")
    if total > TRANSACTION_LIMIT:
        raise TooLarge(f"the transaction has {total} bytes; at most {TRANSACTION_LIMIT} are allowed")
