# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Chooses the node a domain should go to, counting down memory as it plans, and says why the others were passed over. Pure."""
from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from .definition import Memory
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
    """Places domains one after the other on what `view` shows; each choice takes its memory from the target. A domain of huge pages
    (`definition.Memory`) takes from the free pages of its size.

    `reserved`: what is promised on a node already (domains on their way there) and not yet used.
    """

    def __init__(self, view: View, reserved: Mapping[str, Iterable[int]] | None = None) -> None:
        self._view = view
        self._free = {(name, ""): node.memfree_mib for name, node in view.nodes.items() if isinstance(node.memfree_mib, int)}
        self._free |= {(name, pages): free for name, node in view.nodes.items() for pages, free in node.hugepages_mib.items()}
        for name, sizes in (reserved or {}).items():
            for size in sizes:
                self.reserve(name, size)

    def reserve(self, name: str, memory_mib: int) -> None:
        """Pages of the host's own size are counted under two names, and taken from both."""
        pages, node = pages_of(memory_mib), self._view.nodes.get(name)
        sizes = node.hugepages_mib if node is not None else {}
        same = {pages} | ({"default", next(iter(sizes))} if sizes and pages in ("default", next(iter(sizes))) else set())
        for key in same:
            if (name, key) in self._free:
                self._free[name, key] -= memory_mib

    def free_mib(self, name: str, pages: str = "") -> int | None:
        return self._free.get((name, pages))

    def refusal(self, name: str, memory_mib: int) -> str | None:
        """Why `name` cannot take a domain of this size, or None if it can."""
        why = unfit(self._view, name)
        if why is not None:
            return why
        pages = pages_of(memory_mib)
        free = self._free.get((name, pages))
        if free is None:
            return f"no huge pages ({pages if pages == 'default' else pages + ' KiB'})" if pages else "free memory unknown"
        return None if memory_mib <= free else f"needs {int(memory_mib)} MiB{' of huge pages' if pages else ''}, {max(free, 0)} MiB free"

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
        free = {name: self._free[name, pages_of(memory_mib)] for name in fitting}
        target = max(fitting, key=lambda name: free[name])
        passed_over += [(name, f"less free memory ({free[name]} MiB)") for name in fitting if name != target]
        self.reserve(target, memory_mib)
        return Placement(target, free[target] - memory_mib, tuple(sorted(passed_over)))


def pages_of(memory_mib: int) -> str:
    """`Memory.pages`; what a plain number of MiB comes from is ordinary memory."""
    return memory_mib.pages if isinstance(memory_mib, Memory) else ""


def promised(domains: Mapping[str, DomainRecord], claimed: Mapping[str, ClaimRecord], sizes: Mapping[str, int | None]) -> dict[str, list[int]]:
    """MiB that each node is about to use, VM by VM: wanted VMs homed there that somebody else still holds, or nobody yet."""
    found: dict[str, list[int]] = {}
    for uuid, record in domains.items():
        claim = claimed[uuid].value if uuid in claimed else None
        home = record.hypervisor
        if isinstance(home, str) and home and record.state in WANTED and not (isinstance(claim, Claim) and claim.node == home):
            found.setdefault(home, []).append(sizes.get(uuid) or 0)
    return found


def biggest_first(uuids: Iterable[str], sizes: Mapping[str, int | None]) -> list[str]:
    """The order of a recovery: small VMs fit into what is left; the other way round a big one may fit nowhere."""
    return sorted(uuids, key=lambda uuid: (-(sizes.get(uuid) or 0), uuid))
