# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Joining the cluster: which rule applies, what it writes, and who is refused; on the models of ZooKeeper and libvirt."""
from __future__ import annotations

import pytest
from sim.fakehypervisor import Fabric, FakeHypervisor
from sim.fakezk import FakeServer, FakeZooKeeper

from pvcd.cluster import schema
from pvcd.cluster.records import Claim, Fence, FenceRecord, decode_fence
from pvcd.cluster.schema import FencePhase, Unknown
from pvcd.cluster.store import Store
from pvcd.registration import LATE_POWER_OFF_S, Refused, Registration, Start, adoptable, decide

UUID = "11111111-2222-4333-8444-555555555555"
XML = f"<domain><name>web1</name><uuid>{UUID}</uuid><memory unit='MiB'>64</memory></domain>"
UP, FENCING, FENCED, REMOVED = FencePhase.UP, FencePhase.FENCING, FencePhase.FENCED, FencePhase.REMOVED


@pytest.mark.parametrize(("phase", "inc", "forced", "expected"), [
    (UP, "b1/0", False, Start("R3", "b1/0")), (UP, "b1/4", False, Start("R3", "b1/4")), (UP, "b0/4", False, Start("R2", "b1/0")),
    (FENCING, "b1/0", False, Start("R3", "b1/0")), (FENCING, "b0/0", False, Start("R2", "b1/0", LATE_POWER_OFF_S)),
    (FENCING, "b0/0", True, Start("R2", "b1/0", LATE_POWER_OFF_S)), (FENCED, "b0/0", False, Start("R2", "b1/0")),
    (FENCED, "b1/0", False, Start("R6", "b1/1", destroy=True)), (FENCED, "b1/7", False, Start("R6", "b1/8", destroy=True)),
    (REMOVED, "b1/7", False, Start("R6", "b1/8")), (REMOVED, "b0/7", False, Start("R6", "b1/8"))])
def test_the_rule(phase: FencePhase, inc: str, forced: bool, expected: Start) -> None:
    assert decide(FenceRecord(Fence(inc, phase, forced=forced), 3), "b1") == expected


def test_the_first_start_and_what_is_refused() -> None:
    assert decide(FenceRecord(None, -1), "b1") == Start("R1", "b1/0")
    with pytest.raises(Refused, match="operator"):
        decide(FenceRecord(Fence("b1/0", FENCING, forced=True), 3), "b1")
    with pytest.raises(Refused, match="cannot be understood"):
        decide(FenceRecord(Unknown(b"{"), 3), "b1")


class Node:
    """One node on an empty cluster."""

    def __init__(self) -> None:
        self.server = FakeServer()
        self.store = Store(FakeZooKeeper(self.server, "a"))
        self.hypervisor = FakeHypervisor(Fabric(lambda: 0.0), "a")

    def start(self, boot: str = "b1", machine: str = "m1") -> tuple[Start, int]:
        return Registration(self.store, self.hypervisor, "a", boot, machine, "now").run({"staticdata": "2 x y z", "protocol": "0"})

    def fence(self) -> Fence:
        found = decode_fence(self.server.nodes[schema.fence("a")].data)
        assert isinstance(found, Fence)
        return found

    def guest(self, claim: Claim | None) -> None:
        self.hypervisor.create(XML)
        self.server.put(schema.claim(UUID), claim.encode() if claim else b"")


def test_a_new_node_gets_all_its_keys() -> None:
    node = Node()
    start, version = node.start()
    assert start.rule == "R1" and version == 0 and (node.fence().inc, node.fence().phase) == ("b1/0", UP)
    assert node.server.text(schema.node("a")) == "hypervisor"
    words = {key: node.server.text(schema.node_key("a", key)) for key in ("daemonstate", "domainstate", "memfree", "runningdomains", "incarnation")}
    assert words == {"daemonstate": "stop", "domainstate": "ready", "memfree": "0", "runningdomains": "", "incarnation": "b1/0"}
    assert all(root in node.server.nodes for root in schema.ROOTS)


def test_a_node_that_comes_back_after_a_death_is_not_silent_any_more() -> None:
    node = Node()
    node.start("b0")
    before = node.server.nodes[schema.node_key("a", "keepalive")].version
    node.server.put(schema.fence("a"), Fence("b0/0", FENCED, ka=before).encode())
    node.start("b1")
    assert node.server.nodes[schema.node_key("a", "keepalive")].version > before


def test_a_restart_changes_no_word_and_no_incarnation() -> None:
    node = Node()
    node.start()
    node.server.put(schema.node_key("a", "domainstate"), "flushed")
    start, _ = node.start()
    assert start == Start("R3", "b1/0") and node.server.text(schema.node_key("a", "domainstate")) == "flushed"


def test_wiped_keys_are_written_again() -> None:
    node = Node()
    node.start()
    node.server.delete_tree(schema.node("a"))
    assert node.start()[0].rule == "R3"
    assert node.server.text(schema.node_key("a", "keepalive")) == "0"


def test_a_fence_under_way_is_objected_to_with_a_keepalive() -> None:
    node = Node()
    node.start()
    before = node.server.nodes[schema.node_key("a", "keepalive")].version
    node.server.put(schema.fence("a"), Fence("b1/0", FENCING, ka=before).encode())
    node.start()
    assert node.fence().phase is UP and node.server.nodes[schema.node_key("a", "keepalive")].version > before


def test_fenced_and_alive_every_copy_is_destroyed_before_it_comes_back() -> None:
    node = Node()
    node.start()
    node.guest(Claim("a", "b1/0"))
    foreign = XML.replace(UUID, "21111111-2222-4333-8444-555555555555").replace("web1", "foreign")
    node.hypervisor.create(foreign)
    node.server.put(schema.fence("a"), Fence("b1/0", FENCED, method="confirm").encode())
    start, _ = node.start()
    assert start.inc == "b1/1" and node.fence() == Fence("b1/1", UP, "a", "rejoin", since="now")
    assert [guest.name for guest in node.hypervisor.inventory()] == ["foreign"]


def test_a_guest_under_a_claim_of_an_older_boot_cannot_be() -> None:
    node = Node()
    node.start("b0")
    node.guest(Claim("a", "b0/0"))
    with pytest.raises(Refused, match="cannot be"):
        node.start("b1")
    assert node.fence().inc == "b0/0" and len(node.hypervisor.inventory()) == 1


def test_another_machine_of_the_same_name_is_refused() -> None:
    node = Node()
    node.start()
    with pytest.raises(Refused, match="pvc node remove a"):
        node.start("b9", machine="m2")


def test_what_can_be_adopted() -> None:
    node = Node()
    node.start()
    node.guest(None)
    node.hypervisor.create(XML.replace(UUID, "21111111-2222-4333-8444-555555555555").replace("web1", "foreign"))
    assert adoptable(node.store, node.hypervisor) == [UUID]


def test_a_new_boot_drops_what_was_sent_to_the_boot_before() -> None:
    """A migration call that came late: the guest is another node's until its claim says otherwise."""
    node = Node()
    node.start("b0")
    node.guest(Claim("b", "b1/0"))
    assert node.start("b1")[0].rule == "R2" and node.hypervisor.inventory() == ()


def test_a_new_boot_keeps_what_nobody_holds() -> None:
    node = Node()
    node.start("b0")
    node.guest(None)
    assert node.start("b1")[0].rule == "R2" and len(node.hypervisor.inventory()) == 1


def test_a_removed_node_that_comes_back_drops_it_too() -> None:
    node = Node()
    node.start("b0")
    node.guest(Claim("b", "b1/0"))
    node.server.put(schema.fence("a"), Fence("b0/0", REMOVED).encode())
    assert node.start("b1")[0].rule == "R6" and node.hypervisor.inventory() == ()


def test_the_same_life_keeps_what_is_arriving() -> None:
    node = Node()
    node.start("b1")
    node.guest(Claim("b", "b1/0"))
    assert node.start("b1")[0].rule == "R3" and len(node.hypervisor.inventory()) == 1
