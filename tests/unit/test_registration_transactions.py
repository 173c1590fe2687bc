# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The transactions of a start, each with the whole of what it writes and checks."""
from __future__ import annotations

import pytest
from test_registration import FENCED, FENCING, MACHINE, REMOVED, UP, UUID, Node, keepalive

from pvcd.cluster import schema
from pvcd.cluster.records import Change, Check, Claim, Create, Delete, Fence, Write
from pvcd.cluster.schema import DaemonState
from pvcd.machine import Host
from pvcd.registration import Registration

DEPARTURE = schema.node_key("a", "departure")


def started(node: Node, boot: str) -> list[tuple[Change, ...]]:
    """What a start commits."""
    found: list[tuple[Change, ...]] = []
    node.server.on_commit = lambda _client, changes: found.append(tuple(changes))
    node.start(boot)
    node.server.on_commit = None
    return found


@pytest.mark.parametrize(("old", "boot", "new", "leaves"), [
    (Fence("b1/0", UP), "b2", Fence("b2/0", UP, "a", "boot", since="now"), False),
    (Fence("b1/0", FENCING, "c", ka=3), "b2", Fence("b2/0", UP, "a", "boot", since="now"), False),
    (Fence("b1/0", FENCED), "b2", Fence("b2/0", UP, "a", "boot", since="now"), True),
    (Fence("b1/0", FENCED), "b1", Fence("b1/1", UP, "a", "rejoin", since="now"), True),
    (Fence("b1/0", REMOVED, method="remove"), "b1", Fence("b1/0", UP, "a", "rejoin", since="now"), False)])
def test_a_fence_comes_up_with_a_keepalive_at_the_versions_read(old: Fence, boot: str, new: Fence, leaves: bool) -> None:
    node = Node()
    node.start("b1")
    for _ in range(3):
        keepalive(node)
        node.server.put(schema.fence("a"), old.encode())
        node.server.put(DEPARTURE, '{"at":"t","return":true,"vms":0}')
    over = (Delete(DEPARTURE, 2),) if leaves else ()
    alive = node.server.nodes[schema.node_key("a", "keepalive")].version
    assert started(node, boot)[-1] == (
        Write(schema.fence("a"), new.encode(), 3), Write(schema.node_key("a", "keepalive"), b"0", alive), *over)


def test_an_objection_at_the_start_carries_keepalive_and_word() -> None:
    node = Node()
    node.start("b1")
    node.server.put(schema.fence("a"), Fence("b1/0", FENCING, "c", ka=1, since="then").encode())
    up = Fence("b1/0", UP, "a", since="then").encode()
    assert started(node, "b1")[-1] == (Write(schema.fence("a"), up, 1), Write(schema.node_key("a", "keepalive"), b"0", 1),
                                       Write(schema.node_key("a", "daemonstate"), b"init", -1))


def test_the_first_start_creates_node_and_fence_and_a_destruction_is_gated() -> None:
    node = Node()
    node.store.ensure_roots()
    node.guest(Claim("b", "b9/0"))
    node.server.put(schema.claim(UUID), Claim("b", "b9/0").encode())
    found = started(node, "b1")
    assert (Check(schema.claim(UUID), 1),) in found, "there is no fence yet"
    assert Create(schema.node("a"), schema.NODE_VALUE) in found[-2]
    assert found[-1] == (Create(schema.fence("a"), Fence("b1/0", UP, "a", "boot", since="now").encode()),
                         Write(schema.node_key("a", "keepalive"), b"0", -1))
    node.guest(Claim("b", "b9/0"))
    node.server.put(schema.fence("a"), Fence("b0/0", UP).encode())
    claim, fence = (node.server.nodes[path].version for path in (schema.claim(UUID), schema.fence("a")))
    assert (Check(schema.fence("a"), fence), Check(schema.claim(UUID), claim)) in started(node, "b1")
    node.guest(None)
    node.server.put(schema.fence("a"), Fence("b1/0", FENCED).encode())
    assert (Check(schema.fence("a"), fence + 2),) in started(node, "b1")


def test_keys_that_were_deleted_come_back_by_who_may_act_and_no_other_is_touched() -> None:
    node, mine = Node(), Check(schema.fence("a"), 0)
    registration = Registration(node.store, node.hypervisor, Host("a", "b1", MACHINE), "now")
    registration.look()
    registration.run({"staticdata": "x", "protocol": "0"})
    node.server.delete_tree(schema.node_key("a", "memfree"))
    found: list[tuple[Change, ...]] = []
    node.server.on_commit = lambda _client, changes: found.append(tuple(changes))
    registration.rewrite(DaemonState.RUN, mine)
    assert found == [(mine, Create(schema.node_key("a", "memfree"), b"0"))]
