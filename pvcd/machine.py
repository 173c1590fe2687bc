# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""A node is a machine: says whether this host may join under its name. Main thread, at start.

The name is remembered in a file beside the machine-id, and both are compared with what the other nodes have registered. Host names
change (DHCP, an installer, an upgrade), hosts are cloned and replaced; a host that joined under another name would take its own guests for
another node's. Nothing here touches what runs.
"""
from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from .cluster import schema
from .cluster.errors import PVCError
from .cluster.store import Store
from .marks import read_json, replace_file

FILE = "node"
_MACHINE_ID = re.compile(r"[0-9a-f]{32}\Z")


class Refused(PVCError):
    """This node must not join now; the sentence says why and what to do."""


class WrongIdentity(Refused):
    """It must not join before an operator has looked: trying again would change nothing, or do harm."""


@dataclass(frozen=True)
class Host:
    """Who joins: the node's name, this boot as incarnations name it, and the machine's own id."""

    node: str
    boot: str
    machine_id: str


@dataclass(frozen=True)
class Remembered:
    """The name and the boot (as the kernel tells it) of this machine's last registration; '' = not known."""

    node: str = ""
    boot: str = ""

    def is_other_boot(self, boot: str) -> bool:
        """Proved: the machine has booted since. Not known is no proof."""
        return self.boot not in ("", boot)


def recall(directory: Path, machine_id: str) -> Remembered:
    """A file that is missing or unreadable, or that came with another machine's disk, remembers nothing."""
    found = read_json(directory / FILE)
    node, boot = found.get("node"), found.get("boot")
    if found.get("machineid") != machine_id or not isinstance(node, str) or not isinstance(boot, str):
        return Remembered()
    return Remembered(node, boot)


def remember(directory: Path, host: Host, boot: str) -> None:
    """Written whole or not at all; `boot` as the kernel tells it."""
    replace_file(directory / FILE, json.dumps({"node": host.node, "machineid": host.machine_id, "boot": boot}))


def refuse_renamed(old: Remembered, name: str, explicit: bool, path: Path) -> None:
    """A name that changed by itself. `explicit`: the configuration says `node_name`. Raises WrongIdentity."""
    if old.node in ("", name) or explicit:
        return
    raise WrongIdentity(
        f"{name}: this host has been the node {old.node}, and its host name is {name} now: it does not join, and its VMs run on. Give it its name "
        f"back (hostnamectl set-hostname {old.node}), or keep the node's name whatever the host is called: node_name = {old.node} in [default] of "
        f"/etc/pvc/pvcd.conf. Then: systemctl start pvcd. To make it another node: move its VMs away, pvc node remove {old.node}, rm {path / FILE}")


def refuse_strangers(store: Store, host: Host) -> None:
    """A name belongs to one machine-id, and a machine-id to one name. Raises WrongIdentity, Refused, or what the store raises."""
    if not _MACHINE_ID.match(host.machine_id) or not host.machine_id.strip("0"):
        raise WrongIdentity(f"{host.node}: /etc/machine-id holds no machine-id ('{schema.printable(host.machine_id[:40])}'): this host cannot be told "
                            "from another, and does not join. rm -f /etc/machine-id; systemd-machine-id-setup; systemctl start pvcd")
    nodes = store.view().nodes
    known = nodes.get(host.node)
    if known is not None and isinstance(known.machineid, str) and known.machineid not in ("", host.machine_id):
        raise Refused(f"The cluster knows {host.node} as another machine (machine-id {known.machineid}, here {host.machine_id}): this host does not "
                      f"join. If two hosts have this name, rename one. If this host replaces the old one: pvc node remove {host.node}")
    others = [name for name, node in sorted(nodes.items()) if name != host.node and node.machineid == host.machine_id]
    if others:
        raise WrongIdentity(
            f"{host.node}: the cluster knows this machine as {others[0]} (machine-id {host.machine_id}), and this host calls itself {host.node}: it does "
            f"not join, and nothing that runs is touched. If it is {others[0]}: hostnamectl set-hostname {others[0]}, or node_name = {others[0]} in "
            f"[default] of /etc/pvc/pvcd.conf. If it is a copy of {others[0]}: rm /etc/machine-id; systemd-machine-id-setup. If {others[0]} is gone "
            f"for good: pvc node remove {others[0]}. Then: systemctl start pvcd")
