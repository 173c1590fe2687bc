# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""A model of ZooKeeper: a linearizable store with versions, transactions, ephemerals and watches. No threads, no clock.

A client can be cut off, may read from a follower that lags behind, and can lose the answer to a commit. Watches ring when the
simulator delivers them, coalesced, as kazoo does it.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pvcd.cluster.errors import Conflict, OutcomeUnknown, Unreachable
from pvcd.cluster.records import ANY, MISSING, Change, Check, Create, Value, Write
from pvcd.cluster.zk import check_sizes, check_versions


@dataclass
class Node:
    """One key: its data, its version, and the session that an ephemeral belongs to."""

    data: bytes
    version: int = 0
    owner: str | None = None
    czxid: int = 0
    mzxid: int = 0

    @property
    def value(self) -> Value:
        return Value(self.data, self.version, self.czxid, self.mzxid)


class Tree(dict[str, Node]):
    """Path → node; `lists` keeps the lists of children until a path comes or goes."""

    def __init__(self) -> None:
        super().__init__()
        self.lists: dict[str, list[str]] = {}

    def __setitem__(self, path: str, node: Node) -> None:
        if path not in self:
            self.lists.clear()
        super().__setitem__(path, node)

    def __delitem__(self, path: str) -> None:
        self.lists.clear()
        super().__delitem__(path)

    def pop(self, path: str, *default: Any) -> Any:
        self.lists.clear()
        return super().pop(path, *default)


@dataclass
class FakeServer:
    """The ensemble. `log` keeps who changed what, newest last."""

    nodes: Tree = field(default_factory=Tree)
    zxid: int = 0
    pending: dict[tuple[str, str], None] = field(default_factory=dict)
    """watches that will ring: (client, path)"""
    clients: dict[str, FakeZooKeeper] = field(default_factory=dict)
    on_commit: Callable[[str, Sequence[Change]], None] | None = None

    def put(self, path: str, data: bytes | str) -> None:
        """An unconditional write from outside, as an old client makes it; creates the key where it is missing."""
        raw = data.encode() if isinstance(data, str) else data
        self.commit("outside", [Write(path, raw, ANY) if path in self.nodes else Create(path, raw)])

    def text(self, path: str) -> str | None:
        found = self.nodes.get(path)
        return found.data.decode("utf-8", "replace") if found else None

    def children(self, path: str) -> list[str]:
        found = self.nodes.lists.get(path)
        if found is None:
            prefix = path + "/"
            found = self.nodes.lists[path] = sorted({name[len(prefix):].split("/")[0] for name in self.nodes if name.startswith(prefix)})
        return list(found)

    def delete_tree(self, path: str) -> None:
        for name in [name for name in self.nodes if name == path or name.startswith(path + "/")]:
            del self.nodes[name]
            self._changed(name)

    def commit(self, client: str, changes: Sequence[Change]) -> list[int | None]:
        """All or nothing, checked and applied in order; the version that each change gave its key. Raises Conflict."""
        before = {change.path: self.nodes.get(change.path) for change in changes}
        copies = {path: replace(node) if node else None for path, node in before.items()}
        try:
            versions = [self._apply(client, change) for change in changes]
        except Conflict:
            for path, node in copies.items():
                if node is None:
                    self.nodes.pop(path, None)
                else:
                    self.nodes[path] = node
            raise
        written = [change for change in changes if not isinstance(change, Check)]
        for change in written:
            self._changed(change.path)
        self.zxid += bool(written)
        if self.on_commit is not None:
            self.on_commit(client, changes)
        return versions

    def _apply(self, client: str, change: Change) -> int | None:
        found = self.nodes.get(change.path)
        if isinstance(change, Create):
            if found is not None:
                raise Conflict(change.path, "exists already")
            parent = change.path.rpartition("/")[0]
            if parent and parent not in self.nodes:
                raise Conflict(change.path, "is gone")
            self.nodes[change.path] = Node(change.data, 0, client if change.ephemeral else None, self.zxid + 1, self.zxid + 1)
            return 0
        if found is None:
            raise Conflict(change.path, "is gone")
        if change.version not in (ANY, found.version):
            raise Conflict(change.path, "BadVersionError")
        if isinstance(change, Write):
            found.data, found.version, found.mzxid = change.data, found.version + 1, self.zxid + 1
            return found.version
        if not isinstance(change, Check):
            if self.children(change.path):
                raise Conflict(change.path, "NotEmptyError")
            del self.nodes[change.path]
        return None

    def copy(self) -> dict[str, Node]:
        """A backup, taken while it runs."""
        return {path: replace(node) for path, node in self.nodes.items()}

    def restore(self, copy: dict[str, Node]) -> None:
        """All servers start again with an older copy: the epoch rises, so that the old data carries a newer transaction number."""
        self.restart()
        self.nodes = Tree()
        for path, node in copy.items():
            if node.owner is None:
                self.nodes[path] = replace(node)

    def restart(self) -> None:
        """All servers start again, and everybody connects anew."""
        self.zxid = ((self.zxid >> 32) + 1) << 32
        for client in self.clients.values():
            client.reconnect()

    def expire(self, client: str) -> None:
        """The client's session has ended: its ephemerals go."""
        for path in [path for path, node in self.nodes.items() if node.owner == client]:
            del self.nodes[path]
            self._changed(path)

    def _changed(self, path: str) -> None:
        parent = path.rpartition("/")[0]
        for name, client in self.clients.items():
            if path in client.values:
                self.pending[name, path] = None
            if parent in client.lists:
                self.pending[name, parent] = None

    def deliver(self, choose: Callable[[tuple[str, str]], bool] = lambda _watch: True) -> int:
        """Ring the pending watches that `choose` picks, of clients that are connected; how many."""
        ringing = [watch for watch in self.pending if choose(watch) and self.clients[watch[0]].connected]
        for watch in ringing:
            self.pending.pop(watch, None)
            self.clients[watch[0]].ring(watch[1])
        return len(ringing)


class FakeZooKeeper:
    """One client's connection; the API of `pvcd.cluster.zk.ZooKeeper`."""

    def __init__(self, server: FakeServer, name: str, guarded: bool = False) -> None:
        self.server, self.name, self.connected = server, name, True
        self.guarded, self.connection, self._admitted = guarded, 1, 0
        self.values: dict[str, Callable[[], None]] = {}
        self.lists: dict[str, Callable[[], None]] = {}
        self.lose: str | None = None
        """the next commit: 'after' it is applied and its answer lost, 'before' it is lost on its way"""
        self.before_commit: Callable[[Sequence[Change]], None] = lambda _changes: None
        """called when a commit is on its way; what the others do in there comes first"""
        self.before_read: Callable[[], None] | None = None
        """called before each read, and in the middle of one of many keys"""
        self.unanswered: Callable[[], None] | None = None
        """called by a read while the link is cut: it waits for its deadline before it fails"""
        self._snapshot: dict[str, Value] | None = None
        self._lists: dict[str, list[str]] = {}
        server.clients[name] = self

    # ------------------------------------------------------------------------------------------------------- faults

    def cut(self) -> None:
        self.connected = False

    def heal(self) -> None:
        """Connected again."""
        self.connected = True
        self.reconnect()

    def reconnect(self) -> None:
        """Another connection: kazoo reads every watch anew."""
        self.connection += 1
        self._snapshot = None
        for path in (*self.values, *self.lists):
            self.server.pending[self.name, path] = None

    def lag(self, behind: bool) -> None:
        """Read from a follower that stands still, values and lists, until `sync`, a commit or `lag(False)`."""
        self._snapshot = {path: node.value for path, node in self.server.nodes.items()} if behind else None
        self._lists = {}
        for path in self._snapshot or ():
            parent, _, name = path.rpartition("/")
            self._lists.setdefault(parent, []).append(name)

    def forget(self) -> None:
        """The process has died: its watches and ephemerals are gone."""
        self.values, self.lists, self._snapshot, self.lose = {}, {}, None, None
        self.connection += 1
        self.server.pending = {watch: None for watch in self.server.pending if watch[0] != self.name}
        self.server.expire(self.name)

    def ring(self, path: str) -> None:
        for callback in (self.values.get(path), self.lists.get(path)):
            if callback is not None:
                callback()

    # ------------------------------------------------------------------------------------------------- the client's API

    def _reach(self) -> None:
        if not self.connected:
            raise Unreachable("not connected to ZooKeeper")

    def read(self, path: str) -> Value:
        return self.read_many([path])[path]

    def read_many(self, paths: Iterable[str]) -> dict[str, Value]:
        """Not a consistent snapshot: with `before_read`, something may come between the first half and the second."""
        if self.before_read is None:
            return self._read(paths)
        wanted = list(paths)
        half = len(wanted) // 2
        self.before_read()
        found = self._read(wanted[:half])
        if half:
            self.before_read()
        return {**found, **self._read(wanted[half:])}

    def _read(self, paths: Iterable[str]) -> dict[str, Value]:
        if not self.connected:
            self._wait()
        if self._snapshot is not None:
            return {path: self._snapshot.get(path, MISSING) for path in paths}
        found = {path: self.server.nodes.get(path) for path in paths}
        return {path: node.value if node else MISSING for path, node in found.items()}

    def _wait(self) -> None:
        if self.unanswered is not None:
            self.unanswered()
        self._reach()

    def children(self, path: str) -> list[str] | None:
        if self.before_read is not None:
            self.before_read()
        if not self.connected:
            self._wait()
        if self._snapshot is not None:
            return sorted(self._lists.get(path, [])) if path in self._snapshot else None
        return self.server.children(path) if path in self.server.nodes else None

    def sync(self, _path: str) -> None:
        self._reach()
        self._snapshot = None

    @property
    def admitted(self) -> bool:
        return not self.guarded or self._admitted == self.connection

    def admit(self, connection: int) -> None:
        self._admitted = connection

    def commit(self, changes: Sequence[Change], unseen: bool = False) -> list[int | None]:
        check_sizes(changes)
        check_versions(changes)
        self._reach()
        self.before_commit(changes)
        self._reach()
        if not (unseen or self.admitted):
            raise Unreachable("this connection was not looked at")
        self._snapshot = None
        lose, self.lose = self.lose, None
        versions = [] if lose == "before" else self.server.commit(self.name, changes)
        if lose is not None:
            raise OutcomeUnknown("ZooKeeper's answer was lost")
        return versions

    def delete_tree(self, path: str) -> None:
        self._reach()
        self.server.delete_tree(path)

    def watch_value(self, path: str, callback: Callable[[], None]) -> None:
        self.values[path] = callback
        self.server.pending[self.name, path] = None

    def watch_children(self, path: str, callback: Callable[[], None]) -> None:
        self.lists[path] = callback
        self.server.pending[self.name, path] = None

    def unwatch(self, path: str) -> None:
        self.values.pop(path, None)
        self.lists.pop(path, None)

    def start(self, timeout_s: float) -> None:
        if not self.connected:
            raise Unreachable(f"no answer within {timeout_s:g} s")

    def stop(self) -> None:
        self.forget()

    def has_root(self) -> bool:
        self._reach()
        return True

    def create_root(self) -> None:
        self._reach()

    def ensemble(self) -> bytes:
        """A model has one server, and no list of it."""
        self._reach()
        return b""

    def ensure_alive(self) -> None:
        return

    @property
    def last_zxid(self) -> int:
        return self.server.zxid
