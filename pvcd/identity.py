# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Reads what this machine and this boot are. Any thread; nothing here blocks."""
from __future__ import annotations

import hashlib
import os
import platform
import time
from pathlib import Path

PROC, ETC = Path("/proc"), Path("/etc")


def boottime() -> float:
    """Seconds since boot, suspend included: the clock of every judgement (no wall clock, no clock that stands still in suspend)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def kernel_boot(proc: Path = PROC) -> str:
    """This boot as the kernel tells it: boot id and the start of PID 1 (a container may share its host's boot id)."""
    boot_id = (proc / "sys/kernel/random/boot_id").read_text().strip()
    stat = (proc / "1/stat").read_text()
    return f"{boot_id} {stat[stat.rindex(')') + 2:].split()[19]}"


def boot(proc: Path = PROC) -> str:
    """This boot as incarnations name it: 16 hex digits."""
    return hashlib.sha256(kernel_boot(proc).encode()).hexdigest()[:16]


def machine_id(etc: Path = ETC) -> str:
    """The machine's own id; '' where there is none."""
    try:
        return (etc / "machine-id").read_text().strip()
    except OSError:
        return ""


def static_data() -> str:
    """CPU count, kernel release, operating system, architecture: the four words of the key `staticdata`."""
    system = platform.uname()
    return f"{os.cpu_count() or 1} {system.release} {system.system} {system.machine}"
