# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Records → rows: what the lists and information pages show of nodes and VMs. Pure.

`None` = cannot be known (a node that does not report), '' = does not apply.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pvcd.cluster import controllers
from pvcd.cluster.controllers import Card, Seen
from pvcd.cluster.records import Claim, ClaimRecord, DomainRecord, NodeRecord, View
from pvcd.cluster.schema import DaemonState, Unknown, VMState, printable
from pvcd.cluster.tries import Tries

from .formatters import Column

Row = dict[str, Any]

SEEN_FOR_S = 4 * 3600.0
"""A check that failed longer ago, and that its node has not repeated, is not shown: in a large cluster each node's turn comes rarely."""

NODE_COLUMNS = (Column("name", "Name"), Column("daemonstate", "Daemon", coloured=True), Column("domains", "Domains", coloured=True),
                Column("vms", "VMs", True), Column("cpus", "CPUs", True), Column("memory_total_mib", "Total (MiB)", True),
                Column("memory_used_mib", "Used (MiB)", True), Column("memory_free_mib", "Free (MiB)", True),
                Column("memory_vms_mib", "VMs (MiB)", True))
VM_COLUMNS = (Column("name", "Name"), Column("uuid", "UUID"), Column("state", "State", coloured=True),
              Column("memory_mib", "RAM (MiB)", True), Column("vcpus", "vCPUs", True), Column("hypervisor", "Hypervisor"),
              Column("migrated", "Migrated"))

PROBLEM_COLUMNS = (Column("level", "Level", coloured=True), Column("code", "Code"), Column("subject", "Subject"), Column("text", "What"),
                   Column("next", "Next"))
PLAN_COLUMNS = (Column("name", "VM"), Column("from", "From"), Column("to", "To"), Column("memory_mib", "RAM (MiB)", True), Column("why", "Why"))
HISTORY_COLUMNS = (Column("at", "Time (UTC)"), Column("who", "Who"), Column("what", "What"), Column("why", "Why"))


def word(value: object) -> str | None:
    """A word of state for people; None where the key is missing."""
    return None if value is None else str(value) if isinstance(value, Unknown) else str(getattr(value, "value", value))


def _known(value: object) -> Any:
    return None if isinstance(value, Unknown) else value


def bmc_word(cards: Mapping[str, Card], name: str, now: float) -> str:
    """What is known of a node's BMC: whose it is, what its last checks found, and how old they are. `now`: unix seconds."""
    card = cards.get(name, Card())
    obstacle = controllers.obstacle(cards, name)
    if obstacle:
        return f"not used: {obstacle}"
    if not card.seen:
        return "not checked yet"
    age_s = controllers.age_s(card.at, now)
    when = f"checked by {card.by} {age(age_s)}" if age_s is not None else f"checked by {card.by} at {card.at or 'no known time'}"
    failed = [f"{seen.detail}, seen by {by} at {seen.at}" for by, seen in sorted(card.seen.items()) if not seen.ok and _fresh(seen, now)]
    if failed:
        return f"broken: {'; '.join(failed)}"
    if age_s is None or age_s > controllers.STALE_S:
        return f"unknown: last {when}"
    return f"answers, {controllers.verdict(card).value} ({when})"


def _fresh(seen: Seen, now: float) -> bool:
    age_s = controllers.age_s(seen.at, now)
    return age_s is None or age_s <= SEEN_FOR_S


def age(seconds: float) -> str:
    """How long ago, roughly."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def tries_word(tries: Tries) -> str:
    """Who tried to fence a node and what came of it; '' if nobody did."""
    last = {one.by: one for one in tries.last}
    told = "; ".join(f"{one.by}: {one.why}" for one in last.values())
    return f"{tries.count} tries: {told}" if tries.count > 1 else told


def node_row(node: NodeRecord, view: View, memory_mib: Mapping[str, int | None], bmc: str) -> Row:
    """One node. Numbers of a node whose daemon does not run are stale, and not shown. `memory_mib`: per VM's UUID."""
    stale = node.daemonstate not in (DaemonState.RUN, DaemonState.INIT)
    words = node.staticdata.split() if isinstance(node.staticdata, str) else []
    cpus = int(words[0]) if words and words[0].isascii() and words[0].isdigit() and len(words[0]) < 9 else None
    running = node.runningdomains if isinstance(node.runningdomains, tuple) else ()
    free, used = _known(node.memfree_mib), _known(node.memused_mib)
    total = free + used if isinstance(free, int) and isinstance(used, int) else None
    allocated = sum(memory_mib.get(uuid) or 0 for uuid in running)
    overprovisioned = not stale and total is not None and allocated > total
    fence = view.fence(node.name)
    return {
        "name": node.name, "daemonstate": word(node.daemonstate), "domainstate": word(node.domainstate),
        "domains": "overprov" if overprovisioned else word(node.domainstate), "fence": fence.phase.value if fence else None,
        "bmc": bmc,
        "vms": None if stale else _known(node.domainscount), "cpus": cpus, "memory_total_mib": total if total else None,
        "memory_used_mib": None if stale else used, "memory_free_mib": None if stale else free,
        "memory_vms_mib": None if stale else allocated, "cpuload": None if stale else _known(node.cpuload), "stale": stale,
        "arch": words[3] if len(words) > 3 else None, "os": words[2] if len(words) > 2 else None,
        "kernel": words[1] if len(words) > 1 else None, "running": list(running),
        "strangers": [{"uuid": uuid, "name": called} for uuid, called in sorted(node.strangers.items())]
        if isinstance(node.strangers, Mapping) else []}


def vm_row(record: DomainRecord, claim: ClaimRecord, memory_mib: int | None, vcpus: int | None, reason: str = "", at: str = "") -> Row:
    """One VM. `reason`: its last trouble, `at` that time."""
    last = record.lasthypervisor
    migrated = "" if last is None else "no" if last == "" else f"from {last}"
    held = claim.value if isinstance(claim.value, Claim) else None
    return {
        "name": record.name if isinstance(record.name, str) and record.name else word(record.name) or record.uuid,
        "uuid": record.uuid, "state": word(record.state), "memory_mib": memory_mib, "vcpus": vcpus,
        "hypervisor": word(record.hypervisor), "migrated": migrated or None,
        "lasthypervisor": word(last), "held_by": held.node if held else None,
        "operation": f"{held.op.phase.value} to {held.op.dest}" if held and held.op else None,
        "reason": reason, "reason_at": at}


def node_page(row: Row, long: bool, vms: list[str]) -> list[tuple[str, Any]]:
    """What `node info` shows."""
    pairs: list[tuple[str, Any]] = [
        ("Name", row["name"]), ("Daemon State", row["daemonstate"]), ("Domain State", row["domainstate"]), ("Fence", row["fence"]),
        ("BMC", row["bmc"]),
        ("Active VMs", row["vms"]), ("", ""), ("CPUs", row["cpus"]), ("CPU load", row["cpuload"]),
        ("Total RAM (MiB)", row["memory_total_mib"]), ("Used RAM (MiB)", row["memory_used_mib"]),
        ("Free RAM (MiB)", row["memory_free_mib"]), ("Allocated RAM (MiB)", row["memory_vms_mib"])]
    if long:
        pairs += [("", ""), ("Architecture", row["arch"]), ("Operating System", row["os"]), ("Kernel Version", row["kernel"]),
                  ("", ""), ("VMs", ", ".join(vms)), ("Outside PVC", ", ".join(printable(one["name"]) for one in row["strangers"]))]
    return pairs


def vm_page(row: Row, details: Mapping[str, Any], long: bool) -> list[tuple[str, Any]]:
    """What `vm info` shows; `details` as `domainxml.Details` has them, empty if the definition cannot be read."""
    pairs: list[tuple[str, Any]] = [
        ("Name", row["name"]), ("UUID", row["uuid"]), ("Description", details.get("description", "")),
        ("Memory (MiB)", row["memory_mib"]), ("vCPUs", row["vcpus"]), ("Topology (S/C/T)", details.get("topology", "")),
        ("", ""), ("State", row["state"]), ("Hypervisor", row["hypervisor"]), ("Last Hypervisor", row["lasthypervisor"]),
        ("Running on", row["held_by"] or ""), ("Migration", row["operation"] or "")]
    if row["reason"] and row["state"] == VMState.FAILED.value:
        pairs.append(("Reason", row["reason"]))
    elif row["reason"]:  # it is over; kept because people ask for it
        pairs.append(("Last Trouble", f"{row['reason']} ({row['reason_at'] or 'nobody knows when'})"))
    if row.get("differs"):
        pairs.append(("Differs", f"{row['differs']} (the next start goes back to the definition)"))
    if long and details:
        pairs += [("", ""), ("Type", details["kind"]), ("Architecture", details["arch"]), ("Machine", details["machine"]),
                  ("Emulator", details["emulator"]), ("Features", " ".join(details["features"]))]
        for title, key in (("Disk", "disks"), ("Interface", "interfaces"), ("Controller", "controllers")):
            pairs += [("", "")] if details[key] else []
            pairs += [(f"{title} {number}", "  ".join(part or "-" for part in item.values())) for number, item in enumerate(details[key])]
    return pairs


