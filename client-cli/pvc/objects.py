# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Finds the VM or node that an argument names: exact name, UUID, or an unambiguous UUID prefix of at least 4 hex digits.

A UUID is final: it is never mapped through a name. Nothing is found by a prefix of a name.
"""
from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from pvcd.cluster import schema
from pvcd.cluster.errors import NotFound, Refusal
from pvcd.cluster.records import NodeRecord, View
from pvcd.cluster.requests import Names
from pvcd.cluster.store import Store


def vm_names(store: Store) -> dict[str, str]:
    """UUID → name of every VM; '' where the name cannot be understood."""
    uuids = [name for name in store.children(schema.DOMAINS) if schema.is_uuid(name)]
    values = store.raw_many([schema.domain(uuid) for uuid in uuids])
    texts = {uuid: schema.decode_text(values[schema.domain(uuid)].data) for uuid in uuids if values[schema.domain(uuid)].data is not None}
    return {uuid: text if isinstance(text, str) else "" for uuid, text in texts.items()}


def all_names(store: Store) -> Names:
    """The same, with the version of `/domains` from before they were read."""
    root = store.raw(schema.DOMAINS)
    return Names(root, vm_names(store))


def find_vm(store: Store, wanted: str) -> str:
    """The UUID of the VM that `wanted` names. Raises NotFound or, for an ambiguous name or prefix, Refusal."""
    if schema.is_uuid(wanted.lower()):
        if store.raw(schema.domain(wanted.lower())).data is None:
            raise NotFound(f"VM '{wanted}' does not exist.", "", "pvc vm list shows the VMs.")
        return wanted.lower()
    known = vm_names(store)
    found = sorted(uuid for uuid, name in known.items() if name == wanted)
    if not found and re.fullmatch(r"[0-9a-f][0-9a-f-]{3,}", wanted.lower()):
        found = sorted(uuid for uuid in known if uuid.startswith(wanted.lower()))
    if len(found) > 1:
        raise Refusal(f"'{schema.printable(wanted)}' names {len(found)} VMs:", ", ".join(found) + ".", "Use the UUID.")
    if not found:
        raise NotFound(f"VM '{schema.printable(wanted)}' does not exist.", "", suggestion(wanted, known.values(), "pvc vm list shows the VMs."))
    return found[0]


def find_node(view: View, wanted: str) -> NodeRecord:
    """The node called `wanted`. Raises NotFound."""
    node = view.nodes.get(wanted)
    if node is None or not node.exists:
        raise NotFound(f"Node '{schema.printable(wanted)}' does not exist.", "", suggestion(wanted, view.nodes, "pvc node list shows the nodes."))
    return node


def suggestion(wanted: str, known: Iterable[str], otherwise: str) -> str:
    close = difflib.get_close_matches(wanted, list(known), 1)
    return f"Did you mean '{schema.printable(close[0])}'?" if close else otherwise


