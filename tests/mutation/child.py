# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Runs the tests that standard input names, until one fails. Exit status 0: all passed; anything else counts as a killed mutant."""
from __future__ import annotations

import json
import sys

import pytest

from .plugin import Chosen

if __name__ == "__main__":
    names, durations = json.load(sys.stdin)
    sys.stdin = open("/dev/null")  # noqa: SIM115 - for the life of this process
    files = sorted({name.partition("::")[0] for name in names})
    chosen = Chosen(names, durations)
    status = pytest.main(["-q", "-x", "-p", "no:cacheprovider", *files], plugins=[chosen])
    sys.exit(status if chosen.ran == len(names) else 2)
