# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Standard output is a pipe that nobody reads, as under a stopped journald: whoever says something goes on."""
from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SPEAKER = """
import sys, threading
from pvcd import ansiiprint
done = []
def speak():
    for number in range(5000):
        ansiiprint.echo(f"line {number} " + "x" * 100)
    done.append(True)
threads = [threading.Thread(target=speak, daemon=True) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(20)
print(len(done), file=sys.stderr, flush=True)
sys.stdin.readline()
ansiiprint.flush(20)
ansiiprint.echo("the last word")
ansiiprint.flush(5)
"""


def test_nobody_waits_for_a_reader_and_what_is_lost_is_counted() -> None:
    process = subprocess.Popen([sys.executable, "-c", SPEAKER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env={**os.environ, "JOURNAL_STREAM": "1:2"})
    assert process.stdin and process.stdout and process.stderr
    try:
        assert process.stderr.readline() == b"3\n", "all 15,000 lines were said while nobody read"
        read: list[bytes] = []
        reader = threading.Thread(target=lambda: read.extend(process.stdout or ()), daemon=True)
        reader.start()
        process.stdin.write(b"\n")
        process.stdin.close()
        assert process.wait(20) == 0, "it ends"
        reader.join(10)
    finally:
        process.kill()
    assert read[-1].endswith(b"the last word\n") and any(b"messages before this one are lost" in line for line in read)
    assert all(line.startswith(b"<") for line in read), "no line is torn"


def test_a_process_ends_though_nobody_reads() -> None:
    program = SPEAKER.replace("sys.stdin.readline()\nansiiprint.flush(20)\n", "").replace("flush(5)", "flush(0.2)")
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.wait(30) == 0
    finally:
        process.kill()
