# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Reads what the guests themselves wrote to their serial ports, and judges it: lives, counters, silences, double lives.

Every QEMU of one VM appends to the same file. A second copy that runs at the same time shows as an old boot id after a new one,
or as a counter that goes back within one life.
"""
from __future__ import annotations

import os
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

_LINE = re.compile(rb"boot=([0-9a-f]{8}) n=([0-9]+)")
EVERY_S = 0.05


@dataclass
class Life:
    """One boot of a guest: its counter from `first` to `last`, seen at `times` (seconds, this machine's clock)."""

    boot: str
    first: int
    last: int
    missing: int = 0
    times: list[float] = field(default_factory=list)

    @property
    def longest_gap_s(self) -> float:
        """The longest silence between two lines of this life."""
        return max((b - a for a, b in zip(self.times, self.times[1:])), default=0.0)


@dataclass
class Testimony:
    """All lives of one VM in order, and what cannot be if it never ran twice."""

    lives: list[Life] = field(default_factory=list)
    doubles: list[str] = field(default_factory=list)

    def add(self, line: bytes, at: float) -> None:
        for boot, counter in _LINE.findall(line):
            self._add(boot.decode(), int(counter), at)

    def _add(self, boot: str, n: int, at: float) -> None:
        known = next((life for life in self.lives if life.boot == boot), None)
        if known is None:
            self.lives.append(Life(boot, n, n, times=[at]))
            return
        if known is not self.lives[-1]:
            self.doubles.append(f"{boot} n={n} after {self.lives[-1].boot} had begun")
        elif n <= known.last:
            self.doubles.append(f"{boot} n={n} after n={known.last}")
        known.missing += max(0, n - known.last - 1)
        known.last = max(known.last, n)
        known.times.append(at)

    @property
    def life(self) -> Life | None:
        return self.lives[-1] if self.lives else None


def read(path: Path) -> Testimony:
    """What the file says now; without times."""
    found = Testimony()
    for line in path.read_bytes().splitlines() if path.exists() else ():
        found.add(line, 0.0)
    return found


class Recorder:
    """Follows every serial file of a folder on a thread of its own, and keeps when each line came (to 0.05 s)."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._stopping = folder, threading.Event()
        self._offsets: dict[str, int] = {}
        self._rest: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._found: dict[str, Testimony] = {}
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Recorder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._check()

    def testimony(self, vm: str) -> Testimony:
        """What the VM has said since the recorder started; goes on growing. Raises what has ended the recorder, if something has."""
        self._check()
        with self._lock:
            return self._found.setdefault(vm, Testimony())

    def _check(self) -> None:
        if self._failure:
            raise RuntimeError("the witness has gone blind") from self._failure

    def _run(self) -> None:
        try:
            while not self._stopping.wait(EVERY_S):
                with os.scandir(self._folder) as files:
                    for file in files:
                        self._follow(file)
        except BaseException as error:  # a witness that is gone must not be one that has seen nothing
            self._failure = error

    def _follow(self, entry: os.DirEntry[str]) -> None:
        """Read what is new. Hundreds of files are looked at, so only those that have grown are opened."""
        offset = self._offsets.get(entry.name, 0)
        if entry.stat().st_size == offset:
            return
        with open(entry.path, "rb") as file:
            file.seek(offset)
            new = file.read()
        now = time.monotonic()
        self._offsets[entry.name] = offset + len(new)
        *lines, rest = (self._rest.get(entry.name, b"") + new).split(b"\n")
        self._rest[entry.name] = rest
        with self._lock:
            found = self._found.setdefault(entry.name, Testimony())
        for line in lines:
            found.add(line, now)
