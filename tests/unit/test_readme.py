# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The README is true where a machine can tell: the table of keys, the configuration, the commands it names."""
from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from key_table import table
from man_page import page

from pvc.cli import cli
from pvcd import config

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_the_table_of_keys_is_the_schema() -> None:
    assert table() in README, "make it anew: python3 tests/key_table.py"


def test_every_configuration_key_is_described_with_its_default() -> None:
    for key, default in config.DEFAULTS.items():
        assert re.search(rf"^\| `{key}` \| {re.escape(f'`{default}`' if default else '')} ?\|", README, re.MULTILINE), key


def test_every_command_it_names_exists() -> None:
    named = set(re.findall(r"^ +pvc ([a-z-]+)(?: ([a-z-]+))?", README, re.MULTILINE))
    assert named
    for first, second in named:
        command = cli.commands.get(first) or cli.get_command(None, first)  # type: ignore[arg-type]
        assert command is not None, first
        if hasattr(command, "commands"):
            assert second in command.list_commands(None), f"{first} {second}"  # type: ignore[arg-type]


def test_the_man_page_is_the_client() -> None:
    found = (ROOT / "debian/man/pvc.1").read_text()
    assert page() == found, "make it anew: python3 tests/man_page.py >debian/man/pvc.1"


def test_the_lab_begins_on_a_machine_with_nothing_but_python() -> None:
    """It installs what is missing, so until then it may not need it: -S leaves Debian's Python packages out."""
    done = subprocess.run(["/usr/bin/python3", "-S", str(ROOT / "tests/lab/pvclab"), "status"], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 0 or done.stderr.startswith("pvclab: ")
