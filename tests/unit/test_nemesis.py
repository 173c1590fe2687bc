# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The nemesis's checker sees what must not happen, and only that: each rule on a history that keeps it and on one that breaks it."""
from __future__ import annotations

import json
import random
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from nemesis import __main__ as program
from nemesis import checker, faults, orders
from nemesis.garbage import Garbage
from nemesis.history import History
from nemesis.run import DEADLY, HARMLESS, Nemesis

from lablib.host import LabError

Event = dict[str, Any]
VMS = {"web1": "u1", "web2": "u2"}
BEGUN: Event = {"at": 0, "kind": "begun", "nodes": ["hv1", "hv2"], "vms": VMS, "lives": {"web1": 1, "web2": 1}}


def key(at: float, path: str, value: str, since: float | None = None, version: int = 1) -> Event:
    return {"at": at, "kind": "key", "path": path, "value": value, "since": at if since is None else since, "version": version}


def keepalive(at: float, node: str = "hv1", since: float | None = None) -> Event:
    return key(at, f"/nodes/{node}/keepalive", f"{at}", since)


def fence(at: float, phase: str, node: str = "hv1", inc: str = "a/0") -> Event:
    return key(at, f"/fences/{node}", json.dumps({"phase": phase, "inc": inc}))


def claim(at: float, version: int, node: str, inc: str = "a/0", phase: str = "", dest: str = "", uuid: str = "u1", since: float | None = None) -> Event:
    op = {"phase": phase, "dest": dest} if phase else None
    value = json.dumps({"node": node, "inc": inc, "op": op}) if node else ""
    return key(at, f"/claims/{uuid}", value, at - 0.25 if since is None else since, version)


def fault(at: float, *may_die: str, **more: Any) -> Event:
    return {"at": at, "kind": "fault", "name": "it", "node": "hv1", "may_die": list(may_die), **more}


def order(at: float, *words: str, status: int = 0, told: str = "done") -> Event:
    return {"at": at, "kind": "order", "words": list(words), "status": status, "told": told}


def held(at: float, web1: int = 1, wrong: tuple[str, ...] = ()) -> Event:
    return {"at": at, "kind": "held", "wrong": list(wrong), "lives": {"web1": web1, "web2": 1}}


def settled(at: float, *dark: str) -> Event:
    return {"at": at, "kind": "settled", "dark": list(dark)}


def found(at: float, web1: str = "start") -> Event:
    return {"at": at, "kind": "found", "states": {"web1": web1, "web2": "start"}}


def audit(at: float, web1: int = 1, wrong: tuple[str, ...] = ()) -> Event:
    return {"at": at, "kind": "audit", "wrong": list(wrong), "lives": {"web1": web1, "web2": 1}}


def ended(at: float = 900, asked_s: float = 60, used_s: float = 61, rounds: int = 1) -> Event:
    return {"at": at, "kind": "ended", "asked_s": asked_s, "used_s": used_s, "rounds": rounds}


def judged(*events: Event) -> list[str]:
    """What is wrong with these events in a run that came to its end."""
    return checker.violations([BEGUN, *events, ended()], 30)


def seen(texts: list[str], what: str) -> bool:
    return len(texts) == 1 and what in texts[0]


# ------------------------------------------------------------------------------------------------------------ the run as a whole

def test_a_run_that_stops_or_is_too_short_has_failed() -> None:
    assert checker.violations([BEGUN, ended()], 30) == []
    assert seen(checker.violations([BEGUN], 30), "has not come to its end")
    assert seen(checker.violations([BEGUN, ended(used_s=59)], 30), "60 s were asked for, and the run took 59")
    assert seen(checker.violations([BEGUN, ended(rounds=0)], 30), "no round")
    assert seen(judged({"at": 5, "kind": "stopped", "what": "hv1 is off"}), "stopped: hv1 is off")


@pytest.mark.parametrize("kind", ["double", "lost", "traceback"])
def test_what_is_wrong_by_itself(kind: str) -> None:
    assert seen(judged({"at": 1, "kind": kind, "what": "web1"}), f"{kind}: web1")


def test_a_sampler_that_does_not_look_is_noticed() -> None:
    looking = [keepalive(170, node) for node in ("hv1", "hv2")]
    assert judged(*looking, audit(199)) == []
    assert seen(judged(looking[0], audit(199)), "no keepalive of hv2 was seen for 199 s")
    assert len(judged(*looking, audit(201))) == 2
    assert seen(judged(audit(201, wrong=("hv1 is down",))), "after no fault: hv1 is down")


def test_a_daemon_that_grows_without_bound_is_noticed() -> None:
    def used(at: float, pid: str, **more: int) -> Event:
        return {"at": at, "kind": "pvcd", "node": "hv1", "pid": pid, **({"rss_kib": 40_000, "threads": 24, "fds": 13} | more)}
    assert judged(used(1, "7"), used(2, "7", threads=50), used(3, "8", rss_kib=200_000)) == []
    for measure, value in (("rss_kib", 110_000), ("threads", 60), ("fds", 70)):
        assert seen(judged(used(1, "7"), used(2, "7"), used(3, "7", **{measure: value})), measure)
    assert checker.uses([used(1, "7"), used(2, "8", rss_kib=51_200)]) == ["pvcd of hv1: 2 processes, 39 to 50 MiB, 24 to 24 threads, 13 to 13 files"]


# ------------------------------------------------------------------------------------------------------------------------ fences

def test_a_fence_after_true_silence_is_right() -> None:
    events = [fault(0, "hv1"), fence(1, "up"), keepalive(5), fence(35.2, "fencing")]
    assert judged(*events) == []
    assert checker.summary(events) == {"fault it": 1, "fences committed": 1}


def test_a_fence_too_early_or_of_the_wrong_node_is_seen() -> None:
    assert seen(judged(fault(0, "hv1"), keepalive(5), fence(25, "fencing")), "20.0 s of silence")
    assert seen(judged(fault(0, "hv2"), keepalive(5), fence(45, "fencing")), "hv1 is fenced during it")


def test_a_change_seen_late_is_counted_from_when_the_old_value_was_seen_last() -> None:
    assert judged(fault(0, "hv1"), keepalive(15, since=5), fence(36, "fencing")) == []


def test_garbage_in_a_fence_is_no_fence() -> None:
    assert judged(key(1, "/fences/hv1", "{"), key(2, "/fences/hv1", ""), key(3, "/fences/hv1", "[]")) == []


# ------------------------------------------------------------------------------------------------------------------------ claims

def test_a_claim_passes_on_by_a_hand_over() -> None:
    assert judged(claim(1, 1, "hv1", phase="run", dest="hv2"), claim(2, 2, "hv2", "b/0")) == []
    assert judged(claim(1, 1, "hv1", phase="run", dest="hv2"), claim(2, 2, "hv2", "b/1", phase="given", dest="hv2")) == []


@pytest.mark.parametrize("op", [{}, {"phase": "ready", "dest": "hv2"}, {"phase": "given", "dest": "hv2"}, {"phase": "run", "dest": "hv3"}])
def test_a_claim_that_passes_on_in_one_write_without_a_hand_over(op: dict[str, str]) -> None:
    assert seen(judged(claim(1, 1, "hv1", **op), claim(2, 2, "hv2", "b/0")), "from hv1 to hv2 without a hand-over")


def test_a_claim_that_was_free_in_between() -> None:
    assert judged(claim(1, 1, "hv1"), claim(2, 2, ""), claim(3, 3, "hv2", "b/0")) == []
    unseen = [claim(1, 1, "hv1"), claim(2, 3, "hv2", "b/0")]
    assert judged(*unseen) == []
    assert checker.summary(unseen) == {"claims that moved unseen, judged by fences alone": 1}


def test_nobody_takes_over_from_a_node_that_is_not_proved_dead() -> None:
    dying = [fault(0, "hv1"), fence(0, "up"), keepalive(0), claim(1, 1, "hv1"), fence(31, "fencing")]
    for taken in (claim(40, 2, ""), claim(40, 3, "hv2", "b/0"), claim(40, 2, "hv2", "b/0"), claim(40, 3, "hv1", "a/1")):
        assert seen(judged(*dying, taken), "not proved dead")
    assert judged(*dying, fence(39, "fenced"), claim(40, 3, "hv2", "b/0")) == []
    assert judged(*dying, fence(39, "up", inc="a/1"), claim(40, 2, "")) == []
    assert judged(*dying, claim(31.2, 2, "")) == [], "freed before the fence was committed, and seen in the same look"


def test_a_destination_takes_nothing_from_a_node_that_is_being_fenced() -> None:
    """What has arrived is paused: it waits for the proof, as everybody."""
    dying = [fault(0, "hv1"), keepalive(0), claim(1, 1, "hv1", phase="run", dest="hv2"), fence(31, "fencing")]
    assert seen(judged(*dying, claim(40, 2, "hv2", "b/0")), "not proved dead")
    assert judged(*dying, fence(39, "fenced"), claim(40, 2, "hv2", "b/0", phase="given", dest="hv2")) == []


def test_a_claim_whose_version_goes_back() -> None:
    assert seen(judged(claim(1, 7, "hv1"), claim(2, 0, "hv1")), "goes back from version 7 to 0")


# ------------------------------------------------------------------------------------------------------- the lives of the guests

def test_a_life_that_nobody_ended() -> None:
    assert seen(judged(fault(1), audit(20, web1=2)), "web1 lives another life after it")
    assert judged(order(1, "vm", "restart", "web1"), fault(1), audit(20, web1=2)) == []
    assert judged(order(1, "vm", "stop", "-y", "web1"), fault(1), audit(20, web1=2)) == []
    assert judged(fault(1, ends_lives=["web1"]), audit(20, web1=2)) == []
    assert seen(judged(fault(1, ends_lives=["web2"]), audit(20, web1=2)), "web1 lives another life")
    assert seen(judged(order(1, "vm", "migrate", "web1"), fault(1), audit(20, web1=2)), "web1 lives another life")


def test_orders_excuse_only_the_round_they_were_given_in() -> None:
    assert seen(judged(order(1, "vm", "restart", "web1"), fault(1), audit(20, web1=2), audit(25, web1=3)), "web1 lives another life")


def test_a_deadly_fault_excuses_only_the_guests_of_its_node() -> None:
    assert judged(claim(1, 1, "hv1"), fault(2, "hv1"), settled(10), audit(20, web1=2)) == []
    assert seen(judged(claim(1, 1, "hv2"), fault(2, "hv1"), settled(10), audit(20, web1=2)), "web1 lives another life")
    arriving = [claim(1, 1, "hv2"), fault(2, "hv1"), claim(3, 2, "hv2", phase="run", dest="hv1")]
    assert judged(*arriving, settled(10), audit(20, web1=2)) == []
    late = [claim(1, 1, "hv2"), fault(2, "hv1"), settled(10), claim(12, 2, "hv2", phase="run", dest="hv1"), claim(13, 3, "hv1")]
    assert seen(judged(*late, audit(20, web1=2)), "web1 lives another life")


def test_without_a_proof_only_a_guest_that_is_migrated_may_begin_anew() -> None:
    assert seen(judged(claim(1, 1, "hv1"), fault(2, "hv1", spared=True), audit(20, web1=2)), "web1 lives another life")
    assert judged(claim(1, 1, "hv1", phase="run", dest="hv2"), fault(2, "hv1", spared=True), audit(20, web1=2)) == []


# ------------------------------------------------------------------------------------------- what a fault must have brought

BESIDE = [claim(1, 1, "hv2", "b/0", uuid="u2"), claim(1, 1, "", uuid="u3")]
DYING = [claim(1, 1, "hv1"), *BESIDE, fence(1, "up"), keepalive(1), fault(2, "hv1", must_die=["hv1"])]
RECOVERED = [fence(32, "fencing"), fence(34, "fenced"), claim(34, 3, "hv2", "b/0")]


def test_a_node_that_is_cut_for_long_is_fenced_and_recovered_before_it_is_held() -> None:
    assert judged(*DYING, *RECOVERED, held(60, web1=2)) == []
    back = fence(40, "up", inc="a2/0")
    assert judged(*DYING, *RECOVERED, back, held(60, web1=2)) == []
    assert seen(judged(*DYING, fence(32, "fencing"), held(60, web1=2)), "hv1 is not proved dead")
    assert seen(judged(*DYING, held(60, web1=2)), "hv1 is not proved dead")
    assert seen(judged(*DYING, *RECOVERED[:2], held(60, web1=2)), "u1 of hv1 has not been recovered")
    assert seen(judged(*DYING, *RECOVERED[:2], claim(35, 2, ""), held(60, web1=2)), "u1 of hv1 has not been recovered")
    assert seen(judged(*DYING, *RECOVERED, held(60)), "web1 has not begun a new life")


def test_orders_excuse_a_recovery_that_does_not_come() -> None:
    for words in (("vm", "stop", "-y", "web1"), ("node", "flush", "hv2")):
        assert judged(order(1, *words), *DYING, *RECOVERED[:2], held(60)) == []
    moving = [claim(1, 1, "hv1", phase="run", dest="hv2"), *DYING[1:], *RECOVERED[:2]]
    assert judged(*moving, held(60)) == []


def test_who_cannot_be_proved_dead_objects() -> None:
    start = [fence(1, "up"), keepalive(1), fault(2, "hv1", must_object=["hv1"])]
    audited = [keepalive(62), keepalive(62, "hv2"), audit(70)]
    assert judged(*start, fence(32, "fencing"), held(60), fence(61, "up"), *audited) == []
    assert seen(judged(*start, held(60), *audited), "hv1 is not in fencing")
    for back in (fence(61, "fencing"), fence(61, "fenced"), fence(61, "up", inc="a/1")):
        assert seen(judged(*start, fence(32, "fencing"), held(60), back, *audited), "hv1 has not come back as it was")
    proved = [fence(32, "fencing"), held(60), fence(61, "fenced"), fence(62, "up")]
    assert seen(judged(*start, *proved, *audited), "hv1 has not come back as it was")


def test_what_the_fault_itself_blames() -> None:
    assert seen(judged(fault(1), held(9, wrong=("pvcd of hv1 has died",))), "pvcd of hv1 has died")


def test_a_host_that_loses_its_power_for_nothing() -> None:
    assert judged(fault(1, "hv1"), settled(9, "hv1")) == []
    assert seen(judged(fault(1, "hv1"), settled(9, "hv2")), "hv2 has lost its power during it")
    assert seen(judged(fault(1, "hv1", spared=True), settled(9, "hv1")), "hv1 has lost its power")
    assert judged(fault(1, "hv1"), settled(9)) == []


def test_a_fault_that_is_not_there_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemesis.run.THERE_S", 0.0)
    history = History(tmp_path / "history")
    nemesis = Nemesis(NoLab(), None, history, None, 1, print)  # type: ignore[arg-type]
    nemesis._see(faults.Fault("it", 1, lambda: None, there=lambda: False))
    nemesis._see(faults.Fault("it", 1, lambda: None))
    assert [event["what"] for event in history.events] == ["not within 0 s: it is there"]


# ------------------------------------------------------------------------------------------------- words before anything is repaired

@pytest.mark.parametrize("state", ["stop", "shutdown"])
def test_a_vm_that_nobody_stopped(state: str) -> None:
    assert seen(judged(found(9, state)), f"web1 is in {state}, and nobody ordered it")
    assert seen(judged(order(1, "vm", "restart", "web1"), found(9, state)), "nobody ordered it")
    assert seen(judged(order(1, "vm", "stop", "-y", "web1", status=4), found(9, state)), "nobody ordered it")
    for status in (0, 5, 124, -1):
        assert judged(order(1, "vm", "stop", "-y", "web1", status=status), found(9, state)) == []
    assert seen(judged(order(1, "vm", "stop", "-y", "web1"), audit(5), found(9, state)), "nobody ordered it")


def test_a_vm_that_failed() -> None:
    kills = [fault(at, ends_lives=["web1"]) for at in (1, 100, 200)]
    assert judged(*kills, found(210, "failed")) == []
    assert seen(judged(*kills[1:], found(210, "failed")), "has not been killed so often")
    assert seen(judged(*kills, found(605, "failed")), "has not been killed so often")
    assert judged(*kills[1:], order(205, "vm", "shutdown", "web1"), order(206, "vm", "start", "web1"), found(210, "failed")) == []


def test_an_accepted_stop_that_was_lost() -> None:
    stopped = order(1, "vm", "shutdown", "web1")
    assert seen(judged(stopped, found(9, "start")), "its shutdown had been accepted")
    assert judged(stopped, order(2, "vm", "start", "web1"), found(9, "start")) == []
    assert judged(order(1, "vm", "shutdown", "web1", status=4), found(9, "start")) == []


def test_a_vm_that_is_gone() -> None:
    assert seen(judged({"at": 9, "kind": "found", "states": {"web2": "start"}}), "web1 is gone")


# ----------------------------------------------------------------------------------------------------------------- other witnesses

def test_a_traceback_of_the_client() -> None:
    assert seen(judged(order(1, "vm", "start", "web1", status=1, told="Traceback (most recent call last):")), "a traceback of the client: vm start web1")


def test_the_disk_and_the_serial_line_tell_of_one_life() -> None:
    assert checker.disk_trouble(("a", 100), ("a", 98)) == checker.disk_trouble(("a", 100), ("a", 102)) == ""
    assert "of life b" in checker.disk_trouble(("a", 100), ("b", 100))
    assert "n=20" in checker.disk_trouble(("a", 100), ("a", 20))
    assert "n=200" in checker.disk_trouble(("a", 100), ("a", 200))
    assert "nothing" in checker.disk_trouble(("a", 100), None)


def test_what_the_audit_found() -> None:
    assert seen(judged(fault(1), audit(9, wrong=("web1 does not speak",))), "after it: web1 does not speak")


# ------------------------------------------------------------------------------------------------------------------ the generators

class NoLab:
    """A lab that may be asked for its names only: to plan a fault must do nothing."""

    names = ("hv1", "hv2", "hv3")


@pytest.mark.parametrize("kind", [kind for kind in HARMLESS + DEADLY if kind is not faults.zookeeper_leader_away], ids=lambda kind: kind.__name__)
def test_planning_a_fault_does_nothing_and_says_what_may_come(kind: Any) -> None:
    for seed in range(30):
        fault = kind(faults.Target(NoLab(), "hv1", list(VMS), random.Random(seed)))
        assert fault.hold_s > 0 and fault.name
        assert fault.may_die == (["hv1"] if kind in DEADLY else [])
        assert not fault.must_die or (fault.must_die == ["hv1"] and not fault.spared and fault.hold_s >= faults.SURE_S)
        assert not fault.must_object or (fault.must_object == ["hv1"] and fault.spared and fault.hold_s >= faults.JUDGED_S)


def test_orders_of_all_kinds_are_planned() -> None:
    planned = [orders.plan(random.Random(seed), list(VMS), NoLab.names) for seed in range(200)]
    assert any(len(plan) == 6 and all(words[0] == "node" for (words,) in plan) for plan in planned), "a storm of flush and ready"
    assert any(plan and plan[0] == [("vm", "migrate", vm) for vm in VMS] for plan in planned), "all VMs at once"
    duels = [pair for plan in planned for pair in plan if len(pair) == 2 and pair[0][:2] != pair[1][:2]]
    assert duels and all(set(first) & set(second) & set(VMS) for first, second in duels), "two operators at one VM"
    assert any(len(plan) == 3 and all(len(together) == 1 for together in plan) for plan in planned), "single orders"
    assert planned[7] == orders.plan(random.Random(7), list(VMS), NoLab.names)


def test_garbage_is_never_written_where_nothing_is_promised() -> None:
    for seed in range(200):
        paths = str(Garbage(NoLab(), "hv1", "web1", random.Random(seed)))
        assert "/claims" not in paths and "/fences" not in paths and "/xml" not in paths
        assert "/state " in paths or "/hypervisor " in paths


@pytest.mark.parametrize("error", [LabError("hv1 is off"), subprocess.TimeoutExpired("pvc", 40), OSError("no such file")])
def test_a_run_that_cannot_go_on_fails(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def round(self, *_: object) -> None:
            raise error
    monkeypatch.setattr("sys.argv", ["nemesis", "--minutes", "1"])
    history = History(tmp_path / "history")
    assert program.run(program.options(), Broken(), history, time.monotonic()) == 0
    assert [event["kind"] for event in history.events] == ["stopped"]
    assert program.report(history, 5, 30) == 1
