# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Comes last: no daemon has printed a traceback, whatever the tests before have done to it."""
from __future__ import annotations

import re

from lablib.lab import Lab


def test_no_daemon_printed_a_traceback(lab: Lab) -> None:
    for name in lab.names:
        text = lab.node(name).run("journalctl", "-u", "pvcd.service", "-o", "cat", "--no-pager", timeout_s=60).stdout
        found = re.findall(r".*Traceback[\s\S]{0,1500}", text)
        assert not found, f"{name}: {found[0]}"
