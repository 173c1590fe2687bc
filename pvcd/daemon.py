# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Checks the ground, builds every object, starts the threads in order and stops them in reverse.

The order at start: configuration, libvirt, the watch over copies in doubt, ZooKeeper, registration (this node's fence is `up`), keepalives, `init`, instances
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
from .cluster.errors import HypervisorUnknown, PVCError, Unreachable
from .cluster.records import ANY, Check, Timing, View, Write, decode_hold
from .cluster.schema import DaemonState
from .cluster.store import Store
from .cluster.zk import ZooKeeper
from .doubt import Doubt
from .environment import Environment
from .fencing import Fencing
from .hypervisor import LibvirtHypervisor
from .instances import NODES, VIEW, Instances
from .ipmi import Ipmi
from .keepalive import Keepalive, measure
from .liveness import Liveness
from .machine import Host, Refused, WrongIdentity, recall, refuse_renamed, remember
from .marks import Marks, TakenBack
from .notify import Notifier
from .reconciler import Reconciler
from .registration import Registration, Start, adoptable
from .situation import Level
from .standing import Standing
from .supervisor import Supervisor
from .view import ViewCache

CONFIGURATION_ERROR, MAY_COME_LATER = 78, 1
NEEDS_AN_OPERATOR = CONFIGURATION_ERROR  # systemd does not try again
PREFLIGHT_S = 15.0
RESYNC_S = 60.0
ARRIVALS_S = 30.0
COLLECT_PAUSE_S = 0.2
GUESTS_SERVICE = Path("/etc/systemd/system/multi-user.target.wants/libvirt-guests.service")
STATE_DIRECTORY = Path("/var/lib/pvc")


def main() -> int:
    """Run until a signal or until this process must not go on; the exit status for systemd."""
    path = os.environ.get("PVCD_CONFIG_FILE")
    if not path:
        _say(Level.CRITICAL, "PVCD_CONFIG_FILE is not set; it names the configuration file: PVCD_CONFIG_FILE=/etc/pvc/pvcd.conf")
        return CONFIGURATION_ERROR
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, lambda *_: stop.set())
    try:
        config = configuration.load(path, socket.gethostname())
    except configuration.ConfigError as error:
        _say(Level.CRITICAL, str(error))
        return CONFIGURATION_ERROR
    for warning in config.warnings:
        _say(Level.WARNING, warning)
    daemon = Daemon(config, stop)
    try:
        daemon.start()
        return daemon.serve()
    except PVCError as error:
        _say(Level.CRITICAL, str(error))
        daemon.notifier.status(str(error))
        daemon.outlast_doubt()
        if stop.is_set():
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
    exit_reason: str = ""


class Daemon:
    """The whole of pvcd on one host. Built and stopped by the main thread."""

    def __init__(self, config: configuration.Config, stop: threading.Event) -> None:
        self.config, self.node = config, config.node
        self.clock = identity.boottime
        self.flags = _Flags(stop)
        self.collect_wake = threading.Event()
        self.notifier = Notifier(os.environ.get("NOTIFY_SOCKET", ""))
        self.reconciler = Reconciler(lambda key: self.instances.visit(key), self.clock, self._report, workers=4)
        self.hypervisor = LibvirtHypervisor(notify=self._libvirt_event, migration_workers=config.migration_workers,
                                            migrate_unsafe=config.migrate_unsafe)
        self.zk = ZooKeeper(config.zookeeper, config.session_timeout_s, config.call_timeout_s, self._zookeeper_state, guarded=True)
        self.host = Host(self.node, identity.boot(), identity.machine_id())
        self.marks = Marks(self.zk, self.node, self.host.machine_id, STATE_DIRECTORY)
        self.store = Store(self.zk, self.marks.acknowledged)
        self.cache = ViewCache(self.store, self._view_changed)
        self.standing = Standing(self.node)
        self.env = Environment(
            self.node, self.store, self.hypervisor, lambda: self.standing.actor(), self.cache.current, self.clock, utc, _say,
            self._nudge, self.reconciler.mark_slow, lambda: uuid.uuid4().hex[:12], config.keepalive_interval,
            config.shutdown_timeout)
        self.instances = Instances(self.env, self.zk, self.cache, self.reconciler.forget)
        self.keepalive = Keepalive(
            self.store, self.standing, self.marks, config.keepalive_interval, self.clock, time.time, _say, self._acknowledged, self._exit,
            self._rewrite, lambda: self.cache.current().nodes.get(self.node), self.notifier.watchdog,
            self._refused)
        self.supervisor = Supervisor()
        self._closed = threading.Event()
        self.liveness = Liveness(self.node, config.keepalive_interval)
        self.fencing = Fencing(self.store, Ipmi(), self.liveness, self.node, self.env.actor, self.cache.current, _hold, _say, utc,
                               config.fence_action, uuid.uuid4().hex[:8])
        self.doubt = Doubt(self.hypervisor, config.keepalive_interval, _say)
        self.fence_wake = threading.Event()
        self._last_resync = 0.0
        self._libvirt_trouble = ""
        self._last_acknowledged: float | None = None

    # -------------------------------------------------------------------------------------------------------- start

    def start(self) -> None:
        """Everything up to `run`, or up to the moment in which this process is told to stop: `serve` then writes `stop`. A registration is
        finished all the same, since only a registered node can say so. Raises what ends the start: exit status 1, and systemd tries again.
        """
        self._preflight()
        start = self._register()
        if self.flags.stop.is_set():
            return
        self._spawn("collector", self._collect)
        self.keepalive.thread.start()
        self.supervisor.watch([self.keepalive.thread])
        self._write_state(DaemonState.INIT)
        if self.flags.stop.wait(start.wait_s):
            return
        self.cache.refresh()
        self.instances.start()
        self._adopt()
        if not self.flags.stop.is_set():
            self._run()

    def _run(self) -> None:
        self.store.apply((self._mine(), Write(schema.node_key(self.node, "protocol"), str(schema.PROTOCOL_VERSION).encode(), ANY)))
        self.keepalive.daemonstate = DaemonState.RUN
        self._write_state(DaemonState.RUN)
        self.cache.refresh()
        self.reconciler.start()
        self.supervisor.watch([*self.reconciler.threads, *self.hypervisor.threads, *self.zk.threads])
        self._spawn("timer", self._time)
        self._spawn("fence", self._fence)
        self.notifier.ready()
        self.notifier.status(f"running as {self.node}, incarnation {self.standing.inc}")

    def _preflight(self) -> None:
        static = identity.static_data()
        _say(Level.INFO, f"pvcd on {self.node}: {static}")
        self.remembered = recall(STATE_DIRECTORY, self.host.machine_id)
        refuse_renamed(self.remembered, self.node, self.config.named, STATE_DIRECTORY)
        try:
            self.hypervisor.start(PREFLIGHT_S)
        except HypervisorUnknown as error:
            raise Refused(f"libvirt does not answer at {self.hypervisor.uri}: {error}. Enable it: set auth_tcp = \"none\" in "
                          "/etc/libvirt/libvirtd.conf, then systemctl enable --now libvirtd-tcp.socket") from error
        self.doubt.look(self.clock(), False, None)
        self._spawn("doubt", self._watch_doubt)
        try:
            self.zk.start(PREFLIGHT_S)
        except Unreachable as error:
            raise Refused(f"ZooKeeper does not answer at {self.config.zookeeper}: {error}. Look at it: "
                          "systemctl status zookeeper") from error
        self._compare_marks()

    def _compare_marks(self) -> None:
        """Before anything is written. Raises TakenBack."""
        try:
            hold = decode_hold(self.marks.look()[schema.FENCES])
        except TakenBack:
            self.marks.warn_others()
            raise
        if hold.restored:
            raise TakenBack(f"{hold.by or '?'} says that ZooKeeper's data was lost or restored from an older copy. {self.marks.way_out}")

    def _register(self) -> Start:
        config, boot = self.config, identity.kernel_boot()
        static = {
            "staticdata": identity.static_data(), "ipmihostname": config.ipmi_hostname, "ipmiusername": config.ipmi_username,
            "ipmipassword": config.ipmi_password, "protocol": "0",
            "timing": Timing(config.keepalive_interval, config.fence_intervals).encode().decode()}
        self.registration = Registration(self.store, self.hypervisor, self.host, utc(), lambda text: _say(Level.CRITICAL, text))
        watched_s = self.registration.look()
        if watched_s:
            _say(Level.INFO, f"{self.node} is registered under another boot: watches for {watched_s:g} s whether another host of this name is alive")
            threading.Event().wait(watched_s)  # also when told to stop: only a registered node can write `stop`
        start, version = self.registration.run(static, self.remembered.is_other_boot(boot))
        remember(STATE_DIRECTORY, self.host, boot)
        self.standing.inc = start.inc
        self.standing.set_up(version)
        _say(Level.INFO, f"registered ({start.rule}) as incarnation {start.inc}")
        if not config.ipmi_username or not config.ipmi_password:
            _say(Level.WARNING, "no IPMI user and password are configured: this node cannot be fenced, and its VMs are not recovered "
                                "when it dies until an operator confirms that it is off")
        self._warn_of_autostart()
        return start

    def _warn_of_autostart(self) -> None:
        """What libvirt starts by itself at boot runs before anybody has looked who may run it."""
        known = self.store.domains()
        for domain in self.hypervisor.kept():
            if domain.uuid in known:
                what = ("libvirt starts it by itself at boot, when it may run elsewhere already: virsh autostart --disable" if domain.autostart
                        else "libvirt keeps a definition of its own of it: virsh undefine")
                _say(Level.WARNING, f"{domain.name}: {what} {domain.name}")
        if GUESTS_SERVICE.exists():
            _say(Level.WARNING, "libvirt-guests is enabled: it stops or suspends VMs behind PVC's back when this host goes down. "
                                "systemctl disable --now libvirt-guests.service")

    def _adopt(self) -> None:
        """Look once at every VM that runs here, so that what runs is claimed before anybody takes `run` as an answer."""
        for name in (NODES, VIEW, ("domains", "")):
            self.instances.visit(name)
        for found in adoptable(self.store, self.hypervisor):
            self.instances.visit(("domain", found))

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
        while not self.flags.stop.wait(1.0):
            if self.flags.exit_reason:
                _say(Level.CRITICAL, f"ends at once: {self.flags.exit_reason}")
                os._exit(MAY_COME_LATER)  # no draining: no stale worker may act any more; systemd starts us again
            wrong = self.supervisor.look()
            if wrong and not self.flags.stop.is_set():  # told to stop in this very moment, threads end as they should
                _say(Level.CRITICAL, f"ends: {wrong}")
                os._exit(MAY_COME_LATER)
        return self.end()

    def end(self) -> int:
        """Stop, as told by a signal; also when the start was not over, or has failed."""
        if self.standing.inc:
            self._stop()
        return 0

    def _stop(self) -> None:
        """`stop` is the last word: it is written when no keepalive and no worker can write any more. VMs are left alone."""
        self.notifier.stopping()
        _say(Level.INFO, "stopping; VMs run on")
        self.env.stopping = True
        deadline = self.clock() + ARRIVALS_S
        while (self.instances.arriving() or self.doubt.pending) and self.clock() < deadline and not self.flags.exit_reason:
            threading.Event().wait(0.2)
        self.fence_wake.set()
        self.reconciler.stop(5.0)
        if not self.keepalive.stop(2 * self.config.call_timeout_s):
            _say(Level.WARNING, "the keepalive thread hangs in ZooKeeper: `stop` is not written, and peers will look after this node")
            return
        try:
            self._write_state(DaemonState.STOP)
        except PVCError as error:
            _say(Level.WARNING, f"`stop` could not be written ({error}): peers will look after this node if it stays away")
        self.marks.keep()

    def close(self) -> None:
        self._closed.set()
        self.hypervisor.stop()
        self.zk.stop()

    # ------------------------------------------------------------------------------------------------------ threads

    def _spawn(self, name: str, target: object) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)  # type: ignore[arg-type]
        thread.start()
        self.supervisor.watch([thread])

    def _collect(self) -> None:
        """Collector thread: leaves statistics ready for the keepalive, every tick and soon after each lifecycle event. When libvirt
        hangs, only this thread waits.
        """
        seen: set[str] = set()
        while not self.flags.stop.is_set():
            self.collect_wake.clear()
            self.keepalive.leave(measure(None))
            try:
                guests = self.hypervisor.inventory()
            except PVCError as error:
                _say(Level.WARNING, f"libvirt gives no inventory: {error}")
                self._libvirt_answers(schema.printable(str(error))[:200])
                self.flags.stop.wait(self.config.keepalive_interval)
                continue
            self._libvirt_answers("")
            known = set(self.instances.domains)
            running = {guest.uuid for guest in guests if guest.uuid in known}
            self.keepalive.leave(measure(sorted(running), len(guests)))
            self.instances.inventory_seen(guests)
            if running != seen:
                self.keepalive.wake()  # people wait for this list to change; the next tick may be seconds away
            seen = running
            self.flags.stop.wait(COLLECT_PAUSE_S)
            self.collect_wake.wait(self.config.keepalive_interval)

    def _libvirt_answers(self, trouble: str) -> None:
        """Peers send no VM to a host whose libvirt gives no answer."""
        changed, self._libvirt_trouble = trouble != self._libvirt_trouble, trouble
        self.keepalive.leave({"libvirtstate": trouble})
        if changed:
            self.keepalive.wake()

    def _watch_doubt(self) -> None:
        """Doubt thread: once a second, whatever else stands still."""
        while not self._closed.wait(1.0):
            self.supervisor.beat("doubt")
            linked = self.zk.connected and self.standing.actor() is not None
            self.doubt.look(self.clock(), linked, self._last_acknowledged)

    def outlast_doubt(self) -> None:
        """A start that failed ends only when no copy is in doubt: each new process would count its patience from the beginning."""
        while self.doubt.pending and not self.flags.stop.wait(0.5):
            pass

    def _time(self) -> None:
        """Timer thread, once a second or four times a tick: the ZooKeeper supervisor, the resync, and the silence of peers. Only this
        thread feeds `liveness`, and only the fence thread asks it.
        """
        while not self.flags.stop.wait(min(1.0, self.config.keepalive_interval / 4)):
            self.supervisor.beat("timer")
            self.zk.ensure_alive()
            self.marks.keep()
            now = self.clock()
            if now - self._last_resync >= RESYNC_S:
                self._last_resync = now
                self.instances.resync()
            self._observe_peers()

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
            self.collect_wake.set()

    def _zookeeper_state(self, connected: bool) -> None:
        _say(Level.INFO if connected else Level.WARNING, "ZooKeeper: " + ("connected" if connected else "connection lost"))
        if connected:
            self.keepalive.wake()  # nothing is written on a new connection before a round has looked at what is behind it
            self.instances.resync()

    def _refused(self, reason: str) -> None:
        """What must not act says so in `systemctl status`; afterwards everything is looked at again."""
        self.notifier.status(reason or f"running as {self.node}, incarnation {self.standing.inc}")
        if not reason:
            self.instances.resync()

    def _acknowledged(self, now: float) -> None:
        self._last_acknowledged = now
        self.reconciler.add(VIEW)

    def _rewrite(self) -> None:
        actor = self.standing.actor()
        if actor is not None:
            self.registration.rewrite(self.keepalive.daemonstate, actor.mine)

    def _exit(self, reason: str) -> None:
        self.flags.exit_reason = reason

    def _report(self, key: tuple[str, str], text: str) -> None:
        _say(Level.CRITICAL, f"{key[0]} {key[1]}: an unforeseen error; it is tried again\n{text}")

