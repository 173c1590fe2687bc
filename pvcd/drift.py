# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Compares a VM as it runs with its stored definition: disk sources, interfaces, memory. Pure.

An external snapshot or a hot-plug changes what runs, and nothing tells ZooKeeper: the next start, here or in a recovery, would go back
to the stored disks without a word.
"""
from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass

from .cluster import definition
from .cluster.schema import printable

REMOVABLE = ("cdrom", "floppy")
_SOURCES = ("file", "dev", "dir", "name", "volume")
_LINKS = {"network": "network", "bridge": "bridge", "direct": "dev"}


@dataclass(frozen=True)
class Drift:
    """`disks`: those that run on another source than the definition names; `others`: everything else that differs."""

    disks: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


def compare(live: bytes, stored: bytes) -> Drift:
    """What differs. Raises BadDefinition for a definition that cannot be read, ValueError for an answer of libvirt that cannot."""
    definition.parse(stored)  # from here on it is safe to read
    try:
        here, there = ElementTree.fromstring(live), ElementTree.fromstring(stored)
    except ElementTree.ParseError as error:
        raise ValueError(str(error)) from error
    running, wanted = _disks(here), _disks(there)
    disks = [f"{target}: runs on {running[target]}, defined as {wanted[target]}"
             for target in sorted(set(running) & set(wanted)) if running[target] != wanted[target]]
    others = [f"{target}: runs on {running[target]}, not defined" for target in sorted(set(running) - set(wanted))]
    others += [f"{target}: defined as {wanted[target]}, not attached" for target in sorted(set(wanted) - set(running))]
    links, defined = _interfaces(here), _interfaces(there)
    others += [f"interface on {link}: not defined" for link in sorted((links - defined).elements())]
    others += [f"interface on {link}: not attached" for link in sorted((defined - links).elements())]
    return Drift(tuple(disks), (*others, *_memory(here, there)))


def _disks(domain: ElementTree.Element) -> dict[str, str]:
    """Target → source of every disk that does not come and go by the guest's own hand."""
    found = {}
    for disk in domain.iterfind("devices/disk"):
        target, source = disk.find("target"), disk.find("source")
        if target is None or source is None or disk.get("device", "disk") in REMOVABLE:
            continue
        name = next((source.get(key, "") for key in _SOURCES if source.get(key)), "")
        found[printable(target.get("dev", ""))] = printable(f"{source.get('pool', '')}/{name}" if source.get("pool") else name)
    return found


def _interfaces(domain: ElementTree.Element) -> Counter[str]:
    found: Counter[str] = Counter()
    for interface in domain.iterfind("devices/interface"):
        kind, source = interface.get("type", ""), interface.find("source")
        name = source.get(_LINKS.get(kind, ""), "") if source is not None else ""
        found[printable(f"{kind} {name}".strip())] += 1
    return found


def _memory(here: ElementTree.Element, there: ElementTree.Element) -> tuple[str, ...]:
    """MiB. With NUMA cells or DIMMs libvirt computes the sum itself, and it says nothing."""
    if there.find("cpu/numa") is not None or there.find("devices/memory") is not None:
        return ()
    running, wanted = here.find("memory"), there.find("memory")
    if running is None or wanted is None:
        return ()
    now, then = (definition.memory_mib(element.text, element.get("unit")) for element in (running, wanted))
    return (f"memory: {now} MiB, defined as {then} MiB",) if now != then else ()
