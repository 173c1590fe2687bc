# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The verbs on local domains, on libvirt's own test driver and on the simulator's model."""
from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import pytest
from sim.fakehypervisor import Fabric, FakeHypervisor

from pvcd.cluster.errors import HypervisorError, HypervisorUnknown
from pvcd.connections import Connections
from pvcd.hypervisor import LibvirtHypervisor
from pvcd.local import Status

UUID = "11111111-2222-4333-8444-555555555555"
OTHER = "21111111-2222-4333-8444-555555555555"
XML = "<domain type='test'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>64</memory><os><type>hvm</type></os></domain>"


@pytest.fixture(params=["fake", "libvirt"])
def host(request: pytest.FixtureRequest) -> Iterator[tuple[Any, queue.Queue[str | None]]]:
    rings: queue.Queue[str | None] = queue.Queue()
    if request.param == "fake":
        fake = FakeHypervisor(Fabric(lambda: 0.0), "a")
        fake.notify = rings.put
        yield fake, rings
        return
    real = LibvirtHypervisor(rings.put, uri="test:///default")
    real.start(10)
    assert rings.get(timeout=5) is None  # look at everything
    for guest in real.inventory():
        real.destroy(guest.uuid)
        rings.get(timeout=5)
    yield real, rings
    for guest in real.inventory():
        real.destroy(guest.uuid)
    real.stop()


def test_a_domain_comes_and_goes(host: tuple[Any, queue.Queue[str | None]]) -> None:
    hypervisor, rings = host
    assert hypervisor.look(UUID).status is Status.ABSENT and hypervisor.inventory() == ()
    hypervisor.create(XML.format(name="web1", uuid=UUID))
    assert rings.get(timeout=5) == UUID
    assert hypervisor.look(UUID).status is Status.RUNNING and not hypervisor.look(UUID).job
    assert [(guest.uuid, guest.name, guest.status) for guest in hypervisor.inventory()] == [(UUID, "web1", Status.RUNNING)]
    hypervisor.destroy(UUID)
    assert rings.get(timeout=5) == UUID
    assert hypervisor.look(UUID).status is Status.ABSENT


def test_verbs_on_an_absent_domain_are_no_errors(host: tuple[Any, queue.Queue[str | None]]) -> None:
    hypervisor, _ = host
    for verb in (hypervisor.destroy, hypervisor.shut_down, hypervisor.resume, hypervisor.abort_migration, hypervisor.forget_call):
        verb(UUID)


def test_bad_xml_is_a_definite_and_permanent_no(host: tuple[Any, queue.Queue[str | None]]) -> None:
    hypervisor, _ = host
    with pytest.raises(HypervisorError) as error:
        hypervisor.create("<domain><name>")
    assert error.value.permanent


def test_a_name_or_uuid_in_use_is_a_definite_no(host: tuple[Any, queue.Queue[str | None]]) -> None:
    hypervisor, _ = host
    hypervisor.create(XML.format(name="web1", uuid=UUID))
    for name, uuid in (("web1", OTHER), ("web1", UUID)):
        with pytest.raises(HypervisorError) as error:
            hypervisor.create(XML.format(name=name, uuid=uuid))
        assert not error.value.permanent
    assert len(hypervisor.inventory()) == 1


def test_no_libvirt_is_unknown_not_absent() -> None:
    gone = LibvirtHypervisor(lambda _uuid: None, uri="qemu+tcp://127.0.0.1:1/system")
    assert gone.look(UUID).status is Status.UNKNOWN
    with pytest.raises(HypervisorUnknown):
        gone.start(1.0)
    for call in (gone.inventory, lambda: gone.create("<domain/>"), lambda: gone.destroy(UUID)):
        with pytest.raises(HypervisorUnknown):
            call()
    assert gone.look(UUID).status is Status.UNKNOWN and gone.look(UUID).detail
    gone.stop()


def test_a_connection_is_lent_to_one_thread_at_a_time() -> None:
    rings: queue.Queue[str | None] = queue.Queue()
    connections = Connections("test:///default", 2, rings.put)
    with pytest.raises(HypervisorUnknown, match="not connected yet"), connections.lend():
        pass
    connections.start(10)
    with connections.lend() as first:
        with connections.lend() as second:
            assert first is not second
            with pytest.raises(HypervisorUnknown, match="in use"), connections.lend():
                pass
        with connections.lend() as again:
            assert again is second
    assert all(thread.is_alive() for thread in connections.threads)
    connections.stop()


def test_a_lost_connection_is_lent_no_more_and_another_is_opened() -> None:
    rings: queue.Queue[str | None] = queue.Queue()
    connections = Connections("test:///default", 1, rings.put)
    connections.start(10)
    assert rings.get(timeout=5) is None
    with connections.lend() as first:
        connections._closed(first, 0, 2)  # what libvirt's close callback does: 1 listens, 2 is lent
        assert rings.get(timeout=5) is None, "they are complete again: look at everything"
        with connections.lend() as second:
            assert second is not first
    with connections.lend() as third:
        assert third is second, "the lost one did not come back"
    connections.stop()
