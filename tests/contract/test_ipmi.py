# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""ipmitool and what PVC believes of it, on a real ipmi_sim."""
from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvcd.ipmi import Bmc, Ipmi, Power

from .servers import IpmiSim, free_port

USER, PASSWORD = "admin", "s%cret"


@pytest.fixture(scope="module")
def sim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IpmiSim]:
    found = IpmiSim(tmp_path_factory.mktemp("bmc"), USER, PASSWORD)
    ipmi = Ipmi(port=found.port)
    deadline = time.monotonic() + 20
    while ipmi.status(Bmc("127.0.0.1", USER, PASSWORD)).power is Power.UNKNOWN:
        assert time.monotonic() < deadline and found.process.poll() is None
    yield found
    found.stop()


@pytest.fixture
def bmc() -> Bmc:
    return Bmc("127.0.0.1", USER, PASSWORD)


def test_power_goes_off_and_on_and_is_read_back(sim: IpmiSim, bmc: Bmc) -> None:
    ipmi = Ipmi(port=sim.port)
    sim.set_power(True)
    assert ipmi.status(bmc).power is Power.ON
    ipmi.off(bmc)
    assert not sim.power and ipmi.status(bmc).power is Power.OFF
    ipmi.off(bmc)
    assert ipmi.status(bmc).power is Power.OFF
    ipmi.on(bmc)
    assert sim.power and ipmi.status(bmc).power is Power.ON


def test_the_cipher_that_works_is_remembered(sim: IpmiSim, bmc: Bmc) -> None:
    ipmi = Ipmi(port=sim.port)
    assert ipmi.cipher(bmc) is None
    ipmi.status(bmc)
    assert ipmi.cipher(bmc) == 3
    started = time.monotonic()
    ipmi.status(bmc)
    assert time.monotonic() - started < 3


def test_the_identity_of_the_machine(sim: IpmiSim, bmc: Bmc) -> None:
    found = Ipmi(port=sim.port).guid(bmc)
    assert found is not None and len(found) == 32 and sorted(found) == sorted("00112233445566778899aabbccddeeff")


def test_a_wrong_password_and_a_dead_controller_are_unknown_and_bounded(sim: IpmiSim, bmc: Bmc) -> None:
    wrong = Ipmi(port=sim.port).status(Bmc("127.0.0.1", USER, "wrong"))
    assert wrong.power is Power.UNKNOWN and wrong.detail
    started = time.monotonic()
    dead = Ipmi(port=free_port()).status(bmc)
    assert dead.power is Power.UNKNOWN and dead.detail and time.monotonic() - started < 20
    assert Ipmi(port=free_port()).guid(bmc) is None


@pytest.mark.parametrize(("host", "user", "password"), [
    ("", "u", "p"), ("h", "", "p"), ("h", "u", ""), ("-h", "u", "p"), ("h;x", "u", "p"), ("h", "-u", "p"), ("h", "u", "p" * 21), ("h", "u", "p\n")])
def test_what_could_be_taken_for_an_option_is_never_passed_on(host: str, user: str, password: str) -> None:
    reading = Ipmi(program="/nonexistent").status(Bmc(host, user, password))
    assert reading.power is Power.UNKNOWN and "BMC" in reading.detail


def test_a_program_that_hangs_is_killed_with_all_it_has_started(tmp_path: Path, bmc: Bmc) -> None:
    program = tmp_path / "hangs"
    program.write_text(f"#!/bin/sh\nsleep 60 &\necho $! > {tmp_path}/child\nwait\n")
    program.chmod(0o755)
    started = time.monotonic()
    reading = Ipmi(program=str(program), deadline_s=0.5).status(bmc)
    assert reading.power is Power.UNKNOWN and "no answer" in reading.detail and time.monotonic() - started < 5
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 5
    while Path(f"/proc/{child}").exists() and Path(f"/proc/{child}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline


def test_the_password_is_on_no_command_line(sim: IpmiSim, bmc: Bmc) -> None:
    seen: list[bytes] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            for entry in os.listdir("/proc"):
                if entry.isdigit():
                    try:
                        command = Path(f"/proc/{entry}/cmdline").read_bytes()
                    except OSError:
                        continue
                    if b"ipmitool" in command:
                        seen.append(command)
    watcher = threading.Thread(target=look)
    watcher.start()
    ipmi = Ipmi(port=sim.port)
    for _ in range(5):
        ipmi.status(bmc)
    stop.set()
    watcher.join()
    assert seen and not any(PASSWORD.encode() in command for command in seen)
    assert PASSWORD not in repr(bmc)
