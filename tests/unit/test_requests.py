# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Every operator verb on every state: what it writes, what it checks, what it refuses, written from the interface's tables."""
from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest

from pvcd.cluster import requests, schema
from pvcd.cluster.errors import NotFound, Refusal
from pvcd.cluster.placement import Planning
from pvcd.cluster.records import (
    ANY,
    Change,
    Check,
    Claim,
    ClaimRecord,
    Create,
    Delete,
    DomainRecord,
    Fence,
    FenceRecord,
    NodeRecord,
    Operation,
    Value,
    View,
    Write,
)
from pvcd.cluster.requests import Names, Request
from pvcd.cluster.schema import DaemonState, DomainState, FencePhase, OpPhase, Unknown, VMState

UUID, OTHER = "11111111-2222-4333-8444-555555555555", "99999999-2222-4333-8444-555555555555"
VERSIONS = {"": 1, "state": 5, "hypervisor": 6, "lasthypervisor": 7}
ABSENT, FREED = ClaimRecord(None, ANY), ClaimRecord(None, 8)
ROOT = Value(b"root", 77)
TAKEN = Write(schema.DOMAINS, b"root", 77)
WORDS = ("state", "hypervisor", "lasthypervisor")
START, STOP, MIGRATE, FAILED, DELETE = VMState.START, VMState.STOP, VMState.MIGRATE, VMState.FAILED, VMState.DELETE
RESTART, SHUTDOWN = VMState.RESTART, VMState.SHUTDOWN


def node(name: str, daemon: DaemonState = DaemonState.RUN, domains: DomainState = DomainState.READY, free: int = 1000) -> NodeRecord:
    return NodeRecord(name, daemon, domains, 0, free, 0, versions={"": 0, "domainstate": 4})


VIEW = View({"a": node("a"), "b": node("b", free=2000), "c": node("c", free=3000), "stopped": node("stopped", DaemonState.STOP),
             "flushed": node("flushed", domains=DomainState.FLUSHED), "fenced": node("fenced")},
            {name: FenceRecord(Fence(f"{name}1/0", FencePhase.FENCED if name == "fenced" else FencePhase.UP), 7)
             for name in ("a", "b", "c", "stopped", "flushed", "fenced")})


def record(state: object = START, home: object = "a", last: object = "") -> DomainRecord:
    return DomainRecord(UUID, "web1", state, home, last, VERSIONS)  # type: ignore[arg-type]


def written(request: Request) -> dict[str, str]:
    """The words that a request writes, by key."""
    return {c.path.rpartition("/")[2]: c.data.decode() for c in request.changes if isinstance(c, Write)}


def outcome(verb: Callable[[], Request]) -> str | dict[str, str]:
    """'refused', 'already', or what is written."""
    try:
        request = verb()
    except Refusal as refusal:
        assert refusal.what.strip() and not isinstance(refusal, NotFound)
        return "refused"
    assert request.says.strip()
    return written(request) if request.changes else "already"


VERBS: dict[str, Callable[[DomainRecord], Request]] = {
    "start": lambda r: requests.start(r, VIEW), "stop": requests.stop, "shutdown": requests.shutdown, "restart": requests.restart,
    "move": lambda r: requests.move(r, VIEW, "b"), "migrate": lambda r: requests.migrate(r, VIEW, "b", False),
    "unmigrate": lambda r: requests.unmigrate(r, VIEW), "cancel": lambda r: requests.cancel_migration(r, "c"),
    "mark_deleted": requests.mark_deleted}

NO, SO = "refused", "already"
TABLE = {  # verb: {state: outcome}; the VM's home is a, it has not been migrated
    "start": {START: SO, STOP: {"state": "start"}, SHUTDOWN: {"state": "start"}, RESTART: {"state": "start"},
              MIGRATE: {"state": "start"}, FAILED: {"state": "start"}, DELETE: NO},
    "stop": {START: {"state": "stop"}, STOP: SO, SHUTDOWN: {"state": "stop"}, RESTART: {"state": "stop"},
             MIGRATE: {"state": "stop"}, FAILED: {"state": "stop"}, DELETE: NO},
    "shutdown": {START: {"state": "shutdown"}, STOP: SO, SHUTDOWN: NO, RESTART: NO, MIGRATE: NO, FAILED: NO, DELETE: NO},
    "restart": {START: {"state": "restart"}, STOP: NO, SHUTDOWN: NO, RESTART: NO, MIGRATE: NO, FAILED: NO, DELETE: NO},
    "move": {START: {"state": "migrate", "hypervisor": "b", "lasthypervisor": ""}, STOP: {"hypervisor": "b", "lasthypervisor": ""},
             FAILED: {"hypervisor": "b", "lasthypervisor": ""}, SHUTDOWN: NO, RESTART: NO, MIGRATE: NO, DELETE: NO},
    "migrate": {START: {"state": "migrate", "hypervisor": "b", "lasthypervisor": "a"},
                STOP: {"state": "start", "hypervisor": "b", "lasthypervisor": "a"},
                FAILED: {"state": "start", "hypervisor": "b", "lasthypervisor": "a"},
                SHUTDOWN: NO, RESTART: NO, MIGRATE: NO, DELETE: NO},
    "unmigrate": dict.fromkeys(VMState, NO),
    "cancel": {**dict.fromkeys(VMState, NO), MIGRATE: {"state": "start", "hypervisor": "c"}},
    "mark_deleted": {**{state: {"state": "delete"} for state in VMState}, DELETE: SO},
}


@pytest.mark.parametrize("verb, state", itertools.product(TABLE, VMState))
def test_verb_on_state(verb: str, state: VMState) -> None:
    assert outcome(lambda: VERBS[verb](record(state))) == TABLE[verb][state]


def test_the_table_is_whole() -> None:
    assert set(TABLE) == set(VERBS) and all(set(row) == set(VMState) for row in TABLE.values())


@pytest.mark.parametrize("verb, state, last", itertools.product(set(VERBS) - {"mark_deleted"}, VMState, ("", "b", "c")))
def test_all_three_words_are_written_or_checked_at_the_version_read(verb: str, state: VMState, last: str) -> None:
    try:
        changes = VERBS[verb](record(state, last=last)).changes
    except Refusal:
        return
    for key in WORDS if changes else ():
        touching = [c for c in changes if c.path == schema.domain_key(UUID, key)]
        assert len(touching) == 1 and isinstance(touching[0], (Write, Check)) and touching[0].version == VERSIONS[key], key
    assert len({c.path for c in changes}) == len(changes)


@pytest.mark.parametrize("verb, field, value", itertools.product(
    set(VERBS) - {"mark_deleted"}, WORDS, (Unknown(b"\x1b[31m\xff"), None)))
def test_what_cannot_be_understood_is_no_ground_for_anything(verb: str, field: str, value: object) -> None:
    values: dict[str, object] = {"state": MIGRATE if verb == "cancel" else START, "hypervisor": "a", "lasthypervisor": "", field: value}
    with pytest.raises(Refusal) as caught:
        VERBS[verb](record(values["state"], values["hypervisor"], values["lasthypervisor"]))
    assert schema.printable(str(caught.value)) == str(caught.value)


@pytest.mark.parametrize("verb", VERBS)
def test_a_vm_that_is_gone_is_not_found(verb: str) -> None:
    with pytest.raises(NotFound):
        VERBS[verb](DomainRecord(UUID))


@pytest.mark.parametrize("value", [Unknown(b"foo"), None])
def test_undefine_is_the_way_out_of_garbage(value: object) -> None:
    assert written(requests.mark_deleted(record(value)))["state"] == "delete"


# ------------------------------------------------------------------------------------------------------------ targets

@pytest.mark.parametrize("verb, target", itertools.product(("move", "migrate"), ("a", "stopped", "flushed", "fenced")))
@pytest.mark.parametrize("state", (START, STOP))
def test_itself_and_nodes_that_are_not_ready_are_refused(verb: str, target: str, state: VMState) -> None:
    call = requests.move if verb == "move" else lambda r, v, t: requests.migrate(r, v, t, False)
    with pytest.raises(Refusal) as caught:
        call(record(state), VIEW, target)
    assert not isinstance(caught.value, NotFound) and target in caught.value.what


@pytest.mark.parametrize("target", ("nowhere", "", "../x", "\x1b[31m"))
def test_an_unknown_node_is_not_found_and_the_nodes_are_named(target: str) -> None:
    for call in (lambda: requests.move(record(), VIEW, target), lambda: requests.migrate(record(), VIEW, target, True)):
        with pytest.raises(NotFound) as caught:
            call()
        assert "a, b, c" in str(caught.value) and "\x1b" not in str(caught.value)


def test_the_target_is_checked_in_the_transaction() -> None:
    for request in (requests.move(record(), VIEW, "b"), requests.migrate(record(), VIEW, "b", False), requests.unmigrate(record(last="b"), VIEW)):
        assert any(isinstance(c, Check) and c.path == schema.node("b") for c in request.changes)


def test_without_a_target_the_most_free_memory_decides() -> None:
    assert requests.place(record(), VIEW, 100, {}).target == "c"
    assert requests.place(record(), VIEW, 100, {"c": [2500]}).target == "b", "memory that is promised already counts"
    assert requests.place(record(home="c"), VIEW, 100, {}).target == "b", "not where it is"
    assert written(requests.migrate(record(), VIEW, requests.place(record(), VIEW, 100, {}), False))["hypervisor"] == "c"


def test_no_node_can_take_it() -> None:
    placement = Planning(VIEW).choose(9999, {"a"})
    for call in (lambda: requests.move(record(), VIEW, placement), lambda: requests.migrate(record(), VIEW, placement, False)):
        with pytest.raises(Refusal) as caught:
            call()
        assert "9999 MiB" in caught.value.why and "stopped" in caught.value.why


# ----------------------------------------------------------------------------------------------------------- migrated

def test_a_migrated_vm_is_migrated_further_only_by_force() -> None:
    with pytest.raises(Refusal) as caught:
        requests.migrate(record(last="c"), VIEW, "b", False)
    assert "c" in caught.value.why and "--force" in caught.value.next
    assert written(requests.migrate(record(last="c"), VIEW, "b", True)) == {"state": "migrate", "hypervisor": "b", "lasthypervisor": "a"}


def test_move_forgets_the_old_home() -> None:
    assert written(requests.move(record(last="c"), VIEW, "b"))["lasthypervisor"] == ""


@pytest.mark.parametrize("state, word", [(START, "migrate"), (STOP, "start"), (FAILED, "start")])
def test_unmigrate_goes_back(state: VMState, word: str) -> None:
    new = written(requests.unmigrate(record(state, last="b"), VIEW))
    assert (new["state"], new["hypervisor"]) == (word, "b")


@pytest.mark.parametrize("state", (RESTART, SHUTDOWN, MIGRATE, DELETE))
def test_unmigrate_in_transition_is_refused(state: VMState) -> None:
    with pytest.raises(Refusal):
        requests.unmigrate(record(state, last="b"), VIEW)


@pytest.mark.parametrize("home", ("stopped", "flushed", "fenced"))
def test_unmigrate_to_a_home_that_is_not_ready_is_refused(home: str) -> None:
    with pytest.raises(Refusal):
        requests.unmigrate(record(last=home), VIEW)


@pytest.mark.parametrize("last, new", [("", None), ("c", ""), ("b", None)])
def test_cancel_leaves_it_with_its_holder(last: str, new: str | None) -> None:
    found = written(requests.cancel_migration(record(MIGRATE, "b", last), "c"))
    assert found == {"state": "start", "hypervisor": "c", **({} if new is None else {"lasthypervisor": new})}


def test_cancel_without_a_holder_is_refused() -> None:
    with pytest.raises(Refusal):
        requests.cancel_migration(record(MIGRATE, "b"), None)


# -------------------------------------------------------------------------------------------------- define, undefine

def define(uuid: str = UUID, name: str = "web1", home: str = "a", names: dict[str, str] | None = None,
           claim: ClaimRecord = ABSENT) -> Request:
    return requests.define(uuid, name, b"<domain/>", home, VIEW, Names(ROOT, names or {}), claim)


def test_define_creates_five_keys_and_a_claim_that_is_missing() -> None:
    created = {c.path: c.data for c in define(name="größe").changes if isinstance(c, Create)}
    assert created == {schema.claim(UUID): b"", schema.domain(UUID): "größe".encode(), schema.domain_key(UUID, "state"): b"stop",
                       schema.domain_key(UUID, "hypervisor"): b"a", schema.domain_key(UUID, "lasthypervisor"): b"",
                       schema.domain_key(UUID, "xml"): b"<domain/>"}
    assert any(isinstance(c, Check) and c.path == schema.node("a") for c in define().changes)


def test_define_checks_a_claim_that_is_left_from_an_earlier_life() -> None:
    changes = define(claim=ClaimRecord(None, 8)).changes
    assert Check(schema.claim(UUID), 8) in changes and not any(isinstance(c, Create) and c.path == schema.claim(UUID) for c in changes)


@pytest.mark.parametrize("uuid, name, names", [
    (UUID, "new", {UUID: "web1"}), (UUID, "web1", {OTHER: "web1"}), (UUID, OTHER, {OTHER: "web2"})])
def test_define_refuses_what_exists(uuid: str, name: str, names: dict[str, str]) -> None:
    with pytest.raises(Refusal):
        define(uuid, name, names=names)


def test_of_two_that_take_a_name_at_the_same_time_one_loses() -> None:
    """Finding B14: both write /domains at the version from before they read the names."""
    assert TAKEN in define().changes


def test_a_definition_that_keeps_its_name_takes_none_and_a_new_name_is_taken() -> None:
    kept = requests.modify(record(), b"<x/>", 9, "web1", Names(ROOT, {UUID: "web1"}))
    assert kept.changes == (Check(schema.domain_key(UUID, "state"), 5), Write(schema.domain_key(UUID, "xml"), b"<x/>", 9))
    renamed = requests.modify(record(), b"<x/>", 9, "web2", Names(ROOT, {UUID: "web1"}))
    assert renamed.changes == (Check(schema.domain_key(UUID, "state"), 5), TAKEN, Write(schema.domain(UUID), b"web2", 1),
                               Write(schema.domain_key(UUID, "xml"), b"<x/>", 9))


@pytest.mark.parametrize("name", ["web2", OTHER])
def test_modify_refuses_a_name_that_is_taken(name: str) -> None:
    with pytest.raises(Refusal):
        requests.modify(record(), b"<x/>", 9, name, Names(ROOT, {UUID: "web1", OTHER: "web2"}))


def test_an_orphan_is_defined_again_where_it_runs_and_runs_on() -> None:
    """Finding B16: its keys are gone, its holder lives; `stop` would switch it off."""
    held = ClaimRecord(Claim("a", "a1/0"), 8)
    request = define(claim=held)
    created = {c.path: c.data for c in request.changes if isinstance(c, Create)}
    assert created[schema.domain_key(UUID, "state")] == b"start" and created[schema.domain_key(UUID, "hypervisor")] == b"a"
    assert Check(schema.claim(UUID), 8) in request.changes and TAKEN in request.changes and "runs on" in request.says


@pytest.mark.parametrize("claim", [
    Claim("b", "b1/0"), Claim("a", "a0/0"), Claim("fenced", "fenced1/0"), Claim("stopped", "stopped1/0"), Claim("nowhere", "x"),
    Claim("a", "a1/0", Operation("o", OpPhase.READY, "b", "b1/0")), Unknown(b"{")])
def test_define_under_a_claim_is_refused_where_nobody_knows_that_it_runs(claim: Claim | Unknown) -> None:
    with pytest.raises(Refusal):
        define(claim=ClaimRecord(claim, 8))


@pytest.mark.parametrize("state", [state for state in VMState if state not in (START, DELETE)])
def test_a_vm_is_not_started_on_a_node_that_an_operator_has_emptied(state: VMState) -> None:
    """Finding B15."""
    with pytest.raises(Refusal) as refused:
        requests.start(record(state, "flushed"), VIEW)
    assert "pvc node ready flushed" in refused.value.next


@pytest.mark.parametrize(("uuid", "called", "refused"), [(UUID, "old1", True), (OTHER, "web1", True), (OTHER, "old1", False)])
@pytest.mark.parametrize("phase", list(FencePhase))
def test_define_refuses_what_runs_outside_pvc(uuid: str, called: str, refused: bool, phase: FencePhase) -> None:
    """Finding A18: by UUID or by name, on any node that is up; the way out is named."""
    nodes = {**VIEW.nodes, "b": replace(VIEW.nodes["b"], strangers={uuid: called})}
    view = View(nodes, {**VIEW.fences, "b": FenceRecord(Fence("b1/0", phase), 4)})
    if refused and phase is FencePhase.UP:
        with pytest.raises(Refusal) as told:
            requests.define(UUID, "web1", b"<domain/>", "a", view, Names(ROOT, {}), ABSENT)
        assert "on b outside PVC" in str(told.value) and f"virsh shutdown {called}" in told.value.next
    else:
        assert requests.define(UUID, "web1", b"<domain/>", "a", view, Names(ROOT, {}), ABSENT).changes


def test_define_on_an_unknown_node_is_not_found() -> None:
    with pytest.raises(NotFound):
        define(home="nowhere")


def undefine(state: object = DELETE, claim: ClaimRecord = FREED, xml: int = 2, extra: dict[str, int] | None = None) -> Request:
    return requests.undefine(record(state), claim, xml, extra or {})


def test_undefine_deletes_everything_at_its_version_parent_last() -> None:
    expected: list[Change] = [Check(schema.claim(UUID), 8)]
    changes = list(undefine(extra={"more": 3}).changes)
    deleted = {c.path: c.version for c in changes if isinstance(c, Delete)}
    assert deleted == {schema.domain_key(UUID, "state"): 5, schema.domain_key(UUID, "hypervisor"): 6, schema.domain_key(UUID, "xml"): 2,
                       schema.domain_key(UUID, "lasthypervisor"): 7, schema.domain_key(UUID, "more"): 3, schema.domain(UUID): 1}
    assert changes[-1] == Delete(schema.domain(UUID), 1) and [c for c in changes if isinstance(c, Check)] == expected


@pytest.mark.parametrize("claim", [ClaimRecord(Claim("a", "a1/0"), 8), ClaimRecord(Claim("gone", "x"), 8), ClaimRecord(Unknown(b"{"), 8)])
def test_undefine_never_deletes_under_a_claim(claim: ClaimRecord) -> None:
    with pytest.raises(Refusal):
        undefine(claim=claim)


@pytest.mark.parametrize("state", [*(set(VMState) - {DELETE}), Unknown(b"foo"), None])
def test_undefine_only_after_the_mark(state: object) -> None:
    with pytest.raises(Refusal):
        undefine(state)


def test_undefine_leaves_out_keys_that_are_missing() -> None:
    changes = requests.undefine(DomainRecord(UUID, "web1", DELETE, None, None, {"": 1, "state": 5}), ClaimRecord(None, ANY), ANY, {}).changes
    assert changes == (Delete(schema.domain_key(UUID, "state"), 5), Delete(schema.domain(UUID), 1))


# --------------------------------------------------------------------------------------------------------------- nodes

NODE_TABLE = {
    "flush": {DomainState.READY: "flush", DomainState.UNFLUSH: "flush", DomainState.FLUSH: SO, DomainState.FLUSHED: SO},
    "ready": {DomainState.READY: SO, DomainState.UNFLUSH: SO, DomainState.FLUSH: "unflush", DomainState.FLUSHED: "unflush"},
}


@pytest.mark.parametrize("verb, state", itertools.product(NODE_TABLE, DomainState))
def test_node_verb_on_state(verb: str, state: DomainState) -> None:
    view = View({"a": node("a", domains=state)})
    request = (requests.flush if verb == "flush" else requests.ready)(view, "a")
    word = NODE_TABLE[verb][state]
    path = schema.node_key("a", "domainstate")
    assert request.changes == (() if word == SO else (Write(path, word.encode(), 4),))


@pytest.mark.parametrize("state", (DomainState.FLUSH, DomainState.FLUSHED))
def test_ready_without_return_writes_ready_itself(state: DomainState) -> None:
    assert written(requests.ready(View({"a": node("a", domains=state)}), "a", bring_back=False)) == {"domainstate": "ready"}


def test_an_unknown_node_is_not_found() -> None:
    for verb in (requests.flush, requests.ready):
        with pytest.raises(NotFound):
            verb(VIEW, "nowhere")
