# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The history of a run: JSON lines in one file, and a sampler that watches ZooKeeper's keys from outside, four times a second."""
from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

from kazoo.client import KazooClient
from kazoo.exceptions import KazooException, NoNodeError
from kazoo.handlers.threading import KazooTimeoutError

EVERY_S = 0.25


class History:
    """One writer for all threads; what is written is also kept in memory."""

    def __init__(self, path: Path) -> None:
        self._file, self._lock = path.open("w", encoding="utf-8"), threading.Lock()
        self._started = time.monotonic()
        self.events: list[dict[str, Any]] = []

    @property
    def now(self) -> float:
        return time.monotonic() - self._started

    def add(self, kind: str, **values: Any) -> None:
        with self._lock:
            event = {"at": round(self.now, 3), "kind": kind, **values}
            self.events.append(event)
            self._file.write(json.dumps(event) + "\n")
            self._file.flush()


class Sampler(threading.Thread):
    """Writes each change of a claim, a fence or a keepalive. `since`: when the old value was seen last, so the change is later (0: this is the first)."""

    def __init__(self, hosts: str, nodes: list[str], history: History) -> None:
        super().__init__(daemon=True)
        self._hosts, self._nodes, self._history, self._stopping = hosts, nodes, history, threading.Event()
        self._seen: dict[str, tuple[str | None, int]] = {}
        self._looked: dict[str, float] = {}

    def stop(self) -> None:
        self._stopping.set()
        self.join()

    def run(self) -> None:
        while not self._stopping.is_set():
            client = KazooClient(self._hosts, timeout=4)
            try:
                client.start(timeout=4)
                while not self._stopping.wait(EVERY_S):
                    self._look(client)
            except (KazooException, KazooTimeoutError):
                self._stopping.wait(1)
            finally:
                client.stop()
                client.close()

    def _look(self, client: KazooClient) -> None:
        """Claims are asked for first and written down last: the fence that stands beside a claim is at least as new as the claim is."""
        paths = [f"/claims/{uuid}" for uuid in client.get_children("/claims")]
        paths += [f"/fences/{node}" for node in self._nodes] + [f"/nodes/{node}/keepalive" for node in self._nodes]
        asked = self._history.now
        found: dict[str, tuple[str | None, int]] = {}
        for path, pending in [(path, client.get_async(path)) for path in paths]:
            try:
                data, stat = pending.get(timeout=4)
                found[path] = (f"{stat.version}" if path.endswith("/keepalive") else data.decode(errors="replace"), stat.version)
            except NoNodeError:
                found[path] = (None, -1)
        for path in reversed(paths):
            if path not in self._seen or self._seen[path] != found[path]:
                value, version = found[path]
                self._history.add("key", path=path, value=value, version=version, since=round(self._looked.get(path, 0.0), 3))
            self._seen[path], self._looked[path] = found[path], asked
