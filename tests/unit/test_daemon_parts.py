# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The small rooms of the daemon: configuration, standing and keepalive, notifications, log lines, identity."""
from __future__ import annotations

import copy
import socket
import threading
from pathlib import Path

import pytest
from sim.fakehypervisor import Fabric, FakeHypervisor
from sim.fakezk import FakeServer, FakeZooKeeper

from pvcd import ansiiprint, config, identity
from pvcd.cluster import schema
from pvcd.cluster.errors import Conflict, OutcomeUnknown
from pvcd.cluster.records import Fence, FenceRecord, Hold
from pvcd.cluster.schema import DaemonState, FencePhase, Unknown
from pvcd.cluster.store import Store
from pvcd.keepalive import Keepalive, measure
from pvcd.machine import Host
from pvcd.marks import Marks
from pvcd.notify import Notifier
from pvcd.registration import Registration
from pvcd.situation import Level
from pvcd.standing import Answer, Standing, answer
from pvcd.supervisor import PATIENCE, Supervisor

MACHINE = "0123456789abcdef" * 2


def load(tmp_path: Path, text: str, mode: int = 0o600, host: str = "hv1") -> config.Config:
    path = tmp_path / "pvcd.conf"
    path.write_text(text)
    path.chmod(mode)
    return config.load(str(path), host)


def test_the_hosts_section_wins_and_default_fills_the_gaps(tmp_path: Path) -> None:
    found = load(tmp_path, "[default]\nzookeeper = z:1\nipmi_password = 100%\nodd = 1\n[hv1]\nzookeeper = y:2, x:3\n")
    assert str(found.zookeeper) == "y:2,x:3" and found.ipmi_password == "100%" and found.ipmi_hostname == "hv1-lom"
    assert "odd" in found.warnings[0] and "100%" not in repr(found)
    assert (found.call_timeout_s, found.session_timeout_s) == (4.0, 10.0)
    quick = load(tmp_path, "[default]\nkeepalive_interval = 1\n")
    assert quick.call_timeout_s < 1 and quick.session_timeout_s == 4.0


@pytest.mark.parametrize("line", ["zookeeper = a b", "keepalive_interval = 0", "keepalive_interval = soon", "fence_intervals = 2", "fence_intervals = 4",
                                  "fence_action = maybe", "migration_workers = 0", "migration_workers = 1.5", "shutdown_timeout = x",
                                  "migrate_unsafe = perhaps", "ipmi_hostname = -x", "ipmi_username = -x", "ipmi_password = " + "p" * 21])
def test_what_is_wrong_names_itself(tmp_path: Path, line: str) -> None:
    with pytest.raises(config.ConfigError) as error:
        load(tmp_path, f"[default]\n{line}\n")
    assert line.split()[0] in str(error.value) and "pppp" not in str(error.value)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError, match=r"pvcd\.conf\.sample"):
        config.load(str(tmp_path / "none"), "hv1")
    with pytest.raises(config.ConfigError, match="not a configuration"):
        load(tmp_path, "nonsense")
    with pytest.raises(config.ConfigError, match="neither a section"):
        load(tmp_path, "[other]\nzookeeper = z:1\n")
    with pytest.raises(config.ConfigError, match="chmod"):
        load(tmp_path, "[default]\nipmi_password = p\n", 0o644)
    assert load(tmp_path, "[default]\nzookeeper = z:1\n", 0o644)


@pytest.mark.parametrize(("phase", "inc", "forced", "expected"), [
    (FencePhase.UP, "a/0", False, Answer.PUBLISH), (FencePhase.FENCING, "a/0", False, Answer.OBJECT), (FencePhase.FENCING, "a/0", True, Answer.SILENT),
    (FencePhase.FENCED, "a/0", False, Answer.EXIT), (FencePhase.REMOVED, "a/0", False, Answer.EXIT), (FencePhase.UP, "a/1", False, Answer.EXIT),
    (FencePhase.FENCING, "a/1", True, Answer.EXIT)])
def test_what_a_node_does_about_its_own_fence(phase: FencePhase, inc: str, forced: bool, expected: Answer) -> None:
    assert answer(FenceRecord(Fence(inc, phase, forced=forced), 3), "a/0") is expected


def test_a_fence_that_is_gone_or_garbage_is_no_order() -> None:
    assert answer(FenceRecord(None, -1), "a/0") is answer(FenceRecord(Unknown(b"{"), 1), "a/0") is Answer.SILENT


class Beat:
    """A registered node and its keepalive."""

    def __init__(self) -> None:
        self.server = FakeServer()
        self.zk = FakeZooKeeper(self.server, "a", guarded=True)
        self.zk.admit(self.zk.connection)
        self.marks = Marks(self.zk, "a", MACHINE)
        self.store = Store(self.zk, self.marks.acknowledged)
        self.registration = Registration(self.store, FakeHypervisor(Fabric(lambda: 0.0), "a"), Host("a", "b1", MACHINE), "now")
        _, version = self.registration.run({"staticdata": "x"})
        self.standing = Standing("a")
        self.standing.inc = "b1/0"
        self.standing.set_up(version)
        self.exits: list[str] = []
        self.said: list[tuple[object, str]] = []
        self.acknowledged: list[float] = []
        self.refused: list[str] = []
        self.keepalive = Keepalive(
            self.store, self.standing, self.marks, 5.0, lambda: 1.0, lambda: 1234.5, lambda level, text: self.said.append((level, text)),
            self.acknowledged.append, self.exits.append, self.rewrite, lambda: self.store.node("a"), lambda: None, self.refused.append)

    def rewrite(self) -> None:
        actor = self.standing.actor()
        assert actor is not None
        self.registration.rewrite(self.keepalive.daemonstate, actor.mine)

    @property
    def version(self) -> int:
        return self.server.nodes[schema.node_key("a", "keepalive")].version

    def fence(self, fence: Fence) -> None:
        self.server.put(schema.fence("a"), fence.encode())


def test_a_round_publishes_the_keepalive_and_the_statistics() -> None:
    b = Beat()
    b.keepalive.leave({"memfree": "77"})
    b.keepalive.leave(measure(["u1", "u0"], 3))
    b.keepalive.round()
    assert b.server.text(schema.node_key("a", "keepalive")) == "1234" and b.acknowledged == [1.0]
    assert b.server.text(schema.node_key("a", "runningdomains")) == "u0 u1" and b.server.text(schema.node_key("a", "domainscount")) == "3"


def test_the_objection_is_the_keepalive_and_comes_before_any_other() -> None:
    b = Beat()
    before = b.version
    b.fence(Fence("b1/0", FencePhase.FENCING, ka=before))
    b.keepalive.round()
    assert '"phase":"up"' in (b.server.text(schema.fence("a")) or "") and b.version == before + 1
    assert b.standing.actor() is None
    b.keepalive.round()
    assert b.standing.actor() is not None


def test_an_objection_that_lost_its_race_is_not_announced() -> None:
    """Finding B16: a proof is written between the read of the fence and the objection."""
    b = Beat()
    b.fence(Fence("b1/0", FencePhase.FENCING, ka=b.version))
    b.zk.before_commit = lambda _changes: b.fence(Fence("b1/0", FencePhase.FENCED))
    b.keepalive.round()
    assert '"phase":"fenced"' in (b.server.text(schema.fence("a")) or "")
    assert not [text for _, text in b.said if "objected" in text]


@pytest.mark.parametrize("fence", [Fence("b1/0", FencePhase.FENCING, forced=True), Fence("b1/0", FencePhase.FENCED), Fence("b2/0", FencePhase.UP)])
def test_a_node_that_may_not_act_writes_nothing(fence: Fence) -> None:
    b = Beat()
    b.fence(fence)
    before = copy.deepcopy(b.server.nodes)
    b.keepalive.round()
    assert b.server.nodes == before and b.standing.actor() is None
    assert bool(b.exits) is not fence.forced


def test_wiped_keys_come_back() -> None:
    b = Beat()
    b.server.delete_tree(schema.node("a"))
    b.keepalive.round()
    b.keepalive.round()
    assert b.server.text(schema.node_key("a", "keepalive")) == "1234"


def test_wiped_keys_come_back_as_they_are_true() -> None:
    """A node that runs and says `stop` is missed by nobody when it dies; with protocol 0 all starts elsewhere wait for it."""
    b = Beat()
    b.keepalive.daemonstate = DaemonState.RUN
    b.server.delete_tree(schema.node("a"))
    b.keepalive.round()
    found = b.store.node("a")
    assert (found.daemonstate, found.protocol, found.incarnation) == (DaemonState.RUN, schema.PROTOCOL_VERSION, "b1/0")


@pytest.mark.parametrize("value", [b"\xff", b"bar", None])
def test_a_state_that_is_garbage_or_gone_is_written_again(value: bytes | None) -> None:
    b = Beat()
    b.keepalive.daemonstate = DaemonState.RUN
    path = schema.node_key("a", "daemonstate")
    b.server.put(path, value) if value is not None else b.server.delete_tree(path)
    b.zk.lose = "before"
    with pytest.raises(OutcomeUnknown):
        b.keepalive.round()
    b.keepalive.round()
    assert b.server.text(path) == "run", "also when the first try was lost"
    b.server.put(path, "dead")
    b.keepalive.round()
    assert b.server.text(path) == "dead", "a peer's word is answered by the objection alone"


def test_wiped_keys_are_not_written_by_who_may_not_act() -> None:
    b = Beat()
    actor = b.standing.actor()
    assert actor is not None
    b.server.delete_tree(schema.node("a"))
    b.fence(Fence("b1/0", FencePhase.FENCED))
    with pytest.raises(Conflict):
        b.registration.rewrite(DaemonState.RUN, actor.mine)
    assert b.server.text(schema.node_key("a", "daemonstate")) is None


def test_wiped_keys_do_not_overtake_the_main_thread() -> None:
    """It has gone from `init` to `run`, and written so, while the keepalive thread was on its way."""
    b = Beat()
    actor = b.standing.actor()
    assert actor is not None
    for key, value in (("daemonstate", "run"), ("protocol", str(schema.PROTOCOL_VERSION))):
        b.server.put(schema.node_key("a", key), value)
    b.server.delete_tree(schema.node_key("a", "memfree"))
    b.registration.rewrite(DaemonState.INIT, actor.mine)
    found = b.store.node("a")
    assert (found.daemonstate, found.protocol) == (DaemonState.RUN, schema.PROTOCOL_VERSION)
    assert b.server.text(schema.node_key("a", "memfree")) is not None


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(tmp_path: Path, abstract: bool) -> None:
    name = f"\0pvc-test-{id(tmp_path)}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name)
        notifier = Notifier(name.replace("\0", "@"))
        for tell in (notifier.ready, notifier.watchdog, notifier.stopping, lambda: notifier.status("a\nb")):
            tell()
        assert [listener.recv(100) for _ in range(4)] == [b"READY=1", b"WATCHDOG=1", b"STOPPING=1", b"STATUS=a b"]
    notifier.ready()
    Notifier("").ready()


def test_log_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    ansiiprint.echo("one\x1b[1m\ntwo", "web1", ansiiprint.Level.WARNING)
    assert ansiiprint.flush(5.0)
    lines = capsys.readouterr().out.splitlines()
    assert [line[:3] for line in lines] == ["<4>", "<4>"] and lines[0].endswith("web1 - one\\x1b[1m") and lines[1].endswith("two")
    monkeypatch.delenv("JOURNAL_STREAM")
    ansiiprint.echo("plain")
    assert ansiiprint.flush(5.0)
    assert capsys.readouterr().out.startswith(">>> 20")


def test_a_boot_is_its_id_and_its_first_process(tmp_path: Path) -> None:
    def boot(boot_id: str, start: int) -> str:
        (tmp_path / "sys/kernel/random").mkdir(parents=True, exist_ok=True)
        (tmp_path / "1").mkdir(exist_ok=True)
        (tmp_path / "sys/kernel/random/boot_id").write_text(boot_id + "\n")
        (tmp_path / "1/stat").write_text(f"1 (a) b) S {' '.join(['0'] * 18)} {start} 0\n")
        return identity.boot(tmp_path)
    assert len({boot("x", 1), boot("y", 1), boot("x", 2)}) == 3 and boot("x", 1) == boot("x", 1)
    assert identity.boot() == identity.boot() and identity.boottime() > 0 and len(identity.static_data().split()) == 4


def test_a_thread_that_died_or_hangs_is_noticed() -> None:
    supervisor, ended = Supervisor(), threading.Thread(target=lambda: None, name="short")
    supervisor.watch([threading.current_thread()])
    for _ in range(PATIENCE + 10):
        supervisor.beat("timer")
        assert supervisor.look() == ""
    for _ in range(PATIENCE):
        assert supervisor.look() == ""
    assert supervisor.look() == "thread timer hangs"
    supervisor.beat("timer")
    assert supervisor.look() == ""
    ended.start()
    ended.join()
    supervisor.watch([ended])
    assert supervisor.look() == "thread short has died"


def test_a_keepalive_that_another_host_writes_too() -> None:
    """It stays alive for its peers, and does not act, until the other is silent; one foreign move (a late write) means nothing."""
    b = Beat()

    def foreign() -> None:
        b.server.put(schema.node_key("a", "keepalive"), "9")
    b.keepalive.round()
    for moves in (1, 2, 3):
        foreign()
        before = b.version
        b.keepalive.round()
        assert b.version == before + 1 and (b.standing.actor() is None) is (moves == 3)
    assert len(b.refused) == 1 and "another host" in b.refused[0]
    for _ in range(9):
        b.keepalive.round()
    assert b.standing.actor() is None
    b.keepalive.round()
    assert b.standing.actor() is not None and b.refused[1:] == [""]


def test_an_own_write_whose_answer_was_lost_is_no_other_hosts() -> None:
    b = Beat()
    for lose in ("after", "before", "after", "after", None, "after", None):
        b.zk.lose = lose
        try:
            b.keepalive.round()
        except OutcomeUnknown:
            assert lose
    assert not b.refused and b.standing.actor() is not None


def test_a_keepalive_is_not_written_over_another() -> None:
    """It came between the look and the write: the race is lost, told nobody, and the next round follows at once."""
    b = Beat()
    b.keepalive.round()
    writing = [True]

    def before(_changes: object) -> None:
        if writing.pop() if writing else False:
            b.server.put(schema.node_key("a", "keepalive"), "9")
    b.zk.before_commit = before
    version = b.version
    b.keepalive.round()
    assert b.version == version + 1 and b.keepalive._wake.is_set() and not b.said
    b.keepalive.round()
    assert b.version == version + 2


def test_older_data_behind_a_new_connection_stops_everything_and_is_told_once() -> None:
    b = Beat()
    b.keepalive.round()
    backup = b.server.copy()
    b.keepalive.round()
    b.server.restore(backup)
    version = b.version
    for _ in range(3):
        b.keepalive.round()
    assert b.version == version and b.standing.actor() is None
    assert [level for level, _ in b.said] == [Level.CRITICAL] and len(b.refused) == 1 and "pvc maintenance on" in b.refused[0]


def test_what_another_node_says_of_zookeeper_stands_this_one_down_alive() -> None:
    b = Beat()
    b.server.put(schema.FENCES, Hold(True, None, "b", restored=True).encode())
    version = b.version
    b.keepalive.round()
    assert b.version == version + 1 and b.standing.actor() is None and b.refused[0].startswith("b says")
    b.server.put(schema.FENCES, Hold(True, None, "op").encode())
    b.keepalive.round()
    assert b.standing.actor() is not None


def test_the_name_of_a_node(tmp_path: Path) -> None:
    found = load(tmp_path, "[default]\nzookeeper = z:1\n[hv1]\nzookeeper = y:1\n")
    assert (found.node, found.named, str(found.zookeeper)) == ("hv1", False, "y:1")
    found = load(tmp_path, "[default]\nnode_name = hv1\nzookeeper = z:1\n[hv1]\nzookeeper = y:1\n", host="dhcp-17.example.org")
    assert (found.node, found.named, str(found.zookeeper), found.ipmi_hostname) == ("hv1", True, "y:1", "hv1-lom")
    found = load(tmp_path, "[hv9]\nnode_name = hv1\nzookeeper = z:1\n", host="hv9")
    assert (found.node, found.named, str(found.zookeeper)) == ("hv1", True, "z:1")
    with pytest.raises(config.ConfigError, match="node_name"):
        load(tmp_path, "[default]\nzookeeper = z:1\n", host="hv 1")
    with pytest.raises(config.ConfigError, match="another section"):
        load(tmp_path, "[default]\nnode_name = hv1\n[hv1]\nnode_name = hv2\n", host="hv9")


def test_one_bmc_for_several_hosts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError, match=r"\[default\] ipmi_hostname = 'bmc1'.*\[hv2\].*\[hv1\]"):
        load(tmp_path, "[default]\nipmi_hostname = bmc1\n[hv2]\nzookeeper = z:1\n")
    with pytest.raises(config.ConfigError, match="several hosts"):
        load(tmp_path, "[default]\nipmi_hostname = bmc1\n[hv1]\nzookeeper = z:1\n[hv2]\nipmi_hostname = bmc2\n")
    assert load(tmp_path, "[default]\nipmi_hostname = bmc1\n").ipmi_hostname == "bmc1", "a file for one host"
    assert load(tmp_path, "[default]\nipmi_hostname = bmc1\n[hv1]\nzookeeper = z:1\n").ipmi_hostname == "bmc1"
    assert load(tmp_path, "[default]\nipmi_hostname = x\n[hv1]\nipmi_hostname = bmc1\n[hv2]\nipmi_hostname = bmc2\n").ipmi_hostname == "bmc1"
