# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Says which keys exist, what words they hold, how a value is spelled and who may write it. Pure.

Codecs are total: any bytes decode to a known value or to `Unknown`, and a missing key to None. Neither has transitions:
absence or garbage is never an order.
"""
from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

NODES, DOMAINS = "/nodes", "/domains"
CLAIMS, FENCES, LOCKS, VMMETA, AVOID, HISTORY = "/claims", "/fences", "/locks", "/vmmeta", "/avoid", "/history"
FENCE_LOCK = LOCKS + "/fence"
ROOTS = (NODES, DOMAINS, CLAIMS, FENCES, LOCKS, VMMETA, AVOID, HISTORY)

XML_LIMIT = 256 * 1024
VALUE_LIMIT = 4 * 1024
LIST_LIMIT = 256 * 1024
"""Of a list of VMs: 7,000 of them."""
HISTORY_LIMIT = 64 * 1024
HISTORY_LINES = 200
PROTOCOL_VERSION = 2
"""What this daemon speaks, in `/nodes/<name>/protocol`; 0 while it starts. 2: a migration arrives paused, and only the claim's holder resumes
it. Only 2 and 2 migrate live: a daemon of 1 lets the guest run before the claim has moved."""


@dataclass(frozen=True)
class Key:
    """One row of the table of keys: the name below its parent, its format, who writes it and who reads it."""

    name: str
    format: str
    writer: str
    reader: str


NODE_KEYS = (
    Key("daemonstate", "`stop` `init` `run` `dead`", "own daemon; a peer may write `dead`", "all"),
    Key("domainstate", "`ready` `flush` `flushed` `unflush`", "client (`flush`, `unflush`); own daemon (`flushed`, `ready`); "
        "the janitor (`flushed`)", "all; the node itself acts"),
    Key("staticdata", "CPU count, kernel release, OS, architecture", "own daemon at each start", "client"),
    Key("memfree", "integer MiB", "own daemon each tick", "placement, client"),
    Key("hugepages", "`size:free` of each size of huge pages: KiB and pages; the host's own size first", "own daemon each tick", "placement"),
    Key("memused", "integer MiB", "own daemon each tick", "placement, client"),
    Key("cpuload", "float, 1-minute load", "own daemon each tick", "client"),
    Key("runningdomains", "UUIDs, space-separated", "own daemon, from what libvirt shows", "display and cross-check"),
    Key("domainscount", "integer", "own daemon each tick", "client"),
    Key("keepalive", "integer unix seconds of the writer", "own daemon each tick", "peers: only that it changed matters"),
    Key("ipmihostname", "text", "own daemon at each start", "the janitor"),
    Key("ipmiusername", "text", "own daemon at each start", "the janitor"),
    Key("ipmipassword", "text", "own daemon at each start", "the janitor"),
    Key("libvirtstate", "empty, or why libvirt gives no answer there", "own daemon each tick", "placement, client"),
    Key("zookeeper", "HOST:PORT, separated by commas: the ZooKeeper servers it knows", "own daemon each tick", "client"),
    Key("incarnation", "boot hash `/` counter", "own daemon at each start", "display"),
    Key("timing", "JSON: effective tick and fence_intervals", "own daemon at each start", "observers of this node"),
    Key("protocol", "integer: highest protocol version", "own daemon after its first adoption pass", "all"),
    Key("machineid", "text", "own daemon at its first start", "own daemon: two hosts with one name"),
    Key("departure", "JSON: at, return, vms: its host is being, or was, shut down", "own daemon; the client deletes it (`node flush`, "
        "`node ready`)", "own daemon at its next start, client"),
    Key("strangers", "JSON: UUID → name of what runs there outside PVC", "own daemon each tick", "row 9, client"),
    Key("troubles", "JSON: list of code, VM's UUID or empty, detail: what is wrong there and needs a person", "own daemon each tick",
        "client: display only"),
    Key("ipmiguid", "32 hex digits", "own daemon, as soon as its controller answers", "the janitor: is this the right machine's controller"),
    Key("ipmiinside", "JSON: local (GUID through the host's own interface), product (DMI UUID)", "own daemon after each start",
        "the janitor, peers, client: does the controller belong to this host"),
    Key("ipmistate", "JSON: by, at, ok, cipher, detail, guid, addresses, seen (by node)", "a peer that checked the controller", "all"),
    Key("fencetries", "JSON: fence, count, last (by, at, why): tries that gave no proof", "the janitor", "janitors: whose turn is next; client"),
)
DOMAIN_KEYS = (
    Key("state", "`start` `stop` `shutdown` `restart` `migrate` `failed` `delete`",
        "client; the daemon that acts; the janitor", "all: the trigger"),
    Key("hypervisor", "node name: where the VM belongs now", "client; holder or destination of a migration; janitor", "all"),
    Key("lasthypervisor", "node name, or empty: where it goes back to",
        "client; holder or destination of a migration; janitor", "all"),
    Key("xml", "whole libvirt domain XML, UTF-8", "client", "the node that starts it, client"),
)
OTHER_KEYS = (
    Key(FENCES, "JSON: cluster-wide hold of fencing `{hold, until, by, restored}`",
        "client (`pvc maintenance`); a node that sees older data (`restored`)", "all"),
    Key(FENCES + "/<node>", "JSON: incarnation and phase `up` `fencing` `fenced` `removed`",
        "see the table of fences", "all; checked in every transaction of that node"),
    Key(CLAIMS + "/<uuid>", "empty = free, or JSON: node, incarnation, operation", "see the table of claims",
        "all: who may run the VM"),
    Key(FENCE_LOCK, "ephemeral: the janitor's name", "the janitor", "all; a convenience, never a proof"),
    Key(VMMETA + "/<uuid>", "JSON: the last trouble and when; how far a migration is", "the daemon that acts", "client: display only"),
    Key(AVOID + "/<uuid>", "empty, or JSON: the nodes on which the VM could not be started, and why", "the node that sends it on, or runs it, or gives "
        "it up", "that node, the janitor: not there again; client"),
    Key(HISTORY + "/<node or uuid>", "JSON lines, the last 200", "client and daemons", "client: display only"),
)
NODE_KEY_NAMES = tuple(key.name for key in NODE_KEYS)
DOMAIN_KEY_NAMES = tuple(key.name for key in DOMAIN_KEYS)
NODE_VALUE = b"hypervisor"


class DaemonState(str, Enum):
    """Words of `/nodes/<name>/daemonstate`."""

    STOP = "stop"
    INIT = "init"
    RUN = "run"
    DEAD = "dead"


class DomainState(str, Enum):
    """Words of `/nodes/<name>/domainstate`."""

    READY = "ready"
    FLUSH = "flush"
    FLUSHED = "flushed"
    UNFLUSH = "unflush"


class VMState(str, Enum):
    """Words of `/domains/<uuid>/state`."""

    START = "start"
    STOP = "stop"
    SHUTDOWN = "shutdown"
    RESTART = "restart"
    MIGRATE = "migrate"
    FAILED = "failed"
    DELETE = "delete"


class FencePhase(str, Enum):
    """Phases of `/fences/<node>`."""

    UP = "up"
    FENCING = "fencing"
    FENCED = "fenced"
    REMOVED = "removed"


class OpPhase(str, Enum):
    """Phases of the migration operation inside a claim: the destination can take it (`ready`), the source calls libvirt (`run`), the
    claim is the destination's, and the copy that has arrived may be resumed (`given`).
    """

    READY = "ready"
    RUN = "run"
    GIVEN = "given"


@dataclass(frozen=True)
class Unknown:
    """A value that is there and cannot be understood. It has no transitions; `str()` is safe to print."""

    raw: bytes

    def __str__(self) -> str:
        return printable(self.raw[:80])


E = TypeVar("E", bound=Enum)


def node(name: str) -> str:
    return f"{NODES}/{name}"


def node_key(name: str, key: str) -> str:
    return f"{NODES}/{name}/{key}"


def domain(uuid: str) -> str:
    return f"{DOMAINS}/{uuid}"


def domain_key(uuid: str, key: str) -> str:
    return f"{DOMAINS}/{uuid}/{key}"


def claim(uuid: str) -> str:
    return f"{CLAIMS}/{uuid}"


def fence(name: str) -> str:
    return f"{FENCES}/{name}"


def vmmeta(uuid: str) -> str:
    return f"{VMMETA}/{uuid}"


def avoid(uuid: str) -> str:
    return f"{AVOID}/{uuid}"


def history(subject: str) -> str:
    return f"{HISTORY}/{subject}"


def limit_of(path: str) -> int:
    """How many bytes the key may hold."""
    if path.startswith(DOMAINS) and path.endswith("/xml"):
        return XML_LIMIT
    if path.startswith(NODES) and path.endswith("/runningdomains"):
        return LIST_LIMIT
    return HISTORY_LIMIT if path.startswith(HISTORY) else VALUE_LIMIT


_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
_NODE_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?\Z")
_VM_NAME = re.compile(r"\w[\w.+-]{0,63}\Z")
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def is_uuid(text: str) -> bool:
    """True for the canonical spelling only: lower case, with dashes (other spellings would be other keys)."""
    return _UUID.match(text) is not None


def is_node_name(text: str) -> bool:
    """True for a host name that may become one component of a key's path."""
    return _NODE_NAME.match(text) is not None and ".." not in text


def is_vm_name(text: str) -> bool:
    """True for a VM's name: Unicode word characters, `.`, `+`, `-`; at most 64; nothing invisible."""
    return _VM_NAME.match(text) is not None and not any(unicodedata.category(c) in _HIDDEN for c in text)


def printable(value: bytes | str) -> str:
    """Text that a terminal and a log line can show: control, bidirectional and undecodable characters escaped."""
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
    if text.isprintable():
        return text
    return "".join(
        c.encode("unicode_escape").decode("ascii") if unicodedata.category(c) in _HIDDEN else c for c in text)


def decode_word(words: type[E], raw: bytes | None) -> E | Unknown | None:
    """The enum member that `raw` spells exactly."""
    if raw is None:
        return None
    try:
        return words(raw.decode("utf-8"))
    except ValueError:
        return Unknown(raw)


def decode_text(raw: bytes | None) -> str | Unknown | None:
    """UTF-8 text of at most VALUE_LIMIT bytes, without control characters."""
    if raw is None:
        return None
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return Unknown(raw)
    return text if len(raw) <= VALUE_LIMIT and printable(text) == text else Unknown(raw)


def decode_node_name(raw: bytes | None) -> str | Unknown | None:
    """A node's name, or '' (nowhere)."""
    text = decode_text(raw)
    return text if not isinstance(text, str) or not text or is_node_name(text) else Unknown(raw or b"")


_INT = re.compile(rb"-?[0-9]{1,18}\Z")


def decode_int(raw: bytes | None) -> int | Unknown | None:
    """A decimal integer of at most 18 digits."""
    if raw is None:
        return None
    return int(raw) if _INT.match(raw) else Unknown(raw)


def decode_float(raw: bytes | None) -> float | Unknown | None:
    """A finite decimal number."""
    if raw is None:
        return None
    return float(raw) if re.match(rb"[0-9]{1,9}(\.[0-9]{1,9})?\Z", raw) else Unknown(raw)


_PAGES = re.compile(rb"[0-9]{1,9}:[0-9]{1,12}\Z")


def decode_pages(raw: bytes | None) -> dict[str, int]:
    """Free memory in MiB by the size of its huge pages (KiB), and as 'default' that of the first; empty for what cannot be understood."""
    words = (raw or b"").split()
    if not all(_PAGES.match(word) for word in words) or len(raw or b"") > VALUE_LIMIT:
        return {}
    pairs = [(int(size), int(free)) for size, free in (word.split(b":") for word in words)]
    found = {str(size): size * free // 2**10 for size, free in pairs}
    return {**found, "default": found[str(pairs[0][0])]} if pairs else {}


def decode_uuids(raw: bytes | None) -> tuple[str, ...] | Unknown | None:
    """UUIDs separated by white space."""
    if raw is None:
        return None
    words = raw.decode("ascii", "replace").split()
    return tuple(words) if all(map(is_uuid, words)) else Unknown(raw)
