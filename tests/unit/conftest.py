# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""What the unit tests have in common."""
from __future__ import annotations

import pytest
from client import Pvc


@pytest.fixture
def pvc(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Pvc:
    return Pvc(capsys, monkeypatch)
