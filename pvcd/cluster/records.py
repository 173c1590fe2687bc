# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Gives the cluster's state as frozen values with the ZooKeeper version of each key read. Pure.

A record holds what was read, at the versions it was read; a change names the version it was decided on. Whoever decides
works on these values alone.
"""
from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Union

from . import schema
from .notices import Departure, Trouble, decode_departure, decode_strangers, decode_troubles
from .schema import DaemonState, DomainState, FencePhase, OpPhase, Unknown, VMState

ANY = -1
"""Version of a write that only its one writer makes (statistics); ZooKeeper's own spelling of "any version"."""


@dataclass(frozen=True)
class Check:
    """The key must be at `version` (and exist)."""

    path: str
    version: int


@dataclass(frozen=True)
class Write:
    """Set an existing key that is at `version`."""

    path: str
    data: bytes
    version: int


@dataclass(frozen=True)
class Create:
    """Create a key that must not exist."""

    path: str
    data: bytes = b""
    ephemeral: bool = False


@dataclass(frozen=True)
class Delete:
    """Delete a key that is at `version` and has no children."""

    path: str
    version: int


Change = Union[Check, Write, Create, Delete]


@dataclass(frozen=True)
class Value:
    """What one key held when it was read: `data` None and `version` ANY mean that it did not exist.

    `czxid` and `mzxid` are the transactions that created it and that wrote it last; 0 where they are not known. Two values are equal by
    data and version alone.
    """

    data: bytes | None = None
    version: int = ANY
    czxid: int = field(default=0, compare=False)
    mzxid: int = field(default=0, compare=False)


MISSING = Value()


@dataclass(frozen=True)
class Operation:
    """A migration in flight, inside the claim of the VM that it moves.

    `v` 2: the copy arrives paused, and runs only under the destination's claim. 1: of a daemon before that, where it runs as soon as
    it has arrived; its phases `query` and `none` are read as `run`.
    """

    id: str
    phase: OpPhase
    dest: str
    dinc: str
    v: int = 2


@dataclass(frozen=True)
class Claim:
    """The right to run one VM: held by incarnation `inc` of `node`."""

    node: str
    inc: str
    op: Operation | None = None

    def encode(self) -> bytes:
        op = self.op and {"id": self.op.id, "phase": self.op.phase.value, "dest": self.op.dest, "dinc": self.op.dinc, "v": self.op.v}
        return _dump({"v": 1, "node": self.node, "inc": self.inc, "op": op})


DECODED = 4096
"""So many values of a kind are kept decoded: each visit reads claims and fences again, and they rarely change."""
FREE = b""
"""Data of a claim that nobody holds."""


@dataclass(frozen=True)
class ClaimRecord:
    """`/claims/<uuid>`: `value` None = free, or absent (`exists` False: create it empty first)."""

    value: Claim | Unknown | None
    version: int

    @property
    def exists(self) -> bool:
        return self.version != ANY

    @classmethod
    def read(cls, value: Value) -> ClaimRecord:
        return cls(decode_claim(value.data), value.version)


@dataclass(frozen=True)
class Fence:
    """One node's standing: which incarnation of it counts, and whether it is being, or has been, put out of action."""

    inc: str
    phase: FencePhase
    by: str = ""
    method: str = ""
    ka: int | None = None
    forced: bool = False
    on: bool = False
    """after the fence, its controller said that it is on"""
    since: str = ""
    asked: bool = False
    """after the fence, an operator asks to switch it on"""

    def encode(self) -> bytes:
        return _dump({"v": 1, "inc": self.inc, "phase": self.phase.value, "by": self.by, "method": self.method, "ka": self.ka,
                      "forced": self.forced, "on": self.on, "since": self.since, **({"asked": True} if self.asked else {})})


@dataclass(frozen=True)
class FenceRecord:
    """`/fences/<node>` as read; `value` None = the key is absent."""

    value: Fence | Unknown | None
    version: int

    @classmethod
    def read(cls, value: Value) -> FenceRecord:
        return cls(decode_fence(value.data), value.version)


@dataclass(frozen=True)
class Hold:
    """The cluster-wide hold of automatic fencing (the data of `/fences`). Undecodable data holds: it is no order to fence.

    `restored`: node `by` has seen that ZooKeeper's data was taken back; until an operator has looked, no node acts.
    """

    hold: bool = False
    until: str | None = None
    by: str = ""
    version: int = ANY
    restored: bool = False

    def encode(self) -> bytes:
        return _dump({"hold": self.hold, "until": self.until, "by": self.by, **({"restored": True} if self.restored else {})})


@dataclass(frozen=True)
class DomainRecord:
    """One VM's keys except its XML. `exists`: `/domains/<uuid>` is there; its value is the name."""

    uuid: str
    name: str | Unknown | None = None
    state: VMState | Unknown | None = None
    hypervisor: str | Unknown | None = None
    lasthypervisor: str | Unknown | None = None
    versions: Mapping[str, int] = field(default_factory=dict)

    @property
    def exists(self) -> bool:
        return "" in self.versions

    def version(self, key: str) -> int:
        """The version of `key` ('' = the domain's own znode) when it was read; ANY where it was absent."""
        return self.versions.get(key, ANY)

    @classmethod
    def read(cls, uuid: str, values: Mapping[str, Value]) -> DomainRecord:
        """From what each key held; keys: '' and any of state, hypervisor, lasthypervisor."""
        def data(key: str) -> bytes | None:
            return values.get(key, MISSING).data
        return cls(uuid, schema.decode_text(data("")), schema.decode_word(VMState, data("state")),
                   schema.decode_node_name(data("hypervisor")), schema.decode_node_name(data("lasthypervisor")),
                   {key: v.version for key, v in values.items() if v.data is not None})


@dataclass(frozen=True)
class Timing:
    """The timings that a node lives by: an observer judges it by these, not by its own."""

    tick_s: float = 5.0
    fence_intervals: int = 6

    def encode(self) -> bytes:
        return _dump({"tick": self.tick_s, "fence_intervals": self.fence_intervals})


@dataclass(frozen=True)
class NodeRecord:
    """One node's keys. `exists`: `/nodes/<name>` is there."""

    name: str
    daemonstate: DaemonState | Unknown | None = None
    domainstate: DomainState | Unknown | None = None
    keepalive: int | Unknown | None = None
    memfree_mib: int | Unknown | None = None
    memused_mib: int | Unknown | None = None
    cpuload: float | Unknown | None = None
    domainscount: int | Unknown | None = None
    runningdomains: tuple[str, ...] | Unknown | None = None
    staticdata: str | Unknown | None = None
    incarnation: str | Unknown | None = None
    protocol: int | Unknown | None = None
    machineid: str | Unknown | None = None
    libvirtstate: str | Unknown | None = None
    zookeeper: str | Unknown | None = None
    timing: Timing = Timing()
    departure: Departure | Unknown | None = None
    strangers: Mapping[str, str] | Unknown | None = None
    versions: Mapping[str, int] = field(default_factory=dict)
    hugepages_mib: Mapping[str, int] = field(default_factory=dict)
    """free huge pages by their size, as `schema.decode_pages` gives them"""
    troubles: tuple[Trouble, ...] = ()

    @property
    def exists(self) -> bool:
        return "" in self.versions

    def version(self, key: str) -> int:
        """The version of `key` ('' = the node's own znode) when it was read; ANY where it was absent."""
        return self.versions.get(key, ANY)

    @classmethod
    def read(cls, name: str, values: Mapping[str, Value]) -> NodeRecord:
        """From what each key held; absent keys may be left out."""
        def data(key: str) -> bytes | None:
            return values.get(key, MISSING).data
        return cls(name, schema.decode_word(DaemonState, data("daemonstate")),
                   schema.decode_word(DomainState, data("domainstate")), schema.decode_int(data("keepalive")),
                   schema.decode_int(data("memfree")), schema.decode_int(data("memused")),
                   schema.decode_float(data("cpuload")), schema.decode_int(data("domainscount")),
                   schema.decode_uuids(data("runningdomains")), schema.decode_text(data("staticdata")),
                   schema.decode_text(data("incarnation")), schema.decode_int(data("protocol")),
                   schema.decode_text(data("machineid")), schema.decode_text(data("libvirtstate")), schema.decode_text(data("zookeeper")),
                   decode_timing(data("timing")), decode_departure(data("departure")), decode_strangers(data("strangers")),
                   {key: v.version for key, v in values.items() if v.data is not None}, schema.decode_pages(data("hugepages")),
                   decode_troubles(data("troubles")))


NODE_FIELDS = ("daemonstate", "domainstate", "keepalive", "memfree", "memused", "cpuload", "domainscount", "runningdomains",
               "staticdata", "incarnation", "protocol", "machineid", "libvirtstate", "zookeeper", "timing", "departure", "strangers",
               "hugepages", "troubles")
"""The keys below `/nodes/<name>` that a NodeRecord is made of (IPMI keys are read only by who needs them)."""


PATIENCE_S = 30.0
"""A migration order that no operation follows, a call that makes no progress, or a destination that is not up, is given up after this long."""


@dataclass(frozen=True)
class View:
    """The nodes and their fences, as last seen: what every decision about placement and death is taken on."""

    nodes: Mapping[str, NodeRecord] = field(default_factory=dict)
    fences: Mapping[str, FenceRecord] = field(default_factory=dict)
    hold: Hold = Hold()

    def fence(self, name: str) -> Fence | None:
        """The known fence of `name`, or None where it is absent or cannot be understood."""
        found = self.fences.get(name)
        return found.value if found and isinstance(found.value, Fence) else None

    def is_dead(self, name: str, inc: str) -> bool:
        """Proved: another incarnation counts now, or this one is fenced. Unknown is never a proof."""
        fence = self.fence(name)
        return fence is not None and (fence.inc != inc or fence.phase is FencePhase.FENCED)

    def is_off(self, name: str) -> bool:
        """Proved: the life of `name` that counts now is over, so nothing runs there in any life."""
        fence = self.fence(name)
        return fence is not None and fence.phase in (FencePhase.FENCED, FencePhase.REMOVED)

    def may_be_at(self, op: Operation | None, dead_s: float) -> str | None:
        """Row J1: why the VM of a holder that is proved dead, for `dead_s` now, is not recovered yet by others than the destination of `op`;
        None: it may be.

        The destination's copy does not run before it holds the claim. So this is patience, for the sake of that life, and not a proof. But for
        an operation of protocol 1: there it may run, and only the destination itself (once it is upgraded), or its end, tells.
        """
        if op is None or op.phase is not OpPhase.RUN:
            return None
        if op.v == 1:
            return None if self.is_off(op.dest) else f"{op.dest} may run it: waits for the pvcd of protocol {schema.PROTOCOL_VERSION} there, or its end"
        waits = self.is_up(op.dest) and dead_s < PATIENCE_S
        return f"{op.dest} may have it whole: waits for it" if waits else None

    def runs_outside(self, name: str, uuid: str) -> bool:
        """Node `name`, which is up, has told that a domain of this UUID runs there and is not PVC's."""
        node = self.nodes.get(name)
        return node is not None and self.is_up(name) and isinstance(node.strangers, Mapping) and uuid in node.strangers

    def is_up(self, name: str) -> bool:
        fence = self.fence(name)
        return fence is not None and fence.phase is FencePhase.UP

    def is_running(self, name: str) -> bool:
        """Up, and its daemon in `run`."""
        found = self.nodes.get(name)
        return self.is_up(name) and found is not None and found.daemonstate is DaemonState.RUN

    def is_ready(self, name: str) -> bool:
        """May receive VMs: up, its daemon in `run`, its domainstate `ready`."""
        return self.is_running(name) and self.nodes[name].domainstate is DomainState.READY


def _dump(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _load(raw: bytes) -> dict[str, Any] | None:
    """The JSON object that `raw` spells, or None for anything else (RecursionError: deeply nested garbage)."""
    if len(raw) > schema.VALUE_LIMIT:
        return None
    try:
        value = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def is_version(value: object) -> bool:
    """A version that a key can have: four bytes in ZooKeeper's protocol, and -1 would be any."""
    return type(value) is int and 0 <= value < 2**31


def _texts(value: Mapping[str, Any], *keys: str) -> bool:
    return all(isinstance(value.get(key), str) for key in keys)


@functools.lru_cache(DECODED)
def decode_claim(raw: bytes | None) -> Claim | Unknown | None:
    """None = free or absent."""
    if not raw:
        return None
    value = _load(raw)
    if value is None or value.get("v") != 1 or not _texts(value, "node", "inc") or not schema.is_node_name(value["node"]):
        return Unknown(raw)
    op = value.get("op")
    if op is None:
        return Claim(value["node"], value["inc"])
    if not isinstance(op, dict) or not _texts(op, "id", "phase", "dest", "dinc") or not schema.is_node_name(op["dest"]):
        return Unknown(raw)
    version = op.get("v", 1)
    word = "run" if version == 1 and op["phase"] in ("query", "none") else op["phase"]
    phase = schema.decode_word(OpPhase, word.encode("utf-8", "surrogatepass"))
    if not isinstance(phase, OpPhase) or type(version) is not int or version not in (1, 2):
        return Unknown(raw)
    return Claim(value["node"], value["inc"], Operation(op["id"], phase, op["dest"], op["dinc"], version))


@functools.lru_cache(DECODED)
def decode_fence(raw: bytes | None) -> Fence | Unknown | None:
    if raw is None:
        return None
    value = _load(raw)
    if value is None or value.get("v") != 1 or not _texts(value, "inc", "phase"):
        return Unknown(raw)
    phase = schema.decode_word(FencePhase, value["phase"].encode("utf-8", "surrogatepass"))
    ka, texts = value.get("ka"), [value.get(key) or "" for key in ("by", "method", "since")]
    if not isinstance(phase, FencePhase) or not (ka is None or is_version(ka)) or not all(isinstance(t, str) for t in texts):
        return Unknown(raw)
    return Fence(value["inc"], phase, texts[0], texts[1], ka, value.get("forced") is True, value.get("on") is True, texts[2],
                 value.get("asked") is True)


def decode_hold(value: Value) -> Hold:
    """Empty or absent = no hold; data that cannot be understood holds."""
    if not value.data:
        return Hold(version=value.version)
    found = _load(value.data)
    if found is None or not isinstance(found.get("hold"), bool):
        return Hold(True, None, "unreadable", value.version)
    until, by = found.get("until"), found.get("by")
    return Hold(found["hold"], until if isinstance(until, str) else None, by if isinstance(by, str) else "", value.version,
                found.get("restored") is True)


@functools.lru_cache(DECODED)
def decode_timing(raw: bytes | None) -> Timing:
    """A node that does not say, or says nonsense, is judged by the defaults."""
    value = (_load(raw) if raw else None) or {}
    tick, intervals = value.get("tick"), value.get("fence_intervals")
    if (isinstance(tick, (int, float)) and not isinstance(tick, bool) and isinstance(intervals, int)
            and 0.5 <= tick <= 60 and 3 <= intervals <= 100):
        return Timing(float(tick), intervals)
    return Timing()
