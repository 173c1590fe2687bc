# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Checks the ground, builds every object, starts the threads in order and stops them in reverse.

The order at start: configuration, libvirt, ZooKeeper, registration (this node's fence is `up`), keepalives, `init`, instances
and their watches, adoption of what runs here, `protocol`, `run`, workers, fencing. A host that dies in `init` must be
noticed, so the keepalives come first; no claim is taken before `run`.
"""
from __future__ import annotations

import os
import signal
import socket
import threading
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from . import ansiiprint, identity
from . import config as configuration
from .cluster import schema
from .cluster.errors import PVCError
from .cluster.records import ANY, Check, View, Write
from .cluster.schema import DaemonState
from .cluster.store import Store
from .cluster.zk import ZooKeeper
from .collector import Collector
from .departure import Limits
from .driftwatch import DriftWatch
from .ensemble import Ensemble
from .environment import Environment
from .fencing import Fencing
from .ground import Ground
from .hostjobs import host_goes_down
from .hypervisor import LibvirtHypervisor
from .instances import NODES, VIEW, Instances
from .ipmi import Ipmi
from .keepalive import Keepalive
from .leaving import Leaving, come_home
from .liveness import Liveness
from .machine import Host, Refused, WrongIdentity
from .marks import Marks, TakenBack
from .notify import Notifier, feeding_s
from .questions import Questions
from .reconciler import Reconciler
from .registration import Start, adoptable
from .situation import Level
from .standing import Standing
from .supervisor import Supervisor
from .troubles import Troubles
from .view import ViewCache

CONFIGURATION_ERROR, MAY_COME_LATER = 78, 1
NEEDS_AN_OPERATOR = CONFIGURATION_ERROR  # systemd does not try again
RESYNC_S = 60.0
ADOPT_S = 20.0
"""With all other waits of the start well below TimeoutStartSec=120 of the unit."""
ARRIVALS_S, CLOSED_S = 30.0, 3.0
"""A stop waits so long for migrations, and then for the end of those that it has aborted."""
EXTEND_S = 30.0
WATCH_S, REST_S = 180.0, 60.0
"""What systemd is asked for: a host that boots watches for two of its ticks, a minute each at the most, for another of its name; and the calls
to libvirt and ZooKeeper that are the rest of a stop have deadlines that may add up to so much."""
LAST_WORDS_S = 2.0
STATE_DIRECTORY = Path("/var/lib/pvc")


def main() -> int:
    """Run until a signal or until this process must not go on; the exit status for systemd."""
    try:
        return _main()
    finally:
        ansiiprint.flush(LAST_WORDS_S)


def _main() -> int:
    path = os.environ.get("PVCD_CONFIG_FILE")
    if not path:
        _say(Level.CRITICAL, "PVCD_CONFIG_FILE is not set; it names the configuration file: PVCD_CONFIG_FILE=/etc/pvc/pvcd.conf")
        return CONFIGURATION_ERROR
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, lambda *_: asked.set())
    try:
        config = configuration.load(path, socket.gethostname())
    except configuration.ConfigError as error:
        _say(Level.CRITICAL, str(error))
        return CONFIGURATION_ERROR
    for warning in config.warnings:
        _say(Level.WARNING, warning)
    daemon = Daemon(config, asked)
    try:
        daemon.start()
        return daemon.serve()
    except PVCError as error:
        _say(Level.CRITICAL, str(error))
        daemon.reconciler.stop(0.0)
        daemon.notifier.status(str(error))
        if asked.is_set():
            return daemon.end()
        return NEEDS_AN_OPERATOR if isinstance(error, (WrongIdentity, TakenBack)) else MAY_COME_LATER
    finally:
        daemon.close()


def _say(level: Level, text: str) -> None:
    ansiiprint.echo(text, level=ansiiprint.Level[level.name])


def utc() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _hold(view: View) -> bool:
    """Automatic fencing is on hold now. `until` is the one comparison of wall clocks: a wrong one ends a pause early or late."""
    return view.hold.hold and (view.hold.until is None or utc() < view.hold.until)


@dataclass
class _Flags:
    """What other threads tell the main thread."""

    stop: threading.Event
    """the threads end"""
    asked: threading.Event
    """a signal has come: the main thread ends the daemon, when what has to come before that is done"""
    exit_reason: str = ""


class Daemon:
    """The whole of pvcd on one host. Built and stopped by the main thread."""

    def __init__(self, config: configuration.Config, asked: threading.Event) -> None:
        self.config, self.node = config, config.node
        self.clock = identity.boottime
        self.flags = _Flags(threading.Event(), asked)
        self.notifier = Notifier(os.environ.get("NOTIFY_SOCKET", ""))
        self.reconciler = Reconciler(lambda key: self.instances.visit(key), self.clock, self._report, workers=4)
        self.hypervisor = LibvirtHypervisor(notify=self._libvirt_event, migration_workers=config.migration_workers,
                                            migrate_unsafe=config.migrate_unsafe)
        self.zk = ZooKeeper(config.zookeeper, config.session_timeout_s, config.call_timeout_s, self._zookeeper_state, guarded=True)
        host = Host(self.node, identity.boot(), identity.machine_id())
        self.marks = Marks(self.zk, self.node, host.machine_id, STATE_DIRECTORY)
        self.store = Store(self.zk, self.marks.acknowledged)
        self.cache = ViewCache(self.store, self._view_changed)
        self.standing = Standing(self.node)
        self.env = Environment(
            self.node, self.store, self.hypervisor, lambda: self.standing.actor(), self.cache.current, self.clock, utc, _say,
            self._nudge, self.reconciler.mark_slow, lambda: uuid.uuid4().hex[:12], config.keepalive_interval,
            config.shutdown_timeout)
        self.instances = Instances(self.env, self.zk, self.cache, self.reconciler.forget)
        limits = Limits(config.host_shutdown == "flush", config.host_shutdown_timeout, config.shutdown_timeout)
        self.leaving = Leaving(self.env, self.instances, limits, lambda: self.zk.connected)
        self.keepalive = Keepalive(
            self.store, self.standing, self.marks, config.keepalive_interval, self.clock, time.time, _say, self._acknowledged, self._exit,
            self._rewrite, lambda: self.cache.current().nodes.get(self.node), self.notifier.watchdog, self._refused,
            feeding_s(os.environ, os.getpid()))
        self.collector = Collector(self.hypervisor, self.instances, self.keepalive, Troubles(self.env, self.instances, self.hypervisor.kept),
                                   config.keepalive_interval, _say)
        self.ensemble = Ensemble(self.zk, STATE_DIRECTORY, _say, lambda servers: self.keepalive.leave({"zookeeper": servers}))
        self.ground = Ground(config, host, self.hypervisor, self.zk, self.store, self.marks, self.ensemble, STATE_DIRECTORY, _say, utc,
                             self.notifier.extend)
        self.supervisor = Supervisor()
        self._closed = threading.Event()
        self.liveness = Liveness(self.node, config.keepalive_interval)
        self.fence_wake = threading.Event()
        self.questions = Questions(Ipmi(), self.store, self.clock, self.fence_wake.set, self.supervisor.beat)
        self.fencing = Fencing(self.store, self.questions, self.liveness, self.node, self.env.actor, self.cache.current, _hold, _say, utc,
                               config.fence_action, uuid.uuid4().hex[:8])
        self.drift = DriftWatch(self.store, self.hypervisor.live_definition, self.clock, _say)
        self._last_resync = 0.0
        self._unseen: set[str] | None = set()
        """VMs that run here and that this process has not yet looked at; None: `protocol` is published"""
        self._last_acknowledged: float | None = None

    # -------------------------------------------------------------------------------------------------------- start

    def start(self) -> None:
        """Everything up to `run`, or up to the moment in which this process is told to stop: `serve` then writes `stop`. A registration is
        finished in any case, since only a registered node can say so. Raises what ends the start: exit status 1, and systemd tries again.
        """
        self._preflight()
        self.notifier.extend(WATCH_S)
        start = self._register()
        self.notifier.extend(start.wait_s + ADOPT_S + REST_S)
        if self.flags.asked.is_set():
            return
        self._spawn("collector", lambda: self.collector.run(self.flags.stop))
        self._spawn("ensemble", lambda: self.ensemble.run(self._closed.is_set))
        self.keepalive.thread.start()
        self.supervisor.watch([self.keepalive.thread])
        self._write_state(DaemonState.INIT)
        if self.flags.asked.wait(start.wait_s):
            return
        come_home(self.env)
        self.cache.refresh()
        self.instances.start()
        self._adopt()
        if not self.flags.asked.is_set():
            self._run()

    def _run(self) -> None:
        self._publish_protocol()
        self.keepalive.daemonstate = DaemonState.RUN
        self._write_state(DaemonState.RUN)
        self.cache.refresh()
        self.reconciler.start()
        self.questions.start()
        self.supervisor.watch([*self.questions.threads, *self.reconciler.threads, *self.hypervisor.threads, *self.zk.threads])
        self._spawn("timer", self._time)
        self._spawn("fence", self._fence)
        # Not supervised: it may hang with a guest, and is only for display.
        threading.Thread(target=self.drift.run, args=(self.flags.stop, self.instances.running_here), name="drift", daemon=True).start()
        self.notifier.ready()
        self.notifier.status(f"running as {self.node}, incarnation {self.standing.inc}")

    def _preflight(self) -> None:
        self.ground.find_libvirt()
        self.ground.find_zookeeper()

    def _register(self) -> Start:
        start, version = self.ground.register()
        self.standing.inc = start.inc
        self.standing.set_up(version)
        _say(Level.INFO, f"registered ({start.rule}) as incarnation {start.inc}")
        self.ground.warn()
        return start

    def _adopt(self) -> None:
        """Look once at every VM that runs here, so that what runs is claimed before anybody takes `run` as an answer. On the workers, and
        not for ever: a guest that hangs keeps no node from its start. What is left is looked at later.
        """
        for name in (NODES, VIEW, ("domains", "")):
            self.instances.visit(name)
        here = adoptable(self.store, self.hypervisor)
        self._unseen = {name for _, name in self.reconciler.first([("domain", found) for found in here], ADOPT_S, self.flags.asked.is_set)}
        if self._unseen:
            _say(Level.WARNING, f"{len(self._unseen)} of {len(here)} VMs that run here do not answer within {ADOPT_S:.0f} s: "
                 f"{', '.join(sorted(self._unseen))}. They are looked at again; the start goes on without them")

    def _publish_protocol(self) -> None:
        """From now on the others start VMs that are wanted there. Not while something may run here that nobody has claimed."""
        if self._unseen is None:
            return
        vms = self.instances.domains
        self._unseen = {found for found in self._unseen if found in vms and not vms[found].settled}
        if not self._unseen:
            self.store.apply((self._mine(), Write(schema.node_key(self.node, "protocol"), str(schema.PROTOCOL_VERSION).encode(), ANY)))
            self._unseen = None

    def _mine(self) -> Check:
        actor = self.standing.actor()
        if actor is None:
            raise Refused(f"/fences/{self.node} was moved during the start")
        return actor.mine

    def _write_state(self, word: DaemonState) -> None:
        self.store.apply((self._mine(), Write(schema.node_key(self.node, "daemonstate"), word.value.encode(), ANY)))
        _say(Level.INFO, f"{self.node}: {word.value}")

    # -------------------------------------------------------------------------------------------------------- serve

    def serve(self) -> int:
        """Wait for a signal. A thread that has died, or a fence on this node, ends the process: never a half-alive daemon."""
        while not self.flags.asked.wait(1.0):
            self._look_around()
        self.notifier.stopping()
        self._leave()
        return self.end()

    def end(self) -> int:
        """Stop, as told by a signal; also when the start was not over, or has failed."""
        self.flags.stop.set()
        if self.standing.inc:
            self._stop()
        return 0

    def _look_around(self) -> None:
        if self.flags.exit_reason:
            _say(Level.CRITICAL, f"ends at once: {self.flags.exit_reason}")
            ansiiprint.flush(0.1)
            os._exit(MAY_COME_LATER)  # no draining: no stale worker may act any more; systemd starts us again
        wrong = self.supervisor.look()
        if wrong:
            _say(Level.CRITICAL, f"ends: {wrong}")
            ansiiprint.flush(0.1)
            os._exit(MAY_COME_LATER)

    def _leave(self) -> None:
        """If the host goes down, its VMs leave first; all threads go on meanwhile. A plain stop touches no VM."""
        if self.keepalive.daemonstate is not DaemonState.RUN:
            return
        down = host_goes_down()
        if down is None:
            _say(Level.WARNING, "systemd does not say whether this host is being shut down: taken for a stop of pvcd alone, VMs are not touched")
        if not down:
            return
        self.leaving.begin()
        while not self.leaving.turn():
            self._look_around()
            self.notifier.extend(EXTEND_S)
            threading.Event().wait(1.0)

    def _stop(self) -> None:
        """`stop` is the last word: it is written when no keepalive and no worker can write any more. VMs are left alone."""
        _say(Level.INFO, "stopping" if self.env.phase else "stopping; VMs run on")
        self.env.stopping = True
        self._wait_for_migrations(ARRIVALS_S)
        self.notifier.extend(REST_S)  # killed before it has written `stop`, this node would be fenced
        self.instances.stay("pvcd is stopped")
        self._wait_for_migrations(CLOSED_S)
        self.fence_wake.set()
        self.questions.stop()
        self.reconciler.stop(5.0)
        self.instances.stay("pvcd is stopped")  # what has begun meanwhile: no worker begins another
        if not self.keepalive.stop(2 * self.config.call_timeout_s):
            _say(Level.WARNING, "the keepalive thread hangs in ZooKeeper: `stop` is not written, and peers will look after this node")
            return
        try:
            self._write_state(DaemonState.STOP)
        except PVCError as error:
            _say(Level.WARNING, f"`stop` could not be written ({error}): peers will look after this node if it stays away")
        self.marks.keep()

    def _wait_for_migrations(self, seconds: float) -> None:
        deadline = self.clock() + seconds
        for found in self.instances.in_flight():
            self.reconciler.add(("domain", found))
        while self.instances.in_flight() and self.clock() < deadline and not self.flags.exit_reason:
            threading.Event().wait(0.2)

    def close(self) -> None:
        self._closed.set()
        self.hypervisor.stop()
        self.zk.stop()

    # ------------------------------------------------------------------------------------------------------ threads

    def _spawn(self, name: str, target: object) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)  # type: ignore[arg-type]
        thread.start()
        self.supervisor.watch([thread])

    def _time(self) -> None:
        """Timer thread, once a second or four times a tick: the ZooKeeper supervisor, the resync, and the silence of peers. Only this
        thread feeds `liveness`, and only the fence thread asks it.
        """
        while not self.flags.stop.wait(min(1.0, self.config.keepalive_interval / 4)):
            self.supervisor.beat("timer")
            self.reconciler.relieve()
            self.zk.ensure_alive()
            self.marks.keep()
            now = self.clock()
            if now - self._last_resync >= RESYNC_S:
                self._last_resync = now
                self.instances.resync()
            self._look_at_the_unseen()
            self._observe_peers()

    def _look_at_the_unseen(self) -> None:
        try:
            self._publish_protocol()
        except PVCError:
            return  # tried again with the next second

    def _observe_peers(self) -> None:
        acknowledged = self._last_acknowledged
        if acknowledged is not None:
            self.liveness.acknowledged(acknowledged)
        try:
            values = self.store.keepalives([name for name in list(self.instances.nodes) if name != self.node])
        except PVCError:
            return  # our own trouble: liveness sees that nothing was read
        self.liveness.observe(self.clock(), {name: value.version for name, value in values.items() if value.data is not None})

    def _fence(self) -> None:
        """Fence thread: one step at a time."""
        delay_s = 1.0
        while not self.flags.stop.is_set():
            self.fence_wake.wait(delay_s)
            self.fence_wake.clear()
            self.supervisor.beat("fence")
            delay_s = self.fencing.visit(self.clock())

    # ------------------------------------------------------------------------------------- callbacks, on others' threads

    def _nudge(self, key: tuple[str, str], delay_s: float = 0.0) -> None:
        if key == VIEW and delay_s == 0.0:
            self.keepalive.wake()
        if delay_s:
            self.reconciler.add_after(key, delay_s)
        else:
            self.reconciler.add(key)

    def _view_changed(self, names: list[str]) -> None:
        self.instances.view_changed(names)
        self.fence_wake.set()

    def _libvirt_event(self, found: str | None) -> None:
        if found is None:
            self.instances.resync()
        else:
            self.reconciler.add(("domain", found))
            self.collector.wake()

    def _zookeeper_state(self, connected: bool) -> None:
        _say(Level.INFO if connected else Level.WARNING, "ZooKeeper: " + ("connected" if connected else "connection lost"))
        if connected:
            self.ensemble.wake()
            self.keepalive.wake()  # nothing is written on a new connection before a round has looked at what is behind it
            self.instances.resync()

    def _refused(self, reason: str) -> None:
        """What must not act says so in `systemctl status`; afterwards everything is looked at again."""
        self.env.refuses = reason
        self.notifier.status(reason or f"running as {self.node}, incarnation {self.standing.inc}")
        if not reason:
            self.instances.resync()

    def _acknowledged(self, now: float) -> None:
        self._last_acknowledged = now
        self.reconciler.add(VIEW)

    def _rewrite(self) -> None:
        actor = self.standing.actor()
        if actor is not None:
            self.ground.registration.rewrite(self.keepalive.daemonstate, actor.mine)

    def _exit(self, reason: str) -> None:
        self.flags.exit_reason = reason

    def _report(self, key: tuple[str, str], text: str) -> None:
        _say(Level.CRITICAL, f"{key[0]} {key[1]}: an unforeseen error; it is tried again\n{text}")

