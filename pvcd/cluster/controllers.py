# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Says whose management controller (BMC) is whose, from what the cluster's keys record, and why one may be told
nothing. Pure.

A controller that is another machine's would switch off a healthy host, and its `off` would be taken for the proof that
a dead one is off. So a controller counts for a node only while nothing says that it is somebody else's: neither its
address nor its GUID is another node's, and the GUID is the one that the host itself sees from inside, where it can see
one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Protocol

from . import schema

KEYS = ("ipmihostname", "ipmiguid", "ipmiinside", "ipmistate")
SEEN_LIMIT, DETAIL_LIMIT = 8, 120
STALE_S = 1500.0
"""A check that is older says nothing any more: five rounds of checks."""
SKEW_S = 300.0
PLACEHOLDERS = frozenset(
    {
        "00020003000400050006000700080009",
        "03000200040005000006000700080009",
        "0123456789abcdef0123456789abcdef",
        "00112233445566778899aabbccddeeff",
    }
)
"""GUIDs that makers leave in every machine alike."""


class Verdict(str, Enum):
    """What the host says from inside about the controller that answers at its address."""

    VERIFIED = "verified"
    UNVERIFIED = "not verified"
    CONTRADICTS = "contradicts"


@dataclass(frozen=True)
class Seen:
    """What one node found when it last asked a controller."""

    ok: bool
    at: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Card:
    """What is recorded of one node's controller. GUIDs are 32 hex digits or ''; `guid` is what answers at its address,
    `local` the one that the host sees through its own interface, `product` the host's DMI product UUID. `seen`: by
    node, its last check.
    """

    host: str = ""
    guid: str = ""
    local: str = ""
    product: str = ""
    addresses: tuple[str, ...] = ()
    seen: Mapping[str, Seen] = field(default_factory=dict)
    told_by: str = ""
    """the host name that `guid` was asked at: another one's says nothing of this one"""
    by: str = ""
    at: str = ""


class Checked(Protocol):
    """What `encode_state` needs of an answer."""

    @property
    def host(self) -> str: ...

    @property
    def addresses(self) -> tuple[str, ...]: ...

    @property
    def cipher(self) -> int | None: ...


def host(text: str) -> str:
    """A host name as it is compared."""
    return text.strip().lower().rstrip(".")


def guid(text: str | None) -> str:
    """32 lower-case hex digits, or '' for anything else and for what makers leave in every machine alike."""
    digits = (text or "").strip().lower().replace("-", "")
    if len(digits) != 32 or set(digits) - set("0123456789abcdef") or len(set(digits)) == 1:
        return ""
    return "" if forms(digits) & PLACEHOLDERS else digits


def forms(digits: str) -> frozenset[str]:
    """The orders of bytes in which the same GUID is told by a controller, by ipmitool's releases and by the firmware.
    """
    raw = bytes.fromhex(digits)
    return frozenset(part.hex() for part in (raw, _mixed(raw), raw[::-1], _mixed(raw[::-1]), _mixed(raw)[::-1]))


def _mixed(raw: bytes) -> bytes:
    """The first three fields turned round, as the firmware's tables have them."""
    return raw[3::-1] + raw[5:3:-1] + raw[7:5:-1] + raw[8:]


def same(one: str, other: str) -> bool:
    """Both are known, and are one GUID."""
    return bool(one and other) and other in forms(one)


def _object(raw: bytes | None) -> dict[str, Any]:
    try:
        value = json.loads((raw or b"{}")[: schema.VALUE_LIMIT].decode("utf-8"))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return schema.printable(value)[:DETAIL_LIMIT] if isinstance(value, str) else ""


def _seen(state: Mapping[str, Any]) -> dict[str, Seen]:
    found = state.get("seen")
    found = found if isinstance(found, dict) else {}
    if isinstance(state.get("ok"), bool) and isinstance(state.get("by"), str):
        found = {**found, state["by"]: state}
    return {
        _text(by): Seen(value["ok"], _text(value.get("at")), _text(value.get("detail")))
        for by, value in found.items()
        if isinstance(value, dict) and isinstance(value.get("ok"), bool)
    }


def card(values: Mapping[str, bytes | None]) -> Card:
    """From the values of KEYS; whatever cannot be understood counts as not recorded."""
    state, inside = _object(values.get("ipmistate")), _object(values.get("ipmiinside"))
    name, recorded = (
        found if isinstance(found, str) else ""
        for found in map(schema.decode_text, (values.get("ipmihostname"), values.get("ipmiguid")))
    )
    name, told_by = host(name), host(_text(inside.get("host")))
    current = host(_text(state.get("host"))) in ("", name)
    own = guid(recorded) if told_by in ("", name) else ""
    addresses = state.get("addresses")
    known = (
        tuple(_text(one) for one in addresses if isinstance(one, str))
        if isinstance(addresses, list) and current
        else ()
    )
    return Card(
        name,
        own or (guid(_text(state.get("guid"))) if current else ""),
        guid(_text(inside.get("local"))),
        guid(_text(inside.get("product"))),
        known,
        _seen(state),
        told_by,
        _text(state.get("by")),
        _text(state.get("at")),
    )


def verdict(of: Card) -> Verdict:
    """A product UUID may differ from the controller's GUID in an honest machine; the host's own interface to it may
    not.
    """
    if of.local and of.guid:
        return Verdict.VERIFIED if same(of.local, of.guid) else Verdict.CONTRADICTS
    return Verdict.VERIFIED if same(of.product, of.guid) else Verdict.UNVERIFIED


def obstacle(cards: Mapping[str, Card], name: str) -> str:
    """Why nothing may ever be sent to the controller of `name` as it is recorded, or ''."""
    mine = cards.get(name, Card())
    for other, card_ in sorted(cards.items()):
        if other == name:
            continue
        if mine.host and mine.host == card_.host:
            return f"{name} and {other} have the same ipmi_hostname {mine.host}"
        if set(mine.addresses) & set(card_.addresses):
            shown = ", ".join(mine.addresses)
            return f"{mine.host} and {card_.host}, the BMCs of {name} and {other}, are one address ({shown})"
        if same(mine.guid, card_.guid):
            return f"the BMCs of {name} and {other} have the same GUID {mine.guid}"
        whose = _inside(card_, mine.guid, cards, other)
        if whose:
            return f"{mine.host} is not the BMC of {name}: its GUID is the {whose} of {other}"
    if verdict(mine) is Verdict.CONTRADICTS:
        return (
            f"{mine.host} is not the BMC of {name}: it says GUID {mine.guid}, and {name} sees GUID {mine.local} inside"
        )
    return ""


def _inside(other: Card, found: str, cards: Mapping[str, Card], name: str) -> str:
    """What `found` is of the host `name`, seen from inside; a product UUID that two hosts have is nobody's."""
    if same(found, other.local):
        return "local GUID"
    unique = not any(same(other.product, card_.product) for owner, card_ in cards.items() if owner != name)
    return "product UUID" if unique and same(found, other.product) else ""


def stranger(cards: Mapping[str, Card], name: str, found: str, addresses: Iterable[str]) -> str:
    """Why the controller that has just given the GUID `found` ('': none) at `addresses` may not be told anything for
    `name`, or ''.
    """
    mine = cards.get(name, Card())
    recorded = mine.guid or mine.local
    if recorded and not found:
        return f"{mine.host} does not say which machine it belongs to"
    if recorded and not same(recorded, found):
        return f"{mine.host} belongs to another machine (GUID {found}, recorded {recorded})"
    fresh = {**cards, name: Card(mine.host, found, mine.local, mine.product, tuple(addresses))}
    return obstacle(fresh, name)


def encode_state(old: bytes | None, by: str, at: str, problem: str, answer: Checked, found: str) -> bytes:
    """The new `ipmistate` after a check by `by`, with what others found before. It stays below the limit of a value."""
    before = {node: seen for node, seen in _seen(_object(old)).items() if node != by}
    kept = sorted(before.items(), key=lambda pair: pair[1].at)[-(SEEN_LIMIT - 1) :]
    seen = {node: {"ok": one.ok, "at": one.at, "detail": one.detail} for node, one in kept}
    return json.dumps(
        {
            "by": by,
            "at": at,
            "ok": not problem,
            "cipher": answer.cipher,
            "detail": _text(problem),
            "guid": found,
            "host": host(answer.host),
            "addresses": list(answer.addresses)[:4],
            "seen": seen,
        },
        ensure_ascii=False,
    ).encode()


def encode_inside(local: str, product: str, told_by: str) -> bytes:
    return json.dumps({"local": local, "product": product, "host": told_by}).encode()


def age_s(at: str, now: float) -> float | None:
    """Seconds since `at` (ISO 8601 UTC) on the reader's wall clock, for display only; None where it is no time, or one
    that is to come.
    """
    try:
        found = now - datetime.strptime(at, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None
    return max(0.0, found) if found >= -SKEW_S else None
