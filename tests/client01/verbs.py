# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""0.1's operator verbs on a started kazoo client, written from the description of its interface. Runs on the caller's thread.

Every write is unconditional, no other key than 0.1's is read or written, and nothing is known of claims or fences. As in 0.1
several keys are written in one transaction; its results are returned, so that a test can see what 0.1 itself never looked at.
"""
from __future__ import annotations

import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import Any

DOMAIN_KEYS = ("state", "hypervisor", "lasthypervisor", "xml")
STOP_S, DELETE_S = 1.0, 5.0
"""How long 0.1's undefine gives the cluster after `stop` and after `delete`: it does not look, it only waits."""


class Refused(Exception):
    """0.1 says no; nothing was written."""


# --------------------------------------------------------------------------------------------------------------- reading

def read(zk: Any, path: str) -> str:
    """The text of a key. Raises kazoo's NoNodeError, as 0.1 does."""
    data: bytes = zk.get(path)[0]
    return data.decode("utf-8")


def find(zk: Any, domain: str) -> str:
    """The UUID for a name or UUID; of duplicate names any."""
    uuids = zk.get_children("/domains")
    if domain in uuids:
        return domain
    for uuid in uuids:
        if read(zk, f"/domains/{uuid}") == domain:
            return str(uuid)
    raise Refused(f"no VM {domain}")


def most_free(zk: Any, besides: str) -> str:
    """The ready, running node with the most free memory, other than `besides`."""
    free = {}
    for name in zk.get_children("/nodes"):
        usable = read(zk, f"/nodes/{name}/daemonstate") == "run" and read(zk, f"/nodes/{name}/domainstate") == "ready"
        if usable and name != besides:
            free[name] = int(read(zk, f"/nodes/{name}/memfree"))
    if not free:
        raise Refused("no node can take it")
    return max(sorted(free), key=lambda name: free[name])


def _target(zk: Any, hypervisor: str | None, here: str) -> str:
    if hypervisor is None:
        return most_free(zk, here)
    if hypervisor == here:
        raise Refused(f"is on {here} already")
    if not zk.exists(f"/nodes/{hypervisor}"):
        raise Refused(f"no node {hypervisor}")
    return hypervisor


# --------------------------------------------------------------------------------------------------------------- writing

def write(zk: Any, uuid: str, **words: str) -> list[Any]:
    """Set keys of a VM whatever they hold now, all in one transaction."""
    transaction = zk.transaction()
    for key, word in words.items():
        transaction.set_data(f"/domains/{uuid}/{key}", word.encode("utf-8"))
    results: list[Any] = transaction.commit()
    return results


def define(zk: Any, xml: bytes, hypervisor: str) -> str:
    """Create a stopped VM from its definition; returns its UUID."""
    root = ElementTree.fromstring(xml)
    uuid, name = root.findtext("uuid"), root.findtext("name")
    if not uuid or not name:
        raise Refused("the definition has no name or no UUID")
    values = {"state": b"stop", "hypervisor": hypervisor.encode("utf-8"), "lasthypervisor": b"", "xml": xml}
    transaction = zk.transaction()
    transaction.create(f"/domains/{uuid}", name.encode("utf-8"))
    for key, data in values.items():
        transaction.create(f"/domains/{uuid}/{key}", data)
    transaction.commit()
    return uuid


def undefine(zk: Any, domain: str, sleep: Callable[[float], None] = time.sleep) -> list[Any]:
    """Stop, wait, mark, wait, then delete exactly the four keys and their parent: an extra child makes all of it fail."""
    uuid = find(zk, domain)
    write(zk, uuid, state="stop")
    sleep(STOP_S)
    write(zk, uuid, state="delete")
    sleep(DELETE_S)
    transaction = zk.transaction()
    for key in DOMAIN_KEYS:
        transaction.delete(f"/domains/{uuid}/{key}")
    transaction.delete(f"/domains/{uuid}")
    results: list[Any] = transaction.commit()
    return results


def start(zk: Any, domain: str) -> None:
    """The one verb that 0.1 accepts in every state."""
    write(zk, find(zk, domain), state="start")


def _ask(zk: Any, domain: str, word: str) -> None:
    uuid = find(zk, domain)
    state = read(zk, f"/domains/{uuid}/state")
    if state != "start":
        raise Refused(f"is not running: {state}")
    write(zk, uuid, state=word)


def stop(zk: Any, domain: str) -> None:
    _ask(zk, domain, "stop")


def shutdown(zk: Any, domain: str) -> None:
    _ask(zk, domain, "shutdown")


def restart(zk: Any, domain: str) -> None:
    _ask(zk, domain, "restart")


def move(zk: Any, domain: str, hypervisor: str | None = None) -> str:
    """A new permanent home, live if it runs; returns the target."""
    uuid = find(zk, domain)
    target = _target(zk, hypervisor, read(zk, f"/domains/{uuid}/hypervisor"))
    words = {"state": "migrate"} if read(zk, f"/domains/{uuid}/state") == "start" else {}
    write(zk, uuid, **words, hypervisor=target, lasthypervisor="")
    return target


def migrate(zk: Any, domain: str, hypervisor: str | None = None, force: bool = False) -> str:
    """A temporary home; a VM that does not run is started there; returns the target."""
    uuid = find(zk, domain)
    if read(zk, f"/domains/{uuid}/lasthypervisor") and not force:
        raise Refused("is migrated already")
    here = read(zk, f"/domains/{uuid}/hypervisor")
    target = _target(zk, hypervisor, here)
    _send(zk, uuid, target, here)
    return target


def unmigrate(zk: Any, domain: str) -> str:
    """Back to where it was; returns the target."""
    uuid = find(zk, domain)
    home = read(zk, f"/domains/{uuid}/lasthypervisor")
    if not home:
        raise Refused("is not migrated")
    _send(zk, uuid, home, "")
    return home


def _send(zk: Any, uuid: str, target: str, last: str) -> None:
    running = read(zk, f"/domains/{uuid}/state") == "start"
    write(zk, uuid, state="migrate" if running else "start", hypervisor=target, lasthypervisor=last)


def flush(zk: Any, node: str) -> None:
    zk.set(f"/nodes/{node}/domainstate", b"flush")


def ready(zk: Any, node: str) -> None:
    zk.set(f"/nodes/{node}/domainstate", b"unflush")
