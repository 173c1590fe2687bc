# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Flush and unflush of a node: what goes where, what waits, what is blocked, and when the word is true."""
from __future__ import annotations

from dataclasses import replace

from pvcd.cluster import schema
from pvcd.cluster.claims import Actor
from pvcd.cluster.flush import AT_ONCE, Cluster, NodePlan, plan_flush, plan_unflush
from pvcd.cluster.records import Check, Claim, ClaimRecord, DomainRecord, Fence, FenceRecord, NodeRecord, Operation, View, Write
from pvcd.cluster.schema import DaemonState, DomainState, FencePhase, OpPhase, Unknown, VMState

ME = Actor("a", "a1/0", 7)
HELD = Claim("a", "a1/0")
V = {"": 0, "state": 1, "hypervisor": 2, "lasthypervisor": 3}


def uuid(n: int) -> str:
    return f"00000000-0000-4000-8000-{n:012d}"


def view(free: dict[str, int], domainstate: dict[str, DomainState] | None = None) -> View:
    states = domainstate or {}
    nodes = {name: NodeRecord(name, DaemonState.RUN, states.get(name, DomainState.READY), 0, mib, 0, protocol=1, versions={"": 0})
             for name, mib in free.items()}
    return View(nodes, {name: FenceRecord(Fence(f"{name}1/0", FencePhase.UP), 7) for name in free})


def cluster(v: View, *vms: tuple[object, str, str, Claim | None, int]) -> Cluster:
    """vms: state, hypervisor, lasthypervisor, claim, MiB."""
    ids = [uuid(n) for n in range(len(vms))]
    return Cluster(v, {u: DomainRecord(u, f"vm{u[-1]}", vm[0], vm[1], vm[2], V) for u, vm in zip(ids, vms)},  # type: ignore[arg-type]
                   {u: ClaimRecord(vm[3], 5) for u, vm in zip(ids, vms)}, {u: vm[4] for u, vm in zip(ids, vms)})


def targets(plan: NodePlan) -> list[str]:
    return [c.data.decode() for order in plan.orders for c in order.changes
            if isinstance(c, Write) and c.path.endswith("/hypervisor")]


def test_vms_spread_by_memory_counted_down() -> None:
    plan = plan_flush(ME, cluster(view({"a": 100, "b": 1000, "c": 900}), *[(VMState.START, "a", "", HELD, 300)] * 4))
    assert targets(plan) == ["b", "c", "b", "c"]
    assert not plan.done and len(plan.under_way) == 4
    assert all(Write(schema.domain_key(o.uuid, "lasthypervisor"), b"a", 3) in o.changes for o in plan.orders)
    assert all(o.changes[0] == ME.mine and Check(schema.claim(o.uuid), 5) in o.changes for o in plan.orders)


def test_at_most_four_are_under_way() -> None:
    plan = plan_flush(ME, cluster(view({"a": 1, "b": 9000}), *[(VMState.START, "a", "", HELD, 1)] * 7))
    assert len(plan.orders) == AT_ONCE and len(plan.blocked) == 3 and "turn" in plan.blocked[0][1]


def test_what_fits_nowhere_stays_and_says_why() -> None:
    plan = plan_flush(ME, cluster(view({"a": 1, "b": 100, "c": 100}, {"c": DomainState.FLUSH}), (VMState.START, "a", "", HELD, 300)))
    assert plan.orders == () and not plan.done
    assert plan.blocked == ((uuid(0), "b: needs 300 MiB, 100 MiB free; c: domain state is flush"),)


def test_a_host_whose_libvirt_hangs_is_no_target() -> None:
    """FAULTS 8."""
    v = view({"a": 1, "b": 900, "c": 500})
    v = replace(v, nodes={**v.nodes, "b": replace(v.nodes["b"], libvirtstate="no answer")})
    assert targets(plan_flush(ME, cluster(v, (VMState.START, "a", "", HELD, 300)))) == ["c"]


def test_an_operation_in_flight_and_words_in_transition_are_not_empty() -> None:
    moving = replace(HELD, op=Operation("o", OpPhase.RUN, "b", "b1/0"))
    for state, home, claim in ((VMState.MIGRATE, "b", moving), (VMState.START, "a", moving), (VMState.MIGRATE, "b", HELD),
                               (VMState.RESTART, "a", HELD), (VMState.SHUTDOWN, "a", HELD), (VMState.STOP, "a", HELD),
                               (VMState.START, "b", HELD)):
        plan = plan_flush(ME, cluster(view({"a": 1, "b": 999}), (state, home, "", claim, 1)))
        assert (plan.orders, plan.under_way, plan.done) == ((), (uuid(0),), False), state


def test_wanted_vms_without_a_claim_are_rehomed_and_stopped_ones_left_alone() -> None:
    v = view({"a": 1, "b": 999})
    plan = plan_flush(ME, cluster(v, (VMState.START, "a", "", None, 1), (VMState.STOP, "a", "", None, 1),
                                  (VMState.FAILED, "a", "", None, 1), (VMState.START, "b", "", None, 1)))
    assert [o.uuid for o in plan.orders] == [uuid(0)]
    assert Write(schema.domain_key(uuid(0), "state"), b"start", 1) in plan.orders[0].changes


def test_what_is_held_with_words_nobody_understands_blocks_and_is_not_moved() -> None:
    for state in (Unknown(b"foo"), None, VMState.FAILED):
        plan = plan_flush(ME, cluster(view({"a": 1, "b": 999}), (state, "a", "", HELD, 1)))
        assert plan.orders == () and len(plan.blocked) == 1


def test_a_refused_vm_waits_and_an_empty_node_is_done() -> None:
    c = cluster(view({"a": 1, "b": 999}), (VMState.START, "a", "", HELD, 1), (VMState.START, "b", "", Claim("b", "b1/0"), 1))
    assert plan_flush(ME, c, paused={uuid(0)}).orders == ()
    assert plan_flush(ME, cluster(view({"a": 1}))).done


def test_unflush_brings_home_what_runs_and_wakes_nothing() -> None:
    other = Claim("b", "b1/0")
    c = cluster(view({"a": 999, "b": 1}), (VMState.START, "b", "a", other, 1), (VMState.STOP, "b", "a", None, 1),
                (VMState.FAILED, "b", "a", None, 1), (VMState.START, "b", "c", other, 1), (VMState.START, "b", "", other, 1))
    plan = plan_unflush(ME, c)
    assert [o.uuid for o in plan.orders] == [uuid(0)] and targets(plan) == ["a"]
    assert not any(change.path.endswith("lasthypervisor") for change in plan.orders[0].changes)
    assert plan_unflush(ME, c, ordered={uuid(0)}).done


def test_an_unflush_is_over_when_what_was_called_is_home_or_refused() -> None:
    """Finding B17: `ready` was written, and `ready --wait` returned, while VMs were still on their way."""
    called = cluster(view({"a": 999, "b": 1}), (VMState.MIGRATE, "a", "a", Claim("b", "b1/0"), 1))
    plan = plan_unflush(ME, called, ordered={uuid(0)})
    assert plan.orders == () and plan.under_way == (uuid(0),) and not plan.done
    for state, home, last, claim in ((VMState.START, "a", "", HELD), (VMState.START, "b", "a", Claim("b", "b1/0"))):
        assert plan_unflush(ME, cluster(view({"a": 999, "b": 1}), (state, home, last, claim, 1)), ordered={uuid(0)}).done


def test_an_unflush_does_not_wait_for_a_holder_that_cannot_act() -> None:
    """A stopped daemon, or a fence that nobody confirms, would keep this node from taking VMs for as long."""
    seen = view({"a": 999, "b": 1})
    stopped = replace(seen, nodes={**seen.nodes, "b": replace(seen.nodes["b"], daemonstate=DaemonState.STOP)})
    fencing = replace(seen, fences={**seen.fences, "b": FenceRecord(Fence("b1/0", FencePhase.FENCING), 7)})
    for v in (stopped, fencing):
        for state, home in ((VMState.MIGRATE, "a"), (VMState.MIGRATE, "b"), (VMState.RESTART, "b")):
            assert plan_unflush(ME, cluster(v, (state, home, "a", Claim("b", "b1/0"), 1)), ordered={uuid(0)}).done
        assert plan_unflush(ME, cluster(v, (VMState.START, "b", "a", Claim("b", "b1/0"), 1))).orders, "it comes when its holder is back"
    assert not plan_unflush(ME, cluster(stopped, (VMState.MIGRATE, "a", "a", None, 1))).done


def test_unflush_waits_for_what_is_still_leaving() -> None:
    leaving = replace(HELD, op=Operation("o", OpPhase.RUN, "b", "b1/0"))
    plan = plan_unflush(ME, cluster(view({"a": 999, "b": 1}), (VMState.MIGRATE, "b", "a", leaving, 1)))
    assert plan.orders == () and plan.under_way == (uuid(0),)


def test_what_is_on_its_way_here_is_waited_for() -> None:
    """It was agreed to before the flush. `flushed` before its arrival would leave it on a node that is empty by its word."""
    for phase in (OpPhase.READY, OpPhase.RUN):
        coming = Claim("b", "b1/0", Operation("o", phase, "a", "a1/0"))
        seen = view({"a": 9, "b": 9, "c": 9}, {"a": DomainState.FLUSH})
        plan = plan_flush(ME, cluster(seen, (VMState.MIGRATE, "a", "", coming, 1)))
        assert plan.under_way == (uuid(0),) and not plan.orders and not plan.done
        stopped = replace(seen, nodes={**seen.nodes, "b": replace(seen.nodes["b"], daemonstate=DaemonState.STOP)})
        plan = plan_flush(ME, cluster(stopped, (VMState.MIGRATE, "a", "", coming, 1)))
        # An offer that nobody takes is nothing; a copy whose source cannot hand it over is said, and not waited for as if it moved.
        assert plan.done is (phase is OpPhase.READY) and not plan.under_way and [u for u, _ in plan.blocked] == [uuid(0)] * (not plan.done)
    busy = [(VMState.START, "a", "", HELD, 1)] + [(VMState.MIGRATE, "a", "", coming, 1)] * AT_ONCE
    assert len(plan_flush(ME, cluster(seen, *busy)).orders) == 1, "arrivals take no place of those that leave"
