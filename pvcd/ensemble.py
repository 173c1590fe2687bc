# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Learns from ZooKeeper which servers it has, so that the stop of the one that is configured is not this node's end.

The default is the server on this host: it comes first, and the others take over within seconds. Runs on a thread of its own, because
the resolution of a name may take half a minute: kazoo is given addresses only, once they are known. They are kept on disk, for a start
while the local server is down.
"""
from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from .cluster import endpoint
from .cluster.endpoint import Server
from .cluster.errors import PVCError
from .cluster.zk import ZooKeeper
from .situation import Level

EVERY_S = 60.0
ADDRESSES = 2
"""Of one name, as a rule its IPv4 and its IPv6 address; kazoo divides its patience with one server by their number."""

Known = dict[Server, tuple[str, ...]]


def resolve(server: Server) -> tuple[str, ...]:
    """The addresses of a name; none if it cannot be resolved. Blocks as long as the resolver does."""
    try:
        found = socket.getaddrinfo(server.host, server.port, 0, socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ()
    return tuple(dict.fromkeys(str(row[4][0]) for row in found))[:ADDRESSES]


def is_here(address: str) -> bool:
    """The address is one of this host's."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
            return True
    except OSError:
        return False


class Ensemble:
    """`publish(servers)` when they are known anew, for people on other hosts."""

    def __init__(self, zk: ZooKeeper, state: Path, say: Callable[[Level, str], None], publish: Callable[[str], None]) -> None:
        self._zk, self._configured, self._path = zk, zk.endpoint, state / endpoint.FILE
        self._say, self._publish = say, publish
        self._wake = threading.Event()
        self._told: tuple[Server, ...] = ()
        self.known: Known = dict.fromkeys(self._configured.servers, ())

    def recall(self) -> None:
        """What was known when this node ran last, before the first connection. A file that cannot be read is no file."""
        try:
            found = endpoint.remembered(self._path.read_text(encoding="utf-8"), self._configured)
        except (OSError, UnicodeDecodeError):
            found = {}
        self._take({**self.known, **found})

    def wake(self) -> None:
        """Ask again, soon: the connection is a new one. Any thread."""
        self._wake.set()

    def run(self, ended: Callable[[], bool]) -> None:
        """The thread."""
        while not ended():
            self._wake.clear()
            self.refresh()
            self._wake.wait(EVERY_S)

    def refresh(self) -> None:
        """Ask once, resolve what has names, and use it. Without an answer the servers stay, and their names are resolved again."""
        try:
            asked = self._zk.server or self._configured.servers[0]
            listed = endpoint.learned(self._zk.ensemble(), asked)
        except PVCError:
            listed = tuple(self.known)
        known = {server: self._addresses(server) for server in dict.fromkeys((*self._configured.servers, *listed))}
        self._take({server: addresses for server, addresses in known.items()
                    if server in self._configured.servers or (addresses and not self._is_configured(server, addresses, known))})
        self._keep()
        self._tell()

    def _addresses(self, server: Server) -> tuple[str, ...]:
        return (server.host,) if server.is_address else resolve(server) or self.known.get(server, ())

    def _is_configured(self, server: Server, addresses: tuple[str, ...], known: Known) -> bool:
        """This host's own server, when that is configured (127.0.0.1) and listed by its name; or a configured one by another name."""
        ours = {(address, own.port) for own in self._configured.servers for address in (own.host, *known[own])}
        local = any(port == server.port and Server(host).is_address and is_here(host) for host, port in ours)
        return any((address, server.port) in ours for address in addresses) or (local and any(map(is_here, addresses)))

    def _take(self, known: Known) -> None:
        """The configured servers first; the others in an order of this node's own, so that not all nodes move to the same one."""
        self.known = known
        others = [server for server in known if server not in self._configured.servers]
        random.shuffle(others)
        self._zk.use([Server(address, server.port) for server in (*self._configured.servers, *others)
                      for address in known.get(server) or ((server.host,) if server in self._configured.servers else ())])

    def _keep(self) -> None:
        """Whole or not at all. A full disk loses only what the next start would know at once."""
        text, temporary = endpoint.to_remember(self._configured, self.known), self._path.with_suffix(".new")
        try:
            if not self._path.exists() or self._path.read_text(encoding="utf-8") != text:
                temporary.write_text(text, encoding="utf-8")
                temporary.replace(self._path)
        except (OSError, UnicodeDecodeError):
            return

    def _tell(self) -> None:
        servers = tuple(self.known)
        if servers == self._told:
            return
        self._told = servers
        self._publish(endpoint.shown(servers))
        if len(servers) == 1:
            self._say(Level.WARNING, f"ZooKeeper: only one server is known ({servers[0]}), and it names no others: when it stops, this node has "
                                     "none. Run three servers; if there are three, name them in pvcd.conf: zookeeper = hv1:2181,hv2:2181,hv3:2181")
        else:
            self._say(Level.INFO, f"ZooKeeper: the servers are {endpoint.shown(servers)}")
