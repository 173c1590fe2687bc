# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""A VM of huge pages goes where huge pages are free, whatever the ordinary memory: from the definition and the kernel's files to the placement."""
from __future__ import annotations

from pathlib import Path

import pytest

from pvcd.cluster import definition, schema
from pvcd.cluster.claims import Actor
from pvcd.cluster.definition import Memory
from pvcd.cluster.placement import Planning, promised
from pvcd.cluster.records import Claim, ClaimRecord, DomainRecord, Fence, FenceRecord, NodeRecord, Value, View
from pvcd.cluster.schema import DaemonState, DomainState, FencePhase, VMState
from pvcd.environment import Arrivals
from pvcd.keepalive import hugepages, measure
from pvcd.recovery_plan import plan_recovery

UUID = "11111111-2222-4333-8444-555555555555"
OTHER = "21111111-2222-4333-8444-555555555555"


def node(name: str, memfree: int, pages: str) -> NodeRecord:
    values = {"": b"", "daemonstate": b"run", "domainstate": b"ready", "memfree": str(memfree).encode(), "hugepages": pages.encode(), "libvirtstate": b""}
    return NodeRecord.read(name, {key: Value(data, 0) for key, data in values.items()})


def view(*nodes: NodeRecord) -> View:
    return View({found.name: found for found in nodes}, {found.name: FenceRecord(Fence(f"{found.name}1/0", FencePhase.UP), 0) for found in nodes})


@pytest.mark.parametrize(("backing", "pages"), [
    ("", ""), ("<memoryBacking><nosharepages/></memoryBacking>", ""), ("<memoryBacking><hugepages/></memoryBacking>", "default"),
    ("<memoryBacking><hugepages><page size='2048' unit='KiB'/></hugepages></memoryBacking>", "2048"),
    ("<memoryBacking><hugepages><page size='1' unit='G' nodeset='0'/></hugepages></memoryBacking>", "1048576"),
    ("<memoryBacking><hugepages><page size='2' unit='MiB'/><page size='1' unit='G' nodeset='1'/></hugepages></memoryBacking>", "2048"),
    ("<memoryBacking><hugepages><page size='x'/></hugepages></memoryBacking>", "default")])
def test_which_pages_a_definition_asks_for(backing: str, pages: str) -> None:
    xml = f"<domain><name>a</name><uuid>{UUID}</uuid><memory unit='MiB'>64</memory>{backing}</domain>"
    found = definition.parse(xml.encode()).memory_mib
    assert (found, found.pages, str(found)) == (64, pages, "64")


@pytest.mark.parametrize(("raw", "found"), [
    (b"2048:512 1048576:4", {"2048": 1024, "1048576": 4096, "default": 1024}), (b"1048576:1 2048:0", {"1048576": 1024, "2048": 0, "default": 1024}),
    (b"", {}), (None, {}), (b"2048", {}), (b"2048:-1", {}), (b"2048:1 x", {}), (b"\xff:1", {})])
def test_what_a_node_publishes_is_read_totally(raw: bytes | None, found: dict[str, int]) -> None:
    assert schema.decode_pages(raw) == found


def test_the_kernel_is_asked_and_what_is_reserved_is_not_free(tmp_path: Path) -> None:
    for size, free, reserved in ((2048, 512, 12), (1048576, 4, 4)):
        folder = tmp_path / "hugepages" / f"hugepages-{size}kB"
        folder.mkdir(parents=True)
        (folder / "free_hugepages").write_text(f"{free}\n")
        (folder / "resv_hugepages").write_text(f"{reserved}\n")
    (tmp_path / "meminfo").write_text("MemFree: 1 kB\nHugepagesize:    1048576 kB\n")
    assert hugepages(tmp_path / "hugepages", tmp_path / "meminfo") == "1048576:0 2048:500"
    assert hugepages(tmp_path / "none", tmp_path / "meminfo") == "" and hugepages(tmp_path / "hugepages", tmp_path / "none") == ""
    assert "hugepages" in measure(None)


def test_it_goes_where_its_pages_are_and_counts_them_down() -> None:
    planning = Planning(view(node("a", 9000, "2048:10"), node("b", 10, "2048:1000 1048576:1"), node("c", 9000, "")))
    placed = planning.choose(Memory(1500, "default"))
    assert placed.target == "b" and placed.free_after_mib == 500
    assert dict(placed.passed_over) == {"a": "needs 1500 MiB of huge pages, 20 MiB free", "c": "no huge pages (default)"}
    assert planning.choose(Memory(600, "2048")).target is None, "the same pages under their other name"
    assert planning.choose(Memory(1000, "1048576")).target == "b"
    assert planning.choose(Memory(2000)).target == "a", "ordinary memory is another matter"


def test_what_is_promised_takes_from_its_own_kind() -> None:
    domains = {UUID: DomainRecord(UUID, "web1", VMState.START, "b"), OTHER: DomainRecord(OTHER, "web2", VMState.START, "b")}
    reserved = promised(domains, {}, {UUID: Memory(1500, "2048"), OTHER: Memory(100)})
    planning = Planning(view(node("b", 1000, "2048:1000")), reserved)
    assert (planning.free_mib("b"), planning.free_mib("b", "2048"), planning.free_mib("b", "default")) == (900, 500, 500)
    arrivals = Arrivals()
    assert arrivals.promise("1", Memory(900, "2048"), 1000) and arrivals.promise("2", Memory(900), 1000)
    assert not arrivals.promise("3", Memory(200, "2048"), 1000)


def test_the_recovery_finds_the_free_huge_pages() -> None:
    dead = Claim("x", "x0/0")
    versions = {"": 0, "state": 0, "hypervisor": 0, "lasthypervisor": 0}
    record = DomainRecord(UUID, "web1", VMState.START, "x", "", versions)
    seen = view(node("a", 9000, ""), node("b", 10, "2048:1000"))
    seen = View({**seen.nodes, "x": NodeRecord("x", DaemonState.DEAD, DomainState.FLUSHED, versions={"": 0})},
                {**seen.fences, "x": FenceRecord(Fence("x0/0", FencePhase.FENCED), 3)})
    steps = plan_recovery(Actor("a", "a1/0", 0), seen, {UUID: record}, {UUID: ClaimRecord(dead, 1)}, {UUID: Memory(1024, "default")}, {}, {})
    assert [step.target for step in steps] == ["b"]
