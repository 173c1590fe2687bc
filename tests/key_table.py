# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Makes the README's table of keys from the schema: python3 tests/key_table.py prints it; a unit test compares."""
from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pvcd.cluster import schema


def table() -> str:
    """One row per key, in Markdown."""
    rows = [(f"/nodes/<name>/{key.name}", key) for key in schema.NODE_KEYS]
    rows += [(f"/domains/<uuid>/{key.name}", key) for key in schema.DOMAIN_KEYS]
    rows += [(key.name, key) for key in schema.OTHER_KEYS]
    lines = ["| key | format | written by | read by |", "|---|---|---|---|"]
    return "\n".join(lines + [f"| `{path}` | {key.format} | {key.writer} | {key.reader} |" for path, key in rows])


if __name__ == "__main__":
    print(table())
