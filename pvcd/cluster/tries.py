# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The tries to fence a node that gave no proof, kept beside its fence in `/nodes/<node>/fencetries`, and whose turn is
next. Pure.

They are beside the fence because a write to the fence itself would make an objection, a confirmation or a gate lose a
race for nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from . import schema
from .records import ANY, Change, Check, Create, Fence, FenceRecord, Value, Write

KEY = "fencetries"
KEPT, WHY_LIMIT = 8, 200
BACK_OFF_S = (10.0, 20.0, 40.0, 80.0, 160.0, 300.0)
"""Pauses after a round in which every node has tried."""


@dataclass(frozen=True)
class Try:
    """`by` a node, `at` ISO 8601 UTC, `why` it gave no proof."""

    by: str
    at: str
    why: str


@dataclass(frozen=True)
class Tries:
    """`count` of all tries of this fence, the `last` of them newest last; `version` of the key, for the next write."""

    count: int = 0
    last: tuple[Try, ...] = ()
    version: int = ANY


def about(fence: Fence) -> str:
    """Which fence this is: what an earlier one of the same node left behind is not about it."""
    return f"{fence.inc} {fence.ka} {fence.forced} {fence.since}"


def decode(value: Value, fence: Fence) -> Tries:
    """The tries of this very fence. What is missing, garbage or of an earlier fence: none."""
    none = Tries(version=value.version)
    try:
        found = json.loads((value.data or b"{}")[: schema.VALUE_LIMIT].decode("utf-8"))
    except (ValueError, RecursionError):
        return none
    if not isinstance(found, dict) or found.get("fence") != about(fence) or type(found.get("count")) is not int:
        return none
    last = found.get("last")
    last = last if isinstance(last, list) else []
    tries = tuple(
        Try(*(str(one.get(key, ""))[:WHY_LIMIT] for key in ("by", "at", "why")))
        for one in last
        if isinstance(one, dict)
    )
    count = min(max(found["count"], len(tries)), 10**9)
    return Tries(count, tries[-KEPT:], value.version) if tries and count else none


def added(name: str, record: FenceRecord, tries: Tries, new: Try, mine: Change) -> tuple[Change, ...]:
    """One more try; checks that the node `mine` may act and that the fence is still the one that was tried."""
    assert isinstance(record.value, Fence), "tried on a fence that is not known"
    shown = [*tries.last, new][-KEPT:]
    data = json.dumps(
        {
            "fence": about(record.value),
            "count": tries.count + 1,
            "last": [{"by": one.by, "at": one.at, "why": schema.printable(one.why)[:WHY_LIMIT]} for one in shown],
        },
        ensure_ascii=False,
    ).encode()
    path = schema.node_key(name, KEY)
    change: Change = Create(path, data) if tries.version == ANY else Write(path, data, tries.version)
    return (mine, Check(schema.fence(name), record.version), change)


def next_node(tries: Tries, candidates: Iterable[str]) -> str:
    """Whose turn it is: the next by name after the one that tried last. '' = anybody's."""
    names = sorted(candidates)
    if not tries.last or not names:
        return ""
    return next((name for name in names if name > tries.last[-1].by), names[0])


def pause_s(tries: Tries, candidates: int) -> float:
    """How long after the last try the next may begin: none within a round of all candidates, longer after each round.
    """
    if not tries.count or tries.count % max(1, candidates):
        return 0.0
    return BACK_OFF_S[min(tries.count // max(1, candidates), len(BACK_OFF_S)) - 1]
