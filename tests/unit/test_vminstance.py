# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""What one VM's instance keeps between its visits (timers, counts, doubts), and how it starts a VM: on models of ZooKeeper and libvirt."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from unittest import mock

import pytest
from sim.cluster import XML
from sim.fakehypervisor import Copy, Fabric, FakeHypervisor
from sim.fakezk import FakeServer, FakeZooKeeper

from pvcd import VMInstance as module
from pvcd.cluster import avoid, schema
from pvcd.cluster.claims import Actor
from pvcd.cluster.errors import HypervisorError, HypervisorUnknown
from pvcd.cluster.records import Claim, Fence, FenceRecord, NodeRecord, Operation, Value, View, decode_claim
from pvcd.cluster.schema import DaemonState, DomainState, FencePhase, OpPhase
from pvcd.cluster.store import Store
from pvcd.environment import Environment
from pvcd.local import Ending, Local, Status
from pvcd.situation import Level, Situation, Step
from pvcd.VMInstance import VMInstance

UUID = "11111111-2222-4333-8444-555555555555"
OTHER = "21111111-2222-4333-8444-555555555555"
ME = Actor("a", "a1/0", 0)
MINE = Claim("a", "a1/0")


def node(name: str, free: int = 4096) -> NodeRecord:
    return NodeRecord(name, DaemonState.RUN, DomainState.READY, memfree_mib=free, protocol=1, libvirtstate="", versions={"": 0})


class Host:
    """Node a, which may act, and one VM of it; `situation()` is what the planner would decide on now."""

    def __init__(self, state: str = "start", home: str = "a", claim: Claim | None = MINE, last: str = "") -> None:
        self.now, self.said, self.slow = 1000.0, [], []  # type: ignore[var-annotated]
        self.server = FakeServer()
        self.zk = FakeZooKeeper(self.server, "a")
        self.store = Store(self.zk)
        self.store.ensure_roots()
        self.hypervisor = FakeHypervisor(Fabric(lambda: self.now), "a")
        self.view = View({name: node(name) for name in "abc"}, {name: FenceRecord(Fence(f"{name}1/0", FencePhase.UP), 0) for name in "abc"})
        for name in "abc":
            self.server.put(schema.fence(name), Fence(f"{name}1/0", FencePhase.UP).encode())
        self.server.put(schema.domain(UUID), "web1")
        self.words(state=state, hypervisor=home, lasthypervisor=last, xml=XML.format(name="web1", uuid=UUID, memory_mib=512))
        self.server.put(schema.claim(UUID), claim.encode() if claim else b"")
        self.env = Environment("a", self.store, self.hypervisor, lambda: ME, lambda: self.view, lambda: self.now, lambda: f"t{self.now:.0f}",
                               lambda level, text: self.said.append((level, text)), lambda key, delay_s=0.0: None,
                               lambda key, slow: self.slow.append(slow), lambda: "op1")
        self.vm = VMInstance(UUID, self.env)

    def words(self, **words: str) -> None:
        for key, value in words.items():
            self.server.put(schema.domain_key(UUID, key), value)

    def claimed(self, claim: Claim | None) -> None:
        self.server.put(schema.claim(UUID), claim.encode() if claim else b"")

    def copy(self, status: Status | None = Status.RUNNING) -> None:
        self.hypervisor.copies.pop(UUID, None)
        if status is not None:
            self.hypervisor.copies[UUID] = Copy("web1", 512, status, 1, self.now)

    def situation(self, after_s: float = 0.0) -> Situation:
        """One visit's look, decided on and not acted upon."""
        self.now += after_s
        seen: list[Situation] = []

        def plan(s: Situation) -> Step:
            seen.append(s)
            return Step(0, "not decided", level=Level.QUIET)
        with mock.patch.object(module, "plan_domain", plan):
            self.vm.reconcile()
        return seen[-1]

    def visit(self, after_s: float = 0.0) -> float | None:
        self.now += after_s
        return self.vm.reconcile()

    def settled(self) -> Host:
        """Past the doubt of the first look."""
        self.situation()
        self.situation(10.0)
        assert not self.situation().attempts.doubt
        return self

    def meta(self) -> str:
        return str(self.store.meta(UUID).get("reason", ""))

    @property
    def claim(self) -> object:
        return decode_claim(self.server.nodes[schema.claim(UUID)].data)


# --------------------------------------------------------------------------------------------- the absence that is not believed

def test_after_a_restart_of_pvcd_an_absence_is_believed_after_two_looks_ten_seconds_apart() -> None:
    """An earlier process's create call may be on its way: what it has claimed is neither freed nor started."""
    for state in ("start", "stop", "failed"):
        host = Host(state)
        assert host.situation().attempts.doubt
        assert host.visit(9.9) and host.claim == MINE and host.hypervisor.creates == 0, state
        host.copy()  # the late call arrives after all
        assert not host.situation(0.05).attempts.doubt
        host = Host(state)
        host.situation()
        assert not host.situation(10.0).attempts.doubt


def test_without_a_claim_there_is_no_doubt() -> None:
    for claim in (None, Claim("b", "b1/0"), Claim("a", "a0/0")):
        assert not Host(claim=claim).situation().attempts.doubt


def test_a_libvirt_that_does_not_answer_is_neither_an_absence_nor_a_death() -> None:
    host = Host()
    host.situation()
    host.hypervisor.answers = False
    for _ in range(4):
        host.situation(10.0)
    host.hypervisor.answers = True
    assert host.situation(1.0).attempts.doubt, "what a hung libvirt still had to do may be done only now"
    assert host.situation(9.0).attempts.doubt and not host.situation(1.0).attempts.doubt
    host.copy()
    host.situation()
    host.hypervisor.answers = False
    assert host.situation(1.0).attempts.deaths == 0
    host.hypervisor.answers = True
    host.copy(None)
    assert host.situation(1.0).attempts.deaths == 1, "and it did run before libvirt was away"


# --------------------------------------------------------------------------------------------------------- deaths, refusals

def test_a_death_is_the_end_of_what_ran_here_and_was_wanted_here() -> None:
    host = Host()
    host.copy()
    host.situation()
    host.copy(None)
    assert host.situation(1.0).attempts.deaths == 1
    assert host.situation(1.0).attempts.deaths == 1, "counted once"


@pytest.mark.parametrize("change", [lambda h: h.words(state="stop"), lambda h: h.words(hypervisor="b"), lambda h: h.claimed(Claim("b", "b1/0")),
                                    lambda h: h.claimed(replace(MINE, op=Operation("op1", OpPhase.RUN, "b", "b1/0")))],
                         ids=["stopped", "belongs elsewhere", "another's", "it migrates"])
def test_an_end_that_was_wanted_is_no_death(change: Callable[[Host], None]) -> None:
    host = Host()
    host.copy()
    host.situation()
    change(host)
    host.copy(None)
    assert host.situation(1.0).attempts.deaths == 0


def test_a_guest_that_ended_itself_did_not_die() -> None:
    host = Host()
    host.copy()
    host.situation()
    host.hypervisor.qemu_dies(UUID, Ending.GUEST)
    found = host.situation(1.0).attempts
    assert found.deaths == 0 and not found.exhausted
    for _ in range(2):
        host.copy()
        host.situation(1.0)
        host.hypervisor.qemu_dies(UUID, Ending.GUEST)
        found = host.situation(1.0).attempts
    assert found.deaths == 0 and found.wait_s > 0, "and one that does it again and again waits"


def test_counts_end_with_an_order_and_when_the_vm_belongs_elsewhere() -> None:
    for change in ({"state": "stop"}, {"hypervisor": "b"}):
        host = Host().settled()
        host.hypervisor.refuses_all = "no bridge"
        host.visit()
        assert host.situation().attempts.errors == 1
        host.words(**change)
        assert host.situation().attempts.errors == 0
        host.words(state="start", hypervisor="a")
        assert host.situation().attempts.errors == 0


# ------------------------------------------------------------------------------------------------------------------- timers

def test_timers_run_from_the_first_look_that_shows_it_and_end_with_it() -> None:
    host = Host()
    host.copy(Status.CRASHED)
    assert host.situation().timers.crashed_s == 0
    assert host.situation(4.0).timers.crashed_s == 4.0
    host.copy()
    assert host.situation().timers.crashed_s is None


def test_how_long_an_order_to_go_elsewhere_stands() -> None:
    host = Host("migrate", "b")
    host.copy()
    assert host.situation().timers.ordered_s == 0
    assert host.situation(7.0).timers.ordered_s == 7.0
    host.words(state="migrate")
    assert host.situation(1.0).timers.ordered_s == 0, "another order, although it says the same"
    host.claimed(replace(MINE, op=Operation("op1", OpPhase.READY, "b", "b1/0")))
    assert host.situation(1.0).timers.ordered_s is None


def test_how_long_it_is_wanted_here_and_nobody_holds_it() -> None:
    host = Host(claim=None)
    assert host.situation().timers.unclaimed_s == 0
    assert host.situation(5.0).timers.unclaimed_s == 5.0
    host.words(hypervisor="b")
    assert host.situation().timers.unclaimed_s is None


def test_a_guest_is_asked_to_power_off_every_ten_seconds_and_the_deadline_runs_from_the_first() -> None:
    host = Host("shutdown")
    host.copy()
    host.hypervisor.booting.add(UUID)
    while host.now < 1029.0:
        host.visit(1.0)
    assert [at for at, _ in host.hypervisor.asked] == [1001.0, 1011.0, 1021.0]
    assert UUID in host.hypervisor.copies
    host.visit(2.0)
    assert UUID not in host.hypervisor.copies, "30 s after the first request its power goes off"
    host = Host("shutdown")
    host.copy()
    host.hypervisor.booting.add(UUID)
    host.visit()
    host.words(state="start")
    assert host.situation(5.0).timers.shutdown_s is None and host.situation().timers.asked_s is None


def test_thirty_seconds_between_two_resumes_of_an_io_error() -> None:
    host = Host()
    host.copy(Status.IO_ERROR)
    tried: list[float] = []
    with mock.patch.object(host.hypervisor, "resume", lambda _uuid: tried.append(host.now)):
        for _ in range(70):
            host.visit(1.0)
    assert tried == [1001.0, 1031.0, 1061.0]
    host.copy()
    assert host.situation().timers.resume_s is None


# --------------------------------------------------------------------------------------------------------------- slow guests

def test_a_guest_that_hangs_is_visited_in_the_slow_lane_before_it_is_asked_anything() -> None:
    host = Host("stop")
    host.copy()
    host.hypervisor.hung.add(UUID)
    destroyed: list[str] = []
    with mock.patch.object(host.hypervisor, "destroy", destroyed.append):
        assert host.visit() == 0.0
        assert host.slow == [True] and not destroyed
        host.visit()
        assert host.slow == [True] and destroyed == [UUID]
    host.hypervisor.hung.clear()
    host.visit()
    assert host.slow == [True, False], "and it comes back when it answers"


def test_a_look_that_hangs_is_slow_and_no_reason_to_act() -> None:
    host = Host("stop")
    host.copy()
    with mock.patch.object(host.hypervisor, "look", lambda _uuid: Local(Status.UNKNOWN, detail="cannot acquire state change lock", slow=True)):
        assert host.visit() == 0.0 and host.visit() is not None
    assert host.slow == [True] and UUID in host.hypervisor.copies


# -------------------------------------------------------------------------------------------------------------------- create

def test_a_definition_of_another_vm_is_never_started() -> None:
    """That VM's claim was not asked: it may run on another node."""
    host = Host().settled()
    host.words(xml=XML.format(name="web2", uuid=OTHER, memory_mib=512))
    for _ in range(3):
        host.visit(1.0)
    assert not host.hypervisor.copies and host.hypervisor.creates == 0
    assert host.store.domain(UUID).state is schema.VMState.FAILED and host.claim is None
    assert OTHER in host.meta()


@pytest.mark.parametrize("xml", ["", "<domain", "<domain><name>web1</name></domain>"])
def test_a_definition_that_cannot_be_read_is_final_at_once(xml: str) -> None:
    host = Host(last="b").settled()
    host.words(xml=xml)
    for _ in range(3):
        host.visit(1.0)
    assert host.store.domain(UUID).state is schema.VMState.FAILED and "bad definition" in host.meta()
    assert host.hypervisor.creates == 0 and not host.store.avoided([UUID])[UUID].nodes, "no other node can do better"


def test_a_refusal_is_told_while_it_is_tried_again() -> None:
    host = Host().settled()
    host.hypervisor.refuses_all = "no bridge"
    host.visit()
    assert host.meta() == "not started: no bridge" and host.store.domain(UUID).state is schema.VMState.START and host.claim == MINE
    host.hypervisor.refuses_all = ""
    while not host.hypervisor.copies:
        host.visit(1.0)
        assert host.now < 1100.0
    assert host.situation().attempts.errors == 0, "it runs: the count of refusals is over"


def test_the_gate_stands_before_the_start() -> None:
    """What the start was decided on has changed: nothing is started."""
    host = Host().settled()
    look = host.hypervisor.look

    def changes(uuid: str) -> Local:
        host.claimed(MINE)  # the same words, another version
        return look(uuid)
    with mock.patch.object(host.hypervisor, "look", changes):
        assert host.visit() == 0.0
    assert host.hypervisor.creates == 0


def test_a_start_without_an_answer_is_not_repeated_before_its_absence_is_sure() -> None:
    host = Host().settled()
    with mock.patch.object(host.hypervisor, "create", mock.Mock(side_effect=HypervisorUnknown("timed out"))) as create:
        assert host.visit() == 5.0
        assert "timed out" in host.meta()
        while create.call_count == 1:
            host.visit(1.0)
            assert host.now < 1100.0
    assert host.now >= 1021.0, "two looks, ten seconds apart"
    assert host.situation().attempts.doubt


def test_what_libvirt_can_never_do_is_final_at_once_at_home() -> None:
    host = Host().settled()
    with mock.patch.object(host.hypervisor, "create", mock.Mock(side_effect=HypervisorError("no KVM", permanent=True))) as create:
        host.visit()
        host.visit()
    assert create.call_count == 1 and host.store.domain(UUID).state is schema.VMState.FAILED and host.meta() == "no KVM"


# -------------------------------------------------------------------------------------------------------------- the next node

def refused_for(host: Host, seconds: float) -> None:
    host.hypervisor.refuses_all = "no bridge"
    end = host.now + seconds
    while host.now < end:
        host.visit(1.0)


def test_a_stand_in_sends_it_on_with_its_reason() -> None:
    host = Host(last="b").settled()
    host.view = replace(host.view, nodes={**host.view.nodes, "b": replace(node("b"), domainstate=DomainState.FLUSHED)})
    refused_for(host, 58.0)
    assert host.claim == MINE
    refused_for(host, 5.0)
    record = host.store.domain(UUID)
    assert (record.state, record.hypervisor, record.lasthypervisor) == (schema.VMState.START, "c", "b") and host.claim is None
    assert host.store.avoided([UUID])[UUID].nodes == {"a": "no bridge"}


def test_the_home_comes_first_when_it_is_ready_again() -> None:
    host = Host(last="b").settled()
    host.view = replace(host.view, nodes={**host.view.nodes, "c": node("c", 9000)})
    refused_for(host, 65.0)
    record = host.store.domain(UUID)
    assert (record.hypervisor, record.lasthypervisor) == ("b", "")


@pytest.mark.parametrize(("tried", "free"), [({"b": "x", "c": "y"}, 4096), ({"b": "x"}, 100)], ids=["all were tried", "the other has no room"])
def test_the_last_node_tries_for_the_whole_window_and_tells_all(tried: dict[str, str], free: int) -> None:
    host = Host(last="b").settled()
    host.view = replace(host.view, nodes={**host.view.nodes, "c": node("c", free)})
    found = avoid.Avoided()
    for name, why in tried.items():
        change = avoid.noted(UUID, found, name, why)
        host.server.put(change.path, change.data)  # type: ignore[union-attr]
        found = host.store.avoided([UUID])[UUID]
    refused_for(host, 590.0)
    assert host.claim == MINE and host.store.domain(UUID).state is schema.VMState.START
    refused_for(host, 30.0)
    assert host.store.domain(UUID).state is schema.VMState.FAILED and host.claim is None
    assert host.meta() == "no bridge; tried before: " + "; ".join(f"{name}: {why}" for name, why in tried.items())
    assert not host.store.avoided([UUID])[UUID].nodes


def test_what_runs_may_be_started_anywhere_again() -> None:
    host = Host(last="b").settled()
    change = avoid.noted(UUID, avoid.Avoided(), "c", "no bridge")
    host.server.put(change.path, change.data)  # type: ignore[union-attr]
    host.visit()
    assert UUID in host.hypervisor.copies and not host.store.avoided([UUID])[UUID].nodes


def test_notes_are_total_bounded_and_at_the_version_read() -> None:
    for raw in (b"", b"{", b"[]", b'{"v":1}', b'{"v":1,"nodes":[]}', b'{"v":2,"nodes":{"a":"x"}}', b"[" * 5000, b"\xff"):
        assert avoid.read(Value(raw, 3)) == avoid.Avoided(version=3)
    assert avoid.read(Value(b'{"v":1,"nodes":{"a":"x","../b":"y","c":1}}', 3)).nodes == {"a": "x"}
    many = avoid.Avoided({f"node{number}": "x" * 200 for number in range(60)}, 7)
    change = avoid.noted(UUID, many, "a", "no bridge\n")
    data = change.data  # type: ignore[union-attr]
    assert len(data) <= schema.VALUE_LIMIT and len(avoid.read(Value(data, 8)).nodes) == 61 and change.version == 7  # type: ignore[union-attr]


def test_it_is_preserved_only_when_its_definition_says_so() -> None:
    host = Host()
    host.copy(Status.CRASHED)
    assert not host.situation().preserved
    host.words(xml=XML.format(name="web1", uuid=UUID, memory_mib=512).replace("</domain>", "<on_crash>preserve</on_crash></domain>"))
    assert host.situation().preserved
    host.words(xml="<")
    assert not host.situation().preserved
    assert host.vm.settled


# --------------------------------------------------------------------------------------------------------- outside PVC

def outside() -> Host:
    """Libvirt's own guest of a VM that is to be stopped: row 44."""
    host = Host("stop", claim=None)
    host.copy()
    host.hypervisor.copies[UUID].persistent = True
    host.visit()
    assert host.vm.outside and host.claim is None
    return host


def test_a_guest_outside_pvc_keeps_no_node_from_finishing_its_start() -> None:
    """It was looked at late, and nobody will ever claim it: while `protocol` waited for that, no node of the cluster started a VM."""
    assert outside().vm.settled


def test_a_host_that_goes_down_without_zookeeper_leaves_a_guest_outside_pvc_alone() -> None:
    """Not only the VMs that remain are visited: a reconnection looks at all of them."""
    host = outside()
    host.env.alone = True
    for after_s in (0.0, 1.0, 60.0):
        assert host.visit(after_s) is None
    assert host.hypervisor.asked == [] and UUID in host.hypervisor.copies
