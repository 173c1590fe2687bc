# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""What a node tells of itself besides its words: that its host is being shut down, which guests run there outside PVC, and what is wrong
there that only a person can put right. Pure.

The codecs are total: what cannot be understood is `Unknown`, and no order.
"""
from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from . import schema
from .schema import Unknown

MORE = "more"
DETAIL_LIMIT = 200


@dataclass(frozen=True)
class Departure:
    """`at`: UTC time; `back`: the node's VMs come home at its next start; `vms`: how many claims it held when it began to leave."""

    at: str
    back: bool
    vms: int = 0

    def encode(self) -> bytes:
        return json.dumps({"at": self.at, "return": self.back, "vms": self.vms}, separators=(",", ":")).encode()


def _object(raw: bytes) -> dict[str, Any] | None:
    if len(raw) > schema.VALUE_LIMIT:
        return None
    try:
        value = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def decode_departure(raw: bytes | None) -> Departure | Unknown | None:
    if raw is None:
        return None
    value = _object(raw)
    if value is None or not isinstance(value.get("at"), str) or not isinstance(value.get("return"), bool):
        return Unknown(raw)
    vms = value.get("vms")
    return Departure(value["at"][:40], value["return"], vms if type(vms) is int and 0 <= vms < 2**31 else 0)


def encode_strangers(found: Mapping[str, str]) -> str:
    """UUID → name as JSON of at most `schema.VALUE_LIMIT` bytes, in the order given; `more` counts those that do not fit."""
    shown: dict[str, Any] = {}
    room = schema.VALUE_LIMIT - 20
    for uuid, name in found.items():
        room -= len(json.dumps({uuid: name}, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        if room < 0:
            shown[MORE] = len(found) - len(shown)
            break
        shown[uuid] = schema.printable(name)[:64]
    return json.dumps(shown, ensure_ascii=False, separators=(",", ":"))


def decode_strangers(raw: bytes | None) -> Mapping[str, str] | Unknown | None:
    """UUID → name; `more` is left out."""
    if raw is None:
        return None
    value = _object(raw)
    if value is None:
        return Unknown(raw)
    return {uuid: name for uuid, name in value.items() if schema.is_uuid(uuid) and isinstance(name, str)}


@dataclass(frozen=True)
class Trouble:
    """`code` says what is wrong, for the client's words (`pvc.health`); `uuid` with which VM, '' for the node itself; `detail` as observed."""

    code: str
    uuid: str = ""
    detail: str = ""


def encode_troubles(found: Iterable[Trouble]) -> str:
    """JSON of at most `schema.VALUE_LIMIT` bytes; what does not fit is left out."""
    rows: list[list[str]] = []
    room = schema.VALUE_LIMIT - 2
    for trouble in found:
        row = [trouble.code, trouble.uuid, schema.printable(trouble.detail)[:DETAIL_LIMIT]]
        room -= len(json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass")) + 2
        if room < 0:
            break
        rows.append(row)
    return json.dumps(rows, ensure_ascii=False)


def decode_troubles(raw: bytes | None) -> tuple[Trouble, ...]:
    """It is only for people: what cannot be understood is left out."""
    try:
        rows = json.loads((raw or b"[]")[:schema.VALUE_LIMIT].decode("utf-8"))
    except (ValueError, RecursionError):
        return ()
    return tuple(Trouble(*row) for row in rows if isinstance(row, list) and len(row) == 3 and all(isinstance(word, str) for word in row)
                 ) if isinstance(rows, list) else ()
