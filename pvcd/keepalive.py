# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Publishes this node's keepalive every interval, and objects when the node is wrongly being fenced.

Runs on the keepalive thread, which does nothing else: every call has a deadline shorter than a tick, and the statistics that
go out with it were left ready by the collector. When libvirt hangs, the last good numbers go out.
"""
from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from .cluster import fences, schema
from .cluster.errors import Conflict, PVCError
from .cluster.records import ANY, Change, Check, FenceRecord, NodeRecord, Value, Write, decode_hold
from .cluster.schema import DaemonState
from .cluster.store import Store
from .marks import Marks, TakenBack
from .situation import Level
from .standing import Answer, Company, Standing, answer

Stats = Mapping[str, str]
RETRY_S = 1.0


def hugepages(root: Path = Path("/sys/kernel/mm/hugepages"), meminfo: Path = Path("/proc/meminfo")) -> str:
    """Free huge pages that nobody has reserved, as the key `hugepages` holds them; '' where the kernel has none. Does not block."""
    try:
        own = next((line.split()[1] for line in meminfo.read_text().splitlines() if line.startswith("Hugepagesize:")), "")
        found = {folder.name.removeprefix("hugepages-").removesuffix("kB"):
                 int((folder / "free_hugepages").read_text()) - int((folder / "resv_hugepages").read_text())
                 for folder in root.glob("hugepages-*kB")}
    except (OSError, ValueError):
        return ""
    return " ".join(f"{size}:{max(0, free)}" for size, free in sorted(found.items(), key=lambda pair: (pair[0] != own, int(pair[0]))))


def measure(running: Sequence[str] | None, count: int = 0) -> dict[str, str]:
    """This host's numbers as key values: memory in MiB (free = available, and used adds up to the total), the 1-minute load, and
    the domains that libvirt shows (`running`: those that PVC knows; None leaves both keys as they are). Does not block.
    """
    memory = psutil.virtual_memory()
    free, total = memory.available // 2**20, memory.total // 2**20
    values = {"memfree": str(free), "memused": str(total - free), "cpuload": f"{os.getloadavg()[0]:.2f}", "hugepages": hugepages()}
    if running is not None:
        values |= {"runningdomains": " ".join(sorted(running)), "domainscount": str(count)}
    return values


class Keepalive:
    """`on_acknowledged(now)` after each acknowledged write; `on_exit(reason)` when the process must end; `restore()` writes
    node keys that somebody deleted; `own()` is our node as ZooKeeper showed it last. `daemonstate`: what this daemon is in now.
    `on_refused(reason)` when this node must not act for a reason that an operator has to look at, '' when it may again.
    `on_round()` after each round and every `feed_s` seconds between two: this thread is alive (the watchdog).
    """

    def __init__(self, store: Store, standing: Standing, marks: Marks, tick_s: float, clock: Callable[[], float], wall: Callable[[], float],
                 say: Callable[[Level, str], None], on_acknowledged: Callable[[float], None],
                 on_exit: Callable[[str], None], restore: Callable[[], None], own: Callable[[], NodeRecord | None],
                 on_round: Callable[[], None], on_refused: Callable[[str], None], feed_s: float = 20.0) -> None:
        self._store, self._standing, self._marks = store, standing, marks
        self._tick_s, self._clock, self._wall, self._say = tick_s, clock, wall, say
        self._on_acknowledged, self._on_exit, self._on_refused = on_acknowledged, on_exit, on_refused
        self._restore, self._own, self._on_round, self._feed_s = restore, own, on_round, feed_s
        self._stats: Stats = {}
        self._wake, self._stopping = threading.Event(), False
        self._troubled = self._lost = False
        self._company, self._refused = Company(), ""
        self._alive_path, self._fence_path = schema.node_key(standing.node, "keepalive"), schema.fence(standing.node)
        self.daemonstate = DaemonState.INIT
        self.thread = threading.Thread(target=self._run, name="keepalive", daemon=True)

    def leave(self, stats: Stats) -> None:
        """Statistics for the next round, from the collector; what is not among them stays as it was left last."""
        self._stats = {**self._stats, **stats}

    def wake(self) -> None:
        """Start the next round now: our own fence has changed. Any thread."""
        self._wake.set()

    def stop(self, timeout_s: float) -> bool:
        """No keepalive goes out after this returned True."""
        self._stopping = True
        self._wake.set()
        if self.thread.ident is not None:
            self.thread.join(timeout_s)
        return not self.thread.is_alive()

    def round(self) -> None:
        """One bounded round: at most four calls to ZooKeeper, two as a rule. Raises what the store raises."""
        try:
            values = self._marks.look()
        except TakenBack as error:
            self._standing.set_down()
            self._refuse(str(error))
            self._marks.warn_others()
            return
        refused = self._reason(values)
        fence = FenceRecord.read(values[self._fence_path])
        what = answer(fence, self._standing.inc)
        if what is not Answer.PUBLISH or refused:
            self._standing.set_down()
        if what is Answer.EXIT:
            self._on_exit(f"{self._standing.node} was fenced, or another incarnation of it is registered")
        elif what is Answer.SILENT:
            self._tell(f"/fences/{self._standing.node} does not let this node act ({fence.value}): nothing is written")
        elif what is Answer.PUBLISH:
            if not refused:
                self._standing.set_up(fence.version)
            self._commit(values, (Check(self._fence_path, fence.version), *self._alive(values), *self._lost_word()), fence.version)
        else:
            objected = fences.back_up(self._standing.node, fence, (*self._alive(values), self._word()))
            if self._commit(values, objected, fence.version + 1):
                self._say(Level.CRITICAL, f"{self._standing.node} was being fenced and is alive: it objected, and keeps its VMs")
                self._wake.set()
        self._refuse(refused)

    def _reason(self, values: Mapping[str, Value]) -> str:
        """Why this node must not act although ZooKeeper and its fence let it, or ''. It stays alive for its peers: a node that is silent
        would be fenced, and what runs here started elsewhere.
        """
        node, hold = self._standing.node, decode_hold(values[schema.FENCES])
        if self._company.seen(values[self._alive_path]):
            return (f"{node}: another host writes its keepalives too: a copy of this host runs under the same name. This node starts, stops and "
                    "moves no VM until the other is silent. Find it, and switch its pvcd off: systemctl disable --now pvcd")
        if hold.restored:
            return f"{hold.by or '?'} says that ZooKeeper's data was lost or restored from an older copy. {self._marks.way_out}"
        return ""

    def _refuse(self, reason: str) -> None:
        """Told once, and again when it is over."""
        if reason.partition(":")[0] != self._refused.partition(":")[0]:
            self._say(Level.CRITICAL if reason else Level.WARNING, reason or f"{self._standing.node} acts again: what stopped it is over")
            self._on_refused(reason)
        self._refused = reason

    def _alive(self, values: Mapping[str, Value]) -> tuple[Change, ...]:
        """The keepalive is written at the version that was looked at: another host's would be seen, and not be overwritten."""
        node = self._standing.node
        stats = (Write(schema.node_key(node, key), _fitting(key, value), ANY) for key, value in sorted(self._stats.items()))
        return (Write(self._alive_path, str(int(self._wall())).encode(), values[self._alive_path].version), *stats)

    def _word(self) -> Write:
        return Write(schema.node_key(self._standing.node, "daemonstate"), self.daemonstate.value.encode(), ANY)

    def _lost_word(self) -> tuple[Change, ...]:
        """A state that is gone or garbage is written again until it is seen to be there: nobody would miss a node without one."""
        own = self._own()
        return () if own is None or isinstance(own.daemonstate, DaemonState) else (self._word(),)

    def _commit(self, values: Mapping[str, Value], changes: tuple[Change, ...], fence_version: int) -> bool:
        """False if the race was lost: nothing was written. `fence_version`: what the fence is at after it."""
        try:
            self._store.apply(changes)
        except Conflict as lost:
            if lost.gone and lost.path.startswith(schema.node(self._standing.node)):
                self._say(Level.WARNING, f"{lost.path} is gone: it is written again")
                self._restore()
            if not self._lost:
                self._wake.set()  # the fence moved between read and write: once more, now; then with the next tick
            self._lost = True
            return False
        self._troubled = self._lost = False
        self._marks.note(values, values[self._alive_path].version + 1, fence_version)
        self._on_acknowledged(self._clock())
        return True

    def _tell(self, text: str) -> None:
        if not self._troubled:
            self._say(Level.WARNING, text)
        self._troubled = True

    def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            started, pause_s = self._clock(), self._tick_s
            try:
                self.round()
            except PVCError as error:
                self._tell(f"keepalive: {error}")
                pause_s = min(RETRY_S, self._tick_s)  # the connection may be back in a moment, and a tick is long
            except Exception:
                # Whatever goes wrong in a round, the next one must come: without keepalives this node gets fenced.
                self._say(Level.CRITICAL, f"keepalive: {traceback.format_exc()}")
            self._on_round()
            self._rest(started + pause_s)

    def _rest(self, until: float) -> None:
        """Until the next round is due, or somebody wakes this thread. A tick may be longer than the watchdog waits."""
        while (left := until - self._clock()) > 0 and not self._wake.wait(min(left, self._feed_s)):
            self._on_round()


def _fitting(key: str, value: str) -> bytes:
    """A statistic that is too large for its key loses its last entries: a keepalive must not fail because of it."""
    data, limit = value.encode(), schema.limit_of(schema.node_key("", key))
    if len(data) <= limit:
        return data
    return data[:limit + 1].rpartition(b" ")[0] or value.encode()[:limit].decode(errors="ignore").encode()
