# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Each directed schedule holds what it promises."""
from __future__ import annotations

from collections.abc import Callable

import pytest

from . import (
    directed,
    directed_bmc,
    directed_departure,
    directed_faults,
    directed_fences,
    directed_handoff,
    directed_identity,
    directed_moves,
    directed_orders,
    directed_review,
    directed_starts,
)

SCHEDULES = (directed.SCHEDULES + directed_handoff.SCHEDULES + directed_orders.SCHEDULES + directed_fences.SCHEDULES + directed_faults.SCHEDULES
             + directed_identity.SCHEDULES + directed_moves.SCHEDULES + directed_bmc.SCHEDULES + directed_departure.SCHEDULES
             + directed_starts.SCHEDULES + directed_review.SCHEDULES)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.__name__)
def test_directed(schedule: Callable[[], None]) -> None:
    schedule()
