# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Keeps on which nodes a VM could not be started, so that the next choice is another: `/avoid/<uuid>`. Pure.

A node is noted in the same transaction that sends the VM on, at the version read. The notes go when the VM runs, and when it becomes
`failed`: each node is tried once, so a VM never goes to and fro, and an operator's next order begins anew. Notes that are left behind by a
process that died are a preference and no law: a recovery that finds no other node takes one of these.
"""
from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from . import schema
from .records import ANY, Change, Create, Value, Write

REASON_LIMIT = 150


@dataclass(frozen=True)
class Avoided:
    """`nodes`: node → why the VM could not be started there. What cannot be read names no node."""

    nodes: Mapping[str, str] = field(default_factory=dict)
    version: int = ANY

    @property
    def told(self) -> str:
        """For people: 'hv2: no bridge; hv3: no bridge', or ''."""
        return "; ".join(f"{name}: {why}" for name, why in sorted(self.nodes.items()))


NOWHERE = Avoided()


def read(value: Value) -> Avoided:
    """Total: any bytes give a record."""
    try:
        found = json.loads((value.data or b"").decode("utf-8")) if value.data and len(value.data) <= schema.VALUE_LIMIT else {}
    except (ValueError, RecursionError):
        found = {}
    nodes = found.get("nodes") if isinstance(found, dict) and found.get("v") == 1 else None
    kept = nodes if isinstance(nodes, dict) else {}
    return Avoided({name: why for name, why in kept.items() if schema.is_node_name(name) and isinstance(why, str)}, value.version)


def noted(uuid: str, avoided: Avoided, name: str, reason: str) -> Change:
    """The VM could not be started on node `name`. The reasons of many nodes are kept shorter."""
    nodes = {**avoided.nodes, name: schema.printable(reason)}
    for most in (REASON_LIMIT, 20, 0):
        data = json.dumps({"v": 1, "nodes": {node: why[:most] for node, why in nodes.items()}}, separators=(",", ":")).encode()
        if len(data) <= schema.VALUE_LIMIT:
            break
    path = schema.avoid(uuid)
    return Create(path, data) if avoided.version == ANY else Write(path, data, avoided.version)


def forgotten(uuid: str, avoided: Avoided) -> tuple[Change, ...]:
    """It runs, or was given up: every node may be tried again."""
    return (Write(schema.avoid(uuid), b"", avoided.version),) if avoided.nodes else ()
