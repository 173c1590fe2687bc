# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""libvirt in its worst mood: guests with a balloon whose QEMU is stopped. Nothing that others wait for may wait for them."""
from __future__ import annotations

import os
import queue
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from pvcd.hypervisor import HUNG_MS, LibvirtHypervisor
from pvcd.local import Ending, Local, Status

from .libvirtd import UUID, Libvirtd, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "-")
AT_ONCE_S = 2.0
"""What takes 1 ms, on a busy machine."""
POWER_OFF = bytes.fromhex("ba0406" "b80020" "ef" "f4" "ebfd")
"""mov dx, 0x604; mov ax, 0x2000; out dx, ax; hlt: ACPI's own power-off"""
REBOOT = bytes.fromhex("b0fe" "e664" "f4" "ebfd")
"""mov al, 0xfe; out 0x64, al; hlt: the keyboard controller's reset"""


@pytest.fixture(scope="module")
def part() -> Iterator[Libvirtd]:
    folder = Path(tempfile.mkdtemp(prefix="pvc-libvirt-"))  # not below pytest's folder, which is closed to other users
    found = Libvirtd(folder)
    try:
        found.start()
        yield found
    finally:
        found.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def host(part: Libvirtd) -> Iterator[LibvirtHypervisor]:
    rings: queue.Queue[str | None] = queue.Queue()
    found = LibvirtHypervisor(rings.put, uri=part.uri)
    found.start(20)
    yield found
    found.stop()


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """How long a call takes, and its answer; on a thread, so that a call that hangs is a failure and nothing worse."""
    started, answers = time.monotonic(), []
    thread = threading.Thread(target=lambda: answers.append(call()), daemon=True)
    thread.start()
    thread.join(20)
    assert answers, "it hangs"
    return time.monotonic() - started, answers[0]


def wait(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def balloon(uri: str) -> None:
    """What anybody may ask: the first caller sends it to the monitor, and waits there."""
    try:
        libvirt.open(uri).lookupByUUIDString(UUID.format(1)).memoryStats()
    except libvirt.libvirtError:
        return


def test_a_stopped_qemu_holds_up_no_look_and_no_inventory(part: Libvirtd, host: LibvirtHypervisor) -> None:
    for number in (1, 2):
        host.create(part.xml(number))
    os.kill(part.qemu(1), signal.SIGSTOP)
    uuid = UUID.format(1)
    try:
        took_s, guests = timed(host.inventory)
        assert took_s < AT_ONCE_S and [guest.status for guest in guests] == [Status.RUNNING] * 2, took_s
        took_s, local = timed(lambda: host.look(uuid))
        assert took_s < AT_ONCE_S and local == Local(Status.RUNNING), "nobody has asked it yet: nobody can know"
        threading.Thread(target=balloon, args=(part.uri,), daemon=True).start()
        wait(lambda: host.look(uuid).slow, HUNG_MS / 1000 + 10)
        for _ in range(3):
            took_s, local = timed(lambda: host.look(uuid))
            assert took_s < AT_ONCE_S and local == Local(Status.RUNNING, slow=True, busy=True), (took_s, local)
            took_s, guests = timed(host.inventory)
            assert took_s < AT_ONCE_S and len(guests) == 2, took_s
        took_s, other = timed(lambda: host.look(UUID.format(2)))
        assert took_s < AT_ONCE_S and other == Local(Status.RUNNING)
        took_s, _ = timed(lambda: host.shut_down(uuid))
        assert took_s < 2 + AT_ONCE_S, "the visit goes on to its deadline"
        took_s, _ = timed(lambda: host.shut_down(uuid))
        assert took_s < AT_ONCE_S, "one request waits for the monitor, not two"
        fresh = LibvirtHypervisor(lambda _uuid: None, uri=part.uri)
        took_s, _ = timed(lambda: (fresh.start(15), fresh.inventory(), fresh.look(uuid)))
        fresh.stop()
        assert took_s < 2 * AT_ONCE_S, "a daemon that starts now asks no guest"
    finally:
        host.destroy(uuid)
        host.destroy(UUID.format(2))
    assert host.look(uuid) == Local(Status.ABSENT, ending=Ending.DESTROYED)


ENDS = [(POWER_OFF, "restart", Ending.GUEST), (REBOOT, "destroy", Ending.GUEST), (b"", "restart", Ending.CRASHED)]


@pytest.mark.parametrize(("boot", "on_reboot", "how"), ENDS,
                         ids=["powers itself off", "reboots with on_reboot=destroy", "its QEMU is killed"])
def test_how_a_guest_ended_is_known(part: Libvirtd, host: LibvirtHypervisor, boot: bytes, on_reboot: str, how: Ending) -> None:
    host.create(part.xml(3, on_reboot, boot))
    if not boot:
        os.kill(part.qemu(3), signal.SIGKILL)
    wait(lambda: host.look(UUID.format(3)).status is Status.ABSENT)
    wait(lambda: host.look(UUID.format(3)).ending is not Ending.UNKNOWN, 5)
    assert host.look(UUID.format(3)).ending is how
