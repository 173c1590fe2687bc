# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Remembers what ZooKeeper has acknowledged to this node, and notices when it takes it back.

A ZooKeeper restored from an older copy holds stale claims: a VM would be destroyed where it runs and started where it was. Its
transaction numbers do not show it (a restart raises the epoch), but the version of a key that only this node writes does: it only ever
grows, and a restore takes it back. The mark is the version of this node's keepalive; where that key was deleted meanwhile (`pvc init`, `pvc
node remove`), the version of its fence, which nobody deletes; and the claims that it wrote last.

`look` runs on the main thread at start and on the keepalive thread afterwards, `keep` on the timer thread, `acknowledged` on any.
"""
from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from .cluster import fences, schema
from .cluster.errors import PVCError
from .cluster.records import Change, Value, decode_hold

FILE = "mark"
MOST_CLAIMS = 200
"""So many claims are remembered, those written last: one request reads them."""


class TakenBack(PVCError):
    """ZooKeeper does not hold any more what it has acknowledged to this node."""


@dataclass(frozen=True)
class Mark:
    """One key: the transaction that created it, and its version."""

    czxid: int
    version: int


@dataclass(frozen=True)
class Memory:
    """What was acknowledged last. `claims`: path → (newest transaction seen then, version); `zxid`: the newest transaction seen."""

    keepalive: Mark | None = None
    fence: Mark | None = None
    claims: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    zxid: int = 0


def taken_back(node: str, memory: Memory, values: Mapping[str, Value], zxid: int) -> str:
    """What shows that ZooKeeper is older than `memory`, or ''. Pure. `zxid` 0 (nothing was answered yet) says nothing."""
    alive, fence = values[schema.node_key(node, "keepalive")], values[schema.fence(node)]
    if 0 < zxid < memory.zxid:
        return f"it is at transaction {zxid:#x}, and this node has seen {memory.zxid:#x}"
    old = memory.keepalive
    if old is not None and alive.czxid == old.czxid and alive.version < old.version:
        return f"the keepalive of {node} is at version {alive.version}, and ZooKeeper had acknowledged {old.version}"
    if old is not None and 0 < alive.czxid < old.czxid:
        return f"the keepalive of {node} is one that had been deleted"
    anew = old is None or alive.czxid != old.czxid  # deleted, and perhaps made again: the fence stays through all of that
    if anew and memory.fence is not None and (fence.czxid != memory.fence.czxid or fence.version < memory.fence.version):
        shown = "missing" if fence.data is None else f"at version {fence.version}"
        return f"the fence of {node} is {shown}, and ZooKeeper had acknowledged version {memory.fence.version}"
    for path, (seen, version) in memory.claims.items():
        found = values.get(path)
        if found is not None and 0 < found.czxid <= seen and found.version < version:
            return f"{path} is at version {found.version}, and ZooKeeper had acknowledged {version}"
    return ""


class Backend(Protocol):
    """`connection` is the number of the present connection; nothing is written on one that was not admitted."""

    @property
    def connection(self) -> int: ...

    @property
    def admitted(self) -> bool: ...

    @property
    def last_zxid(self) -> int: ...

    def admit(self, connection: int) -> None: ...

    def sync(self, path: str) -> None: ...

    def read_many(self, paths: Iterable[str]) -> dict[str, Value]: ...

    def commit(self, changes: Sequence[Change], unseen: bool = False) -> list[int | None]: ...


class Marks:
    """`directory` None: remembered in this process only. A file that is missing, unreadable or another machine's remembers nothing."""

    def __init__(self, zk: Backend, node: str, machine_id: str, directory: Path | None = None) -> None:
        self._zk, self._node, self._machine_id, self._directory = zk, node, machine_id, directory
        self._alive, self._fence = schema.node_key(node, "keepalive"), schema.fence(node)
        self._lock = threading.Lock()
        self._kept: Memory | None = None
        self._memory = self._load()

    @property
    def way_out(self) -> str:
        return ("Nothing is touched, no keepalive is sent, and nobody is fenced. Bring the newer data back if it exists. Else, before "
                "anything else, look on every node at what runs there (virsh list) and stop each VM that does not run where /claims says. "
                f"Then on every node: systemctl stop pvcd; rm {self._directory or Path('.')}/{FILE}. Then once: pvc maintenance on. "
                "Then on every node: systemctl start pvcd. When all are in run: pvc maintenance off")

    def look(self) -> Mapping[str, Value]:
        """Own keepalive, own fence and the hold, seen not to be taken back: the present connection may be written on from now on.

        At most three calls. Raises TakenBack, and what reading raises.
        """
        connection = self._zk.connection
        paths = [self._alive, self._fence, schema.FENCES, *([] if self._zk.admitted else self._memory.claims)]
        values = self._zk.read_many(paths)
        if taken_back(self._node, self._memory, values, self._zk.last_zxid):
            self._zk.sync(schema.FENCES)  # a new session may begin at a server that is a moment behind
            values = self._zk.read_many(paths)
            found = taken_back(self._node, self._memory, values, self._zk.last_zxid)
            if found:
                raise TakenBack(f"ZooKeeper's data was lost or restored from an older copy: {found}. {self.way_out}")
        self._zk.admit(connection)
        return values

    def warn_others(self) -> None:
        """Say so in the hold of fencing: every node stands down, and none is fenced for its silence. Raises what the store raises."""
        found = self._zk.read_many([schema.FENCES])[schema.FENCES]
        hold = decode_hold(found)
        if found.data is not None and not hold.restored:
            self._zk.commit(fences.restored(hold, self._node), unseen=True)

    def note(self, values: Mapping[str, Value], keepalive: int, fence: int) -> None:
        """The versions that a keepalive's transaction has left behind; `values` as `look` gave them."""
        with self._lock:
            claims, zxid = self._memory.claims, max(self._memory.zxid, self._zk.last_zxid)
            self._memory = Memory(Mark(values[self._alive].czxid, keepalive), Mark(values[self._fence].czxid, fence), claims, zxid)

    def acknowledged(self, changes: Sequence[Change], made: Sequence[int | None]) -> None:
        """A transaction of this node has committed, and left these versions."""
        written = {change.path: (self._zk.last_zxid, version) for change, version in zip(changes, made)
                   if version is not None and change.path.startswith(schema.CLAIMS + "/")}
        if not written:
            return
        with self._lock:
            old = self._memory
            claims = {**{path: mark for path, mark in old.claims.items() if path not in written}, **written}
            newest = dict(list(claims.items())[-MOST_CLAIMS:])
            self._memory = Memory(old.keepalive, old.fence, newest, max(old.zxid, self._zk.last_zxid))

    def keep(self) -> None:
        """Write it down, whole or not at all. A disk that is full loses only what a later start could have noticed."""
        memory = self._memory
        if self._directory is None or memory is self._kept or memory.keepalive is None or memory.fence is None:
            return
        text = json.dumps({
            "node": self._node, "machineid": self._machine_id, "zxid": memory.zxid, "claims": memory.claims,
            "keepalive": [memory.keepalive.czxid, memory.keepalive.version], "fence": [memory.fence.czxid, memory.fence.version]})
        if replace_file(self._directory / FILE, text):
            self._kept = memory

    def _load(self) -> Memory:
        found = read_json(self._directory / FILE) if self._directory is not None else {}
        if (found.get("node"), found.get("machineid")) != (self._node, self._machine_id):
            return Memory()
        try:
            claims = {str(path): (int(seen), int(version)) for path, (seen, version) in found["claims"].items()}
            return Memory(Mark(*map(int, found["keepalive"])), Mark(*map(int, found["fence"])), claims, int(found["zxid"]))
        except (AttributeError, KeyError, TypeError, ValueError):
            return Memory()


def read_json(path: Path) -> dict[str, Any]:
    """The object that a file of ours holds; empty if it is missing, unreadable or something else."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def replace_file(path: Path, text: str) -> bool:
    """Write a file whole or not at all; False if it could not be."""
    try:
        temporary = path.with_suffix(".new")
        temporary.write_text(text + "\n")
        temporary.replace(path)
    except OSError:
        return False
    return True


