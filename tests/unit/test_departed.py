# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""A process that ends counts as a migrated guest's only with libvirt's own record that the destination has it."""
from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvcd.departed import Departure, watch

RECORD = """<!--
WARNING: THIS IS AN AUTO-GENERATED FILE.
-->

<domstatus state='paused' reason='migration' pid='{pid}'>
  <taint flag='high-privileges'/>
  <job type='none' async='migration out' phase='{phase}' flags='0x3223' asyncStarted='1796036623484'>
  </job>
</domstatus>
"""
"""as libvirt 9.0 writes it"""
WAIT_S = 20.0


@pytest.fixture
def qemu() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()


def record(folder: Path, pid: int, phase: str) -> None:
    (folder / "vm1.xml").write_text(RECORD.format(pid=pid, phase=phase))


def ends(departure: Departure, process: subprocess.Popen[bytes]) -> None:
    """The process ends, and whoever watches has seen it."""
    watcher = next(thread for thread in threading.enumerate() if thread.name == f"departure-{process.pid}")
    assert not departure.left
    process.kill()
    watcher.join(WAIT_S)
    assert not watcher.is_alive()


@pytest.mark.parametrize(("phase", "left"), [("confirm3", True), ("perform3_done", False), ("confirm3_cancelled", False), ("perform3", False), ("", False)])
def test_only_a_process_that_libvirt_has_ended_after_the_destinations_word(tmp_path: Path, qemu: subprocess.Popen[bytes], phase: str, left: bool) -> None:
    record(tmp_path, qemu.pid, "perform3")
    told = threading.Event()
    departure = watch("vm1", lambda: True, told.set, tmp_path)
    assert departure is not None
    record(tmp_path, qemu.pid, phase)
    ends(departure, qemu)
    assert (departure.left, told.is_set()) == (left, left)


@pytest.mark.parametrize("found", [None, "", "<domstatus state='paused' pid='1'>\n<job type='none' async='migration out' phase='confirm3'>", "\0" * 99])
def test_a_record_that_is_gone_or_anothers_says_nothing(tmp_path: Path, qemu: subprocess.Popen[bytes], found: str | None) -> None:
    record(tmp_path, qemu.pid, "perform3")
    departure = watch("vm1", lambda: True, lambda: None, tmp_path)
    assert departure is not None
    if found is None:
        (tmp_path / "vm1.xml").unlink()
    else:
        (tmp_path / "vm1.xml").write_text(found)
    ends(departure, qemu)
    assert not departure.left


def test_nothing_is_watched_that_cannot_be_told(tmp_path: Path, qemu: subprocess.Popen[bytes]) -> None:
    def look(same: bool = True) -> Departure | None:
        return watch("vm1", lambda: same, lambda: None, tmp_path)
    assert look() is None
    (tmp_path / "vm1.xml").write_text("<domstatus state='running'>")
    assert look() is None
    record(tmp_path, 1 << 30, "perform3")
    assert look() is None
    record(tmp_path, qemu.pid, "perform3")
    assert look(same=False) is None


def test_the_watch_ends_with_the_call(tmp_path: Path, qemu: subprocess.Popen[bytes]) -> None:
    record(tmp_path, qemu.pid, "confirm3")
    departure = watch("vm1", lambda: True, lambda: None, tmp_path)
    assert departure is not None
    watcher = next(thread for thread in threading.enumerate() if thread.name == f"departure-{qemu.pid}")
    departure.end()
    watcher.join(WAIT_S)
    assert not watcher.is_alive() and not departure.left and qemu.poll() is None
