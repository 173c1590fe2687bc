# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Codecs are total: any bytes decode to a known value or to "unknown", never to an exception; and what we write we can read."""
from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvcd.cluster import definition, history, schema
from pvcd.cluster.errors import BadDefinition
from pvcd.cluster.records import Claim, DomainRecord, Fence, Hold, NodeRecord, Operation, Timing, Value, decode_claim, decode_fence, decode_hold, decode_timing
from pvcd.cluster.schema import FencePhase, OpPhase, Unknown, VMState

JSONISH = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(
    st.sampled_from(["v", "node", "inc", "op", "id", "phase", "dest", "dinc", "by", "ka", "forced", "hold", "until", "tick", "fence_intervals"]), inner))
RAW = st.binary(max_size=300) | JSONISH.map(lambda value: json.dumps(value).encode()) | st.text(max_size=100).map(lambda text: text.encode("utf-8", "ignore"))


@given(RAW)
def test_every_decoder_takes_every_byte(raw: bytes) -> None:
    for decode in (schema.decode_text, schema.decode_node_name, schema.decode_int, schema.decode_float, schema.decode_uuids, decode_claim,
                   decode_fence, decode_timing, history.entries):
        decode(raw)
    decode_hold(Value(raw, 1))
    assert "\x1b" not in schema.printable(raw) and "\n" not in schema.printable(raw)
    NodeRecord.read("a", {key: Value(raw, 1) for key in ("", *schema.NODE_KEY_NAMES)})
    record = DomainRecord.read("u", {key: Value(raw, 1) for key in ("", "state", "hypervisor", "lasthypervisor")})
    assert isinstance(record.state, (VMState, Unknown))
    history.appended(raw, history.Entry("t", "w", "x"))


@given(RAW | st.binary(max_size=60).map(lambda body: b"<domain><name>" + body + b"</name></domain>"))
def test_a_definition_is_read_or_refused(raw: bytes) -> None:
    try:
        found = definition.parse(raw)
    except BadDefinition:
        return
    assert schema.is_vm_name(found.name) and schema.is_uuid(found.uuid)


@given(st.text(min_size=1, max_size=20), st.text(max_size=20), st.sampled_from(OpPhase))
def test_what_is_written_can_be_read(inc: str, op_id: str, phase: OpPhase) -> None:
    for claim in (Claim("hv1", inc), Claim("hv1.example.org", inc, Operation(op_id, phase, "hv2", inc))):
        assert decode_claim(claim.encode()) == claim
    for fence in (Fence(inc, FencePhase.UP), Fence(inc, FencePhase.FENCING, "hv2", "ipmi-off", 7, True, True, "now")):
        assert decode_fence(fence.encode()) == fence
    assert decode_timing(Timing(1.0, 6).encode()) == Timing(1.0, 6)


def test_words_are_exact() -> None:
    assert schema.decode_word(VMState, b"start") is VMState.START
    for raw in (b"Start", b"start ", b"start\n", b"", b"\xff"):
        assert schema.decode_word(VMState, raw) == Unknown(raw)
    assert schema.decode_word(VMState, None) is None


def test_a_hold_that_cannot_be_read_holds() -> None:
    assert decode_hold(Value(b"{", 3)).hold and decode_hold(Value(b'{"hold":1}', 3)).hold
    assert not decode_hold(Value(b"", 3)).hold and not decode_hold(Value()).hold
    hold = Hold(True, "2026-01-01T00:00:00Z", "me", 3)
    assert decode_hold(Value(hold.encode(), 3)) == hold


@pytest.mark.parametrize(("text", "unit", "mib"), [
    ("1024", None, 1), ("1025", None, 2), ("1", "GiB", 1024), ("1", "G", 1024), ("1000000", "KB", 954), ("512", "MiB", 512), ("1073741824", "b", 1024),
    ("1", "TiB", 1048576), ("x", "MiB", None), ("1", "parsec", None), ("-1", "MiB", None), ("1.5", "GiB", None), (" 64 ", "MiB", 64), ("٣", "MiB", None)])
def test_units_of_memory(text: str, unit: str | None, mib: int | None) -> None:
    assert definition.memory_mib(text, unit) == mib


@pytest.mark.parametrize(("name", "good"), [("web1", True), ("größe", True), ("日本", True), ("a" * 64, True), ("a" * 65, False), ("", False), ("-a", False),
                                            ("a b", False), ("a/b", False),
                                            ("..", False), ("a\x00", False), ("a\u202eb", False), ("a\n", False)])
def test_names_of_vms(name: str, good: bool) -> None:
    assert schema.is_vm_name(name) is good


@pytest.mark.parametrize(("name", "good"), [("hv1", True), ("hv1.example.org", True), ("..", False), ("a/b", False), ("", False),
                                            ("-hv", False), ("hv\n", False)])
def test_names_of_nodes(name: str, good: bool) -> None:
    assert schema.is_node_name(name) is good


def test_a_history_is_bounded() -> None:
    raw = b""
    for number in range(300):
        raw = history.appended(raw, history.Entry("now", "hv1", f"event {number}", "x" * 400))
    found = history.entries(raw)
    assert len(raw) <= schema.HISTORY_LIMIT and found[-1].what == "event 299" and len(found) <= schema.HISTORY_LINES
