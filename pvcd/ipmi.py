# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Asks a management controller one thing and reports what it truly answered. Runs on the workers of `questions`; a call blocks at most
DEADLINE_S in each cipher suite, a look-up of a name as long as the resolver takes.

A controller that ignores `off` answers it with success, and so does a `reset` of a machine that is off: only `power status`,
read back, says anything. The password goes through the environment, which only root can read; on a command line everybody could.
"""
from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from .bmc import Bmc, Power, Reading

PROGRAM = "/usr/bin/ipmitool"
DEADLINE_S = 20.0
LOCAL_DEVICE, LOCAL_DEADLINE_S = Path("/dev/ipmi0"), 5.0
PRODUCT_UUID = Path("/sys/class/dmi/id/product_uuid")
OUTPUT_LIMIT = 4096
CIPHERS = (17, 3)
"""Suites that are tried, the stronger first; never 0, which asks for no password at all."""

_POWER = re.compile(r"chassis power is (on|off)\b", re.IGNORECASE)
_GUID = re.compile(r"System GUID\s*:\s*([0-9a-fA-F]{32}|[0-9a-fA-F-]{36})\s*$", re.MULTILINE)


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

    def off(self, bmc: Bmc, deadline_s: float = DEADLINE_S) -> str:
        """Order the power off, at once, in the cipher suite that worked last and in no other; what the controller said. It proves nothing."""
        return _brief(self._ask(bmc, "chassis", "power", "off", deadline_s=deadline_s))

    def on(self, bmc: Bmc) -> str:
        """Order the power on; what the controller said."""
        return _brief(self._ask(bmc, "chassis", "power", "on"))

    def guid(self, bmc: Bmc) -> str | None:
        """The identity of the machine behind the controller, 32 hex digits, or None where it gives none."""
        return _guid(self._ask(bmc, "mc", "guid"))

    def addresses(self, bmc: Bmc) -> tuple[str, ...]:
        """The addresses that the controller's name leads to, as ipmitool would ask them, the first first; none if it is not known."""
        try:
            found = socket.getaddrinfo(bmc.host, self._port, type=socket.SOCK_DGRAM)
        except (OSError, UnicodeError):
            return ()
        return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))

    def local_guid(self) -> str | None:
        """The GUID that this host's own controller gives through the host's interface; None where there is none."""
        if not LOCAL_DEVICE.exists():
            return None
        status, out = self._execute([self._program, "-I", "open", "mc", "guid"], "", LOCAL_DEADLINE_S)
        return _guid(out) if status == 0 else None

    def product_uuid(self) -> str:
        """The UUID that this host's firmware gives it; '' where there is none."""
        try:
            return PRODUCT_UUID.read_text(encoding="ascii", errors="replace").strip()
        except OSError:
            return ""

    def _ask(self, bmc: Bmc, *words: str, deadline_s: float | None = None) -> str:
        if bmc.problem:
            return bmc.problem
        known = self._ciphers.get(bmc.host)
        out = ""
        for cipher in (known,) if known is not None else CIPHERS:
            status, out = self._run(bmc, cipher, words, deadline_s or self._deadline_s)
            if status == 0:
                self._ciphers[bmc.host] = cipher
                return out
        self._ciphers.pop(bmc.host, None)
        return out

    def _run(self, bmc: Bmc, cipher: int, words: Sequence[str], deadline_s: float) -> tuple[int, str]:
        argv = [self._program, "-I", "lanplus", "-H", bmc.host, "-p", str(self._port), "-U", bmc.username, "-E", "-L", "OPERATOR",
                "-C", str(cipher), "-N", "2", "-R", "1", *words]
        return self._execute(argv, bmc.password, deadline_s)

    def _execute(self, argv: Sequence[str], password: str, deadline_s: float) -> tuple[int, str]:
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C", "IPMITOOL_PASSWORD": password, "IPMI_PASSWORD": password}
        try:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment,
                                       start_new_session=True)
        except OSError as error:
            return 127, f"{self._program}: {error.strerror}"
        try:
            out, _ = process.communicate(timeout=deadline_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # it leads a group of its own, with whatever it has started
            process.communicate()
            return 124, f"no answer in {deadline_s:g} s"
        return process.returncode, out[:OUTPUT_LIMIT].decode("utf-8", "replace")


def _guid(out: str) -> str | None:
    found = _GUID.search(out)
    digits = found[1].replace("-", "").lower() if found else ""
    return digits if digits.strip("0") else None


def _brief(out: str) -> str:
    lines = [line.strip() for line in out.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no answer"
