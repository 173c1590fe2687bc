# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The daemon's start as a whole, on the models of ZooKeeper and libvirt: who is refused, and a stop at any moment of it."""
from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sim.fakehypervisor import Fabric, FakeHypervisor
from sim.fakezk import FakeServer, FakeZooKeeper

from pvcd import daemon, identity, registration
from pvcd.cluster import schema
from pvcd.cluster.records import Fence, Timing
from pvcd.cluster.schema import DaemonState, FencePhase

MACHINE, OTHER = "0123456789abcdef" * 2, "fedcba9876543210" * 2
ALIVE, STATE = schema.node_key("a", "keepalive"), schema.node_key("a", "daemonstate")


class Hypervisor(FakeHypervisor):
    """The simulator's libvirt, with what else the daemon asks of the real one."""

    uri = "fake:"
    threads: tuple[threading.Thread, ...] = ()

    def start(self, _timeout_s: float) -> None:
        return

    def stop(self) -> None:
        return

    def live_definition(self, _uuid: str) -> str | None:
        return None


class Ensemble:
    """One server, which names no others."""

    def __init__(self, *_arguments: Any) -> None:
        self._woken = threading.Event()

    def recall(self) -> None:
        return

    def wake(self) -> None:
        self._woken.set()

    def run(self, ended: Callable[[], bool]) -> None:
        while not ended():
            self._woken.wait(0.1)


class Machine:
    """One host: its ZooKeeper, its libvirt, its configuration, its disk."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server, self.folder, self.monkeypatch = FakeServer(), folder, monkeypatch
        self.zk = FakeZooKeeper(self.server, "a", guarded=True)
        self.zk.threads = ()  # type: ignore[attr-defined]
        self.hypervisor = Hypervisor(Fabric(lambda: 0.0), "a")
        self.said: list[str] = []
        self.built: list[daemon.Daemon] = []
        self.config = folder / "pvcd.conf"
        self.configure("keepalive_interval = 1")
        monkeypatch.setenv("PVCD_CONFIG_FILE", str(self.config))
        monkeypatch.setattr(daemon, "STATE_DIRECTORY", folder)
        monkeypatch.setattr(registration, "LATE_POWER_OFF_S", 0.2)
        monkeypatch.setattr(daemon, "LibvirtHypervisor", lambda **_arguments: self.hypervisor)
        monkeypatch.setattr(daemon, "ZooKeeper", lambda *_arguments, **_more: self.zk)
        monkeypatch.setattr(daemon, "Ensemble", Ensemble)
        monkeypatch.setattr(daemon, "host_goes_down", lambda: False)
        monkeypatch.setattr(daemon.ansiiprint, "echo", lambda text, **_more: self.said.append(text))
        self.identify("a", MACHINE)

    def configure(self, *lines: str) -> None:
        self.config.write_text("\n".join(("[default]", *lines, "")))

    def identify(self, name: str, machine_id: str) -> None:
        self.monkeypatch.setattr(daemon.socket, "gethostname", lambda: name)
        self.monkeypatch.setattr(identity, "machine_id", lambda: machine_id)

    def run(self, at: str = "", in_state: str = "") -> int:
        """Start pvcd as systemd does, and tell it to stop as soon as it calls the method `at`, or is in `run`; its exit status."""
        self.built.clear()
        real = daemon.Daemon

        def built(config: Any, stop: threading.Event) -> daemon.Daemon:
            made = real(config, stop)
            self.built.append(made)
            if at == "built":
                stop.set()
            for owner, name in ((made, at), (made.ground, at), (made.keepalive, at), (made.instances, at), (made.cache, at)):
                if at and hasattr(owner, name):
                    self._stops(owner, name, stop)
                    break
            if not at:
                self._stops(made.notifier, "ready", stop)
            return made
        with self.monkeypatch.context() as patch:
            patch.setattr(daemon, "Daemon", built)
            return daemon.main()

    @staticmethod
    def _stops(owner: Any, name: str, stop: threading.Event) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def stopped(*arguments: Any) -> Any:
            stop.set()
            return original(*arguments)
        setattr(owner, name, stopped)

    def text(self, path: str) -> str | None:
        return self.server.text(path)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)}
    yield Machine(tmp_path, monkeypatch)
    for number, handler in kept.items():
        signal.signal(number, handler)


MOMENTS = ("built", "_preflight", "find_zookeeper", "compare_marks", "_register", "warn", "round", "_write_state", "refresh", "resync", "_adopt",
           "_run", "start", "")


@pytest.mark.parametrize("phase", [None, FencePhase.UP, FencePhase.FENCING])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_stop_at_any_moment_of_the_start_is_a_clean_stop(machine: Machine, moment: str, phase: FencePhase | None) -> None:
    """Also of a node whose earlier boot, or earlier process, had left `run` behind: else it would be fenced."""
    if phase is not None:
        assert machine.run() == 0
        machine.server.put(schema.fence("a"), Fence("b0/0", phase).encode())
        machine.server.put(STATE, "run")
        machine.server.put(schema.node_key("a", "timing"), Timing(0.5, 6).encode())
        machine.monkeypatch.setattr(daemon, "STATE_DIRECTORY", machine.folder / "none")
    assert machine.run(moment) == 0, machine.said
    assert machine.text(STATE) == "stop" and '"phase":"up"' in (machine.text(schema.fence("a")) or "")
    assert not any("could not be written" in text or "Traceback" in text for text in machine.said)


def test_a_stop_while_zookeeper_is_away_ends_too(machine: Machine) -> None:
    machine.zk.connected = False
    assert machine.run("_preflight") == 0
    assert machine.run("nothing") == daemon.MAY_COME_LATER


def test_a_signal_that_comes_before_anything_else_is_kept(machine: Machine) -> None:
    real = daemon.configuration.load

    def load(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return real(*arguments)
    machine.monkeypatch.setattr(daemon.configuration, "load", load)
    assert machine.run("nothing") == 0 and machine.text(STATE) == "stop"


def test_a_host_that_was_renamed_does_not_join_and_the_configuration_can_keep_its_name(machine: Machine) -> None:
    assert machine.run() == 0
    machine.identify("a.example.org", MACHINE)
    assert machine.run() == daemon.NEEDS_AN_OPERATOR == 78
    assert "node_name = a" in machine.said[-1] and machine.server.children(schema.NODES) == ["a"]
    (machine.folder / "node").unlink()  # then ZooKeeper knows
    assert machine.run() == daemon.NEEDS_AN_OPERATOR
    assert "the cluster knows this machine as a" in machine.said[-1] and machine.server.children(schema.NODES) == ["a"]
    machine.configure("node_name = a", "keepalive_interval = 1")
    assert machine.run() == 0 and machine.server.children(schema.NODES) == ["a"]


def test_a_host_that_was_replaced_joins_by_itself_after_the_removal(machine: Machine) -> None:
    assert machine.run() == 0
    machine.identify("a", OTHER)
    assert machine.run() == daemon.MAY_COME_LATER and "pvc node remove a" in machine.said[-1]


def test_an_older_zookeeper_is_refused_at_the_start_and_all_are_warned(machine: Machine) -> None:
    assert machine.run() == 0
    backup = machine.server.copy()
    assert machine.run() == 0
    machine.server.restore(backup)
    before = machine.text(ALIVE), machine.server.nodes[ALIVE].version
    assert machine.run() == daemon.NEEDS_AN_OPERATOR
    assert "restored from an older copy" in machine.said[-1] and str(machine.folder / "mark") in machine.said[-1]
    assert (machine.text(ALIVE), machine.server.nodes[ALIVE].version) == before and '"restored":true' in (machine.text(schema.FENCES) or "")
    (machine.folder / "mark").unlink()
    assert machine.run() == daemon.NEEDS_AN_OPERATOR, "the warning stands until an operator ends it"
    machine.server.put(schema.FENCES, "")
    assert machine.run() == 0


def test_an_empty_zookeeper_is_no_new_cluster(machine: Machine) -> None:
    assert machine.run() == 0
    machine.server.restore({})
    assert machine.run() == daemon.NEEDS_AN_OPERATOR and not machine.server.nodes


def test_a_wiped_cluster_is_joined_again(machine: Machine) -> None:
    assert machine.run() == 0
    machine.server.delete_tree(schema.node("a"))
    assert machine.run() == 0 and machine.text(STATE) == DaemonState.STOP.value


def test_another_host_of_the_name_that_lives_keeps_this_one_out(machine: Machine) -> None:
    assert machine.run() == 0
    machine.server.put(schema.fence("a"), Fence("b0/0", FencePhase.UP).encode())
    machine.monkeypatch.setattr(daemon, "STATE_DIRECTORY", machine.folder / "none")
    real = registration.Registration.look

    def look(self: registration.Registration) -> float:
        found = real(self)
        machine.server.put(ALIVE, "9")
        return found
    extended: list[float] = []
    machine.monkeypatch.setattr(daemon.Notifier, "extend", lambda _self, seconds: extended.append(seconds))
    machine.monkeypatch.setattr(registration.Registration, "look", look)
    assert machine.run() == daemon.NEEDS_AN_OPERATOR and "another host of this name is alive" in machine.said[-1]
    assert '"inc":"b0/0"' in (machine.text(schema.fence("a")) or "")
    assert extended and extended[0] > 60.0, "systemd ends a start that takes two minutes"


def test_what_libvirt_would_start_by_itself_is_named(machine: Machine) -> None:
    assert machine.run() == 0
    uuid = "11111111-2222-4333-8444-555555555555"
    machine.server.put(schema.domain(uuid), "web1")
    machine.hypervisor.create(f"<domain><name>web1</name><uuid>{uuid}</uuid><memory unit='MiB'>64</memory></domain>")
    machine.hypervisor.copies[uuid].persistent = machine.hypervisor.copies[uuid].autostart = True
    assert machine.run() == 0
    assert any("virsh autostart --disable web1" in text for text in machine.said)


def test_systemd_is_asked_for_time_before_what_takes_long(machine: Machine) -> None:
    """A start that watches for two ticks of a minute, and a stop that waits for migrations and libvirt, are not killed for it: killed before it
    has written `stop`, a healthy node is fenced. And what begins after the first look at the migrations is aborted by the last.
    """
    calls: list[tuple[str, float]] = []
    real = daemon.Daemon

    def built(config: Any, stop: threading.Event) -> daemon.Daemon:
        made = real(config, stop)
        machine.monkeypatch.setattr(made.notifier, "extend", lambda seconds: calls.append(("extend", seconds)))
        for owner, name in ((made.ground, "register"), (made, "_adopt"), (made.instances, "stay"), (made.reconciler, "stop")):
            original = getattr(owner, name)
            setattr(owner, name, lambda *arguments, name=name, original=original: (calls.append((name, 0.0)), original(*arguments))[1])
        return made
    machine.monkeypatch.setattr(daemon, "Daemon", built)
    assert machine.run() == 0
    assert [name for name, _ in calls] == ["extend", "register", "extend", "_adopt", "extend", "stay", "stop", "stay"]
    assert [seconds for name, seconds in calls if name == "extend"] == [daemon.WATCH_S, daemon.ADOPT_S + daemon.REST_S, daemon.REST_S]
    assert daemon.WATCH_S > registration.WATCHED_TICKS * 60 + 10, "the longest tick that pvcd.conf allows"
