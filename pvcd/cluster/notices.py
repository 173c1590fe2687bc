# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""What a node tells of itself besides its words: that its host is being shut down, and which guests run there outside PVC. Pure.

The codecs are total: what cannot be understood is `Unknown`, and no order.
"""
from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import schema
from .schema import Unknown

MORE = "more"


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
