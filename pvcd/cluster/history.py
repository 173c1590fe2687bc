# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Appends one bounded line of who did what and why to `/history/<node or uuid>`. No order is ever read from it.

JSON lines, newest last, at most HISTORY_LINES and HISTORY_LIMIT bytes.
"""
from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from . import schema
from .errors import Conflict, PVCError
from .records import Change, Create, Value, Write

TRIES = 3
TEXT_LIMIT = 500


@dataclass(frozen=True)
class Entry:
    """`at` is ISO 8601 UTC; `who` a node, or user@host."""

    at: str
    who: str
    what: str
    why: str = ""


class _Store(Protocol):
    def raw(self, path: str) -> Value: ...

    def apply(self, changes: Sequence[Change]) -> object: ...


def entries(raw: bytes | None) -> list[Entry]:
    """Every line that can be read; others are passed over."""
    found = []
    for line in (raw or b"").splitlines():
        try:
            value = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            texts = [value.get(key, "") for key in ("at", "who", "what", "why")]
            if all(isinstance(text, str) for text in texts):
                found.append(Entry(*texts))
    return found


def appended(raw: bytes | None, entry: Entry) -> bytes:
    """`raw` with one more line, without the oldest ones that exceed the bounds."""
    value = {"at": entry.at, "who": entry.who, "what": entry.what[:TEXT_LIMIT], "why": entry.why[:TEXT_LIMIT]}
    line = json.dumps({key: schema.printable(text) for key, text in value.items()}, ensure_ascii=False).encode()
    lines = [*(raw or b"").splitlines(), line][-schema.HISTORY_LINES:]
    while sum(len(kept) + 1 for kept in lines) > schema.HISTORY_LIMIT:
        del lines[0]
    return b"\n".join(lines) + b"\n"


def change(subject: str, old: Value, entry: Entry) -> Change:
    """The change that appends `entry`, to go into a transaction."""
    data = appended(old.data, entry)
    if old.data is None:
        return Create(schema.history(subject), data)
    return Write(schema.history(subject), data, old.version)


def record(store: _Store, subject: str, entry: Entry) -> bool:
    """Append `entry`; a lost race is tried again. False if it could not be written: a history stops no action."""
    for _ in range(TRIES):
        try:
            store.apply((change(subject, store.raw(schema.history(subject)), entry),))
            return True
        except Conflict:
            continue
        except PVCError:
            return False
    return False
