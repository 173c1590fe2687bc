# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The nemesis's checker sees what must not happen, and only that."""
from __future__ import annotations

from typing import Any

from nemesis import checker


def key(at: float, path: str, value: str, since: float | None = None) -> dict[str, Any]:
    return {"at": at, "kind": "key", "path": path, "value": value, "since": at if since is None else since}


def fault(at: float, *may_die: str) -> dict[str, Any]:
    return {"at": at, "kind": "fault", "name": "it", "node": "hv1", "may_die": list(may_die)}


UP, FENCING = '{"phase": "up"}', '{"phase": "fencing"}'


def test_a_fence_after_true_silence_is_right() -> None:
    events = [fault(0, "hv1"), key(1, "/fences/hv1", UP), key(5, "/nodes/hv1/keepalive", "7"), key(35.2, "/fences/hv1", FENCING)]
    assert checker.violations(events, 30) == []
    assert checker.summary(events) == {"fault it": 1, "fences committed": 1}


def test_a_fence_too_early_or_of_the_wrong_node_is_seen() -> None:
    early = [fault(0, "hv1"), key(5, "/nodes/hv1/keepalive", "7"), key(25, "/fences/hv1", FENCING)]
    assert "20.0 s of silence" in checker.violations(early, 30)[0]
    other = [fault(0, "hv2"), key(5, "/nodes/hv1/keepalive", "7"), key(45, "/fences/hv1", FENCING)]
    assert "hv1 is fenced during it" in checker.violations(other, 30)[0]


def test_a_change_seen_late_is_counted_from_when_the_old_value_was_seen_last() -> None:
    events = [fault(0, "hv1"), key(15, "/nodes/hv1/keepalive", "7", since=5), key(36, "/fences/hv1", FENCING)]
    assert checker.violations(events, 30) == []


def test_double_lives_lost_vms_and_tracebacks_are_seen() -> None:
    events: list[dict[str, Any]] = [{"at": 1, "kind": kind, "what": "web1"} for kind in ("double", "lost", "traceback")]
    assert len(checker.violations([*events, {"at": 2, "kind": "audit", "wrong": ["web1 does not speak"]}], 30)) == 4


def test_garbage_in_a_fence_is_no_fence() -> None:
    assert checker.violations([key(1, "/fences/hv1", "{"), key(2, "/fences/hv1", "")], 30) == []
