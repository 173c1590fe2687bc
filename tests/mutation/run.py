# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Runs the mutants of some files against the tests that execute the changed lines.

tests/mutate [FILE…]                 everything (hours); FILE: only these
tests/mutate --transactions [FILE…]  only what transactions check and write, their versions, and gates: none may live
tests/mutate --sample N [FILE…]      N of the other mutants of each file, chosen by --seed

The tests are those of `unit`, the directed schedules and the stories; no lab, no random seeds, no real server. A mutant that lives and is
not listed in `mutation/alive.txt` with its reason is printed. Exit status 1: a transaction's mutant lives unlisted, or fewer than 90 % of the
others are killed.
"""
from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from .mutants import TRANSACTION, Mutant, mutants

ROOT = Path(__file__).resolve().parents[2]
LISTED = Path(__file__).parent / "alive.txt"
TESTS = ("tests/unit", "tests/sim/test_directed.py", "tests/sim/test_sites.py", "tests/sim/test_progress.py", "tests/scenarios")
LEFT_OUT = ("death_before_each_effect", "test_readme", "test_corpus", "not_up_touches_nothing")
"""Tests that take long, or that look at no code. (So are those of the planner's whole table, see `plugin`: each row has a test of its own.)"""
PATIENCE_S, WANTED = 60.0, 0.9
SMALL = ("__init__.py", "ansiiprint.py", "errors.py")


def product(chosen: Iterable[str]) -> list[str]:
    """The files to mutate, as paths from the root."""
    found = sorted(str(path.relative_to(ROOT)) for path in (*(ROOT / "pvcd").rglob("*.py"), *(ROOT / "client-cli/pvc").glob("*.py")))
    wanted = list(chosen)
    return [name for name in found if name in wanted or (not wanted and Path(name).name not in SMALL)]


class Baseline:
    """Which tests execute which line of which file, and how long each takes."""

    def __init__(self, folder: Path) -> None:
        import coverage
        self.durations: dict[str, float] = json.loads((folder / "durations.json").read_text())
        data = coverage.CoverageData(str(folder / ".coverage"))
        data.read()
        self._by_line = {os.path.relpath(path, folder): data.contexts_by_lineno(path) for path in data.measured_files()}

    def tests_of(self, mutant: Mutant) -> list[str]:
        """The tests that run one of its lines; of a line that runs at import, those that run any line of the file."""
        lines = self._by_line.get(mutant.file, {})
        first, last = mutant.lines
        found = {name for line in range(first, last + 1) for name in lines.get(line, ()) if name}
        if not found and any("" in lines.get(line, ()) for line in range(first, last + 1)):
            found = {name for names in lines.values() for name in names if name}
        shared = {name.removesuffix("*") for name in found if name.endswith("::*")}
        found |= {name for name in self.durations if any(name.startswith(file) for file in shared)}
        return [name for name in found if not name.endswith("::*")]


def copied(folder: Path) -> Path:
    """A copy of the checkout to change files in."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def measured(folder: Path) -> Baseline:
    """Run the tests once, unchanged. Raises SystemExit if one fails: then no mutant says anything."""
    script = ("import sys, coverage, pytest; c = coverage.Coverage(source=['pvcd', 'client-cli']); c.start(); sys.path.insert(0, 'tests');"
              "from mutation.plugin import Recorder; status = pytest.main(['-q', '-x', '-p', 'no:cacheprovider', *sys.argv[1:]], plugins=[Recorder(c)]);"
              "c.stop(); c.save(); sys.exit(status)")
    chosen = ["-k", " and ".join(f"not {part}" for part in LEFT_OUT)]
    tests = [name for name in TESTS if (folder / name).exists()]
    done = subprocess.run([sys.executable, "-c", script, *tests, *chosen], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the tests fail without a mutant:\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
    return Baseline(folder)


def outcome(folder: Path, mutant: Mutant, names: list[str], durations: dict[str, float]) -> str:
    """'killed', 'time-out' or 'alive'. The child is forked from a process that has imported the other packages, but no code of ours."""
    if not names:
        return "alive"
    path = folder / mutant.file
    original = path.read_text()
    path.write_text(mutant.text)
    patience_s = PATIENCE_S + 5 * sum(durations.get(name, 0.0) for name in names)
    try:
        process = subprocess.Popen([sys.executable, "-m", "mutation.child"], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, text=True, start_new_session=True,
                                   env={**os.environ, "PYTHONPATH": str(folder / "tests"), "PYTHONDONTWRITEBYTECODE": "1"})
        try:
            process.communicate(json.dumps([names, durations]), timeout=patience_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return "time-out"
        return "alive" if process.returncode == 0 else "killed"
    finally:
        path.write_text(original)


def chosen(name: str, options: argparse.Namespace) -> list[Mutant]:
    found = mutants(name, (ROOT / name).read_text())
    certain = [mutant for mutant in found if mutant.kind in TRANSACTION]
    others = [] if options.transactions else [mutant for mutant in found if mutant.kind not in TRANSACTION]
    if options.sample is not None and len(others) > options.sample:
        others = random.Random(f"{options.seed} {name}").sample(others, options.sample)
    return sorted([*certain, *others], key=lambda mutant: mutant.lines)


def listed() -> dict[str, str]:
    """Mutant → why it may live."""
    lines = LISTED.read_text().splitlines() if LISTED.exists() else []
    return dict(line.split(" # ", 1) for line in lines if " # " in line and not line.startswith("#"))


def tried(todo: list[Mutant], workers: int) -> Iterator[tuple[Mutant, str]]:
    with tempfile.TemporaryDirectory(prefix="pvc-mutate-") as top:
        folders: SimpleQueue[Path] = SimpleQueue()
        for number in range(workers):
            folders.put(copied(Path(top) / str(number)))
        folder = folders.get()
        baseline = measured(folder)
        folders.put(folder)

        def one(mutant: Mutant) -> tuple[Mutant, str]:
            own = folders.get()
            try:
                return mutant, outcome(own, mutant, baseline.tests_of(mutant), baseline.durations)
            finally:
                folders.put(own)
        with ThreadPoolExecutor(workers) as pool:
            yield from pool.map(one, todo)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="FILE")
    parser.add_argument("--transactions", action="store_true")
    parser.add_argument("--sample", type=int, metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    todo = [mutant for name in product(options.files) for mutant in chosen(name, options)]
    reasons, started = listed(), time.monotonic()
    counts: dict[str, Counter[str]] = {}
    bad = 0
    for mutant, found in tried(todo, options.workers):
        kind = "transaction" if mutant.kind in TRANSACTION else "other"
        found = "listed" if found == "alive" and mutant.name in reasons else found
        counts.setdefault(mutant.file, Counter())[f"{kind} {found}"] += 1
        if found == "alive":
            bad += kind == "transaction"
            print(f"alive: {mutant.lines[0]}: {mutant.name}", flush=True)
    return report(counts, bad, time.monotonic() - started)


def report(counts: dict[str, Counter[str]], bad: int, took_s: float) -> int:
    """The table per file, and the verdict as the exit status."""
    total = sum(counts.values(), Counter[str]())
    for file, count in [*sorted(counts.items()), ("all", total)]:
        print(f"{file:40} " + ", ".join(f"{number} {what}" for what, number in sorted(count.items())))
    others = {what: number for what, number in total.items() if what.startswith("other")}
    killed = sum(number for what, number in others.items() if not what.endswith("alive"))
    share = killed / sum(others.values()) if others else 1.0
    print(f"{bad} mutants of transactions live unlisted; {100 * share:.0f} % of the others are killed or listed; {took_s:.0f} s")
    return 1 if bad or share < WANTED else 0
