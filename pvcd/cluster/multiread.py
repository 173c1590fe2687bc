# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""ZooKeeper's multiRead (3.6 and newer, operation 22), which kazoo does not have: many keys in one request and one answer.

A request for kazoo's connection, as the ones in `kazoo.protocol.serialization`: a type, and how it is written and read. An older
server answers with UnimplementedError. It is no transaction: keys may change between two of its reads.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kazoo.exceptions import EXCEPTIONS
from kazoo.protocol.serialization import GetData, MultiHeader, int_struct, multiheader_struct, read_buffer, stat_struct
from kazoo.protocol.states import ZnodeStat


class MultiRead:
    """Data and stat of each path, in order; an exception in the place of a key that cannot be read. Watches are not possible."""

    type = 22
    watcher = None

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths

    def serialize(self) -> bytearray:
        request = bytearray()
        for path in self._paths:
            request += MultiHeader(GetData.type, False, -1).serialize() + GetData(path, None).serialize()
        request += MultiHeader(-1, True, -1).serialize()
        return request

    @staticmethod
    def deserialize(answer: bytes, offset: int) -> list[Any]:
        """One entry per path."""
        found: list[Any] = []
        while True:
            kind, done, _ = multiheader_struct.unpack_from(answer, offset)
            offset += multiheader_struct.size
            if done:
                return found
            if kind == GetData.type:
                data, offset = read_buffer(answer, offset)
                found.append((data, ZnodeStat._make(stat_struct.unpack_from(answer, offset))))
                offset += stat_struct.size
            else:
                found.append(EXCEPTIONS[int_struct.unpack_from(answer, offset)[0]]())
                offset += int_struct.size
