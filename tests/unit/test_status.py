# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""`status`, `check`, `verify`: each problem is found, by its code; survival is what the recovery then does."""
from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from client import OTHER, UUID, Pvc

from pvc import health, servers
from pvc.health import Facts, Level
from pvcd.cluster import schema
from pvcd.cluster.claims import Actor
from pvcd.cluster.notices import Departure, Trouble
from pvcd.cluster.records import Claim, ClaimRecord, DomainRecord, Fence, FenceRecord, Hold, NodeRecord, Operation, View
from pvcd.cluster.schema import DaemonState, DomainState, FencePhase, OpPhase, Unknown, VMState
from pvcd.cluster.survival import stranded
from pvcd.recovery_plan import plan_recovery

NOW = 1_000_000.0


def node(name: str, free: int = 1000, **words: object) -> NodeRecord:
    values = {"daemonstate": DaemonState.RUN, "domainstate": DomainState.READY, "memfree_mib": free, "memused_mib": 24, "keepalive": int(NOW),
              "protocol": 1, "runningdomains": (), "versions": {"": 0}, **words}
    return NodeRecord(name, **values)  # type: ignore[arg-type]


def vm(uuid: str, home: str, **words: object) -> DomainRecord:
    values = {"name": f"vm-{uuid[:2]}", "state": VMState.START, "hypervisor": home, "lasthypervisor": "",
              "versions": {"": 0, "state": 0, "hypervisor": 0, "lasthypervisor": 0}, **words}
    return DomainRecord(uuid, **values)  # type: ignore[arg-type]


def held(name: str) -> ClaimRecord:
    return ClaimRecord(Claim(name, f"{name}/0"), 1)


def fence(name: str, phase: FencePhase = FencePhase.UP) -> FenceRecord:
    return FenceRecord(Fence(f"{name}/0", phase), 3)


def healthy() -> Facts:
    nodes = {name: node(name, runningdomains=(UUID,) if name == "hv1" else ()) for name in ("hv1", "hv2", "hv3")}
    view = View(nodes, {name: fence(name) for name in nodes})
    return Facts(view, {UUID: vm(UUID, "hv1")}, {UUID: held("hv1")}, {UUID: 500}, dict.fromkeys(nodes, "answers"), {})


def with_node(facts: Facts, found: NodeRecord, phase: FencePhase = FencePhase.UP) -> Facts:
    view = replace(facts.view, nodes={**facts.view.nodes, found.name: found}, fences={**facts.view.fences, found.name: fence(found.name, phase)})
    return replace(facts, view=view)


def codes(facts: Facts) -> dict[str, Level]:
    return {problem.code: problem.level for problem in [*health.problems(facts), *health.cross_checks(facts, NOW)]}


def migrating(facts: Facts, holder: str, phase: OpPhase) -> Facts:
    """From hv1 to hv2."""
    claim = Claim(holder, f"{holder}/0", Operation("1", phase, "hv2", "hv2/0"))
    return replace(facts, claims={UUID: ClaimRecord(claim, 1)})


def test_a_migration_under_way_is_no_problem() -> None:
    for holder, phase in (("hv1", OpPhase.READY), ("hv1", OpPhase.RUN), ("hv2", OpPhase.GIVEN)):
        assert codes(migrating(healthy(), holder, phase)) == {}


def test_a_healthy_cluster_has_no_problems() -> None:
    assert codes(healthy()) == {}


def test_troubles_of_a_start_that_are_over_are_no_problems() -> None:
    assert codes(replace(healthy(), reasons={UUID: "not started: no disk"}, avoided={UUID: {"hv2": "no bridge"}})) == {}


def test_where_a_vm_could_not_be_started_is_named_with_the_reason() -> None:
    facts = replace(healthy(), claims={UUID: ClaimRecord(None, 1)}, avoided={UUID: {"hv2": "no bridge", "hv3": "no secret"}})
    told = next(problem for problem in health.problems(facts) if problem.code == "start-refused")
    assert told.text == "could not be started on hv2: no bridge; hv3: no secret: hv1 tries" and told.subject == facts.name(UUID)


@pytest.mark.parametrize(("change", "code", "level"), [
    (lambda f: replace(with_node(f, node("hv1")), reasons={UUID: "not started: no disk"}), "start-refused", Level.CRITICAL),
    (lambda f: replace(f, claims={UUID: ClaimRecord(None, 1)}, avoided={UUID: {"hv2": "no bridge"}}), "start-refused", Level.CRITICAL),
    (lambda f: replace(with_node(f, node("hv1")), avoided={UUID: {"hv2": "no bridge"}}), "start-refused", Level.CRITICAL),
    (lambda f: replace(f, view=View()), "no-nodes", Level.CRITICAL),
    (lambda f: replace(f, view=replace(f.view, hold=Hold(True, None, "me"))), "maintenance", Level.WARNING),
    (lambda f: replace(f, sizes={UUID: 5000}), "not-redundant", Level.WARNING),
    (lambda f: replace(f, sizes={UUID: None}), "bad-definition", Level.WARNING),
    (lambda f: with_node(migrating(f, "hv1", OpPhase.RUN), node("hv1", daemonstate=DaemonState.STOP)), "migration-waits", Level.WARNING),
    (lambda f: with_node(migrating(f, "hv2", OpPhase.GIVEN), node("hv2", daemonstate=DaemonState.STOP)), "migration-waits", Level.WARNING),
    (lambda f: replace(migrating(f, "hv2", OpPhase.GIVEN), reasons={UUID: "resume: no lock"}), "not-resumed", Level.CRITICAL),
    (lambda f: replace(f, view=replace(f.view, hold=Hold(True, None, "hv1", restored=True))), "restored", Level.CRITICAL),
    (lambda f: replace(f, servers=({"address": "hv1:2181", "mode": "leader"}, {"address": "hv3:2181", "mode": None})), "zookeeper", Level.WARNING),
    *((lambda f, code=code: with_node(f, node("hv1", runningdomains=(UUID,), troubles=(Trouble(code, UUID, "as seen"),))), code, level)
      for code, (level, _text, _next) in health.TROUBLES.items()),
    (lambda f: with_node(f, node("hv2", daemonstate=DaemonState.DEAD), FencePhase.FENCING), "fencing", Level.CRITICAL),
    (lambda f: with_node(f, node("hv2", daemonstate=DaemonState.DEAD), FencePhase.FENCED), "fenced", Level.CRITICAL),
    (lambda f: with_node(f, node("hv2", daemonstate=DaemonState.DEAD)), "dead", Level.CRITICAL),
    (lambda f: with_node(f, node("hv2", daemonstate=DaemonState.STOP)), "unwatched", Level.WARNING),
    (lambda f: with_node(f, node("hv2", domainstate=DomainState.FLUSHED)), "not-ready", Level.WARNING),
    (lambda f: with_node(f, node("hv2", libvirtstate="connection to libvirtd lost")), "libvirt", Level.CRITICAL),
    (lambda f: with_node(f, node("hv2", domainstate=Unknown("bar"))), "bad-node", Level.WARNING),
    (lambda f: with_node(f, node("hv2", keepalive=int(NOW) - 3600)), "clock", Level.WARNING),
    (lambda f: with_node(f, node("hv2", protocol=2)), "version", Level.WARNING),
    (lambda f: with_node(f, node("hv2", runningdomains=(UUID,))), "not-where-claimed", Level.CRITICAL),
    (lambda f: with_node(f, node("hv1")), "not-where-claimed", Level.WARNING),
    (lambda f: with_node(f, node("hv2", runningdomains=(OTHER,))), "orphan", Level.WARNING),
    (lambda f: replace(f, bmc={**f.bmc, "hv2": "broken: no answer"}), "bmc-broken", Level.WARNING),
    (lambda f: replace(f, domains={UUID: vm(UUID, "hv1", state=VMState.FAILED)}), "failed", Level.CRITICAL),
    (lambda f: replace(f, domains={UUID: vm(UUID, "hv1", state=Unknown("foo"))}), "bad-vm", Level.WARNING),
    (lambda f: replace(f, claims={UUID: ClaimRecord(None, 1)}), "not-running", Level.CRITICAL),
    (lambda f: with_node(f, node("hv1", daemonstate=DaemonState.STOP)), "unwatched", Level.CRITICAL),
    (lambda f: with_node(f, node("hv2", daemonstate=DaemonState.STOP, departure=Departure("t", True))), "shut-down", Level.WARNING),
    (lambda f: with_node(f, node("hv2", departure=Departure("t", True), domainstate=DomainState.FLUSH)), "leaving", Level.WARNING),
    (lambda f: with_node(f, node("hv2", strangers={OTHER: "old1"})), "strangers", Level.WARNING),
    (lambda f: replace(with_node(f, node("hv2", strangers={OTHER: "old1"})), domains={OTHER: vm(OTHER, "hv2", state=VMState.STOP)}),
     "runs-outside", Level.WARNING),
    (lambda f: replace(f, domains={UUID: vm(UUID, "hv1", name="a"), OTHER: vm(OTHER, "hv1", name="a", state=VMState.STOP)}), "duplicate-name", Level.WARNING)])
def test_each_problem_is_found_by_its_code(change: object, code: str, level: Level) -> None:
    assert codes(change(healthy())).get(code) is level  # type: ignore[operator]


@pytest.mark.parametrize("code", health.TROUBLES)
def test_what_a_node_has_seen_names_the_node_or_the_vm_and_a_way_out(code: str) -> None:
    problem = told(with_node(healthy(), node("hv1", runningdomains=(UUID,), troubles=(Trouble(code, UUID, "as {seen}"),))), code)
    assert problem.subject == f"vm-{UUID[:2]}" and problem.next and ("{" not in problem.next)
    if "{detail}" in health.TROUBLES[code][1]:
        assert "as {seen}" in problem.text


def test_what_a_node_told_before_it_stopped_or_of_a_vm_that_is_gone_is_no_problem() -> None:
    troubles = (Trouble("hung", OTHER), Trouble("of a later release", UUID))
    assert codes(with_node(healthy(), node("hv1", runningdomains=(UUID,), troubles=troubles))) == {}
    stopped = with_node(healthy(), node("hv1", daemonstate=DaemonState.STOP, troubles=(Trouble("hung", UUID),)))
    assert "hung" not in codes(stopped)


def test_a_restored_zookeeper_is_not_answered_by_the_end_of_maintenance() -> None:
    facts = replace(healthy(), view=replace(healthy().view, hold=Hold(True, None, "hv1", restored=True)))
    assert "maintenance" not in codes(facts) and "virsh list" in told(facts, "restored").next


def told(facts: Facts, code: str) -> health.Problem:
    return next(problem for problem in health.problems(facts) if problem.code == code)


def test_a_host_that_leaves_says_how_far_it_is_and_its_vms_what_they_wait_for() -> None:
    leaving = with_node(healthy(), node("hv1", departure=Departure("t", True, 5), domainstate=DomainState.FLUSH, runningdomains=(UUID,)))
    assert told(leaving, "leaving").text == "its host is shutting down; 4 of 5 VMs are gone"
    off = replace(with_node(healthy(), node("hv1", departure=Departure("t", True, 5), daemonstate=DaemonState.STOP)), claims={UUID: ClaimRecord(None, 1)})
    waits = told(off, "not-running")
    assert waits.text == "waits for hv1, which was shut down" and f"pvc vm move vm-{UUID[:2]}" in waits.next


@pytest.mark.parametrize("state", list(VMState))
def test_a_wanted_vm_on_a_stopped_node_is_critical_and_the_way_out_is_named(state: VMState) -> None:
    """Finding B5: nobody sees it and nobody recovers it."""
    facts = replace(with_node(healthy(), node("hv1", daemonstate=DaemonState.STOP)), domains={UUID: vm(UUID, "hv1", state=state)})
    problem = told(facts, "unwatched")
    wanted = state in (VMState.START, VMState.MIGRATE, VMState.RESTART)
    assert problem.level is (Level.CRITICAL if wanted else Level.WARNING)
    assert not wanted or ("cannot be seen" in problem.text and "pvc node fence hv1" in problem.next and "systemctl start pvcd" in problem.next)


@pytest.mark.parametrize("seed", range(200))
def test_survival_is_what_the_recovery_then_does(seed: int) -> None:
    """Random clusters: what `stranded` says of a death is what `plan_recovery` leaves waiting once the node is fenced."""
    dice = random.Random(seed)
    names = [f"hv{number}" for number in range(1, dice.randrange(3, 6))]
    nodes = {name: node(name, dice.randrange(0, 2000), domainstate=dice.choice([DomainState.READY] * 3 + [DomainState.FLUSHED])) for name in names}
    uuids = [f"{number:08x}-2222-4333-8444-555555555555" for number in range(dice.randrange(1, 9))]
    domains = {uuid: vm(uuid, dice.choice(names), state=dice.choice([VMState.START] * 4 + [VMState.STOP])) for uuid in uuids}
    claims = {uuid: dice.choice([held(str(record.hypervisor)), ClaimRecord(None, 1)]) if record.state is VMState.START else ClaimRecord(None, 1)
              for uuid, record in domains.items()}
    sizes: dict[str, int | None] = {uuid: dice.randrange(100, 900) for uuid in uuids}
    view, dead = View(nodes, {name: fence(name) for name in names}), dice.choice(names)
    said = {lost.uuid for lost in stranded(view, domains, claims, sizes, dead)}
    after = replace(view, nodes={**nodes, dead: replace(nodes[dead], daemonstate=DaemonState.DEAD)},
                    fences={**view.fences, dead: fence(dead, FencePhase.FENCED)})
    steps = plan_recovery(Actor("janitor", "janitor/0", 1), after, domains, claims, sizes, {}, {})
    assert said == {step.uuid for step in steps if step.node == dead and step.waits}


def test_status_says_what_is_wrong_and_what_to_do(pvc: Pvc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "ask", lambda hosts: [{"address": hosts, "mode": "leader", "latency_ms": 1.0}])
    pvc.define()
    code, out, _ = pvc("status")
    assert code == 0 and "Health:" in out and "ok" in out and "zk:2181 leader (1 ms)" in out and "hv3" in out
    pvc.put("state", "failed")
    value = json.loads(pvc("status", "-f", "json")[1])
    assert value["health"] == "critical" and value["problems"][0]["code"] == "failed" and "pvc vm start web1" in value["problems"][0]["next"]
    assert set(value) == {"at", "zookeeper", "health", "problems", "survives", "nodes", "vms"}


def test_check_has_the_exit_codes_of_plugins(pvc: Pvc) -> None:
    pvc.define()
    code, out, _ = pvc("check")
    assert code == 0 and out.startswith("PVC OK - 3 nodes run, 0 VMs | nodes=3 nodes_running=3 vms=1")
    pvc.node("hv2", domainstate="flushed")
    assert pvc("check")[0] == 1 and pvc("check", "--node", "hv1")[0] == 0 and pvc("check", "--node", "hv2")[0] == 1
    pvc.put("state", "failed")
    code, out, _ = pvc("check")
    assert code == 2 and out.count("\n") == 1 and out.startswith("PVC CRITICAL - 2 problems: web1: failed")
    code, out, _ = pvc("check", "--node", "hv9")
    assert code == 3 and out.startswith("PVC UNKNOWN - Node 'hv9'")
    pvc.server.delete_tree(schema.NODES)
    assert pvc("check")[0] == 3


def test_prometheus_text(pvc: Pvc) -> None:
    pvc.define()
    pvc.server.put(schema.domain(UUID), 'q"u')
    pvc.put("state", "failed")
    code, out, _ = pvc("check", "-f", "prometheus")
    assert code == 0 and "pvc_reachable 1\n" in out and 'pvc_problem{code="failed",subject="q\\"u"} 2\n' in out
    assert all(line.startswith("#") or len(line.rsplit(" ", 1)) == 2 for line in out.splitlines())
    pvc.server.delete_tree(schema.NODES)
    assert pvc("check", "-f", "prometheus")[1].splitlines()[-1] == "pvc_reachable 0"


def test_verify_names_typed_codes_and_fails(pvc: Pvc) -> None:
    import time
    for name in ("hv1", "hv2", "hv3"):
        pvc.node(name, keepalive=str(int(time.time())))
    pvc.define()
    code, out, _ = pvc("verify")
    assert code == 0 and "3 nodes and 1 VMs" in out
    pvc.put("xml", "<domain")
    pvc.put("state", b"\xff\x1b[31m")
    code, out, _ = pvc("verify", "-f", "json")
    assert code == 1 and [problem["code"] for problem in json.loads(out)] == ["bad-vm"]
    assert "\x1b" not in pvc("verify")[1]


def test_garbage_everywhere_is_shown_and_stops_nothing(pvc: Pvc) -> None:
    pvc.define()
    pvc.define("web2", OTHER)
    pvc.put("hypervisor", b"\xff\xfe", OTHER)
    pvc.node("hv2", daemonstate="bar", memfree="many", keepalive="-")
    for words in (["status"], ["verify"], ["check"], ["check", "-f", "prometheus"], ["status", "-f", "json"]):
        code, out, _ = pvc(*words)
        assert code in (0, 1, 2) and "\x1b" not in out and out


def test_servers_that_do_not_answer_are_named() -> None:
    found = servers.ask("127.0.0.1:1,127.0.0.1:2/chroot")
    assert [(server["address"], server["mode"]) for server in found] == [("127.0.0.1:1", None), ("127.0.0.1:2", None)]


def test_node_list_and_info_say_plainly_what_is_wrong(pvc: Pvc) -> None:
    assert pvc("node", "list")[2] == ""
    pvc.server.put(schema.node_key("hv2", "daemonstate"), "dead")
    pvc.server.put(schema.fence("hv2"), Fence("hv2/0", FencePhase.FENCING).encode())
    pvc.server.put(schema.node_key("hv3", "ipmistate"), '{"ok": false, "detail": "no answer", "by": "hv1", "at": "now"}')
    _, out, err = pvc("node", "list")
    assert "dead" in out and "pvc node confirm-off hv2" in err and "hv3: its BMC is broken: no answer" in err
    assert "confirm-off" in pvc("node", "info", "hv2")[1] and json.loads(pvc("node", "info", "hv2", "-f", "json")[1])["problems"] == ["fencing"]
    assert pvc("node", "list", "-f", "json")[2] == ""
