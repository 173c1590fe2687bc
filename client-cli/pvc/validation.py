# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Checks a definition against libvirt's own RELAX NG schema, and names the element that it objects to, with its line.

The schema comes with libvirt's library; on a machine without it nothing is checked, and the caller is told.
"""
from __future__ import annotations

import copy
from pathlib import Path

from lxml import etree

from pvcd.cluster.errors import BadDefinition

SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")


def is_available() -> bool:
    return SCHEMA.exists()


def check(raw: bytes) -> None:
    """Raises BadDefinition where libvirt would not understand `raw`, which is well-formed XML. 10 to 100 ms."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    root = etree.fromstring(raw, parser)
    schema = etree.RelaxNG(etree.parse(str(SCHEMA)))
    if schema.validate(root):
        return
    raise BadDefinition(f"{_offender(schema, root)}: libvirt's schema does not allow it there, or not like this. "
                        "Mend it, or define it all the same with --no-validate.")


def _offender(schema: etree.RelaxNG, root: etree._Element) -> str:
    """The deepest element without which the definition is valid; its attribute, if that is all there is to it."""
    path: list[etree._Element] = [root]
    while (deeper := next((child for child in path[-1].iterchildren(etree.Element) if _is_valid_without(schema, root, child)), None)) is not None:
        path.append(deeper)
    if len(path) == 1:
        last = schema.error_log.last_error  # more than one thing is wrong, or something is missing: the schema's own words
        return f"Line {last.line}: {last.message}" if last is not None else "The definition"
    for part in path[-1].iter(etree.Element):  # an element that must be there may still have an attribute too many
        for name in map(str, part.attrib):
            if _is_valid_without(schema, root, part, name):
                return f"Line {part.sourceline}: attribute {name}='{part.get(name)}' of <{part.tag}>"
    return f"Line {path[-1].sourceline}: <{path[-1].tag}>"


def _is_valid_without(schema: etree.RelaxNG, root: etree._Element, victim: etree._Element, attribute: str | None = None) -> bool:
    tree = root.getroottree()
    twin = copy.deepcopy(tree)
    found = twin.xpath(tree.getpath(victim))[0]
    if attribute is not None:
        del found.attrib[attribute]
    else:
        found.getparent().remove(found)
    return bool(schema.validate(twin))
