# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Finds the cluster and opens the one connection of a command; the only room of the client that knows of ZooKeeper."""
from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pvcd.cluster import endpoint
from pvcd.cluster.errors import NotACluster, Unreachable

if TYPE_CHECKING:
    from pvcd.cluster.store import Store
    from pvcd.cluster.zk import ZooKeeper

CONNECT_S = 5.0
CALL_S = 5.0
SESSION_S = 10.0
NODE_CONFIGURATION = "/etc/pvc/pvcd.conf"
STATE_DIRECTORY = "/var/lib/pvc"


@dataclass(frozen=True)
class Place:
    """Where the cluster is looked for, and who said so."""

    hosts: str
    origin: str


def place(option: str | None) -> Place:
    """`-z`, then PVC_ZOOKEEPER, then this node's own configuration and what its daemon has learned, then this host. Raises Unreachable."""
    if option:
        return _parsed(option, "from -z")
    if os.environ.get("PVC_ZOOKEEPER"):
        return _parsed(os.environ["PVC_ZOOKEEPER"], "from $PVC_ZOOKEEPER")
    configured = _configured()
    if configured:
        found = _parsed(configured, f"from {NODE_CONFIGURATION}")
        return Place(_with_learned(found.hosts), found.origin)
    return _parsed(f"{socket.gethostname()}:{endpoint.PORT}", "this host: neither -z nor $PVC_ZOOKEEPER is given")


def _parsed(text: str, origin: str) -> Place:
    try:
        return Place(str(endpoint.parse(text)), origin)
    except endpoint.BadEndpoint as error:
        raise Unreachable(f"The ZooKeeper servers ({origin}) cannot be understood: {error}") from error


def _with_learned(hosts: str) -> str:
    """And the servers that this node's daemon keeps in mind, where this user may read it: the one on this node may be down."""
    configured = endpoint.parse(hosts)
    try:
        with open(f"{STATE_DIRECTORY}/{endpoint.FILE}", encoding="utf-8") as file:
            known = endpoint.remembered(file.read(), configured)
    except (OSError, UnicodeDecodeError):
        return hosts
    return str(endpoint.Endpoint(tuple(dict.fromkeys((*configured.servers, *known))), configured.chroot))


def _configured() -> str:
    import configparser
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        parser.read(NODE_CONFIGURATION, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError, OSError):
        return ""
    for section in (socket.gethostname(), "default"):
        found = parser.get(section, "zookeeper", fallback="")
        if found:
            return found
    return ""


@dataclass
class Cluster:
    """An open connection: `store` for records and changes, `zk` for watches."""

    store: Store
    zk: ZooKeeper
    place: Place


@contextmanager
def opened(where: Place, initialised: bool = True) -> Iterator[Cluster]:
    """Connect, and close at the end. Raises Unreachable, or NotACluster unless `initialised` is False."""
    from pvcd.cluster.store import Store
    from pvcd.cluster.zk import ZooKeeper
    zk = ZooKeeper(where.hosts, SESSION_S, CALL_S)
    try:
        zk.start(CONNECT_S)
    except Unreachable as error:
        raise Unreachable(f"ZooKeeper not reachable at {where.hosts} ({where.origin}) after {CONNECT_S:g} s; try -z, or on a node: "
                          "systemctl status zookeeper") from error
    try:
        store = Store(zk)
        if not initialised:
            zk.create_root()
        if initialised and not store.is_cluster():
            raise NotACluster(f"ZooKeeper at {where.hosts} ({where.origin}) holds no PVC cluster; create one with: pvc init")
        yield Cluster(store, zk, where)
    finally:
        zk.stop()


def who() -> str:
    """The operator, for the history."""
    import getpass
    user = os.environ.get("SUDO_USER") or getpass.getuser()
    return f"{user}@{socket.gethostname()}"
