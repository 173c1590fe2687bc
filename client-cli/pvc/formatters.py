# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Rows and values → tables, information pages and JSON. Pure; everything that came from ZooKeeper is escaped.

`-` = does not apply, `?` = cannot be known. Colour never carries meaning alone, and is added to words only.
"""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pvcd.cluster.schema import printable

GREEN, YELLOW, RED, BLUE, BOLD, END = "\033[32m", "\033[33m", "\033[31m", "\033[34m", "\033[1m", "\033[0m"
_COLOURS = {"run": GREEN, "ready": GREEN, "start": GREEN, "up": GREEN, "yes": GREEN, "init": YELLOW, "flush": YELLOW, "flushed": BLUE,
            "unflush": YELLOW, "overprov": YELLOW, "migrate": BLUE, "restart": YELLOW, "shutdown": YELLOW, "stop": RED, "dead": RED,
            "failed": RED, "ok": GREEN, "warning": YELLOW, "critical": RED,
            "delete": RED, "fencing": RED, "fenced": RED, "no": RED}


@dataclass(frozen=True)
class Column:
    """`key` of the row's value, `title`; `right` for numbers; `coloured` for words of state."""

    key: str
    title: str
    right: bool = False
    coloured: bool = False


def shown(value: Any) -> str:
    """One value as text: None cannot be known, '' does not apply."""
    if value is None:
        return "?"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return printable(str(value)) or "-"


def _cell(text: str, column: Column, width: int, colour: bool) -> str:
    padded = text.rjust(width) if column.right else text.ljust(width)
    if colour and column.coloured and text in _COLOURS:
        return padded.replace(text, _COLOURS[text] + text + END, 1)
    return padded


def table(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]], colour: bool) -> str:
    """A header and one line per row: two spaces between columns, no borders, nothing cut."""
    texts = [[shown(row.get(column.key)) for column in columns] for row in rows]
    widths = [max(len(column.title), *(len(line[n]) for line in texts)) if texts else len(column.title)
              for n, column in enumerate(columns)]
    header = "  ".join(c.title.rjust(w) if c.right else c.title.ljust(w) for c, w in zip(columns, widths)).rstrip()
    lines = ["  ".join(_cell(text, c, w, colour) for text, c, w in zip(line, columns, widths)).rstrip() for line in texts]
    return "\n".join([BOLD + header + END if colour else header, *lines])


def page(pairs: Sequence[tuple[str, Any]], colour: bool) -> str:
    """An information page: `Label:  value` lines; an empty label is an empty line."""
    width = max((len(label) for label, _ in pairs), default=0) + 1
    lines = []
    for label, value in pairs:
        text = shown(value)
        if colour and text in _COLOURS:
            text = _COLOURS[text] + text + END
        lines.append(f"{label + ':':<{width}}  {text}".rstrip() if label else "")
    return "\n".join(lines)


def document(value: Any) -> str:
    """One JSON document."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def names(rows: Sequence[Mapping[str, Any]]) -> str:
    """One name per line, for scripts."""
    return "\n".join(shown(row["name"]) for row in rows)
