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
from sim.fakezk import FakeServer, FakeZooKeeper

from pvcd import ipmi as adapter
from pvcd.bmc import Answer, Bmc, Kind, Power, Purpose, Question
from pvcd.cluster.store import Store
from pvcd.ipmi import Ipmi
from pvcd.questions import GATE_S, OFF_CALL_S, Questions

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


def answers(questions: Questions, woken: threading.Event, count: int) -> dict[str, Answer]:
    """The next answers, by node."""
    found: dict[str, Answer] = {}
    deadline = time.monotonic() + 30
    while len(found) < count:
        assert woken.wait(deadline - time.monotonic()), f"{len(found)} of {count} answers"
        woken.clear()
        found |= {answer.node: answer for answer in questions.collect()}
    return found


def test_a_controller_that_answers_after_long_lets_nobody_else_wait(sim: IpmiSim, tmp_path: Path) -> None:
    """One of two answers when it is let: the whole fence of the other goes by meanwhile, on the real program for both."""
    (tmp_path / "held").touch()
    program = tmp_path / "ipmitool"
    program.write_text(f"#!/bin/sh\ncase \"$*\" in *localhost*) while [ -e {tmp_path}/held ]; do sleep 0.05; done;; esac\nexec {adapter.PROGRAM} \"$@\"\n")
    program.chmod(0o755)
    ipmi, woken = Ipmi(program=str(program), port=sim.port), threading.Event()
    questions = Questions(ipmi, Store(FakeZooKeeper(FakeServer(), "a")), time.monotonic, woken.set, lambda _name: None)
    questions.start()
    sim.set_power(True)
    try:
        questions.ask(Question(Purpose.FENCE, "slow", Kind.STATUS, Bmc("localhost", USER, PASSWORD)))
        for kind in (Kind.IDENTITY, Kind.OFF, Kind.STATUS, Kind.STATUS, Kind.ON):
            questions.ask(Question(Purpose.FENCE, "quick", kind, Bmc("127.0.0.1", USER, PASSWORD), "" if kind is Kind.IDENTITY else "127.0.0.1"))
            found = answers(questions, woken, 1)
            assert set(found) == {"quick"} and found["quick"].kind is kind
            assert found["quick"].power is Power.OFF if kind is Kind.STATUS else found["quick"].sent is (kind in (Kind.OFF, Kind.ON))
        (tmp_path / "held").unlink()
        assert answers(questions, woken, 1)["slow"].power is Power.ON
    finally:
        (tmp_path / "held").unlink(missing_ok=True)
        questions.stop()


def test_an_order_to_switch_off_is_short(tmp_path: Path, bmc: Bmc) -> None:
    """Whatever the deadline of a question is: what is sent late may hit a machine that has booted."""
    program = tmp_path / "hangs"
    program.write_text("#!/bin/sh\necho $@ >>" + f"{tmp_path}/calls\nexec sleep 60\n")
    program.chmod(0o755)
    ipmi = Ipmi(program=str(program), deadline_s=50.0)
    ipmi._ciphers[bmc.host] = 17
    started = time.monotonic()
    assert "no answer in 0.5 s" in ipmi.off(bmc, 0.5) and time.monotonic() - started < 10
    assert (tmp_path / "calls").read_text().count("\n") == 1, "one cipher suite, one call"
    assert OFF_CALL_S < 15 and GATE_S <= 4


def test_no_order_goes_to_a_controller_that_has_not_answered(tmp_path: Path, bmc: Bmc) -> None:
    program = tmp_path / "told"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/called\n")
    program.chmod(0o755)
    questions = Questions(Ipmi(program=str(program)), Store(FakeZooKeeper(FakeServer(), "a")), time.monotonic, lambda: None, lambda _name: None, workers=0)
    assert not questions.answer(Question(Purpose.FENCE, "a", Kind.OFF, bmc, "127.0.0.1")).sent
    assert not (tmp_path / "called").exists()


def test_where_a_name_leads_and_what_the_host_sees_inside(sim: IpmiSim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ipmi = Ipmi(port=sim.port)
    assert ipmi.addresses(Bmc("127.0.0.1", USER, PASSWORD)) == ("127.0.0.1",) and "127.0.0.1" in ipmi.addresses(Bmc("localhost", USER, PASSWORD))
    assert ipmi.addresses(Bmc("no-such-host.invalid", USER, PASSWORD)) == ipmi.addresses(Bmc("a" * 70, USER, PASSWORD)) == ()
    monkeypatch.setattr(adapter, "LOCAL_DEVICE", tmp_path / "none")
    assert Ipmi().local_guid() is None
    program = tmp_path / "ipmitool"
    program.write_text('#!/bin/sh\n[ "$*" = "-I open mc guid" ] && echo "System GUID  : 4c4c4544-0042-3010-8051-b4c04f4e3132"\n')
    program.chmod(0o755)
    monkeypatch.setattr(adapter, "LOCAL_DEVICE", tmp_path)
    assert Ipmi(program=str(program)).local_guid() == "4c4c4544004230108051b4c04f4e3132"
    monkeypatch.setattr(adapter, "PRODUCT_UUID", tmp_path / "uuid")
    assert ipmi.product_uuid() == ""
    (tmp_path / "uuid").write_text("4C4C4544-0042\n")
    assert ipmi.product_uuid() == "4C4C4544-0042"
