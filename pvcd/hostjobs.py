# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Asks systemd whether the host is being shut down. The one room that runs systemctl. Main thread, once, when pvcd is told to stop."""
from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence

ASK = ("systemctl", "--no-legend", "--plain", "list-jobs")
DEADLINE_S = 5.0


def host_goes_down(ask: Sequence[str] = ASK, deadline_s: float = DEADLINE_S) -> bool | None:
    """True: power-off, reboot, halt or kexec is under way. False: it is not. None: systemd gives no answer. Never raises; at most
    `deadline_s` seconds.
    """
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C"}
    try:
        process = subprocess.Popen(ask, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
                                   start_new_session=True)
    except OSError:
        return None
    try:
        out, _ = process.communicate(timeout=deadline_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # it leads a group of its own
        process.communicate()
        return None
    return goes_down(out.decode("utf-8", "replace")) if process.returncode == 0 else None


def goes_down(jobs: str) -> bool:
    """Do these lines of `systemctl list-jobs` (JOB UNIT TYPE STATE) start shutdown.target? Every way down does."""
    return any(line.split()[1:3] == ["shutdown.target", "start"] for line in jobs.splitlines())
