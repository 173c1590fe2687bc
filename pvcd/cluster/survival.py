# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Says what the death of each node would leave without a place, by the placement that the recovery itself uses. Pure."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from .placement import WANTED, Planning, biggest_first, promised
from .records import Claim, ClaimRecord, DomainRecord, View
from .schema import DaemonState, FencePhase


@dataclass(frozen=True)
class Stranded:
    """A VM that would fit nowhere if its node died, and why."""

    uuid: str
    reason: str


def stranded(view: View, domains: Mapping[str, DomainRecord], claimed: Mapping[str, ClaimRecord], sizes: Mapping[str, int | None],
             dead: str) -> list[Stranded]:
    """What a death of node `dead` at this moment would strand: its VMs are placed as the recovery places them, biggest first.

    `sizes`: MiB of each VM; one whose definition cannot be read could not be started elsewhere.
    """
    after = _without(view, dead)
    planning = Planning(after, promised(domains, claimed, sizes))
    found = []
    for uuid in biggest_first(domains, sizes):
        record = domains[uuid]
        if record.state not in WANTED or not _dies_with(record, claimed.get(uuid), dead) or after.is_ready(str(record.hypervisor)):
            continue
        if sizes.get(uuid) is None:
            found.append(Stranded(uuid, "its definition cannot be read"))
            continue
        placed = planning.choose(sizes[uuid] or 0, {dead})
        if placed.target is None:
            found.append(Stranded(uuid, placed.reason))
    return found


def _without(view: View, dead: str) -> View:
    fences, value = dict(view.fences), view.fence(dead)
    if value is not None:
        fences[dead] = replace(fences[dead], value=replace(value, phase=FencePhase.FENCED))
    nodes = {**view.nodes, dead: replace(view.nodes[dead], daemonstate=DaemonState.DEAD)}
    return replace(view, nodes=nodes, fences=fences)


def _dies_with(record: DomainRecord, claim: ClaimRecord | None, dead: str) -> bool:
    held = claim.value if claim is not None else None
    return held.node == dead if isinstance(held, Claim) else held is None and record.hypervisor == dead
