# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Reads name, UUID and memory out of a domain definition, and refuses what is unsafe to read. Pure.

A definition is read on every node and in the client, and anybody with write access to ZooKeeper may have put it there: no
DOCTYPE (so no entities and nothing fetched), bounded size and depth, UTF-8.
"""
from __future__ import annotations

import uuid as uuidlib
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

from . import schema
from .errors import BadDefinition

MAX_DEPTH = 64

_UNITS = {"b": 1, "bytes": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "pb": 10**15, "eb": 10**18,
          "k": 2**10, "kib": 2**10, "m": 2**20, "mib": 2**20, "g": 2**30, "gib": 2**30, "t": 2**40, "tib": 2**40,
          "p": 2**50, "pib": 2**50, "e": 2**60, "eib": 2**60}


class Memory(int):
    """MiB. `pages`: '' for ordinary memory; 'default' for huge pages of the host's own size; else the size of the pages in KiB. A VM whose
    memory comes from pages of several sizes counts as one that takes all of it from the first.
    """

    pages: str

    def __new__(cls, mib: int, pages: str = "") -> Memory:
        found = super().__new__(cls, mib)
        found.pages = pages
        return found


@dataclass(frozen=True)
class Definition:
    """What placement and identity need of a definition."""

    name: str
    uuid: str
    memory_mib: Memory
    on_crash: str = ""


class _Builder(ElementTree.TreeBuilder):
    def __init__(self) -> None:
        super().__init__()
        self.depth = 0

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise BadDefinition("The definition has a DOCTYPE.", "It could name entities or files.", "Remove it.")

    def start(self, tag, attrs):  # type: ignore[no-untyped-def]
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise BadDefinition(f"The definition is nested deeper than {MAX_DEPTH} elements.")
        return super().start(tag, attrs)

    def end(self, tag):  # type: ignore[no-untyped-def]
        self.depth -= 1
        return super().end(tag)


def memory_mib(text: str | None, unit: str | None) -> int | None:
    """libvirt's memory with its unit (KiB by default) in MiB, rounded up; None for what libvirt would not read either."""
    factor = _UNITS.get((unit or "KiB").lower())
    digits = (text or "").strip()
    if factor is None or not digits.isascii() or not digits.isdigit() or len(digits) > 18:
        return None
    return -(-int(digits) * factor // 2**20)


def parse(raw: bytes | None) -> Definition:
    """The definition that `raw` holds. Raises BadDefinition with the reason in words."""
    if not raw:
        raise BadDefinition("There is no definition.")
    if len(raw) > schema.XML_LIMIT:
        raise BadDefinition(f"The definition is larger than {schema.XML_LIMIT >> 10} KiB.")
    try:
        raw.decode("utf-8")
        root = ElementTree.fromstring(raw, ElementTree.XMLParser(target=_Builder()))
    except UnicodeDecodeError as error:
        raise BadDefinition(f"The definition is not UTF-8 (byte {error.start}).") from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise BadDefinition(f"The definition is not well-formed XML: {schema.printable(str(error))}.") from error
    if root.tag != "domain":
        raise BadDefinition(f"The root element is <{schema.printable(root.tag)}>, not <domain>.")
    name, found = root.findtext("name") or "", (root.findtext("uuid") or "").strip()
    if not schema.is_vm_name(name):
        raise BadDefinition(f"The name '{schema.printable(name)}' cannot be used.",
                            "A name has 1 to 64 letters, digits, '_', '.', '+' or '-', and begins with a letter, digit or '_'.")
    memory = root.find("memory")
    size = memory_mib(memory.text, memory.get("unit")) if memory is not None else None
    if size is None:
        raise BadDefinition("The definition has no readable <memory>.")
    return Definition(name, canonical_uuid(found), Memory(size, _pages(root)), (root.findtext("on_crash") or "").strip())


def _pages(root: ElementTree.Element) -> str:
    """Which pages the memory comes from, as `Memory.pages`."""
    found = root.find("memoryBacking/hugepages")
    if found is None:
        return ""
    page = found.find("page")
    factor, digits = _UNITS.get((page.get("unit") or "KiB").lower()) if page is not None else None, page.get("size", "") if page is not None else ""
    if factor is None or not digits.isascii() or not digits.isdigit() or len(digits) > 9:
        return "default"
    return str(int(digits) * factor // 2**10)


def canonical_uuid(text: str) -> str:
    """The UUID in the spelling of the keys (lower case, dashes), as libvirt reads it. Raises BadDefinition."""
    try:
        spelled = str(uuidlib.UUID(text))
    except ValueError:
        spelled = ""
    if not spelled or spelled != text.lower():
        raise BadDefinition(f"The UUID '{schema.printable(text)}' is not in the form 8-4-4-4-12 hex digits.")
    return spelled
