# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Waits until the cluster has done what was ordered, telling what happens on stderr. Woken by watches, bounded by a timeout."""
from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import click

from pvcd.cluster import schema
from pvcd.cluster.errors import Failed, TimedOut
from pvcd.cluster.placement import WANTED
from pvcd.cluster.records import Claim
from pvcd.cluster.schema import DomainState, OpPhase, VMState

from . import interrupt
from .connection import Cluster
from .rows import word

LOOK_S = 1.0
BAR = 20


@dataclass(frozen=True)
class State:
    """What happens now. `progress` is for a terminal, where one line is written again and again; a pipe gets a line per `text`."""

    done: bool
    text: str
    progress: str = ""


Look = Callable[[], State]
"""Raises Failed."""


def wait(cluster: Cluster, look: Look, timeout_s: float, paths: Iterable[str], back: str = "") -> None:
    """Look again after each change of one of `paths`, and every second. Raises Failed or TimedOut. `back`: the command that takes it back."""
    with interrupt.saying(lambda: f"To take it back: {back}" if back else ""):
        _wait(cluster, look, timeout_s, paths)


def _wait(cluster: Cluster, look: Look, timeout_s: float, paths: Iterable[str]) -> None:
    changed, deadline, told = threading.Event(), time.monotonic() + timeout_s, ""
    line = sys.stderr.isatty()
    for path in paths:
        cluster.zk.watch_value(path, changed.set)
    while True:
        changed.clear()
        state = look()
        text = schema.printable(state.text + state.progress if line else state.text)
        if text != told and text:
            click.echo(f"\r\033[K{text}" if line else text, err=True, nl=not line)
        told = text
        if state.done:
            break
        if time.monotonic() >= deadline:
            raise TimedOut(f"Not done after {timeout_s:g} s ({state.text}). The cluster goes on with it.")
        changed.wait(min(LOOK_S, max(0.01, deadline - time.monotonic())))
    if line and told:
        click.echo("", err=True)


def domain_paths(uuid: str) -> list[str]:
    return [schema.domain_key(uuid, "state"), schema.domain_key(uuid, "hypervisor"), schema.claim(uuid)]


def for_start(cluster: Cluster, uuid: str, target: str | None = None) -> Look:
    """Until it runs (on `target`, if one is given): claimed by its home, and listed there as running."""
    def look() -> State:
        record, claim = cluster.store.domain_and_claim(uuid)
        name, held = record.name, claim.value if isinstance(claim.value, Claim) else None
        if record.state is VMState.FAILED:
            raise Failed(f"VM '{name}' failed: {_reason(cluster, uuid)}")
        if record.state is VMState.START and target is not None and record.hypervisor != target:
            raise Failed(f"VM '{name}' stays on {record.hypervisor}: {_reason(cluster, uuid)}")
        if record.state not in (VMState.START, VMState.MIGRATE, VMState.RESTART, VMState.SHUTDOWN):
            raise Failed(f"VM '{name}' got another order meanwhile: its state is '{word(record.state)}'.")
        settled = record.state is VMState.START and held is not None and held.op is None and held.node == record.hypervisor
        if settled and held is not None:
            running = cluster.store.node(held.node).runningdomains
            if isinstance(running, tuple) and uuid in running:
                return State(True, f"{name}: runs on {held.node}")
        return State(False, f"{name}: {_doing(record.state, held)}", _moved(cluster, uuid, held))
    return look


def _doing(state: object, held: Claim | None) -> str:
    if held is None:
        return "waits for its node"
    if held.op is not None and held.op.phase is OpPhase.GIVEN:
        return f"has arrived on {held.node}"
    if held.op is not None:
        return f"migrating from {held.node} to {held.op.dest} ({held.op.phase.value})"
    return f"{word(state)} on {held.node}"


def _reason(cluster: Cluster, uuid: str) -> str:
    reason = cluster.store.meta(uuid).get("reason")
    return schema.printable(reason) if isinstance(reason, str) and reason else "no reason is known"


def for_stop(cluster: Cluster, uuid: str) -> Look:
    """Until nothing of it runs: its claim is free."""
    def look() -> State:
        record, claim = cluster.store.domain_and_claim(uuid)
        if record.state not in (VMState.STOP, VMState.SHUTDOWN, VMState.DELETE, VMState.FAILED) and record.exists:
            raise Failed(f"VM '{record.name}' got another order meanwhile: its state is '{word(record.state)}'.")
        if claim.value is None and record.state is not VMState.SHUTDOWN:
            return State(True, f"{record.name}: stopped")
        held = claim.value if isinstance(claim.value, Claim) else None
        return State(False, f"{record.name}: {_doing(record.state, held)}")
    return look


def _moved(cluster: Cluster, uuid: str, held: Claim | None) -> str:
    """How far a migration's memory is, as its source has said last."""
    if held is None or held.op is None or held.op.phase is not OpPhase.RUN:
        return ""
    meta = cluster.store.meta(uuid)
    moved, size = meta.get("moved_mib"), meta.get("size_mib")
    if meta.get("op") != held.op.id or not isinstance(moved, int) or not isinstance(size, int) or size <= 0:
        return ""
    return f": {min(100, 100 * moved // size)} % ({moved} of {size} MiB)"


def _stay_away(cluster: Cluster, name: str) -> str:
    """The running VMs whose home is `name` and that did not come back to it, with the last reason of each."""
    away = [record for record in cluster.store.domains().values()
            if record.lasthypervisor == name and record.hypervisor != name and record.state in WANTED]
    told = [f"{record.name} stays on {record.hypervisor}: {_reason(cluster, record.uuid)}" for record in away]
    return f"; {'; '.join(sorted(told))}" if told else ""


def for_node(cluster: Cluster, name: str, wanted: DomainState, bring_back: bool = True) -> Look:
    """Until the node's word is `wanted`; tells how many VMs are still to go, and which did not come home."""
    most = 0

    def look() -> State:
        node = cluster.store.node(name)
        if node.domainstate is wanted:
            away = _stay_away(cluster, name) if wanted is DomainState.READY and bring_back else ""
            return State(True, f"{name}: {wanted.value}{away}")
        if node.domainstate not in (DomainState.FLUSH, DomainState.UNFLUSH):
            raise Failed(f"Node {name} got another order meanwhile: its domain state is '{word(node.domainstate)}'.")
        nonlocal most
        here = sum(isinstance(claim.value, Claim) and claim.value.node == name for claim in cluster.store.claims().values())
        most = max(most, here)
        gone = BAR * (most - here) // most if most else 0
        bar = f"  [{'#' * gone:-<{BAR}}]" if wanted is DomainState.FLUSHED else ""
        return State(False, f"{name}: {node.domainstate.value}, {here} VMs here", bar)
    return look
