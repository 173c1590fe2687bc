# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""What the unit tests have in common."""
from __future__ import annotations

import pytest
from client import Pvc
from hypothesis import HealthCheck, settings

# What the machine does beside the tests is not what they are about.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


@pytest.fixture
def pvc(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Pvc:
    return Pvc(capsys, monkeypatch)
