# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Remembers the starts of one VM that went wrong, for the rule "three times in ten minutes, then `failed`". Pure."""
from __future__ import annotations

from dataclasses import dataclass, field

from .situation import Attempts

WINDOW_S = 600.0
BACK_OFF_S = (0.0, 5.0, 15.0, 30.0)
"""Wait after the n-th failure: a QEMU that died comes back at once, one that keeps dying does not hammer the host."""
DOUBT_S = 10.0


@dataclass
class AttemptLog:
    """What one VM's starts came to, on this process's boot-time clock. Lost with the process, which only allows more tries."""

    _errors: list[float] = field(default_factory=list)
    _deaths: list[float] = field(default_factory=list)
    _permanent: bool = False
    _reason: str = ""
    _doubt_since: float | None = None
    """an unanswered create: absence is believed only when it was seen twice, DOUBT_S apart"""
    _absent_since: float | None = None

    def error(self, now: float, reason: str, permanent: bool) -> None:
        """libvirt refused to start it, definitely."""
        self._errors.append(now)
        self._permanent = self._permanent or permanent
        self._reason = reason

    def death(self, now: float) -> None:
        """It ran here, was wanted, and its QEMU is gone."""
        self._deaths.append(now)
        self._reason = f"its QEMU process ended {len(self._deaths)} times in {WINDOW_S / 60:.0f} minutes"

    def unanswered(self, now: float) -> None:
        """A create call got no answer: the domain may be there, or appear."""
        self._doubt_since, self._absent_since = now, None

    def seen(self, present: bool, now: float) -> None:
        """A look at libvirt that was answered."""
        if self._doubt_since is None:
            return
        if present:
            self._doubt_since = self._absent_since = None
        elif self._absent_since is None:
            self._absent_since = now
        elif now - self._absent_since >= DOUBT_S:
            self._doubt_since = self._absent_since = None

    def clear(self) -> None:
        """An operator's new order: the count starts again. A doubt remains a doubt."""
        self._errors, self._deaths, self._permanent, self._reason = [], [], False, ""

    def now(self, now: float) -> Attempts:
        """What the planner needs to know of it."""
        self._errors = [at for at in self._errors if now - at < WINDOW_S]
        self._deaths = [at for at in self._deaths if now - at < WINDOW_S]
        failures = sorted(self._errors + self._deaths)
        wait_s = 0.0
        if failures:
            back_off = BACK_OFF_S[min(len(failures), len(BACK_OFF_S)) - 1]
            wait_s = max(0.0, failures[-1] + back_off - now)
        return Attempts(len(self._errors), len(self._deaths), self._permanent, self._reason, wait_s,
                        self._doubt_since is not None)
