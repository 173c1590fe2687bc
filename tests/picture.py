# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Makes a picture of what a command printed on a terminal: pvc --color always status | python3 tests/picture.py >client-cli/status.svg"""
from __future__ import annotations

import re
import sys
from html import escape

COLOURS = {"32": "#4ec96f", "33": "#e0b94a", "31": "#f0716b", "34": "#6ba5f0"}
WIDTH, HEIGHT, MARGIN = 8.0, 18, 16


def line(text: str, y: int) -> str:
    """One line of a terminal; colours and bold become spans, each at its own column."""
    spans, column, style = [], 0, ""
    for part in re.split(r"(\x1b\[[0-9;]*m)", text):
        code = re.fullmatch(r"\x1b\[([0-9;]*)m", part)
        if code:
            style = f' fill="{COLOURS[code[1]]}"' if code[1] in COLOURS else ' font-weight="bold"' if code[1] == "1" else ""
        elif part:
            spans.append(f'<tspan x="{MARGIN + column * WIDTH:g}"{style}>{escape(part)}</tspan>')
            column += len(part)
    return f'<text y="{y}" xml:space="preserve">{"".join(spans)}</text>'


def picture(text: str) -> str:
    lines = text.rstrip("\n").split("\n")
    columns = max(len(re.sub(r"\x1b\[[0-9;]*m", "", shown)) for shown in lines)
    width, height = columns * WIDTH + 2 * MARGIN, len(lines) * HEIGHT + 2 * MARGIN
    body = "\n".join(line(shown, MARGIN + (number + 1) * HEIGHT - 5) for number, shown in enumerate(lines))
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height}" width="{width:g}" height="{height}">\n'
            f'<rect width="100%" height="100%" rx="8" fill="#1d2129"/>\n'
            f'<g font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="13" fill="#d8dee6">\n{body}\n</g>\n</svg>\n')


if __name__ == "__main__":
    sys.stdout.write(picture(sys.stdin.read()))
