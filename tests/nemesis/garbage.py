# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Garbage in the keys of one node and one VM, and its repair.

Only keys for which PVC promises that nothing comes of it (FAULTS 86 to 88, 90, 94): what is shown, and what gives orders. Claims and
fences are not among them: a node whose fence cannot be read may rightly fall silent. Nor is a definition, which is read at a start.
"""
from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

from kazoo.client import KazooClient
from kazoo.exceptions import BadVersionError, KazooException, NodeExistsError, NoNodeError
from kazoo.handlers.threading import KazooTimeoutError

from lablib.guests import guest_uuid
from lablib.host import LabError
from lablib.lab import Lab

OF_A_NODE = ("daemonstate", "domainstate", "memfree", "memused", "cpuload", "runningdomains", "domainscount", "staticdata", "keepalive",
             "incarnation", "timing", "protocol", "ipmistate", "libvirtstate")
OF_A_VM = ("state", "hypervisor", "lasthypervisor")
DELETED = None
GARBAGE = (b"\xff\xfe\x00\xff", b"\x1b[31mstart\x1b[2J\x07\n", b"x" * 100_000, b"frobnicate", "\u202estart".encode(), b"-1e309", DELETED)


class Garbage:
    """Two to six of the keys of `node` and `vm`."""

    def __init__(self, lab: Lab, node: str, vm: str, dice: random.Random) -> None:
        uuid = guest_uuid(vm)
        paths = [f"/nodes/{node}/{key}" for key in OF_A_NODE] + [f"/domains/{uuid}/{key}" for key in OF_A_VM]
        paths += [f"/vmmeta/{uuid}", f"/avoid/{uuid}", f"/history/{uuid}", f"/history/{node}"]
        chosen = [f"/domains/{uuid}/{dice.choice(OF_A_VM[:2])}", *dice.sample(paths, dice.randrange(2, 6))]
        self._lab = lab
        self._garbage = {path: dice.choice(GARBAGE) for path in chosen}
        self._before: dict[str, tuple[bytes, int]] = {}
        """What a key held, and the version of the garbage in it (of a deleted one: none)."""
        self._pids: dict[str, str] = {}

    def __str__(self) -> str:
        return ", ".join(f"{path} {'deleted' if garbage is DELETED else repr(garbage[:20])}" for path, garbage in self._garbage.items())

    def write(self) -> None:
        """Each at the version that was read: an order that is given at this moment is not overwritten."""
        self._pids = self._daemons()
        with self._client() as client:
            for path, garbage in self._garbage.items():
                try:
                    before, stat = client.get(path)
                    if garbage is DELETED:
                        client.delete(path, version=stat.version)
                        self._before[path] = (before, -1)
                    else:
                        self._before[path] = (before, client.set(path, garbage, version=stat.version).version)
                except (NoNodeError, BadVersionError):
                    continue

    def repair(self) -> None:
        """What was there before; unless somebody has written meanwhile, which was then an order, or the daemon's own repair."""
        with self._client() as client:
            for path, (before, version) in self._before.items():
                try:
                    if self._garbage[path] is DELETED:
                        client.create(path, before)
                    else:
                        client.set(path, before, version=version)
                except (NodeExistsError, NoNodeError, BadVersionError):
                    continue

    def blames(self) -> list[str]:
        now = self._daemons()
        return [f"pvcd of {name} has died of garbage: {self}" for name in self._lab.names if now[name] != self._pids[name]]

    def _daemons(self) -> dict[str, str]:
        return {name: self._lab.node(name).run("systemctl", "show", "-p", "MainPID", "--value", "pvcd.service").stdout.strip()
                for name in self._lab.names}

    @contextmanager
    def _client(self) -> Iterator[KazooClient]:
        client = KazooClient(self._lab.zookeeper, timeout=10, command_retry={"max_tries": 3})
        try:
            client.start(10)
            yield client
        except (KazooException, KazooTimeoutError) as error:
            raise LabError(f"garbage could not be written or repaired: {error!r}") from error
        finally:
            client.stop()
            client.close()
