# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The rules for what the sampler saw of ZooKeeper's keys: keepalives, fences and claims. Pure. It reads the values by itself: a witness
that decoded them with the product's own code would share its faults.

A `key` event has `path`, `value`, `version` (of the key) and `since`: when the old value was seen last, so the change is later.
"""
from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Event = Mapping[str, Any]
SAMPLE_S = 1.0
"""How late the sampler may see a change; taken off the silence that the rule demands."""
NO_FAULT: Event = {"at": 0.0, "name": "no fault", "may_die": []}


@dataclass(frozen=True)
class Fence:
    phase: str
    inc: str
    at: float


@dataclass(frozen=True)
class Claim:
    """`dest`: where the guest may be as well, because it is being handed over."""

    node: str
    inc: str
    dest: str
    version: int


class Keys:
    """`fault`: the last one. `fences`, `claims`, `keepalives` (node → when a change was seen) as they were seen last."""

    def __init__(self, silence_s: float) -> None:
        self._silence_s, self.fault = silence_s, NO_FAULT
        self.fences: dict[str, Fence] = {}
        self.claims: dict[str, Claim | None] = {}
        self.keepalives: dict[str, float] = {}
        self.at_fault: dict[str, Claim | None] = {}
        self.fences_at_fault: dict[str, Fence] = {}
        self.fences_since: list[tuple[str, Fence]] = []
        self.unseen = 0
        """Claims that went from node to node by writes that the sampler did not see each."""
        self._alive_since: dict[str, float] = {}
        self._versions: dict[str, int] = {}

    def begin(self, fault: Event) -> None:
        self.fault, self.at_fault, self.fences_at_fault, self.fences_since = fault, dict(self.claims), dict(self.fences), []

    def see(self, event: Event) -> list[str]:
        """What is wrong with this change."""
        room, name = event["path"].split("/")[1:3]
        if room == "nodes":
            self._alive_since[name], self.keepalives[name] = event["since"], event["at"]
            return []
        return self._fence(name, event) if room == "fences" else self._claim(name, event)

    def _fence(self, node: str, event: Event) -> list[str]:
        value = _load(event["value"])
        before = self.fences.get(node)
        found = Fence(str(value.get("phase", "")), str(value.get("inc", "")), event["at"])
        if before is not None and (before.phase, before.inc) == (found.phase, found.inc):
            return []
        self.fences[node] = found
        self.fences_since.append((node, found))
        if found.phase != "fencing":
            return []
        wrong = []
        if node not in self.fault["may_die"]:
            wrong.append(f"{node} is fenced during {self.fault['name']}")
        silent = event["at"] - self._alive_since.get(node, 0.0)
        if silent < self._silence_s - SAMPLE_S:
            wrong.append(f"{node} is fenced after {silent:.1f} s of silence")
        return wrong

    def _claim(self, uuid: str, event: Event) -> list[str]:
        """From node to node in one write only by a hand-over; and nobody touches what a node holds that is in `fencing`: it cannot act
        itself, and it is not proved dead. Its fence, seen in the same look, is at least as new as the claim.
        """
        old, version = self.claims.get(uuid), event["version"]
        wrong = [f"the claim of {uuid} goes back from version {self._versions[uuid]} to {version}"] if version < self._versions.get(uuid, -1) else []
        new = _claim(event["value"], version)
        self.claims[uuid], self._versions[uuid] = new, version
        if old is None or (new is not None and (new.node, new.inc) == (old.node, old.inc)):
            return wrong
        fence = self.fences.get(old.node)
        if fence and fence.phase == "fencing" and fence.inc == old.inc and fence.at <= event["since"]:
            wrong.append(f"the claim of {uuid} is taken from {old.node}, which is being fenced and not proved dead")
        elif new is not None and new.node not in (old.node, old.dest):
            if version == old.version + 1:
                wrong.append(f"the claim of {uuid} goes from {old.node} to {new.node} without a hand-over")
            else:
                self.unseen += 1
        return wrong

    # ------------------------------------------------------------------------------------------------- what a fault must bring

    def not_recovered(self, ordered: set[str]) -> list[str]:
        """Before it is healed: who must be dead and is not proved so, and which of its VMs (but `ordered` ones) nobody else has."""
        wrong = []
        for node in self.fault.get("must_die", []):
            before, now = self.fences_at_fault.get(node), self.fences.get(node)
            if before is None or now is None or (now.inc == before.inc and now.phase != "fenced"):
                wrong.append(f"{node} is not proved dead, and {self.fault['name']} is over")
                continue
            for uuid, claim in self.at_fault.items():
                if claim is None or claim.node != node or claim.dest or uuid in ordered:
                    continue
                held = self.claims.get(uuid)
                if held is None or (held.node, held.inc) == (claim.node, claim.inc):
                    wrong.append(f"{uuid} of {node} has not been recovered, and {self.fault['name']} is over")
        return wrong

    def not_judged(self) -> list[str]:
        """Before it is healed: who must be in `fencing`, without a proof."""
        return [f"{node} is not in fencing, and {self.fault['name']} is over" for node in self.fault.get("must_object", [])
                if node not in self.fences or self.fences[node].phase != "fencing"]

    def not_objected(self) -> list[str]:
        """At the audit: who has been taken for dead and must be back as it was."""
        wrong = []
        for node in self.fault.get("must_object", []):
            before, now = self.fences_at_fault.get(node), self.fences.get(node)
            proved = any(name == node and fence.phase == "fenced" for name, fence in self.fences_since)
            if before is None or now is None or now.phase != "up" or now.inc != before.inc or proved:
                wrong.append(f"{node} has not come back as it was after {self.fault['name']}")
        return wrong


def _load(value: str | None) -> dict[str, Any]:
    try:
        found = json.loads(value or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _claim(value: str | None, version: int) -> Claim | None:
    found = _load(value)
    if not found.get("node"):
        return None
    op = found.get("op") or {}
    dest = str(op.get("dest", "")) if op.get("phase") == "run" else ""
    return Claim(str(found["node"]), str(found.get("inc", "")), dest, version)


def phase_of(value: str | None) -> str:
    return str(_load(value).get("phase", ""))
