# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Asks a management controller one thing and reports what it truly answered. Runs on the fence thread; blocks at most DEADLINE_S.

A controller that ignores `off` answers it with success, and so does a `reset` of a machine that is off: only `power status`,
read back, says anything. The password goes through the environment, which only root can read; on a command line everybody could.
"""
from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

PROGRAM = "/usr/bin/ipmitool"
DEADLINE_S = 20.0
OUTPUT_LIMIT = 4096
CIPHERS = (17, 3)
"""Suites that are tried, the stronger first; never 0, which asks for no password at all."""

_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,252}\Z")
_USER = re.compile(r"[\x21-\x2c\x2e-\x7e][\x21-\x7e]{0,15}\Z")
_PASSWORD = re.compile(r"[\x20-\x7e]{1,20}\Z")
_POWER = re.compile(r"chassis power is (on|off)\b", re.IGNORECASE)
_GUID = re.compile(r"System GUID\s*:\s*([0-9a-fA-F]{32}|[0-9a-fA-F-]{36})\s*$", re.MULTILINE)


class Power(str, Enum):
    """What a controller says of its machine. Everything but a clear answer is UNKNOWN."""

    ON = "on"
    OFF = "off"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Bmc:
    """A management controller, as its peers reach it."""

    host: str
    username: str
    password: str = field(repr=False)

    @property
    def problem(self) -> str:
        """Why it cannot even be asked, or ''."""
        if not self.host or not self.username or not self.password:
            return "no BMC is configured"
        if not _HOST.match(self.host) or not _USER.match(self.username) or not _PASSWORD.match(self.password):
            return "its BMC's host, user or password has a form that IPMI does not take"
        return ""


@dataclass(frozen=True)
class Reading:
    """One answer: the power, and what was said when it is unknown."""

    power: Power
    detail: str = ""


class Ipmi:
    """ipmitool, one session per question. The cipher suite that worked is remembered per controller."""

    def __init__(self, program: str = PROGRAM, deadline_s: float = DEADLINE_S, port: int = 623) -> None:
        self._program, self._deadline_s, self._port = program, deadline_s, port
        self._ciphers: dict[str, int] = {}

    def cipher(self, bmc: Bmc) -> int | None:
        """The cipher suite that worked last."""
        return self._ciphers.get(bmc.host)

    def status(self, bmc: Bmc) -> Reading:
        """Is the machine on? Never raises."""
        out = self._ask(bmc, "chassis", "power", "status")
        found = _POWER.search(out)
        return Reading(Power(found[1].lower())) if found else Reading(Power.UNKNOWN, _brief(out))

    def off(self, bmc: Bmc) -> str:
        """Order the power off, at once; what the controller said. It proves nothing."""
        return _brief(self._ask(bmc, "chassis", "power", "off"))

    def on(self, bmc: Bmc) -> str:
        """Order the power on; what the controller said."""
        return _brief(self._ask(bmc, "chassis", "power", "on"))

    def guid(self, bmc: Bmc) -> str | None:
        """The identity of the machine behind the controller, 32 hex digits, or None where it gives none."""
        found = _GUID.search(self._ask(bmc, "mc", "guid"))
        digits = found[1].replace("-", "").lower() if found else ""
        return digits if digits.strip("0") else None

    def _ask(self, bmc: Bmc, *words: str) -> str:
        if bmc.problem:
            return bmc.problem
        known = self._ciphers.get(bmc.host)
        out = ""
        for cipher in (known,) if known is not None else CIPHERS:
            status, out = self._run(bmc, cipher, words)
            if status == 0:
                self._ciphers[bmc.host] = cipher
                return out
        self._ciphers.pop(bmc.host, None)
        return out

    def _run(self, bmc: Bmc, cipher: int, words: Sequence[str]) -> tuple[int, str]:
        argv = [self._program, "-I", "lanplus", "-H", bmc.host, "-p", str(self._port), "-U", bmc.username, "-E", "-L", "OPERATOR",
                "-C", str(cipher), "-N", "2", "-R", "1", *words]
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C", "IPMITOOL_PASSWORD": bmc.password, "IPMI_PASSWORD": bmc.password}
        try:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment,
                                       start_new_session=True)
        except OSError as error:
            return 127, f"{self._program}: {error.strerror}"
        try:
            out, _ = process.communicate(timeout=self._deadline_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # it leads a group of its own, with whatever it has started
            process.communicate()
            return 124, f"no answer in {self._deadline_s:g} s"
        return process.returncode, out[:OUTPUT_LIMIT].decode("utf-8", "replace")


def stranger(bmc: Bmc, recorded: str, found: str | None) -> str:
    """Why the controller that gives the GUID `found` may not be told anything, or ''. `recorded`: the machine's, '' if it never gave one."""
    if not recorded:
        return ""
    if found is None:
        return f"{bmc.host} does not answer, or does not say which machine it belongs to"
    return "" if found == recorded else f"{bmc.host} belongs to another machine (GUID {found}, recorded {recorded})"


def _brief(out: str) -> str:
    lines = [line.strip() for line in out.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no answer"
