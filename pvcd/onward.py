# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Chooses the next node for a VM that this node, which only stands in for its home, cannot start. Runs on a reconcile worker.

A VM at its home stays there: the operator chose the node, and its disk may be there only. One that a recovery or a flush has sent is sent
on: the home first if it is ready again, then the node with the most free memory, and none twice (`cluster.avoid`).
"""
from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from .cluster import definition
from .cluster.errors import BadDefinition
from .cluster.placement import WANTED, Planning, promised
from .cluster.records import Claim, ClaimRecord, DomainRecord, View
from .cluster.store import Store
from .situation import Onward


@dataclass(frozen=True)
class Cluster:
    """Every VM as read in bulk, and the memory of those that are on their way (MiB)."""

    domains: Mapping[str, DomainRecord]
    claims: Mapping[str, ClaimRecord]
    sizes: Mapping[str, int | None]


def stands_in(record: DomainRecord, node: str) -> bool:
    """PVC has sent the VM to `node`; its home is another."""
    last = record.lasthypervisor
    return isinstance(last, str) and last not in ("", node)


def choose(view: View, record: DomainRecord, cluster: Cluster, exclude: Collection[str]) -> tuple[str | None, str]:
    """The next node and why, or None and why there is none. Pure."""
    planning = Planning(view, promised(cluster.domains, cluster.claims, cluster.sizes))
    size, home = cluster.sizes.get(record.uuid), record.lasthypervisor
    if size is None:
        return None, "its definition cannot be read"
    if isinstance(home, str) and home not in exclude and planning.refusal(home, size) is None:
        return home, "its home"
    placed = planning.choose(size, exclude)
    return placed.target, placed.reason


def look(store: Store, view: View, record: DomainRecord, node: str) -> Onward:
    """Where the VM goes from here, by what ZooKeeper says now. Raises what the store raises."""
    avoided = store.avoided([record.uuid])[record.uuid]
    if not stands_in(record, node):
        return Onward(None, "it is at home", avoided)
    domains, claims = store.domains(), store.claims()
    on_their_way = [uuid for uuid, found in domains.items() if found.state in WANTED and not _settled(found, claims.get(uuid))]
    sizes = {uuid: _size(store, uuid) for uuid in {record.uuid, *on_their_way}}
    target, reason = choose(view, record, Cluster(domains, claims, sizes), {node, *avoided.nodes})
    return Onward(target, reason, avoided, untried=target is None and bool(set(view.nodes) - {node, *avoided.nodes}))


def _settled(found: DomainRecord, claim: ClaimRecord | None) -> bool:
    return claim is not None and isinstance(claim.value, Claim) and claim.value.node == found.hypervisor


def _size(store: Store, uuid: str) -> int | None:
    try:
        return definition.parse(store.xml(uuid).data).memory_mib
    except BadDefinition:
        return None
