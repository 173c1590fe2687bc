# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Stories on the simulator, each a folder: README (one sentence), script, and log.expect, a golden log to be read.

Script lines: `define VM NODE` · `order VM KEY=WORD…` · `node NODE WORD` · `cut|heal|power-off|power-on NODE` · `bmc NODE MODE` · `qemu-dies NODE VM` ·
`run SECONDS`. PVC_GOLDEN=1 writes the logs anew. For each story the daemon that acts is also killed right before each of its writes and effects in
turn, and comes back: the end must be as good. (Not the same: a source that dies right after its start mark closes the migration, and the
VM stays where it is, with the reason.)
"""
from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest
from sim.cluster import Cluster, Daemon

from pvcd.cluster import schema

STRIDE = int(os.environ.get("PVC_STRIDE", "5"))
"""Before every fifth effect; 1, before each, takes five times as long."""
STORIES = sorted(path.parent for path in Path(__file__).parent.glob("*/script"))


class Story:
    """One run of a script."""

    def __init__(self, script: str) -> None:
        self.world = Cluster()
        for name in self.world.names:
            self.world.start_daemon(name)
        self.world.run(3.0)
        self.vms: dict[str, str] = {}
        self.script = script

    def run(self) -> None:
        for line in self.script.splitlines():
            self.world.say(f"# {line}")
            self.do(*line.split())

    def do(self, verb: str, *words: str) -> None:
        world = self.world
        if verb == "run":
            world.run(float(words[0]))
        elif verb == "define":
            self.vms[words[0]] = str(uuid.uuid5(uuid.NAMESPACE_DNS, words[0]))
            world.define(self.vms[words[0]], words[1], "stop", name=words[0])
        elif verb == "order":
            for word in sorted(words[1:], key=lambda word: word.startswith("state")):
                key, _, value = word.partition("=")
                world.server.put(schema.domain_key(self.vms[words[0]], key), value)
        elif verb == "node":
            world.server.put(schema.node_key(words[0], "domainstate"), words[1])
        elif verb in ("cut", "heal"):
            getattr(world.hosts[words[0]].zk, verb)()
        elif verb == "power-off":
            world.power_off(words[0])
            world.hosts[words[0]].down_since = float("inf")
        elif verb == "power-on":
            world.power_on(words[0])
        elif verb == "bmc":
            world.hosts[words[0]].bmc = words[1]
        elif verb == "qemu-dies":
            world.hosts[words[0]].hypervisor.qemu_dies(self.vms[words[1]])
        else:
            raise ValueError(verb)

    def log(self) -> str:
        """What everybody said; VMs by name."""
        text = "\n".join(self.world.log) + "\n"
        for name, known in self.vms.items():
            text = text.replace(known, name).replace(f": {known[:4]} ", f": {name} ")
        return text

    def end(self) -> list[tuple[str, str | None, bool]]:
        """What is wanted of every VM at the end, and whether it is so: running once, at home, or nowhere."""
        found = []
        for name, known in self.vms.items():
            state, running = self.world.word(known, "state"), self.world.fabric.running(known)
            wanted = [self.world.word(known, "hypervisor")] if state == "start" else []
            found.append((name, state, running == wanted))
        return found


@pytest.mark.parametrize("folder", STORIES, ids=lambda folder: folder.name)
def test_story(folder: Path) -> None:
    story = Story((folder / "script").read_text())
    story.run()
    if os.environ.get("PVC_GOLDEN"):
        (folder / "log.expect").write_text(story.log())
        pytest.fail("log.expect is written: read its difference, and run again without PVC_GOLDEN")
    assert story.log() == (folder / "log.expect").read_text()


@pytest.mark.parametrize("folder", STORIES, ids=lambda folder: folder.name)
def test_story_with_a_death_before_each_effect(folder: Path) -> None:
    script = (folder / "script").read_text() + "run 120\n"
    expected = Story(script)
    expected.run()
    for step in range(0, 400, STRIDE):
        story, seen = Story(script), 0

        def interrupt(daemon: Daemon, _what: str, story: Story = story, wanted: int = step) -> None:
            nonlocal seen
            seen += 1
            if seen == wanted + 1:
                story.world.stop_daemon(daemon.host.name)
        story.world.interrupt = interrupt
        story.run()
        assert story.end() == expected.end(), f"killed before effect {step}"
        assert all(as_wanted for _, _, as_wanted in story.end())
        if seen <= step:
            assert step > 5
            return
