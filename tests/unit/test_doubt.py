# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Row M6(b): when a paused copy in doubt goes."""
from __future__ import annotations

import pytest

from pvcd.doubt import Doubt


class Libvirt:
    """Copies in doubt, and what was destroyed."""

    def __init__(self, *copies: str) -> None:
        self.copies, self.destroyed = list(copies), []

    def in_doubt(self) -> tuple[str, ...]:
        return tuple(self.copies)

    def destroy(self, uuid: str) -> None:
        self.copies.remove(uuid)
        self.destroyed.append(uuid)


@pytest.mark.parametrize(("inherited", "linked", "acknowledged", "goes_at"), [
    (False, False, None, 12), (False, True, None, 12), (False, True, 0.0, 12), (False, True, "always", None),
    (True, False, None, 5), (True, True, None, 5), (True, True, "always", 5),
])
def test_when_it_goes(inherited: bool, linked: bool, acknowledged: float | str | None, goes_at: int | None) -> None:
    """Of an earlier process: after one tick, whoever could be asked. Else after two, counted from when it was seen, unless the node can ask."""
    libvirt = Libvirt(*(["u"] if inherited else []))
    doubt = Doubt(libvirt, 5.0, lambda *_: None)  # type: ignore[arg-type]
    for now in range(40):
        if now == 2 and not inherited:
            libvirt.copies.append("u")
        doubt.look(float(now), linked, float(now) if acknowledged == "always" else acknowledged)  # type: ignore[arg-type]
        assert bool(libvirt.destroyed) is (goes_at is not None and now >= goes_at), now
        assert doubt.pending is ("u" in libvirt.copies or now == goes_at)
