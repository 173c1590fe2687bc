# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Tells systemd READY, STATUS, WATCHDOG, STOPPING, EXTEND_TIMEOUT_USEC over NOTIFY_SOCKET. Main and keepalive thread; never blocks, never raises."""
from __future__ import annotations

import socket
from collections.abc import Mapping

UNWATCHED_S = 20.0


def feeding_s(environment: Mapping[str, str], pid: int) -> float:
    """How often systemd's watchdog must be fed: a third of what it waits (WATCHDOG_USEC), so that one late time does no harm."""
    try:
        watched = int(environment.get("WATCHDOG_PID") or pid) == pid
        allowed_s = int(environment["WATCHDOG_USEC"]) / 1e6 if watched else 0.0
    except (KeyError, ValueError):
        return UNWATCHED_S
    return allowed_s / 3 if allowed_s > 0 else UNWATCHED_S


class Notifier:
    """`path` is the value of NOTIFY_SOCKET ('@' = abstract); empty: everything is a no-op."""

    def __init__(self, path: str) -> None:
        self._address = "\0" + path[1:] if path.startswith("@") else path

    def ready(self) -> None:
        self._send("READY=1")

    def status(self, text: str) -> None:
        self._send("STATUS=" + text.replace("\n", " "))

    def watchdog(self) -> None:
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def extend(self, seconds: float) -> None:
        """Still stopping: not to be killed within the next `seconds`."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as channel:
                channel.sendto(message.encode(), self._address)
        except OSError:
            return  # systemd is not listening (any more): nothing depends on this message but the display
