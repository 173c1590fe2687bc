# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The memory of a definition, in libvirt's units; and which VM an argument names."""
from __future__ import annotations

import pytest
from client import OTHER, UUID
from sim.fakezk import FakeServer, FakeZooKeeper

from pvc import objects
from pvcd.cluster import definition, schema
from pvcd.cluster.errors import NotFound, Refusal
from pvcd.cluster.store import Store


@pytest.mark.parametrize(("text", "unit", "mib"), [
    ("1048576", None, 1024), ("1048577", None, 1025), ("1", "", 1), ("1", "KiB", 1), ("2", "MiB", 2), ("2", "M", 2), ("3", "GiB", 3072), ("3", "G", 3072),
    ("1", "TiB", 2**20), ("1", "T", 2**20), ("1", "PiB", 2**30), ("1", "EiB", 2**40), ("1", "GB", 954), ("1000", "MB", 954), ("1000000", "KB", 954),
    ("1", "TB", 953675), ("1", "PB", 953674317), ("1048576", "b", 1), ("1048577", "bytes", 2), ("2048", "k", 2), (" 1024 ", "mib", 1024),
    ("1", "parsecs", None), ("-1", "MiB", None), ("1.5", "GiB", None), ("", None, None), (None, None, None), ("٣", "GiB", None), ("9" * 19, "b", None)])
def test_memory_in_the_units_of_libvirt_rounded_up(text: str | None, unit: str | None, mib: int | None) -> None:
    assert definition.memory_mib(text, unit) == mib


def test_which_vm_an_argument_names() -> None:
    server = FakeServer()
    store = Store(FakeZooKeeper(server, "client"))
    store.ensure_roots()
    with pytest.raises(NotFound):
        objects.find_vm(store, UUID)
    for uuid, name in ((UUID, "web1"), (OTHER, "twin"), (OTHER.replace("555", "556"), "twin")):
        server.put(schema.domain(uuid), name)
    assert objects.find_vm(store, UUID) == objects.find_vm(store, UUID.upper()) == objects.find_vm(store, "1111") == UUID
    assert objects.find_vm(store, "web1") == objects.find_vm(store, UUID[:20].upper()) == UUID
    for wanted in ("twin", "2111"):
        with pytest.raises(Refusal) as refused:
            objects.find_vm(store, wanted)
        assert not isinstance(refused.value, NotFound)
    for wanted in ("111", "web", "9999", UUID.replace("1", "3")):
        with pytest.raises(NotFound):
            objects.find_vm(store, wanted)
