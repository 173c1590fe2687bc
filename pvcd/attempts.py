# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Remembers the starts of one VM that went wrong. Pure.

A start that libvirt refuses is tried again for the whole window, because most refusals pass: a lock that a dead host's storage lease still
holds, storage or a network that comes later than the hosts after a power loss. Only then is it given up. A QEMU that ends by itself is
another matter: four times in the window, and it is given up. A guest that powers itself off is started again, and never given up.
"""
from __future__ import annotations

from dataclasses import dataclass, field

from .situation import Attempts

WINDOW_S = 600.0
BACK_OFF_S = (0.0, 5.0, 15.0, 30.0)
"""Wait after the n-th end: a QEMU that died comes back at once, one that keeps dying does not hammer the host."""
RETRY_S = (0.0, 5.0, 15.0, 30.0, 60.0)
"""Wait after the n-th refusal."""
DOUBT_S = 10.0


@dataclass
class AttemptLog:
    """What one VM's starts came to, on this process's boot-time clock. Lost with the process, which only allows more tries."""

    _refused: list[float] = field(default_factory=list)
    """refusals since the last start that succeeded"""
    _deaths: list[float] = field(default_factory=list)
    _quits: list[float] = field(default_factory=list)
    _permanent: bool = False
    _hopeless: bool = False
    _reason: str = ""
    _doubt_since: float | None = None
    """an unanswered create: absence is believed only when it was seen twice, DOUBT_S apart"""
    _absent_since: float | None = None

    def error(self, now: float, reason: str, permanent: bool, hopeless: bool = False) -> None:
        """libvirt refused to start it, definitely. `permanent`: this host will never; `hopeless`: no host will."""
        self._refused.append(now)
        self._permanent, self._hopeless = self._permanent or permanent or hopeless, self._hopeless or hopeless
        self._reason = reason

    def death(self, now: float) -> None:
        """It ran here, was wanted, and its QEMU is gone."""
        self._deaths.append(now)
        self._reason = f"its QEMU process ended {len(self._deaths)} times in {WINDOW_S / 60:.0f} minutes"

    def quit(self, now: float) -> None:
        """It ran here, was wanted, and the guest itself ended it."""
        self._quits.append(now)

    def unanswered(self, now: float) -> None:
        """A create call got no answer: the domain may be there, or appear."""
        self._doubt_since, self._absent_since = now, None

    def seen(self, present: bool, now: float) -> None:
        """A look at libvirt that was answered."""
        if present:
            self._refused, self._permanent, self._hopeless = [], False, False
        if self._doubt_since is None:
            return
        if present:
            self._doubt_since = self._absent_since = None
        elif self._absent_since is None:
            self._absent_since = now
        elif now - self._absent_since >= DOUBT_S:
            self._doubt_since = self._absent_since = None

    def unseen(self) -> None:
        """A look that was not answered: what libvirt still had to do while it hung may be done now, so an absence counts from the next look."""
        self._absent_since = None

    def clear(self) -> None:
        """An operator's new order, or the VM belongs elsewhere: the count starts again. A doubt remains a doubt."""
        self._refused, self._deaths, self._quits = [], [], []
        self._permanent, self._hopeless, self._reason = False, False, ""

    def now(self, now: float) -> Attempts:
        """What the planner needs to know of it."""
        self._deaths = [at for at in self._deaths if now - at < WINDOW_S]
        self._quits = [at for at in self._quits if now - at < WINDOW_S]
        waits = [_left(sorted(self._deaths + self._quits), BACK_OFF_S, now), _left(self._refused, RETRY_S, now)]
        refused_s = now - self._refused[0] if self._refused else 0.0
        return Attempts(len(self._refused), len(self._deaths), self._permanent, self._hopeless, self._reason, max(waits), refused_s,
                        self._doubt_since is not None)


def _left(failures: list[float], waits: tuple[float, ...], now: float) -> float:
    return max(0.0, failures[-1] + waits[min(len(failures), len(waits)) - 1] - now) if failures else 0.0
