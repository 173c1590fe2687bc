# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""A management controller (BMC), what it can be asked, and what it has answered, as values. Pure.

`Controllers` is the seam between the daemon and IPMI: `pvcd.ipmi` implements it on ipmitool, the simulator on a model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from .cluster.records import Change

_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,252}\Z")
_USER = re.compile(r"[\x21-\x2c\x2e-\x7e][\x21-\x7e]{0,15}\Z")
_PASSWORD = re.compile(r"[\x20-\x7e]{1,20}\Z")


class Power(str, Enum):
    """What a controller says of its machine. Everything but a clear answer is UNKNOWN."""

    ON = "on"
    OFF = "off"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Bmc:
    """A management controller, as its peers reach it."""

    host: str
    username: str
    password: str = field(repr=False)

    @property
    def problem(self) -> str:
        """Why it cannot even be asked, or ''."""
        if not self.host or not self.username or not self.password:
            return "no BMC is configured"
        if not _HOST.match(self.host) or not _USER.match(self.username) or not _PASSWORD.match(self.password):
            return "its BMC's host, user or password has a form that IPMI does not take"
        return ""


@dataclass(frozen=True)
class Reading:
    """One answer: the power, and what was said when it is unknown."""

    power: Power
    detail: str = ""


class Kind(str, Enum):
    """What can be asked, or ordered."""

    IDENTITY = "identity"
    STATUS = "status"
    OFF = "off"
    ON = "on"
    OWN = "own"
    """the identity of this host's own controller, from outside and from inside"""


class Purpose(str, Enum):
    """Who asks. Checks never take the workers that a fence needs."""

    FENCE = "fence"
    POWER_ON = "power on"
    CHECK = "check"


@dataclass(frozen=True)
class Question:
    """`address`: ask there and nowhere else ('': wherever the controller's name leads). `gate`: what an order checks
    right before it.
    """

    purpose: Purpose
    node: str
    kind: Kind
    bmc: Bmc
    address: str = ""
    gate: tuple[Change, ...] = ()
    about: str = ""


@dataclass(frozen=True)
class Answer:
    """`asked` and `answered`: the clock before and after. `sent`: the order was handed to ipmitool. `problem`: why the
    controller cannot be asked, or did not say whether its machine is on. `local`, `product`: identity from inside.
    """

    question: Question
    asked: float
    answered: float = 0.0
    power: Power = Power.UNKNOWN
    said: str = ""
    guid: str | None = None
    addresses: tuple[str, ...] = ()
    sent: bool = False
    problem: str = ""
    cipher: int | None = None
    local: str = ""
    product: str = ""

    @property
    def kind(self) -> Kind:
        return self.question.kind

    @property
    def node(self) -> str:
        return self.question.node

    @property
    def host(self) -> str:
        return self.question.bmc.host


class Controllers(Protocol):
    """`pvcd.ipmi.Ipmi`, or the simulator's model. Each call is bounded and never raises."""

    def addresses(self, bmc: Bmc) -> tuple[str, ...]: ...

    def status(self, bmc: Bmc) -> Reading: ...

    def guid(self, bmc: Bmc) -> str | None: ...

    def off(self, bmc: Bmc, deadline_s: float) -> str: ...

    def on(self, bmc: Bmc) -> str: ...

    def cipher(self, bmc: Bmc) -> int | None: ...

    def local_guid(self) -> str | None: ...

    def product_uuid(self) -> str: ...
