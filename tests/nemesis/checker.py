# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Judges the history of a run. Pure: events in, violations out; the events come from a file or from a test.

An event has `at` (seconds) and `kind`: `fault`, `healed`, `order`, `audit`, `key` (a ZooKeeper key seen changed), `double`, `lost`, `traceback`.
"""
from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

Event = Mapping[str, Any]
SAMPLE_S = 1.0
"""How late the sampler may see a change; taken off the silence that the rule demands."""


def violations(events: Iterable[Event], silence_s: float) -> list[str]:
    """Everything that must not have happened. `silence_s`: the rule, `fence_intervals` times the interval."""
    found: list[str] = []
    alive_since: dict[str, float] = {}
    phases: dict[str, str] = {}
    fault: Event = {"name": "no fault", "may_die": []}
    for event in events:
        kind = event["kind"]
        if kind == "fault":
            fault = event
        elif kind in ("double", "lost", "traceback"):
            found.append(f"{event['at']:.1f}: {kind}: {event['what']}")
        elif kind == "audit":
            found += [f"{event['at']:.1f}: after {fault['name']}: {text}" for text in event["wrong"]]
        elif kind == "key" and event["path"].endswith("/keepalive"):
            alive_since[event["path"].split("/")[2]] = event["since"]
        elif kind == "key" and event["path"].startswith("/fences/"):
            found += _fence(event, fault, phases, alive_since, silence_s)
    return found


def _fence(event: Event, fault: Event, phases: dict[str, str], alive_since: Mapping[str, float], silence_s: float) -> list[str]:
    node, phase = event["path"].split("/")[2], _phase(event["value"])
    before, phases[node] = phases.get(node, ""), phase
    if phase != "fencing" or before == "fencing":
        return []
    wrong = []
    if node not in fault["may_die"]:
        wrong.append(f"{event['at']:.1f}: {node} is fenced during {fault['name']}")
    silent = event["at"] - alive_since.get(node, 0.0)
    if silent < silence_s - SAMPLE_S:
        wrong.append(f"{event['at']:.1f}: {node} is fenced after {silent:.1f} s of silence")
    return wrong


def _phase(value: str | None) -> str:
    try:
        return str(json.loads(value or "{}").get("phase", ""))
    except ValueError:
        return ""


def summary(events: Iterable[Event]) -> dict[str, int]:
    """How often each fault was injected, and how many orders, fences and audits there were."""
    counts: dict[str, int] = {}
    phases: dict[str, str] = {}
    for event in events:
        kind = event["kind"]
        name = f"fault {event['name']}" if kind == "fault" else kind if kind in ("order", "audit", "double", "lost", "traceback") else ""
        if kind == "key" and event["path"].startswith("/fences/"):
            node, phase = event["path"].split("/")[2], _phase(event["value"])
            name = "fences committed" if phase == "fencing" != phases.get(node) else ""
            phases[node] = phase
        if name:
            counts[name] = counts.get(name, 0) + 1
    return counts
