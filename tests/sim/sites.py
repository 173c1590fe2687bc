# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Every call site of a change: each function of `cluster.claims` and `cluster.fences` with its n-th change dropped, generated, not by hand.

`ROWS` is the table that kills them all: what each function's transaction consists of, wholly, with paths and versions. Which of them the
directed schedules and random seeds notice as well is told by

python3 -m sim.sites [FUNCTION…] [--seeds 200]      (with the checkout and its tests/ on PYTHONPATH)
"""
from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

from pvcd.cluster import claims, fences
from pvcd.cluster.claims import Actor
from pvcd.cluster.records import Change, Check, Claim, ClaimRecord, DomainRecord, Fence, FenceRecord, Hold, NodeRecord, Operation, View, Write
from pvcd.cluster.schema import FencePhase, OpPhase, VMState

ME = Actor("a", "a1/0", 7)
KEYS = {"": 0, "state": 2, "hypervisor": 3, "lasthypervisor": 4}
RECORD = DomainRecord("vm", "vm", VMState.MIGRATE, "c", "", KEYS)
PROOF = (Check("/fences/b", 9),)
SPEAKS = (Check("/nodes/c/protocol", 11),)
RUNS = (Check("/nodes/c/daemonstate", 12),)


def claim(phase: OpPhase | None = OpPhase.RUN) -> ClaimRecord:
    op = Operation("op", phase, "c", "c1/0") if phase else None
    return ClaimRecord(Claim("a", "a1/0", op), 5)


FREE = ClaimRecord(None, 5)
HOME = DomainRecord("vm", "vm", VMState.MIGRATE, "a", "c", KEYS)


def fence(phase: FencePhase, ka: int | None = None) -> FenceRecord:
    return FenceRecord(Fence("b1/0", phase, ka=ka), 9)


def view(phase: FencePhase, ka: int | None = None) -> View:
    nodes = {name: NodeRecord(name, versions={"": 0, "daemonstate": 3, "domainstate": 4, "keepalive": 50}) for name in "abc"}
    found = {name: FenceRecord(Fence(f"{name}1/0", FencePhase.UP), 7) for name in "ac"}
    return View(nodes, {**found, "b": fence(phase, ka)}, Hold(version=2))


SAMPLES: dict[str, Callable[[], Sequence[Change]]] = {
    "claims.as_read": lambda: claims.as_read(RECORD),
    "claims.order": lambda: claims.order(RECORD, VMState.START, "b", "a"),
    "claims.holding": lambda: claims.holding(ME, "vm", FREE, RECORD),
    "claims.acquire": lambda: claims.acquire(ME, RECORD, FREE),
    "claims.adopt": lambda: claims.adopt(ME, "vm", FREE),
    "claims.offer": lambda: claims.offer(ME, RECORD, claim(None), "op", SPEAKS),
    "claims.withdraw": lambda: claims.withdraw(ME, "vm", claim(OpPhase.READY)),
    "claims.begin": lambda: claims.begin(ME, RECORD, claim(OpPhase.READY), RUNS),
    "claims.hand_over": lambda: claims.hand_over(ME, "vm", claim(), "c2/0", PROOF),
    "claims.take_running": lambda: claims.take_running(ME, "vm", claim()),
    "claims.landed": lambda: claims.landed(ME, "vm", claim(OpPhase.GIVEN)),
    "claims.close": lambda: claims.close(ME, RECORD, claim()),
    "claims.rolled_back": lambda: claims.rolled_back(ME, RECORD),
    "claims.take_back": lambda: claims.take_back(ME, RECORD, claim()),
    "claims.refuse": lambda: claims.refuse(ME, RECORD, claim(None)),
    "claims.free": lambda: claims.free(ME, RECORD, claim(None), VMState.STOP),
    "claims.send_on": lambda: claims.send_on(ME, HOME, claim(None), "c", Write("/avoid/vm", b"", 6)),
    "claims.proof": lambda: claims.proof("b", fence(FencePhase.FENCED)),
    "claims.recover": lambda: claims.recover(ME, RECORD, claim(None), PROOF, claims.order(HOME, VMState.START)),
    "fences.registered": lambda: fences.registered("b", fence(FencePhase.UP), "b2/0", "now"),
    "fences.back_up": lambda: fences.back_up("b", fence(FencePhase.FENCING, 50), PROOF),
    "fences.committed": lambda: fences.committed(ME, view(FencePhase.UP), "b", 50, ("a", "b", "c"), "now"),
    "fences.forced": lambda: fences.forced(view(FencePhase.UP), "b", "operator", 50, "now"),
    "fences.proved": lambda: fences.proved(view(FencePhase.FENCING, 50), "b", "a", "ipmi-off", "now", ME),
    "fences.rejoined": lambda: fences.rejoined("b", fence(FencePhase.FENCED), "b1/1", "now"),
    "fences.powered_on": lambda: fences.powered_on(ME, "b", fence(FencePhase.FENCED)),
    "fences.power_asked": lambda: fences.power_asked("b", fence(FencePhase.FENCED)),
    "fences.removed": lambda: fences.removed(view(FencePhase.FENCED).nodes["b"], ("keepalive", "daemonstate"), fence(FencePhase.FENCED), "operator", "now"),
    "fences.held": lambda: fences.held(Hold(version=2), True, None, "operator"),
    "fences.restored": lambda: fences.restored(Hold(version=2), "a")}
"""One call of each function, with everything that can be in its transaction."""
MINE, CLAIM, SET = "Check fences/a 7", "Check claims/vm 5", "Write claims/vm 5"
STATE, HOST, STATE_SET, HOST_SET, LAST_SET = ("Check vm/state 2", "Check vm/hypervisor 3", "Write vm/state 2", "Write vm/hypervisor 3",
                                              "Write vm/lasthypervisor 4")
FENCE_B, SET_B, ALIVE_B, WORD_B = "Check fences/b 9", "Write fences/b 9", "Check nodes/b/keepalive 50", "Write nodes/b/daemonstate 3"
ROWS: dict[str, tuple[str, ...]] = {
    "claims.as_read": (STATE, HOST), "claims.order": (STATE_SET, HOST_SET, LAST_SET), "claims.holding": (MINE, CLAIM, STATE, HOST),
    "claims.acquire": (MINE, STATE, HOST, SET), "claims.adopt": (MINE, SET),
    "claims.offer": (MINE, "Check nodes/c/protocol 11", STATE, HOST, SET),
    "claims.withdraw": (MINE, SET), "claims.begin": (MINE, "Check nodes/c/daemonstate 12", STATE, HOST, SET), "claims.hand_over": (MINE, FENCE_B, SET),
    "claims.take_running": (MINE, SET), "claims.landed": (MINE, SET),
    "claims.close": (MINE, SET, STATE_SET, HOST_SET), "claims.rolled_back": (STATE_SET, HOST_SET),
    "claims.take_back": (MINE, SET, STATE_SET, HOST_SET), "claims.refuse": (MINE, CLAIM, STATE_SET, HOST_SET),
    "claims.free": (MINE, STATE_SET, HOST, SET),
    "claims.send_on": (MINE, STATE, HOST_SET, LAST_SET, "Write avoid/vm 6", SET), "claims.proof": (FENCE_B,),
    "claims.recover": (MINE, FENCE_B, STATE_SET, HOST, SET),
    "fences.registered": (SET_B,), "fences.back_up": (SET_B, FENCE_B),
    "fences.committed": (MINE, ALIVE_B, "Check fences 2", "Check fences/c 7", SET_B, WORD_B), "fences.forced": (ALIVE_B, SET_B, WORD_B),
    "fences.proved": (MINE, ALIVE_B, SET_B, "Write nodes/b/domainstate 4", WORD_B), "fences.rejoined": (SET_B,), "fences.powered_on": (MINE, SET_B),
    "fences.power_asked": (SET_B,),
    "fences.removed": ("Check nodes/b/daemonstate 3", ALIVE_B, SET_B, "Delete nodes/b/daemonstate 3", "Delete nodes/b/keepalive 50", "Delete nodes/b -1"),
    "fences.held": ("Write fences 2",), "fences.restored": ("Write fences 2",)}
MODULES = {"claims": claims, "fences": fences}
UNNOTICED = {
    "fences.held 0": "the schedules never put automatic fencing on hold",
    "fences.removed 0": "the removal of a node without its fence is an order that does nothing"}
"""Those that no schedule can notice, and why; the table holds them."""


def shown(changes: Sequence[Change]) -> tuple[str, ...]:
    return tuple(f"{type(change).__name__} {change.path[1:].replace('domains/', '')} {getattr(change, 'version', '')}".rstrip() for change in changes)


def public() -> list[str]:
    """Functions that make changes, as `module.name`."""
    return [f"{short}.{name}" for short, module in MODULES.items() for name, found in vars(module).items()
            if inspect.isfunction(found) and found.__module__ == module.__name__ and not name.startswith("_")
            and "Change" in str(inspect.signature(found).return_annotation)]


def dropped(name: str, number: int) -> AbstractContextManager[Any]:
    """While it lasts, the function's transactions lack their change `number`."""
    short, _, attribute = name.partition(".")
    original = getattr(MODULES[short], attribute)

    def mutant(*arguments: Any, **more: Any) -> Any:
        found = original(*arguments, **more)
        return type(found)(change for index, change in enumerate(found) if index != number)
    return mock.patch.object(MODULES[short], attribute, mutant)


def mutants() -> Iterator[tuple[str, int]]:
    for name in public():
        for number in range(len(ROWS.get(name, ()))):
            yield name, number


def killer(name: str, number: int, seeds: int) -> str:
    """Which schedule, or after how many seeds random search, notices it; '' if none does."""
    from .schedule import violation
    from .test_directed import SCHEDULES
    with dropped(name, number):
        for schedule in SCHEDULES:
            try:
                schedule()
            except Exception as error:
                return f"{schedule.__name__}: {error}"
        for seed in range(seeds):
            try:
                found = violation(seed)[0]
            except Exception as error:
                found = repr(error)
            if found:
                return f"seed {seed}: {found}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("functions", nargs="*")
    parser.add_argument("--seeds", type=int, default=200)
    arguments = parser.parse_args()
    alive = 0
    for name, number in mutants():
        if arguments.functions and name not in arguments.functions:
            continue
        what = f"{name} {number} ({ROWS[name][number]})"
        found = killer(name, number, arguments.seeds) or UNNOTICED.get(f"{name} {number}", "")
        alive += not found
        print(f"{what}: {found.splitlines()[-1][:160] if found else 'ALIVE'}", flush=True)
    print(f"{alive} alive")
    return 1 if alive else 0


if __name__ == "__main__":
    raise SystemExit(main())
