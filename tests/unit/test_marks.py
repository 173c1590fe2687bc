# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""What ZooKeeper has acknowledged and then takes back: what counts as that, what does not, and what is remembered."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from sim.fakezk import FakeServer, FakeZooKeeper

from pvcd.cluster import schema
from pvcd.cluster.errors import Unreachable
from pvcd.cluster.records import ANY, MISSING, Create, Value, Write, decode_hold
from pvcd.cluster.store import Store
from pvcd.marks import MOST_CLAIMS, Mark, Marks, Memory, TakenBack, taken_back

MACHINE, OTHER = "0123456789abcdef" * 2, "fedcba9876543210" * 2
ALIVE, FENCE = schema.node_key("a", "keepalive"), schema.fence("a")
CLAIM = schema.claim("11111111-2222-4333-8444-555555555555")
SEEN = Memory(Mark(20, 7), Mark(10, 3), {CLAIM: (40, 5)}, 50)


def key(version: int, czxid: int) -> Value:
    return Value(b"x", version, czxid)


@pytest.mark.parametrize(("alive", "fence", "claim", "zxid", "why"), [
    (key(7, 20), key(3, 10), key(5, 15), 50, ""),
    (key(8, 20), key(4, 10), key(6, 15), 60, ""),
    (key(7, 20), key(3, 10), key(5, 15), 0, ""),
    (key(7, 20), key(3, 10), key(5, 15), 49, "transaction"),
    (key(6, 20), key(3, 10), key(5, 15), 1 << 32, "version 6"),
    (key(6, 20), key(9, 10), key(9, 15), 1 << 32, "version 6"),
    (key(900, 19), key(3, 10), key(5, 15), 1 << 32, "had been deleted"),
    # deleted, or made anew since (pvc init, pvc node remove): the fence tells
    (MISSING, key(3, 10), key(5, 15), 60, ""),
    (key(0, 55), key(3, 10), key(5, 15), 60, ""),
    (key(0, 55), key(2, 10), key(5, 15), 60, "fence"),
    (MISSING, key(2, 10), key(5, 15), 60, "fence"),
    (MISSING, MISSING, MISSING, 1 << 32, "missing"),
    (key(0, 1 << 32), key(9, 1 << 32), MISSING, 1 << 32, "fence"),
    # a fence that somebody deleted by hand takes nothing back
    (key(8, 20), MISSING, key(5, 15), 60, ""), (key(8, 20), key(0, 55), key(5, 15), 60, ""),
    # a claim is older, and is still the one that was written; or it was deleted and made anew
    (key(7, 20), key(3, 10), key(4, 15), 60, "/claims"), (key(7, 20), key(3, 10), key(4, 40), 60, "/claims"),
    (key(7, 20), key(3, 10), key(0, 41), 60, ""), (key(7, 20), key(3, 10), MISSING, 60, "")])
def test_what_was_taken_back(alive: Value, fence: Value, claim: Value, zxid: int, why: str) -> None:
    found = taken_back("a", SEEN, {ALIVE: alive, FENCE: fence, CLAIM: claim}, zxid)
    assert (why in found) if why else not found


def test_who_remembers_nothing_refuses_nothing() -> None:
    assert not taken_back("a", Memory(), {ALIVE: MISSING, FENCE: MISSING}, 0)
    assert not taken_back("a", SEEN, {ALIVE: key(7, 20), FENCE: key(3, 10)}, 60), "claims are not read at each round"


class Cluster:
    """One node's marks on an ensemble that can be restored."""

    def __init__(self, directory: Path | None) -> None:
        self.server = FakeServer()
        self.zk = FakeZooKeeper(self.server, "a", guarded=True)
        for path in ("/nodes", schema.node("a"), ALIVE, schema.FENCES, FENCE, schema.CLAIMS, CLAIM):
            self.server.put(path, b"")
        self.directory = directory
        self.start()

    def start(self, machine: str = MACHINE) -> None:
        self.zk.forget()
        self.marks = Marks(self.zk, "a", machine, self.directory)
        self.store = Store(self.zk, self.marks.acknowledged)

    def beat(self) -> None:
        values = self.marks.look()
        self.store.apply((Write(ALIVE, b"1", values[ALIVE].version),))
        self.marks.note(values, values[ALIVE].version + 1, values[FENCE].version)
        self.marks.keep()


def test_nothing_is_written_on_a_connection_before_it_was_looked_at(tmp_path: Path) -> None:
    c = Cluster(tmp_path)
    with pytest.raises(Unreachable):
        c.store.apply((Write(CLAIM, b"1", ANY),))
    c.beat()
    c.store.apply((Write(CLAIM, b"1", ANY),))
    c.server.restart()
    with pytest.raises(Unreachable):
        c.store.apply((Write(CLAIM, b"1", ANY),))
    c.beat()
    c.store.apply((Write(CLAIM, b"1", ANY),))


@pytest.mark.parametrize("restarted", [False, True])
def test_a_restored_zookeeper_is_noticed_while_we_run_and_at_the_next_start(tmp_path: Path, restarted: bool) -> None:
    c = Cluster(tmp_path)
    c.beat()
    backup = c.server.copy()
    c.beat()
    c.server.restore(backup)
    if restarted:
        c.start()
    for _ in range(2):
        with pytest.raises(TakenBack, match=f"version 1, and ZooKeeper had acknowledged 2.*{tmp_path}/mark"):
            c.beat()
        with pytest.raises(Unreachable):
            c.store.apply((Write(CLAIM, b"1", ANY),))
    c.marks.warn_others()
    assert decode_hold(c.server.nodes[schema.FENCES].value).restored and decode_hold(c.server.nodes[schema.FENCES].value).by == "a"
    before = c.server.nodes[schema.FENCES].version
    c.marks.warn_others()
    assert c.server.nodes[schema.FENCES].version == before, "said once"
    c.start(OTHER)
    c.beat()  # another machine's memory says nothing of this one


def test_the_newer_data_brought_back_ends_it(tmp_path: Path) -> None:
    c = Cluster(tmp_path)
    old = c.server.copy()
    c.beat()
    new = c.server.copy()
    c.server.restore(old)
    with pytest.raises(TakenBack):
        c.beat()
    c.server.restore(new)
    c.beat()


def test_a_server_that_is_behind_is_asked_again(tmp_path: Path) -> None:
    c = Cluster(tmp_path)
    c.zk.lag(True)
    c.zk.admit(c.zk.connection)
    snapshot = c.zk._snapshot
    c.zk.lag(False)
    c.beat()
    c.zk.reconnect()
    c.zk._snapshot = snapshot
    c.beat()


def test_a_claim_that_went_back_alone_is_noticed_on_the_next_connection(tmp_path: Path) -> None:
    """The servers lost their last transactions: the claim that was written after the last keepalive."""
    c = Cluster(tmp_path)
    c.beat()
    backup = c.server.copy()
    c.store.apply((Write(CLAIM, b"1", 0),))
    c.server.restore(backup)
    with pytest.raises(TakenBack, match="/claims"):
        c.beat()


def test_the_claims_written_last_are_remembered(tmp_path: Path) -> None:
    c = Cluster(tmp_path)
    c.beat()
    paths = [f"{CLAIM[:-4]}{number:04}" for number in range(MOST_CLAIMS)]
    for path in paths:
        c.store.apply((Create(path, b"1"),))
    c.store.apply((Write(paths[0], b"2", 0),))
    c.store.apply((Write(CLAIM, b"1", 0),))
    c.beat()
    claims: Mapping[str, tuple[int, int]] = c.marks._memory.claims
    assert len(claims) == MOST_CLAIMS and paths[1] not in claims and claims[paths[0]][1] == claims[CLAIM][1] == 1
    c.start()
    assert c.marks._memory.claims == claims


@pytest.mark.parametrize("text", ["", "{", "[]", '{"node": "a"}', "[" * 5000, f'{{"node": "a", "machineid": "{MACHINE}", "claims": 3}}',
                                  f'{{"node": "a", "machineid": "{MACHINE}", "claims": {{}}, "keepalive": [1], "fence": [1, 2], "zxid": 3}}'])
def test_a_file_that_cannot_be_understood_remembers_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "mark").write_text(text)
    c = Cluster(tmp_path)
    assert c.marks._memory == Memory()
    c.beat()
    assert c.marks._memory != Memory()


def test_a_disk_that_takes_nothing_stops_nothing(tmp_path: Path) -> None:
    c = Cluster(tmp_path / "missing")
    c.beat()
    c.beat()
    Cluster(None).beat()
