# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""A management controller per node: ipmi_sim on an address of the bridge, whose power button really cuts the node's power."""
from __future__ import annotations

import os
import signal
import sys
import time
import uuid
from pathlib import Path

from .files import BMC_PASSWORD, BMC_USER
from .host import CHECKOUT, LabError, alive, run_detached, wait_for

MODES = ("ok", "dead", "slow", "lie", "lie-off", "wrong", "badpw")
SLOW_S = 10.0

LAN = """name "{node}"
set_working_mc 0x20
startlan 1
  addr {address} 623
  guid {guid}
  priv_limit admin
  allowed_auths_callback none md2 md5 straight
  allowed_auths_user none md2 md5 straight
  allowed_auths_operator none md2 md5 straight
  allowed_auths_admin none md2 md5 straight
endlan
chassis_control "{program} --name {lab} bmc-power {node}"
user 1 true "" "{password}" user 10 none md2 md5 straight
user 2 true "{user}" "{password}" admin 10 none md2 md5 straight
"""
EMULATION = """mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr
mc_enable 0x20
"""


class Bmc:
    """The controller of node `node` at `address`; `folder` holds its files."""

    def __init__(self, lab: str, node: str, address: str, folder: Path) -> None:
        self.lab, self.node, self.address, self.folder = lab, node, address, folder

    @property
    def mode(self) -> str:
        try:
            return (self.folder / "mode").read_text().strip()
        except OSError:
            return "ok"

    def set_mode(self, mode: str) -> None:
        """Change how it behaves. It restarts, as far as its address, identity or password are concerned."""
        if mode not in MODES:
            raise LabError(f"a BMC can be {', '.join(MODES)}; not {mode}")
        self.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "mode").write_text(mode + "\n")
        (self.folder / "reported-off").unlink(missing_ok=True)
        if mode != "dead":
            self._start(mode)

    def _start(self, mode: str) -> None:
        owner = f"another machine than {self.node}" if mode == "wrong" else self.node
        password = "something else" if mode == "badpw" else BMC_PASSWORD
        (self.folder / "state").mkdir(exist_ok=True)
        (self.folder / "lan.conf").write_text(LAN.format(
            node=self.node, address=self.address, guid=uuid.uuid5(uuid.NAMESPACE_DNS, f"{self.lab} {owner}").hex, lab=self.lab,
            user=BMC_USER, password=password, program=CHECKOUT / "tests/lab/pvclab"))
        (self.folder / "emu").write_text(EMULATION)
        pid = run_detached(["ipmi_sim", "-n", "-c", str(self.folder / "lan.conf"), "-f", str(self.folder / "emu"),
                            "-s", str(self.folder / "state")], self.folder / "log")
        (self.folder / "pid").write_text(f"{pid}\n")

    @property
    def pid(self) -> int | None:
        try:
            pid = int((self.folder / "pid").read_text())
            return pid if alive(pid) and b"ipmi_sim" in Path(f"/proc/{pid}/cmdline").read_bytes() else None
        except (OSError, ValueError):
            return None

    def orders(self) -> list[str]:
        """What it has been told to do so far: a time and `set power 0`, for example. Questions are not among it."""
        try:
            return (self.folder / "commands").read_text().splitlines()
        except OSError:
            return []

    def stop(self) -> None:
        pid = self.pid
        if pid:
            os.kill(pid, signal.SIGKILL)
            wait_for(f"the BMC of {self.node} is down", lambda: not alive(pid), 5)


def answer(bmc: Bmc, words: list[str], has_power: bool, power_off: list[str], power_on: list[str]) -> int:
    """What ipmi_sim's `chassis_control` program does: `get power`, `set power 0|1`, `set reset 1`.

    `power_off` and `power_on` are commands that cut and restore the node's power; they run on their own, as a real button
    does not wait either.
    """
    reported_off = bmc.folder / "reported-off"
    if words[:2] == ["get", "power"]:
        print(f"power:{int(has_power and not (bmc.mode == 'lie-off' and reported_off.exists()))}")
        return 0
    if words[:1] != ["set"]:
        return 1
    with (bmc.folder / "commands").open("a") as log:
        log.write(f"{time.time():.3f} {' '.join(words)}\n")
    if bmc.mode in ("lie", "lie-off"):
        reported_off.touch()
        return 0
    if words[1:] == ["power", "0"] and has_power:
        delayed = ["sh", "-c", f"sleep {SLOW_S}; exec \"$@\"", "sh"] if bmc.mode == "slow" else []
        run_detached([*delayed, *power_off], bmc.folder / "log")
    elif words[1:] == ["power", "1"] and not has_power:
        run_detached(power_on, bmc.folder / "log")
    elif words[1:] == ["reset", "1"] and has_power:
        run_detached(["sh", "-c", f"{' '.join(power_off)} && {' '.join(power_on)}"], bmc.folder / "log")
    sys.stdout.flush()
    return 0
