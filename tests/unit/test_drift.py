# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""A VM that runs otherwise than it is defined: what is compared, who tells it, and what is refused while a disk differs."""
from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from client import UUID, Pvc

from pvcd.cluster import schema
from pvcd.cluster.errors import BadDefinition, HypervisorUnknown
from pvcd.cluster.records import Claim, Value
from pvcd.drift import Drift, compare
from pvcd.driftwatch import EVERY_S, DriftWatch

DISK = "<disk type='file' device='{kind}'><source file='{source}' index='1'/><target dev='{target}'/></disk>"
NIC = "<interface type='{kind}'><source {kind}='{source}' portid='1'/></interface>"


def domain(*devices: str, memory: str = "<memory unit='MiB'>96</memory>", extra: str = "") -> bytes:
    return (f"<domain><name>web1</name><uuid>{UUID}</uuid>{memory}{extra}<devices>{''.join(devices)}</devices></domain>").encode()


def disk(target: str = "vda", source: str = "/a", kind: str = "disk") -> str:
    return DISK.format(target=target, source=source, kind=kind)


def nic(source: str = "br0") -> str:
    return NIC.format(kind="bridge", source=source)


@pytest.mark.parametrize(("live", "stored", "disks", "others"), [
    (domain(disk(), nic()), domain(disk(), nic()), 0, 0),
    (domain(disk(source="/a.snap1")), domain(disk()), 1, 0),
    (domain(disk(), disk("vdb", "/b")), domain(disk()), 0, 1),
    (domain(disk()), domain(disk(), disk("vdb", "/b")), 0, 1),
    (domain(disk(source="/x.iso", kind="cdrom")), domain(disk(source="/y.iso", kind="cdrom")), 0, 0),
    (domain(nic(), nic()), domain(nic()), 0, 1),
    (domain(nic("br1")), domain(nic("br0")), 0, 2),
    (domain(memory="<memory unit='KiB'>98304</memory>"), domain(), 0, 0),
    (domain(memory="<memory unit='KiB'>131072</memory>"), domain(), 0, 1),
    (domain(memory="<memory unit='KiB'>131072</memory>"), domain(extra="<cpu><numa/></cpu>"), 0, 0)])
def test_what_differs(live: bytes, stored: bytes, disks: int, others: int) -> None:
    found = compare(live, stored)
    assert (len(found.disks), len(found.others)) == (disks, others), found
    assert disks == 0 or found.disks[0] == "vda: runs on /a.snap1, defined as /a"


def test_what_cannot_be_read_is_no_difference() -> None:
    with pytest.raises(BadDefinition):
        compare(domain(), b"<!DOCTYPE x><domain/>")
    with pytest.raises(ValueError, match=""):
        compare(b"<domain", domain())


class Store:
    """What a watch needs of the real one."""

    def __init__(self) -> None:
        self.stored, self.meta, self.writes = domain(disk()), dict[str, object](), 0

    def xml(self, _uuid: str) -> Value:
        return Value(self.stored, 1)

    def metas(self, uuids: Sequence[str]) -> dict[str, dict[str, object]]:
        return dict.fromkeys(uuids, self.meta)

    def write_meta(self, _uuid: str, value: dict[str, object]) -> None:
        self.meta, self.writes = {**self.meta, **value}, self.writes + 1


def test_a_difference_is_told_once_and_taken_back_when_it_is_over() -> None:
    store, live, clock, said = Store(), [domain(disk())], [0.0], []
    watch = DriftWatch(store, lambda _uuid: live[0].decode(), lambda: clock[0], lambda _level, text: said.append(text))  # type: ignore[arg-type]

    def later() -> None:
        clock[0] += EVERY_S
        watch.look([UUID])
    later()
    assert store.writes == 0 and not said
    live[0] = domain(disk(source="/a.snap1"))
    watch.look([UUID])
    assert store.writes == 0, "more often than once a minute"
    later()
    later()
    assert store.writes == 1 and len(said) == 1 and "/a.snap1" in str(store.meta["differs_disks"])
    live[0] = domain(disk())
    later()
    assert store.writes == 2 and store.meta["differs"] == store.meta["differs_disks"] == ""


def test_a_new_daemon_takes_back_what_an_earlier_one_told() -> None:
    store = Store()
    store.meta = {"differs": "vda: x", "differs_disks": "vda: x", "reason": "kept"}
    DriftWatch(store, lambda _uuid: domain(disk()).decode(), lambda: 0.0, lambda *_: None).look([UUID])  # type: ignore[arg-type]
    assert store.meta == {"differs": "", "differs_disks": "", "reason": "kept"}


def test_no_answer_is_no_difference_and_hides_no_other_vm() -> None:
    store, asked = Store(), []

    def live(uuid: str) -> str | None:
        asked.append(uuid)
        if uuid == "hangs":
            raise HypervisorUnknown("no answer")
        return None if uuid == "gone" else domain(disk(source="/b")).decode()
    watch = DriftWatch(store, live, lambda: 0.0, lambda *_: None)  # type: ignore[arg-type]
    watch.look(["gone", "hangs", UUID])
    assert store.writes == 1 and len(asked) == 3
    watch.look(["gone", "hangs", UUID])
    assert asked.count("hangs") == 2 and asked.count(UUID) == 1
    assert Drift() == Drift((), ())


@pytest.mark.parametrize("verb", ["stop", "shutdown", "restart"])
def test_a_vm_on_other_disks_is_ended_only_by_force(pvc: Pvc, verb: str) -> None:
    pvc.define()
    pvc.put("state", "start")
    meta = {"differs": "vda: runs on /a.snap1, defined as /a; memory", "differs_disks": "vda: runs on /a.snap1, defined as /a"}
    pvc.server.put(schema.vmmeta(UUID), json.dumps(meta))
    pvc.server.put(schema.claim(UUID), Claim("hv1", "hv1/0").encode())
    yes = ["-y"] if verb == "stop" else []
    code, _, err = pvc("vm", verb, "web1", *yes)
    assert code == 4 and "/a.snap1" in err and "--force" in err and pvc.words()[0] == "start"
    assert "differs" in pvc("status", "-f", "json")[1] and "/a.snap1" in pvc("vm", "info", "web1")[1]
    code, _, _ = pvc("vm", verb, "web1", "--force", *yes)
    assert code == 0 and pvc.words()[0] == verb
