# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Names everything that can go wrong between a decision and the cluster; any thread may raise these.

Every error carries one sentence for people; `Refusal` also says what to do next.
"""


class PVCError(Exception):
    """Base of every error that PVC raises on purpose; `str()` is a sentence for people."""


GONE = "is gone"


class Conflict(PVCError):
    """A checked transaction lost a race: `path` is not at the version it was decided on, or it is `gone`. Nothing was written."""

    def __init__(self, path: str, detail: str = "changed meanwhile") -> None:
        super().__init__(f"{path}: {detail}")
        self.path, self.gone = path, detail == GONE


class Unreachable(PVCError):
    """ZooKeeper did not answer in time, and nothing was written."""


class OutcomeUnknown(PVCError):
    """A transaction was sent and its answer was lost: it may have been applied. Read again, never retry blindly."""


class NotACluster(PVCError):
    """ZooKeeper answers, but the roots `/nodes` and `/domains` are not there."""


class TooLarge(PVCError):
    """A value is larger than its key may hold; it was not sent (a value near 1 MiB drops the connection)."""


class Refusal(PVCError):
    """A request that the rules forbid. `what` happened, `why`, and what to do `next`; nothing was written."""

    def __init__(self, what: str, why: str = "", next: str = "") -> None:
        self.what, self.why, self.next = what, why, next
        super().__init__(" ".join(part for part in (what, why, next) if part))


class NotFound(Refusal):
    """There is no such VM or node."""


class BadDefinition(Refusal):
    """A domain definition that cannot be used."""


class Failed(PVCError):
    """The cluster gave up on what was ordered, or ordered otherwise; the sentence says why."""


class TimedOut(PVCError):
    """Waiting was given up; the cluster goes on."""


class HypervisorError(PVCError):
    """libvirt said no, definitely. `permanent`: trying again here cannot help (missing host feature); `hopeless`: nor elsewhere (bad XML)."""

    def __init__(self, message: str, permanent: bool = False, hopeless: bool = False) -> None:
        super().__init__(message)
        self.permanent, self.hopeless = permanent or hopeless, hopeless


class HypervisorUnknown(PVCError):
    """libvirt gave no answer that can be relied on: timeout, lost connection, restart. Never a reason to act.

    `slow`: the domain's own monitor hangs; the daemon gives such a domain a lane of its own.
    """

    def __init__(self, message: str, slow: bool = False) -> None:
        super().__init__(message)
        self.slow = slow
