# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Judges the history of a run. Pure: events in, violations out; the events come from a file or from a test.

An event has `at` (seconds) and `kind`: `begun`, then per round `order`, `fault` (before it is done), `held` (before it is healed),
`healed`, `settled` (every node is up), `found` (the words of the VMs before anything is repaired) and `audit`, at last `ended`. In
between: `key` (a ZooKeeper key seen changed), `pvcd` (what a daemon uses), and what is wrong by itself: `double`, `lost`, `traceback`,
`stopped`. What each of them holds is said where it is read.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .keyrules import Keys, phase_of

Event = Mapping[str, Any]
ENDING = ("restart", "shutdown", "stop", "move")
"""Orders after which a guest lives another life."""
REFUSED = (2, 3, 4)
"""Exit statuses of a client whose order was not taken. After any other it may have been."""
DEATHS_S, DEATHS = 600.0, 3
"""So many deaths of its QEMU in such a time, and a VM is rightly `failed`."""
DISK_BEHIND = 50
"""So many counts a guest's disk may differ from its serial line: ten seconds."""
GROWTH = {"rss_kib": 64 * 1024, "threads": 32, "fds": 48}
"""What one process may use more at its end than when it was first looked at. An idle one uses 40 MiB, 24 threads and 13 files."""


def violations(events: Iterable[Event], silence_s: float) -> list[str]:
    """Everything that must not have happened. `silence_s`: the rule, `fence_intervals` times the interval."""
    judge = Judge(silence_s)
    for event in events:
        judge.see(event)
    return judge.verdict()


def disk_trouble(serial: tuple[str, int], disk: tuple[str, int] | None) -> str:
    """Whether what a guest wrote to the shared disk is of the life that speaks on its serial line; '' if it is."""
    if disk is None:
        return "there is nothing on its disk that it wrote"
    if disk[0] != serial[0]:
        return f"its disk is of life {disk[0]}, and {serial[0]} speaks"
    if abs(disk[1] - serial[1]) > DISK_BEHIND:
        return f"its disk is at n={disk[1]}, its serial line at n={serial[1]}"
    return ""


class Judge:
    """Sees one event after the other; what belongs to a round is forgotten with its audit."""

    def __init__(self, silence_s: float) -> None:
        self._silence_s = silence_s
        self._wrong: list[str] = []
        self._keys = Keys(silence_s)
        self._nodes: list[str] = []
        self._names: dict[str, str] = {}
        self._lives: dict[str, int] = {}
        self._begun_at, self._finished = 0.0, False
        self._used: dict[tuple[str, str], tuple[Event, Event]] = {}
        self._endings: list[tuple[float, str, str]] = []
        """When whose life was ended from outside, and how: by `order` or `kill`."""
        self._new_round()

    def _new_round(self) -> None:
        self._orders: list[Event] = []
        self._injured: set[str] = set()
        self._in_fault = False

    def see(self, event: Event) -> None:
        """An event of a kind that has no rule is only counted by the summary."""
        rule = getattr(self, f"_see_{event['kind']}", None)
        for text in rule(event) if rule else []:
            self._wrong.append(f"{event['at']:.1f}: {text}")

    def verdict(self) -> list[str]:
        unfinished = [] if self._finished else ["the run has not come to its end"]
        return self._wrong + unfinished + self._grown()

    # ------------------------------------------------------------------------------------------------------ the run as a whole

    def _see_begun(self, event: Event) -> list[str]:
        """`nodes`; `vms`: name → UUID; `lives`: how many each VM has begun."""
        self._nodes, self._begun_at, self._lives = event["nodes"], event["at"], dict(event["lives"])
        self._names = {uuid: vm for vm, uuid in event["vms"].items()}
        return []

    def _see_ended(self, event: Event) -> list[str]:
        """`asked_s`, `used_s`, `rounds`."""
        self._finished = True
        wrong = [] if event["rounds"] else ["no round came to its end"]
        if event["used_s"] < event["asked_s"]:
            wrong.append(f"{event['asked_s']:.0f} s were asked for, and the run took {event['used_s']:.0f}")
        return wrong

    def _see_stopped(self, event: Event) -> list[str]:
        return [f"stopped: {event['what']}"]

    def _see_double(self, event: Event) -> list[str]:
        return [f"{event['kind']}: {event['what']}"]

    _see_lost = _see_traceback = _see_double

    def _see_pvcd(self, event: Event) -> list[str]:
        """`node`, `pid`, and the measures of GROWTH."""
        key = (event["node"], event["pid"])
        self._used[key] = (self._used.get(key, (event, event))[0], event)
        return []

    def _grown(self) -> list[str]:
        return [f"pvcd of {node} (process {pid}) has grown from {first[measure]} to {last[measure]} {measure}"
                for (node, pid), (first, last) in self._used.items() for measure, bound in GROWTH.items()
                if last[measure] - first[measure] > bound]

    # --------------------------------------------------------------------------------------------------------------- a round

    def _see_order(self, event: Event) -> list[str]:
        """`words`, `status` (-1: not known), `told`: what the client said."""
        self._orders.append(event)
        if event["words"][1] in ENDING:
            self._endings.append((event["at"], _subject(event), "order"))
        return [f"a traceback of the client: {' '.join(event['words'])}: {event['told']}"] if "Traceback" in event["told"] else []

    def _see_fault(self, event: Event) -> list[str]:
        """`name`, `node`, and the lists of faults.Fault."""
        self._keys.begin(event)
        self._in_fault = True
        self._injured |= {uuid for uuid in self._keys.claims if self._may_be_injured(uuid)}
        self._endings += [(event["at"], vm, "kill") for vm in event.get("ends_lives", [])]
        return []

    def _may_be_injured(self, uuid: str) -> bool:
        """Its guest may be on a node that may die; on one that is spared, only a copy in the middle of a hand-over may be given up."""
        claim, fault = self._keys.claims[uuid], self._keys.fault
        if claim is None:
            return False
        if fault.get("spared"):
            return bool(claim.dest) and (claim.node in fault["may_die"] or claim.dest in fault["may_die"])
        return claim.node in fault["may_die"] or claim.dest in fault["may_die"]

    def _see_key(self, event: Event) -> list[str]:
        wrong = self._keys.see(event)
        if event["path"].startswith("/claims/") and self._in_fault:
            uuid = event["path"].split("/")[2]
            self._injured |= {uuid} if self._may_be_injured(uuid) else set()
        return wrong

    def _see_held(self, event: Event) -> list[str]:
        """Before it is healed: `wrong` (what the fault itself blames), `lives`."""
        ordered = {_subject(order) for order in self._orders if order["words"][0] == "vm"}
        moved = any(order["words"][1] == "flush" for order in self._orders)  # nowhere else may be ready to take the VMs
        uuids = {uuid for uuid, vm in self._names.items() if moved or vm in ordered}
        wrong = list(event["wrong"]) + self._keys.not_recovered(uuids) + self._keys.not_judged()
        for uuid, claim in self._keys.at_fault.items():
            vm = self._names.get(uuid, "")
            named = claim and claim.node in self._keys.fault.get("must_die", []) and not claim.dest
            if named and vm and uuid not in uuids and event["lives"].get(vm, 0) <= self._lives.get(vm, 0):
                wrong.append(f"{vm} has not begun a new life, and {self._keys.fault['name']} is over")
        return wrong

    def _see_settled(self, event: Event) -> list[str]:
        """Every node is up: from here on nobody may die of the fault. `dark`: who has lost its power since it was done."""
        self._in_fault = False
        fault = self._keys.fault
        safe = [name for name in event["dark"] if name not in fault["may_die"] or fault.get("spared")]
        return [f"{name} has lost its power during {fault['name']}" for name in safe]

    def _see_found(self, event: Event) -> list[str]:
        """`states`: VM → word, before anything is repaired."""
        wrong = [f"{vm} is gone" for vm in self._names.values() if vm not in event["states"]]
        for vm, state in event["states"].items():
            orders = [order for order in self._orders if order["words"][0] == "vm" and _subject(order) == vm]
            halts = [order for order in orders if order["words"][1] in ("stop", "shutdown") and order["status"] not in REFUSED]
            if state in ("stop", "shutdown") and not halts:
                wrong.append(f"{vm} is in {state}, and nobody ordered it")
            if state == "failed" and not self._died_often(vm, event["at"]):
                wrong.append(f"{vm} is in failed, and its QEMU has not been killed so often")
            if len(orders) == 1 and halts and halts[0]["status"] == 0 and state not in ("stop", "shutdown"):
                wrong.append(f"{vm} is in {state}, and its {halts[0]['words'][1]} had been accepted")
        return wrong

    def _died_often(self, vm: str, now: float) -> bool:
        """The daemon counts a QEMU that was killed, and one that an order had ended which was then taken back."""
        recent = [how for at, who, how in self._endings if who == vm and now - at < DEATHS_S]
        return len(recent) >= DEATHS and "kill" in recent

    def _see_audit(self, event: Event) -> list[str]:
        """`wrong`: what did not become right in time; `lives`."""
        fault = self._keys.fault
        wrong = [f"after {fault['name']}: {text}" for text in event["wrong"]] + self._keys.not_objected()
        ended = {_subject(order) for order in self._orders if order["words"][1] in ENDING} | set(fault.get("ends_lives", []))
        ended |= {self._names.get(uuid, uuid) for uuid in self._injured}
        for vm, lives in event["lives"].items():
            if lives != self._lives.get(vm, lives) and vm not in ended:
                wrong.append(f"{vm} lives another life after {fault['name']}")
        if not event["wrong"]:
            wrong += self._blind(event["at"])
        self._lives = dict(event["lives"])
        self._new_round()
        return wrong

    def _blind(self, now: float) -> list[str]:
        """Every node is up and sends keepalives: whoever looks four times a second has seen one."""
        silent = {node: now - self._keys.keepalives.get(node, self._begun_at) for node in self._nodes}
        return [f"no keepalive of {node} was seen for {seconds:.0f} s: nobody looks" for node, seconds in silent.items() if seconds > self._silence_s]


def _subject(order: Event) -> str:
    """The VM or the node that an order names."""
    return next(word for word in order["words"][2:] if not word.startswith("-"))


def summary(events: Iterable[Event]) -> dict[str, int]:
    """How often each fault was injected, and how many orders, fences and audits there were."""
    counts: dict[str, int] = {}
    phases: dict[str, str] = {}
    keys = Keys(0.0)
    for event in events:
        kind = event["kind"]
        name = f"fault {event['name']}" if kind == "fault" else kind if kind in ("order", "audit", "double", "lost", "traceback", "stopped") else ""
        if kind == "key":
            keys.see(event)
        if kind == "key" and event["path"].startswith("/fences/"):
            node, phase = event["path"].split("/")[2], phase_of(event["value"])
            name = "fences committed" if phase == "fencing" != phases.get(node) else ""
            phases[node] = phase
        if name:
            counts[name] = counts.get(name, 0) + 1
    return counts | ({"claims that moved unseen, judged by fences alone": keys.unseen} if keys.unseen else {})


def uses(events: Iterable[Event]) -> list[str]:
    """What the daemons used at the audits, from the least to the most, node by node."""
    found: dict[str, list[Event]] = {}
    for event in events:
        if event["kind"] == "pvcd":
            found.setdefault(event["node"], []).append(event)

    def span(seen: list[Event], measure: str, unit: int = 1) -> str:
        return f"{min(e[measure] for e in seen) // unit} to {max(e[measure] for e in seen) // unit}"
    return [f"pvcd of {node}: {len({e['pid'] for e in seen})} processes, {span(seen, 'rss_kib', 1024)} MiB, {span(seen, 'threads')} threads, "
            f"{span(seen, 'fds')} files" for node, seen in sorted(found.items())]
