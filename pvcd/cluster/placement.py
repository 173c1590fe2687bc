# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Chooses the node a domain should go to, counting down memory as it plans, and says why the others were passed over. Pure."""
from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from .records import Claim, ClaimRecord, DomainRecord, View
from .schema import DaemonState, DomainState, VMState

WANTED = (VMState.START, VMState.MIGRATE, VMState.RESTART)
"""The words of a VM that is to run."""


@dataclass(frozen=True)
class Placement:
    """`target` None: no node can take the domain, and `passed_over` says why for each."""

    target: str | None
    free_after_mib: int
    passed_over: tuple[tuple[str, str], ...]

    @property
    def reason(self) -> str:
        """One line for people: the choice, or why there is none."""
        if self.target is not None:
            return f"most free memory; {self.free_after_mib} MiB left there"
        return "; ".join(f"{name}: {why}" for name, why in self.passed_over) or "there is no other node"


def unfit(view: View, name: str) -> str | None:
    """Why node `name` can receive no domain at all, or None if it can."""
    node = view.nodes.get(name)
    if node is None or not node.exists:
        return "unknown node"
    if not view.is_up(name):
        fence = view.fence(name)
        return fence.phase.value if fence else "never started"
    if node.daemonstate is not DaemonState.RUN:
        return f"daemon is {_word(node.daemonstate)}"
    if node.domainstate is not DomainState.READY:
        return f"domain state is {_word(node.domainstate)}"
    if node.libvirtstate not in ("", None):
        return "its libvirt gives no answer"
    return None


def _word(value: object) -> str:
    return getattr(value, "value", None) or (str(value) if value is not None else "missing")


class Planning:
    """Places domains one after the other on what `view` shows; each choice takes its memory from the target.

    `reserved_mib`: memory on a node that is promised already (domains on their way there) and not yet used.
    """

    def __init__(self, view: View, reserved_mib: Mapping[str, int] | None = None) -> None:
        self._view = view
        self._free = {name: node.memfree_mib for name, node in view.nodes.items() if isinstance(node.memfree_mib, int)}
        for name, size in (reserved_mib or {}).items():
            self.reserve(name, size)

    def reserve(self, name: str, memory_mib: int) -> None:
        if name in self._free:
            self._free[name] -= memory_mib

    def free_mib(self, name: str) -> int | None:
        return self._free.get(name)

    def refusal(self, name: str, memory_mib: int) -> str | None:
        """Why `name` cannot take a domain of this size, or None if it can."""
        why = unfit(self._view, name)
        if why is not None:
            return why
        free = self._free.get(name)
        if free is None:
            return "free memory unknown"
        return None if memory_mib <= free else f"needs {memory_mib} MiB, {max(free, 0)} MiB free"

    def choose(self, memory_mib: int, exclude: Collection[str] = ()) -> Placement:
        """The fitting node with the most free memory (the first by name of equals); takes the memory from it."""
        passed_over, fitting = [], []
        for name in sorted(self._view.nodes):
            if name in exclude:
                continue
            why = self.refusal(name, memory_mib)
            if why is None:
                fitting.append(name)
            else:
                passed_over.append((name, why))
        if not fitting:
            return Placement(None, 0, tuple(passed_over))
        target = max(fitting, key=lambda name: self._free[name])
        passed_over += [(name, f"less free memory ({self._free[name]} MiB)") for name in fitting if name != target]
        self.reserve(target, memory_mib)
        return Placement(target, self._free[target], tuple(sorted(passed_over)))


def promised(domains: Mapping[str, DomainRecord], claimed: Mapping[str, ClaimRecord], sizes: Mapping[str, int | None]) -> dict[str, int]:
    """MiB that each node is about to use: wanted VMs homed there that somebody else still holds, or nobody yet."""
    found: dict[str, int] = {}
    for uuid, record in domains.items():
        claim = claimed[uuid].value if uuid in claimed else None
        home = record.hypervisor
        if isinstance(home, str) and home and record.state in WANTED and not (isinstance(claim, Claim) and claim.node == home):
            found[home] = found.get(home, 0) + (sizes.get(uuid) or 0)
    return found


def biggest_first(uuids: Iterable[str], sizes: Mapping[str, int | None]) -> list[str]:
    """The order of a recovery: small VMs fit into what is left; the other way round a big one may fit nowhere."""
    return sorted(uuids, key=lambda uuid: (-(sizes.get(uuid) or 0), uuid))
