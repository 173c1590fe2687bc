# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Runs in a node, which has nothing of the lab but this file: `relay.py PORT SECONDS` passes each TCP connection that iptables redirects to
PORT on to where it was meant to go, every byte of it SECONDS late, both ways. For kernels without netem.
"""
import asyncio
import contextlib
import socket
import struct
import sys

SO_ORIGINAL_DST = 80
"""linux/netfilter_ipv4.h"""
PORT, DELAY_S = int(sys.argv[1]), float(sys.argv[2])


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Each piece is due DELAY_S after it came; it waits beside the others, not behind them."""
    clock = asyncio.get_running_loop().time
    pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def read() -> None:
        piece = b"-"
        while piece:
            try:
                piece = await reader.read(65536)
            except ConnectionError:
                piece = b""
            pieces.put_nowait((clock() + DELAY_S, piece))
    reading = asyncio.create_task(read())
    with contextlib.suppress(ConnectionError):
        while True:
            due, piece = await pieces.get()
            await asyncio.sleep(due - clock())
            if not piece:
                break
            writer.write(piece)
    reading.cancel()
    writer.close()


async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The connection itself takes as long as an answer does."""
    meant = writer.get_extra_info("socket").getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16)
    port, address = struct.unpack("!2xH4s8x", meant)
    await asyncio.sleep(2 * DELAY_S)
    try:
        far_reader, far_writer = await asyncio.open_connection(socket.inet_ntoa(address), port)
    except OSError:
        writer.close()
        return
    await asyncio.gather(pass_on(reader, far_writer), pass_on(far_reader, writer))


async def serve() -> None:
    async with await asyncio.start_server(accept, "127.0.0.1", PORT) as server:
        await server.serve_forever()

asyncio.run(serve())
