# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Says how the ZooKeeper servers of a cluster are written, for the daemon and the client alike. Pure.

`hv1:2181,hv_2,[fd00::1]:2181/pvc`: servers separated by commas, each a name or an address with a port or without (2181), and once, at
the end, the path below which the cluster's keys are (ZooKeeper calls it chroot). `learned` reads ZooKeeper's own list of its servers.
"""
from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from . import schema

PORT = 2181
MOST = 20
"""Servers that are remembered; an ensemble has 3 or 5."""
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?\.?\Z")
_PORT = re.compile(r"[0-9]{1,5}\Z")
_EVERYWHERE = ("0.0.0.0", "::")


class BadEndpoint(ValueError):
    """What was written names no ZooKeeper servers; the sentence says what is wrong and how it is written."""


@dataclass(frozen=True)
class Server:
    """One server's client port. `host` is a name or an address, IPv6 without brackets."""

    host: str
    port: int = PORT

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_address(self) -> bool:
        """No name: nothing has to be resolved."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True


@dataclass(frozen=True)
class Endpoint:
    """The servers in the order in which they are tried, and the path of the cluster ('' or '/pvc')."""

    servers: tuple[Server, ...]
    chroot: str = ""

    def __str__(self) -> str:
        return shown(self.servers) + self.chroot


def shown(servers: Sequence[Server]) -> str:
    """As `parse` reads them."""
    return ",".join(map(str, servers))


def parse(text: str) -> Endpoint:
    """Raises BadEndpoint."""
    listed, slash, path = text.strip().partition("/")
    if "," in path and ":" in path:
        raise BadEndpoint("the path stands once, after the last server: hv1:2181,hv2:2181/pvc")
    entries = [entry.strip() for entry in listed.split(",")]
    if not all(entries):
        raise BadEndpoint("an entry is empty: HOST:PORT, or several separated by commas")
    servers = tuple(dict.fromkeys(map(_server, entries)))
    return Endpoint(servers, _chroot(path) if slash else "")


def _server(entry: str) -> Server:
    if entry.startswith("["):
        host, bracket, rest = entry[1:].partition("]")
        if not bracket or not _is_ipv6(host) or (rest and not rest.startswith(":")):
            raise BadEndpoint(f"'{schema.printable(entry)}' is no IPv6 address: [fd00::1]:{PORT}")
        return Server(str(ipaddress.IPv6Address(host)), _port(rest[1:], entry) if rest else PORT)
    if _is_ipv6(entry):
        raise BadEndpoint(f"an IPv6 address stands in brackets: [{entry}]:{PORT}")
    host, colon, port = entry.partition(":")
    if not _NAME.match(host) or ".." in host:
        raise BadEndpoint(f"'{schema.printable(entry)}' is no server: HOST, HOST:PORT or [IPv6]:PORT")
    return Server(host, _port(port, entry) if colon else PORT)


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.IPv6Address(text).scope_id is None
    except ValueError:
        return False


def _port(text: str, entry: str) -> int:
    if not _PORT.match(text) or not 0 < int(text) < 65536:
        raise BadEndpoint(f"'{schema.printable(entry)}': the port is a number from 1 to 65535")
    return int(text)


def _chroot(path: str) -> str:
    """'/pvc' for 'pvc' and 'pvc/'; '' for nothing."""
    parts = path.rstrip("/").split("/")
    if parts == [""]:
        return ""
    if not all(re.match(r"[A-Za-z0-9_.+-]{1,200}\Z", part) and part not in (".", "..") for part in parts) or parts[0] == "zookeeper":
        raise BadEndpoint(f"'/{schema.printable(path)}' is no path for a cluster's keys: letters, digits and _ . + - between slashes, as in /pvc")
    return "/" + "/".join(parts)


# ------------------------------------------------------------------------------------------ the list that ZooKeeper keeps

_LINE = re.compile(r"server\.\d+=(?P<peers>[^;]+)(;(?P<client>.*))?\Z")
_HOST = re.compile(r"\[(?P<six>[^\]]+)\]|(?P<name>[^:\[\]]+)")


def learned(config: bytes, asked: Server) -> tuple[Server, ...]:
    """The client ports of the servers that `/zookeeper/config` lists (ZooKeeper 3.5 and newer), `asked` being the one that was connected to.

    A line is `server.N=HOST:PORT:PORT[:ROLE][;[ADDRESS:]PORT]`, HOST several separated by `|` where a server has several. Without the
    part after the semicolon (Debian's zoo.cfg: `clientPort`) a server is taken to listen on the port of `asked`. A server that says
    that its own host is everywhere (0.0.0.0) cannot be told apart and is left out, as is whatever cannot be understood.
    """
    found: dict[Server, None] = {}
    for line in config.decode("utf-8", "replace").splitlines():
        parts = _LINE.match(line.strip())
        server = _from_line(parts["peers"].partition("|")[0], parts["client"], asked) if parts else None
        if server is not None:
            found[server] = None
    return tuple(found)[:MOST]


def _from_line(peers: str, client: str | None, asked: Server) -> Server | None:
    """None also for a loopback address, unless this is how it was asked: there it is the server itself, here it would be another."""
    host, port = _host(peers), str(asked.port)
    if client is not None:
        address, _, port = client.rpartition(":")
        own = _host(address)
        host = own if own is not None and own not in _EVERYWHERE else host
    if host is None or host in _EVERYWHERE or (_is_loopback(host) and not _is_loopback(asked.host)):
        return None
    try:
        return _server(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except BadEndpoint:
        return None


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (Server(host).is_address and ipaddress.ip_address(host).is_loopback)


def _host(text: str) -> str | None:
    """The host at the begin of HOST:PORT:…; IPv6 without its brackets."""
    found = _HOST.match(text)
    if found is None:
        return None
    host = found["six"] or found["name"]
    return str(ipaddress.IPv6Address(host)) if _is_ipv6(host) else host


# ------------------------------------------------------------------------------------------- what a node remembers of them

FILE = "zookeeper"
"""In the node's state directory: the servers as configured in the first line, then each one that is known, with its addresses."""


def remembered(text: str, configured: Endpoint) -> dict[Server, tuple[str, ...]]:
    """Server → the addresses it had, from the text of FILE; nothing if it was learned for another configuration."""
    first, *lines = text.splitlines() or [""]
    if first != str(configured):
        return {}
    found: dict[Server, tuple[str, ...]] = {}
    for line in lines[:MOST]:
        name, *addresses = line.split() or [""]
        try:
            found[_server(name)] = tuple(address for address in addresses if Server(address).is_address)
        except BadEndpoint:
            continue
    return found


def to_remember(configured: Endpoint, known: dict[Server, tuple[str, ...]]) -> str:
    """The text of FILE."""
    return "\n".join([str(configured), *(" ".join((str(server), *addresses)) for server, addresses in known.items())]) + "\n"
