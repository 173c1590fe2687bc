# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""What a node tells of itself that only a person can put right: found, encoded, and read whatever the bytes are."""
from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pvcd.cluster import schema
from pvcd.cluster.errors import HypervisorUnknown
from pvcd.cluster.notices import Trouble, decode_troubles, encode_troubles
from pvcd.local import Guest, Kept, Status
from pvcd.troubles import KEPT_IN_MIND_S, Troubles, guests_service, stands_still

A, B = "aaaaaaaa-2222-4333-8444-555555555555", "bbbbbbbb-2222-4333-8444-555555555555"
NONE = Path("/there/is/none")


def vm(status: Status = Status.RUNNING, **words: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"held_here": True, "settled_here": True, "slow": False, "known": True, "outside": False,
                              "local": SimpleNamespace(status=status), **words})


def told(vms: dict[str, Any], guests: tuple[Guest, ...] = (), kept: tuple[Kept, ...] = (), still: tuple[str, ...] = (), **words: Any
         ) -> list[tuple[str, str]]:
    env = SimpleNamespace(**{"refuses": "", "blocked": {}, "refused_starts": {}, "clock": lambda: 5000.0, **words})
    troubles = Troubles(env, SimpleNamespace(domains=vms), lambda: kept, still.__contains__, NONE)  # type: ignore[arg-type]
    return [(found.code, found.uuid) for found in decode_troubles(troubles.told(guests).encode())]


@pytest.mark.parametrize(("status", "codes"), [
    (Status.RUNNING, []), (Status.PAUSED, ["paused"]), (Status.IO_ERROR, ["io-error"]), (Status.STUCK, ["not-resumed-here"]), (Status.MIGRATING, [])])
def test_a_guest_that_does_not_run_is_told_once_its_visit_has_seen_it(status: Status, codes: list[str]) -> None:
    guest = (Guest(A, "a", status),)
    assert told({A: vm(status)}, guest) == [(code, A) for code in codes]
    assert told({A: vm(Status.RUNNING if status is not Status.RUNNING else Status.PAUSED)}, guest) == []
    assert told({A: vm(status, settled_here=False)}, guest) == [], "it is on its way: paused for a moment"
    assert told({}, guest) == []


def test_a_hung_guest_is_told_by_its_process_or_by_libvirt() -> None:
    guests = (Guest(A, "a", Status.RUNNING), Guest(B, "b", Status.RUNNING))
    assert told({A: vm(), B: vm(slow=True)}, guests, still=("a",)) == [("hung", A), ("hung", B)]


def test_refused_starts_are_told_while_the_vm_is_elsewhere_and_not_for_ever() -> None:
    for held, at, expected in ((False, 5000.0, 1), (True, 5000.0, 0), (False, 5000.0 - KEPT_IN_MIND_S, 0)):
        assert len(told({A: vm(held_here=held)}, refused_starts={A: ("no bridge", at)})) == expected
    assert told({}, refused_starts={A: ("no bridge", 5000.0)}) == []


def test_what_libvirt_keeps_is_told_unless_it_runs_outside_pvc() -> None:
    assert told({A: vm(), B: vm()}, kept=(Kept(A, "a", True), Kept(B, "b", False))) == [("autostart", A), ("kept", B)]
    assert told({A: vm(outside=True)}, kept=(Kept(A, "a", False),)) == [] and told({}, kept=(Kept(A, "a", True),)) == []


def test_a_libvirt_that_does_not_answer_takes_nothing_else_away() -> None:
    def silent() -> tuple[Kept, ...]:
        raise HypervisorUnknown("no answer")
    env = SimpleNamespace(refuses="another host", blocked={A: "no room"}, refused_starts={}, clock=lambda: 0.0)
    found = decode_troubles(Troubles(env, SimpleNamespace(domains={}), silent, units=NONE).told(()).encode())  # type: ignore[arg-type]
    assert [trouble.code for trouble in found] == ["refuses", "blocked"] and found[0].detail == "another host"


def test_the_process_of_a_guest_says_whether_it_is_stopped(tmp_path: Path) -> None:
    (tmp_path / "a.pid").write_text("12\n")
    (tmp_path / "12").mkdir()
    for stat, still in (("12 (qemu (x) T) T 1 1", True), ("12 (qemu) S 1", False), ("12 (T) R 1", False), ("", False), ("12", False)):
        (tmp_path / "12/stat").write_text(stat)
        assert stands_still("a", tmp_path, tmp_path) is still
    assert not stands_still("b", tmp_path, tmp_path)
    (tmp_path / "c.pid").write_text("")
    (tmp_path / "stat").write_text("x) T")
    assert not stands_still("c", tmp_path, tmp_path)


def test_libvirt_guests_counts_where_it_is_enabled_and_not_masked(tmp_path: Path) -> None:
    assert not guests_service(tmp_path)
    (tmp_path / "multi-user.target.wants").mkdir()
    (tmp_path / "multi-user.target.wants/libvirt-guests.service").symlink_to("/lib/systemd/system/libvirt-guests.service")
    assert guests_service(tmp_path)
    (tmp_path / "libvirt-guests.service").symlink_to("/dev/null")
    assert not guests_service(tmp_path)


def test_the_key_holds_what_fits_and_is_read_whatever_it_is() -> None:
    many = [Trouble("blocked", A, "é" * 400)] * 2000
    raw = encode_troubles(many).encode()
    assert len(raw) <= schema.VALUE_LIMIT and 5 < len(decode_troubles(raw)) < 2000
    assert decode_troubles(encode_troubles(()).encode()) == () == decode_troubles(None)
    for garbage in (b"\xff", b"{}", b"[1", b"7", b'[["a"], [1, 2, 3], {}, null]', b"[" * 100000):
        assert decode_troubles(garbage) == ()
