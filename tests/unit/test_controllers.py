# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Whose controller is whose, and what an operator is shown of it."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

import pytest
from client import Pvc

from pvc import rows
from pvcd.bmc import Answer, Bmc, Kind, Purpose, Question
from pvcd.cluster import controllers, schema
from pvcd.cluster.controllers import Card, Verdict, obstacle, stranger, verdict
from pvcd.cluster.records import Fence, decode_fence
from pvcd.cluster.schema import FencePhase

A, B = uuid.UUID("4c4c4544-0042-3010-8051-b4c04f4e3132"), uuid.UUID("4c4c4544-0042-3010-8051-b4c04f4e3133")
NOW = 1_800_000_000.0
FRESH = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(NOW - 60))
OLD = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(NOW - 3 * 86400))


def cards(**changed: Any) -> dict[str, Card]:
    """Two nodes in order; `changed` is of a."""
    values: dict[str, Any] = {"host": "a-lom", "guid": A.hex, "addresses": ("10.0.0.1",), **changed}
    return {"a": Card(**values), "b": Card("b-lom", B.hex, addresses=("10.0.0.2",))}


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({}, ""),
        ({"guid": ""}, ""),
        ({"guid": "", "addresses": ()}, ""),
        ({"host": ""}, ""),
        ({"host": "b-lom"}, "same ipmi_hostname"),
        ({"addresses": ("fe80::1", "10.0.0.2")}, "are one address"),
        ({"guid": B.hex}, "same GUID"),
        ({"guid": B.bytes_le.hex()}, "same GUID"),
        ({"guid": B.bytes[::-1].hex()}, "same GUID"),
        ({"local": B.hex}, "a sees GUID"),
        ({"local": A.bytes_le.hex()}, ""),
        ({"product": B.hex}, ""),
    ],
)
def test_what_speaks_against_a_controller(changed: dict[str, Any], why: str) -> None:
    found = obstacle(cards(**changed), "a")
    assert (why in found) if why else found == ""
    if why and "sees" not in why:
        assert why in obstacle(cards(**changed), "b"), "whose it is cannot be told: neither is told anything"


def test_a_guid_that_another_host_sees_inside_is_that_hosts() -> None:
    found = {**cards(guid=""), "b": Card("b-lom", "", local=A.hex)}
    assert stranger(found, "a", A.hex, ()).endswith("its GUID is the local GUID of b")
    by_product = {**cards(guid=""), "b": Card("b-lom", "", product=A.bytes_le.hex())}
    assert stranger(by_product, "a", A.hex, ()).endswith("its GUID is the product UUID of b")
    containers = {**by_product, "c": Card("c-lom", "", product=A.hex)}
    assert stranger(containers, "a", A.hex, ()) == "", "a product UUID that two hosts have is nobody's"


@pytest.mark.parametrize(
    ("changed", "found", "addresses", "why"),
    [
        ({}, A.hex, ("10.0.0.1",), ""),
        ({}, A.bytes_le.hex(), ("10.0.0.9",), ""),
        ({"guid": ""}, "", (), ""),
        ({"guid": ""}, A.hex, (), ""),
        ({}, "", (), "does not say which machine"),
        ({"guid": "", "local": A.hex}, "", (), "does not say which machine"),
        ({}, B.hex, (), "belongs to another machine"),
        ({"guid": "", "local": A.hex}, B.hex, (), "belongs to another machine"),
        ({"guid": ""}, B.hex, (), "same GUID"),
        ({"guid": ""}, "", ("10.0.0.2",), "are one address"),
        ({"host": "b-lom", "guid": ""}, "", (), "ipmi_hostname"),
    ],
)
def test_who_may_be_told_nothing_right_now(
    changed: dict[str, Any], found: str, addresses: tuple[str, ...], why: str
) -> None:
    said = stranger(cards(**changed), "a", found, addresses)
    assert (why in said) if why else said == ""


def test_the_verdict_from_inside() -> None:
    assert (
        verdict(Card(guid=A.hex, local=A.bytes_le.hex()))
        is verdict(Card(guid=A.hex, product=A.bytes_le.hex()))
        is Verdict.VERIFIED
    )
    assert verdict(Card(guid=A.hex, local=B.hex, product=A.hex)) is Verdict.CONTRADICTS
    assert (
        verdict(Card(guid=A.hex, product=B.hex))
        is verdict(Card(guid=A.hex))
        is verdict(Card(local=A.hex))
        is Verdict.UNVERIFIED
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0" * 32,
        "f" * 32,
        "00020003-0004-0005-0006-000700080009",
        "03000200-0400-0500-0006-000700080009",
        "xyz",
        "12",
        None,
    ],
)
def test_a_placeholder_is_no_guid(text: str | None) -> None:
    assert controllers.guid(text) == ""


def test_a_guid_in_any_spelling() -> None:
    assert (
        controllers.guid(str(A).upper()) == A.hex
        and controllers.same(A.hex, A.hex)
        and not controllers.same(A.hex, B.hex)
        and not controllers.same("", "")
    )


def raw(**values: Any) -> dict[str, bytes]:
    return {
        key: value if isinstance(value, bytes) else (value if isinstance(value, str) else json.dumps(value)).encode()
        for key, value in values.items()
    }


def test_what_was_recorded_at_another_host_name_says_nothing_of_this_one() -> None:
    state = {"by": "b", "at": FRESH, "ok": True, "guid": B.hex, "addresses": ["10.0.0.2"], "host": "old-lom"}
    found = controllers.card(
        raw(ipmihostname="New-LOM.", ipmiguid=A.hex, ipmiinside={"host": "old-lom"}, ipmistate=state)
    )
    assert (found.host, found.guid, found.addresses) == ("new-lom", "", ())
    same = controllers.card(
        raw(ipmihostname="old-lom", ipmiguid=A.hex, ipmiinside={"host": "old-lom", "local": A.hex}, ipmistate=state)
    )
    assert (same.guid, same.local, same.addresses) == (A.hex, A.hex, ("10.0.0.2",))
    assert controllers.card(raw(ipmihostname="old-lom", ipmistate=state)).guid == B.hex, (
        "what a peer found, until the node itself has asked"
    )


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"[" * 9000,
        b"x" * 9000,
        b'{"ok": 1, "seen": [], "addresses": 3}',
        b'{"seen": {"b": 3}, "ok": true}',
    ],
)
def test_garbage_is_nothing_recorded(garbage: bytes) -> None:
    found = controllers.card(dict.fromkeys(controllers.KEYS, garbage))
    assert (found.guid, found.local, found.addresses, dict(found.seen)) == ("", "", (), {})


def test_the_state_keeps_what_each_node_found_and_stays_small() -> None:
    state: bytes | None = None
    for number in range(40):
        answer = Answer(
            Question(Purpose.CHECK, "a", Kind.IDENTITY, Bmc("a-lom", "u", "p")),
            0.0,
            addresses=("10.0.0.1",) * 9,
            cipher=17,
        )
        state = controllers.encode_state(
            state, f"hv{number}.example.org", f"2026-01-01T00:00:{number:02d}Z", "trouble " * 90, answer, A.hex
        )
    assert state is not None and len(state) < schema.VALUE_LIMIT
    found = controllers.card({"ipmihostname": b"a-lom", "ipmistate": state})
    assert (
        len(found.seen) == controllers.SEEN_LIMIT
        and found.by == "hv39.example.org"
        and not found.seen["hv32.example.org"].ok
    )


# ------------------------------------------------------------------------------------------------------- what is shown


def word(**state: Any) -> str:
    values = raw(ipmihostname="a-lom", ipmiguid=A.hex, ipmiinside={"local": state.pop("local", "")}, ipmistate=state)
    return rows.bmc_word({"a": controllers.card(values)}, "a", NOW)


def test_a_check_has_an_age_and_says_nothing_when_it_is_old() -> None:
    assert word(by="b", at=FRESH, ok=True) == "answers, not verified (checked by b 60 s ago)"
    assert word(by="b", at=FRESH, ok=True, local=A.hex) == "answers, verified (checked by b 60 s ago)"
    assert word(by="b", at=OLD, ok=True) == "unknown: last checked by b 3 d ago"
    assert word(by="b", at="soon", ok=True) == "unknown: last checked by b at soon"
    assert word(by="b", at="2099-01-01T00:00:00Z", ok=True).startswith("unknown"), (
        "a clock that is wrong makes nothing fresh"
    )
    assert word(ok=None) == "not checked yet"


def test_what_one_of_the_nodes_cannot_reach_is_shown() -> None:
    seen = {"c": {"ok": False, "at": FRESH, "detail": "no route"}}
    assert word(by="b", at=FRESH, ok=True, seen=seen) == f"broken: no route, seen by c at {FRESH}"
    assert word(by="b", at=FRESH, ok=True, seen={"c": {"ok": False, "at": OLD, "detail": "no route"}}).startswith(
        "answers"
    )


def test_status_check_and_verify_say_that_a_controller_is_anothers(pvc: Pvc) -> None:
    for name in ("hv1", "hv2"):
        pvc.server.put(schema.node_key(name, "ipmihostname"), "hv2-lom")
    for command in (("status",), ("verify",), ("node", "info", "hv1")):
        _, out, _ = pvc(*command)
        assert "same ipmi_hostname hv2-lom" in out and "critical" in out, command
    assert pvc("check")[0] == 2


def test_node_info_shows_who_tried_to_fence(pvc: Pvc) -> None:
    from pvcd.cluster import tries

    fence = Fence("hv3/0", FencePhase.FENCING, "hv1", ka=0, since="t")
    pvc.server.put(schema.fence("hv3"), fence.encode())
    pvc.server.put(
        schema.node_key("hv3", "fencetries"),
        json.dumps(
            {
                "fence": tries.about(fence),
                "count": 2,
                "last": [
                    {"by": "hv1", "at": "t", "why": "no route"},
                    {"by": "hv2", "at": "t", "why": "it still says on"},
                ],
            }
        ),
    )
    for command in (("status",), ("node", "info", "hv3")):
        assert "(2 tries: hv1: no route; hv2: it still says on)" in pvc(*command)[1]


def fence_of(pvc: Pvc, name: str) -> Fence:
    found = decode_fence(pvc.server.nodes[schema.fence(name)].data)
    assert isinstance(found, Fence)
    return found


def test_power_on_is_for_fenced_nodes_and_asks(pvc: Pvc) -> None:
    code, _, err = pvc("node", "power-on", "hv3", "-y")
    assert code != 0 and "not fenced" in err
    pvc.server.put(schema.fence("hv3"), Fence("hv3/0", FencePhase.FENCED, "op", "confirm", on=True).encode())
    code, _, err = pvc("node", "power-on", "hv3")
    assert code != 0 and "--yes" in err and not fence_of(pvc, "hv3").asked
    assert pvc("node", "power-on", "hv3", "-y")[0] == 0
    assert (
        fence_of(pvc, "hv3").asked and not fence_of(pvc, "hv3").on and fence_of(pvc, "hv3").phase is FencePhase.FENCED
    )
    for name in ("hv1", "hv2"):
        pvc.server.put(schema.node_key(name, "daemonstate"), "stop")
    assert "no other node runs" in pvc("node", "power-on", "hv3", "-y")[2]
