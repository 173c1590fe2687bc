# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Joining the cluster: which rule applies, what it writes, and who is refused; on the models of ZooKeeper and libvirt."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from sim.fakehypervisor import Fabric, FakeHypervisor
from sim.fakezk import FakeServer, FakeZooKeeper

from pvcd.cluster import fences, schema
from pvcd.cluster.errors import Conflict
from pvcd.cluster.records import Change, Claim, Fence, FenceRecord, Timing, decode_fence
from pvcd.cluster.schema import FencePhase, Unknown
from pvcd.cluster.store import Store
from pvcd.machine import Host, Refused, Remembered, WrongIdentity, recall, refuse_renamed, remember
from pvcd.registration import LATE_POWER_OFF_S, Registration, Start, adoptable, decide

MACHINE, OTHER = "0123456789abcdef" * 2, "fedcba9876543210" * 2
UUID = "11111111-2222-4333-8444-555555555555"
XML = f"<domain><name>web1</name><uuid>{UUID}</uuid><memory unit='MiB'>64</memory></domain>"
UP, FENCING, FENCED, REMOVED = FencePhase.UP, FencePhase.FENCING, FencePhase.FENCED, FencePhase.REMOVED


@pytest.mark.parametrize(("phase", "inc", "forced", "expected"), [
    (UP, "b1/0", False, Start("R3", "b1/0")), (UP, "b1/4", False, Start("R3", "b1/4")), (UP, "b0/4", False, Start("R2", "b1/0")),
    (FENCING, "b1/0", False, Start("R3", "b1/0")), (FENCING, "b0/0", False, Start("R2", "b1/0", LATE_POWER_OFF_S)),
    (FENCING, "b0/0", True, Start("R2", "b1/0", LATE_POWER_OFF_S)), (FENCED, "b0/0", False, Start("R2", "b1/0")),
    (FENCED, "b1/0", False, Start("R6", "b1/1", destroy=True)), (FENCED, "b1/7", False, Start("R6", "b1/8", destroy=True)),
    (REMOVED, "b1/7", False, Start("R6", "b1/7")), (REMOVED, "b0/7", False, Start("R6", "b1/8"))])
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
        self.said: list[str] = []

    def start(self, boot: str = "b1", machine: str = MACHINE, name: str = "a", booted: bool = False, meanwhile: Callable[[], None] | None = None,
              ) -> tuple[Start, int]:
        registration = Registration(self.store, self.hypervisor, Host(name, boot, machine), "now", self.said.append)
        self.watched_s = registration.look()
        if meanwhile:
            meanwhile()
        return registration.run({"staticdata": "2 x y z", "protocol": "0"}, booted)

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
    with pytest.raises(Refused, match="read wrongly"):
        node.start("b1")
    # Also when libvirt would start it: this host does not know that it has booted.
    node.hypervisor.copies[UUID].persistent = node.hypervisor.copies[UUID].autostart = True
    with pytest.raises(Refused, match="virsh autostart --disable web1"):
        node.start("b1")
    assert node.fence().inc == "b0/0" and len(node.hypervisor.inventory()) == 1


def test_another_machine_of_the_same_name_is_refused() -> None:
    node = Node()
    node.start()
    with pytest.raises(Refused, match="pvc node remove a"):
        node.start("b9", machine=OTHER)


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


# ------------------------------------------------------------------------------------------------- who this host is

def keepalive(node: Node) -> None:
    node.server.put(schema.node_key("a", "keepalive"), "1")


@pytest.mark.parametrize("phase", [UP, FENCING])
def test_another_host_of_the_name_that_lives_is_seen_before_its_boot_is_taken_for_a_death(phase: FencePhase) -> None:
    node = Node()
    node.start("b0")
    node.server.put(schema.fence("a"), Fence("b0/0", phase).encode())
    with pytest.raises(WrongIdentity, match="another host of this name is alive"):
        node.start("b1", meanwhile=lambda: keepalive(node))
    assert node.watched_s == 10.0 and node.fence().inc == "b0/0"
    assert node.start("b1")[0].rule == "R2"


def test_it_is_watched_in_its_own_ticks() -> None:
    node = Node()
    node.start("b0")
    node.server.put(schema.node_key("a", "timing"), Timing(30.0, 6).encode())
    node.start("b1")
    assert node.watched_s == 60.0


def test_the_same_boot_a_proof_and_a_first_start_wait_for_nobody() -> None:
    node = Node()
    node.start("b0")
    assert node.watched_s == 0.0
    node.start("b0", meanwhile=lambda: keepalive(node))
    assert node.watched_s == 0.0
    node.server.put(schema.fence("a"), Fence("b0/0", FENCED).encode())
    assert node.start("b1")[0].rule == "R2" and node.watched_s == 0.0


def test_a_boot_that_was_not_watched_is_no_proof() -> None:
    node = Node()
    node.start("b0")
    with pytest.raises(WrongIdentity):
        Registration(node.store, node.hypervisor, Host("a", "b1", MACHINE), "now").run({})


def test_a_keepalive_that_comes_at_the_last_moment_stops_the_registration() -> None:
    node = Node()
    node.start("b0")
    registration = Registration(node.store, node.hypervisor, Host("a", "b1", MACHINE), "now")
    registration.look()
    zk = node.store._backend
    assert isinstance(zk, FakeZooKeeper)

    def before(changes: Sequence[Change]) -> None:
        if any(change.path == schema.fence("a") for change in changes):
            keepalive(node)
    zk.before_commit = before
    with pytest.raises(Conflict):
        registration.run({})
    assert node.fence().inc == "b0/0"


def test_a_machine_that_is_registered_under_another_name_does_not_join() -> None:
    node = Node()
    node.start()
    node.guest(Claim("a", "b1/0"))
    with pytest.raises(WrongIdentity, match=r"node_name = a .*systemd-machine-id-setup") as refused:
        node.start(name="a.example.org")
    assert "a.example.org" in str(refused.value) and len(node.hypervisor.inventory()) == 1
    assert node.server.children(schema.NODES) == ["a"] and schema.fence("a.example.org") not in node.server.nodes


def test_two_copies_of_an_image_that_start_at_the_same_moment() -> None:
    """Each has looked before the other has written: each looks again after it has written itself."""
    node = Node()
    node.start()
    with pytest.raises(WrongIdentity):
        node.start(name="c", machine=OTHER, meanwhile=lambda: (node.server.put(schema.node_key("a", "machineid"), OTHER), None)[1])
    assert schema.fence("c") not in node.server.nodes


@pytest.mark.parametrize("machine", ["", "uninitialized", "0" * 32, "0123456789ABCDEF" * 2, "m1"])
def test_a_host_without_a_machine_id_does_not_join(machine: str) -> None:
    node = Node()
    with pytest.raises(WrongIdentity, match="systemd-machine-id-setup"):
        node.start(machine=machine)
    assert not node.server.nodes


def test_a_name_that_has_changed_by_itself_is_refused(tmp_path: Path) -> None:
    assert recall(tmp_path, MACHINE) == Remembered()
    remember(tmp_path, Host("a", "b1", MACHINE), "boot 1")
    old = recall(tmp_path, MACHINE)
    assert old == Remembered("a", "boot 1") and recall(tmp_path, OTHER) == Remembered()
    refuse_renamed(old, "a", False, tmp_path)
    refuse_renamed(old, "c", True, tmp_path)
    refuse_renamed(Remembered(), "c", False, tmp_path)
    with pytest.raises(WrongIdentity, match=r"hostnamectl set-hostname a.*node_name = a.*pvc node remove a"):
        refuse_renamed(old, "c", False, tmp_path)
    assert [old.is_other_boot(boot) for boot in ("boot 1", "boot 2")] == [False, True] and not Remembered("a").is_other_boot("boot 2")
    for garbage in ("", "[]", "{", '{"machineid": 1}', "[" * 5000):
        (tmp_path / "node").write_text(garbage)
        assert recall(tmp_path, MACHINE) == Remembered()
    remember(tmp_path / "missing", Host("a", "b1", MACHINE), "boot 1")


# ------------------------------------------------------------------------------- what runs here and is not allowed

def test_what_libvirt_has_started_at_boot_goes_and_the_cause_is_told() -> None:
    node = Node()
    node.start("b0")
    node.guest(Claim("a", "b0/0"))
    node.hypervisor.copies[UUID].persistent = node.hypervisor.copies[UUID].autostart = True
    assert node.start("b1", booted=True)[0].rule == "R2"
    assert node.hypervisor.inventory() == () and "virsh autostart --disable web1" in node.said[0]


def test_one_guest_that_libvirt_did_not_start_makes_the_boot_doubtful() -> None:
    """Nothing is destroyed for a boot that may be read wrongly."""
    node = Node()
    node.start("b0")
    node.guest(Claim("a", "b0/0"))
    node.hypervisor.copies[UUID].persistent = node.hypervisor.copies[UUID].autostart = True
    second = "21111111-2222-4333-8444-555555555555"
    node.hypervisor.create(XML.replace(UUID, second).replace("web1", "web2"))
    node.server.put(schema.claim(second), Claim("a", "b0/0").encode())
    with pytest.raises(Refused):
        node.start("b1", booted=True)
    assert len(node.hypervisor.inventory()) == 2


def test_a_removed_node_that_comes_back_in_the_same_boot_keeps_what_its_claims_allow() -> None:
    node = Node()
    node.start()
    node.guest(Claim("a", "b1/0"))
    node.server.put(schema.fence("a"), Fence("b1/0", REMOVED, method=fences.REMOVED).encode())
    assert node.start()[0] == Start("R6", "b1/0") and len(node.hypervisor.inventory()) == 1 and node.fence().phase is UP


def test_a_fenced_node_that_was_removed_comes_back_without_its_guests() -> None:
    node = Node()
    node.start()
    node.guest(Claim("a", "b1/0"))
    node.server.put(schema.fence("a"), Fence("b1/0", REMOVED, method=fences.REMOVED_FENCED).encode())
    assert node.start()[0] == Start("R6", "b1/1", destroy=True) and node.hypervisor.inventory() == ()


def test_each_destruction_is_looked_at_again() -> None:
    """The first takes its time; meanwhile the other claim is handed to this node, or the fence moves: nothing more is destroyed."""
    for path, value in ((schema.fence("a"), Fence("b0/0", FENCED)), (schema.claim(UUID), Claim("a", "b1/0"))):
        node = Node()
        node.start("b0")
        node.guest(Claim("b", "b9/0"))
        first = "01111111-2222-4333-8444-555555555555"
        node.hypervisor.create(XML.replace(UUID, first).replace("web1", "web0"))
        node.server.put(schema.claim(first), Claim("b", "b9/0").encode())
        node.hypervisor.before_effect = lambda _what, path=path, value=value, node=node: node.server.put(path, value.encode())  # type: ignore[misc]
        with pytest.raises(Conflict):
            node.start("b1")
        assert [guest.uuid for guest in node.hypervisor.inventory()] == [UUID]


@pytest.mark.parametrize(("word", "claim", "persistent", "stays"), [
    ("stop", None, True, True), (None, None, True, True),
    ("start", None, True, False), ("stop", Claim("a", "b1/0"), True, False), ("stop", Claim("b", "b1/0"), True, False),
    ("stop", None, False, False), (None, None, False, False)])
def test_a_fenced_node_that_lives_ends_what_is_pvcs_and_nothing_else(word: str | None, claim: Claim | None, persistent: bool, stays: bool) -> None:
    """Libvirt's own guest that nobody has ordered is left alone here as well: its keys are of a VM that is to be stopped, or were removed."""
    node = Node()
    node.start()
    node.guest(claim)
    node.hypervisor.copies[UUID].persistent = persistent
    if word is not None:
        node.server.put(schema.domain(UUID), "web1")
        node.server.put(schema.domain_key(UUID, "state"), word)
    node.server.put(schema.fence("a"), Fence("b1/0", FENCED, method="confirm").encode())
    assert node.start()[0].rule == "R6" and bool(node.hypervisor.inventory()) is stays
