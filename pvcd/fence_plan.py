# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""What the janitor does next about one node that is being fenced, or that is to be switched on after it. Pure.

`plan` takes what the fence says, what this janitor has learned of it and the clock, and gives one action; `learn` takes
what a controller has answered. The order is always: whose controller is it · `off`, behind a gate · `off` read twice,
in sessions of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from .bmc import Answer, Kind, Power
from .cluster import controllers
from .cluster.controllers import Card
from .cluster.records import Fence
from .cluster.schema import FencePhase

POLL_S = 1.0
IDENTITY_FRESH_S = 10.0
"""An identity that was told longer ago is asked for again before anything is sent."""
OFF_DEADLINE_S = 40.0
ON_DEADLINE_S = 30.0
MAX_REFUSED = 3
TURN_S = 45.0
"""So long the one whose turn it is may keep the others waiting, beyond the pause."""


class Act(str, Enum):
    """What to do now."""

    WAIT = "wait"
    ASK = "ask"
    PROVE = "prove"
    GIVE_UP = "give up"
    DONE = "done"


@dataclass(frozen=True)
class Action:
    """`kind`: the question to ask; `why` it is given up; look again after `again_s`."""

    act: Act
    kind: Kind | None = None
    why: str = ""
    again_s: float = POLL_S


@dataclass(frozen=True)
class Learned:
    """How far this process has come with one fence (`about`). Losing it costs one more `off`. Times are of its
    boot-time clock.
    """

    about: str
    since: float
    asking: Kind | None = None
    identified: float | None = None
    """when the controller last told whose it is, and it was the right one"""
    address: str = ""
    """the address that was asked: `off` and its readings go to no other"""
    sent: float | None = None
    seen_off: float | None = None
    looked: float | None = None
    power: Power = Power.UNKNOWN
    said: str = ""
    refused: int = 0
    """orders in a row that their gate did not let through"""
    problem: str = ""
    """why the controller may not be told anything, or does not answer"""


def plan(fence: Fence, learned: Learned, now: float, obstacle: str) -> Action:
    """The next step of a fence. `obstacle`: why nothing may be sent to the controller as it is configured, or ''."""
    if fence.phase is not FencePhase.FENCING:
        return Action(Act.DONE)
    if learned.asking is not None:
        return Action(Act.WAIT)
    if learned.sent is None:
        return _identify(learned, now, obstacle) or Action(Act.ASK, Kind.OFF)
    if (
        learned.power is Power.OFF
        and learned.looked is not None
        and learned.seen_off is not None
        and learned.looked > learned.seen_off
    ):
        return Action(Act.PROVE)
    if learned.power is not Power.OFF and now - learned.sent >= OFF_DEADLINE_S:
        said = "it still says on" if learned.power is Power.ON else learned.said or "no answer"
        return Action(Act.GIVE_UP, why=f"{learned.address} was told to switch off: {said}")
    return _look(learned, now, Kind.STATUS)


def plan_on(learned: Learned, now: float, obstacle: str) -> Action:
    """The next step of a power-on after a fence: it is done when the controller says on, not when it was told."""
    if learned.asking is not None:
        return Action(Act.WAIT)
    if learned.sent is None:
        early = _identify(learned, now, obstacle)
        if early or learned.power is not Power.ON:
            return early or Action(Act.ASK, Kind.ON)
        return Action(Act.DONE)
    if learned.power is Power.ON:
        return Action(Act.DONE)
    if now - learned.sent >= ON_DEADLINE_S:
        said = "it still says off" if learned.power is Power.OFF else learned.said or "no answer"
        return Action(Act.GIVE_UP, why=f"{learned.address} was told to switch on: {said}")
    return _look(learned, now, Kind.STATUS)


def _identify(learned: Learned, now: float, obstacle: str) -> Action | None:
    """Nothing is sent before the controller has just said whose it is."""
    if obstacle or learned.problem:
        return Action(Act.GIVE_UP, why=obstacle or learned.problem)
    if learned.refused >= MAX_REFUSED:
        return Action(Act.GIVE_UP, why=f"the order could not be sent: {learned.said}")
    if learned.refused and learned.looked is not None and now - learned.looked < POLL_S:
        return Action(Act.WAIT)
    if learned.identified is None or now - learned.identified > IDENTITY_FRESH_S:
        return Action(Act.ASK, Kind.IDENTITY)
    return None


def _look(learned: Learned, now: float, kind: Kind) -> Action:
    """One question a second: two readings are at least a second apart."""
    wait = 0.0 if learned.looked is None else learned.looked + POLL_S - now
    return Action(Act.ASK, kind) if wait <= 0 else Action(Act.WAIT, again_s=wait)


def learn(learned: Learned, answer: Answer, cards: Mapping[str, Card]) -> Learned:
    """What is known after an answer. `cards`: what is recorded of all nodes' controllers, read after the answer."""
    learned = replace(learned, asking=None)
    if answer.kind is Kind.IDENTITY:
        problem = answer.problem or controllers.stranger(
            cards, answer.node, controllers.guid(answer.guid), answer.addresses
        )
        return replace(
            learned,
            problem=problem,
            identified=None if problem else answer.answered,
            power=answer.power,
            said=answer.said,
            address=answer.addresses[0] if answer.addresses else "",
        )
    if answer.kind in (Kind.OFF, Kind.ON):
        if not answer.sent:  # the gate was shut, or too slow: whoever it was decided for may be alive
            return replace(
                learned, identified=None, said=answer.said, looked=answer.answered, refused=learned.refused + 1
            )
        return replace(learned, sent=answer.answered, seen_off=None, looked=None, power=Power.UNKNOWN, said=answer.said)
    first = learned.seen_off is None and answer.power is Power.OFF
    seen = answer.answered if first else learned.seen_off if answer.power is Power.OFF else None
    return replace(learned, looked=answer.answered, seen_off=seen, power=answer.power, said=answer.said)


def is_due(now: float, first_seen: float, pause_s: float, mine: bool) -> bool:
    """A try may begin: the pause is over, and it is this node's turn, or the one whose turn it is lets everybody wait.
    """
    return now >= first_seen + pause_s + (0.0 if mine else TURN_S)
