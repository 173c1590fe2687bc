# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""What a decision about one VM is taken on, and what it is: the planner's input and output, as values."""
from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .cluster import claims, schema
from .cluster.avoid import NOWHERE, Avoided
from .cluster.claims import Actor
from .cluster.records import Change, Check, ClaimRecord, DomainRecord, View
from .cluster.schema import VMState
from .local import COPY, Local

MAX_RESTARTS = 3
MIN_TRIES = 3
"""Whatever the clock says: a node that was cut off for minutes has not tried for minutes."""
ELSEWHERE_S, GIVE_UP_S = 60.0, 600.0
"""So long libvirt's refusals are taken for something that passes: by a node that only stands in for the VM's home, and by any node."""


class Verb(str, Enum):
    """The effect of a step, after its changes were applied (a gate when they are only checks)."""

    NOTHING = "nothing"
    CREATE = "create"
    SHUT_DOWN = "shut down"
    DESTROY = "destroy"
    RESUME = "resume"
    MIGRATE = "migrate"
    ABORT = "abort"


class Level(str, Enum):
    """How loudly a step's reason is told; QUIET steps are not told again while they stay the same."""

    QUIET = "quiet"
    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True)
class Step:
    """What a plan returns. `again_s`: look again after so long even if nothing is heard."""

    row: int | str
    reason: str
    verb: Verb = Verb.NOTHING
    changes: tuple[Change, ...] = ()
    level: Level = Level.INFO
    again_s: float | None = None
    retry_s: float = 5.0
    """after how long an effect that was refused is tried again"""
    failed: str | None = None
    """Set when the step writes `failed`: the reason to keep."""


@dataclass(frozen=True)
class Timers:
    """How long, on this process's boot-time clock, something has been seen; None = it is not so now. Seconds."""

    tick_s: float = 5.0
    shutdown_timeout_s: float = 30.0
    ordered_s: float | None = None
    """the present order to go elsewhere stands and no operation follows"""
    stalled_s: float | None = None
    """the migration call has moved no byte"""
    dest_down_s: float | None = None
    """the destination of the operation under this node's claim is not up, or its daemon not in `run`"""
    holder_dead_s: float | None = None
    """another node holds the claim, and is proved dead"""
    unclaimed_s: float | None = None
    """it is wanted here and nobody holds it"""
    shutdown_s: float | None = None
    """since the guest was first asked to power off"""
    resume_s: float | None = None
    """since the last try to resume after an I/O error"""
    asked_s: float | None = None
    """since the guest was last asked to power off"""
    crashed_s: float | None = None
    """it has crashed and is still there"""
    refused_s: float | None = None
    """paused by a migration of this node's own, it was first refused to be resumed"""


@dataclass(frozen=True)
class Attempts:
    """Starts that went wrong: refusals since the last one that succeeded, deaths of the last ten minutes."""

    errors: int = 0
    deaths: int = 0
    permanent: bool = False
    """this host can never start it"""
    hopeless: bool = False
    """no host can"""
    reason: str = ""
    wait_s: float = 0.0
    """back-off that is left"""
    refused_s: float = 0.0
    """since the first of the refusals"""
    doubt: bool = False
    """a create call ended without an answer: absence is not believed yet"""

    @property
    def exhausted(self) -> bool:
        """Given up, unless another node can be tried."""
        return self.permanent or (self.errors >= MIN_TRIES and self.refused_s >= GIVE_UP_S) or self.deaths > MAX_RESTARTS

    @property
    def try_elsewhere(self) -> bool:
        """A node that stands in lets another try, if there is one."""
        refused = self.permanent or (self.errors >= MIN_TRIES and self.refused_s >= ELSEWHERE_S)
        return refused and not self.hopeless and self.deaths <= MAX_RESTARTS

    @property
    def only_here(self) -> bool:
        """Given up by this host alone, and not for long: a node that is away now may come back and start it."""
        return self.permanent and not self.hopeless and self.refused_s < GIVE_UP_S and self.deaths <= MAX_RESTARTS

    @property
    def decides_s(self) -> float:
        """Until the next try, or until this node may be given up."""
        return min([self.wait_s, *(limit - self.refused_s for limit in (ELSEWHERE_S, GIVE_UP_S) if limit > self.refused_s)])


@dataclass(frozen=True)
class Onward:
    """Where a VM goes that this node cannot start; `target` None: nowhere, for `reason`. `avoided`: where it was tried before."""

    target: str | None = None
    reason: str = ""
    avoided: Avoided = NOWHERE
    untried: bool = False
    """a node that cannot take it now has not tried yet"""


@dataclass(frozen=True)
class Situation:
    """Everything one decision about one VM is taken on."""

    me: Actor
    record: DomainRecord
    claim: ClaimRecord
    local: Local
    view: View
    timers: Timers = Timers()
    attempts: Attempts = Attempts()
    unfit: str | None = None
    """why this node cannot take the VM in a migration (only looked at when it is ordered here)"""
    onward: Onward = Onward()
    """only looked at when this node cannot start the VM"""
    preserved: bool = False
    """on_crash=preserve (only looked at when it has crashed)"""
    op_id: str = ""
    """identifier for a new operation"""
    stopping: bool = False
    """this daemon is about to stop: nothing is claimed any more"""
    closing: bool = False
    """this host is being shut down, and what is still here is shut down with it"""

    @property
    def state(self) -> VMState | None:
        """The word, if it is known: unknown and missing words match no row."""
        return self.record.state if isinstance(self.record.state, VMState) else None

    @property
    def home(self) -> str | None:
        """`hypervisor`, if it is readable."""
        found = self.record.hypervisor
        return found if isinstance(found, str) else None

    @property
    def homed_here(self) -> bool:
        return self.home == self.me.node

    @property
    def homed_elsewhere(self) -> bool:
        return self.home not in (None, "", self.me.node)

    @property
    def copy(self) -> bool:
        return self.local.status in COPY

    @property
    def gate(self) -> tuple[Change, ...]:
        return claims.holding(self.me, self.record.uuid, self.claim, self.record)

    @property
    def claim_gate(self) -> tuple[Change, ...]:
        """The gate of what follows from the claim alone, whatever the words say."""
        return (self.me.mine, Check(schema.claim(self.record.uuid), self.claim.version))
