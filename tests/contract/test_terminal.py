# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The client in a real terminal (tmux): colours, one rewritten line of progress, --watch, Tab, and the prompt of `init`."""
from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvcd.cluster import schema
from pvcd.cluster.records import Claim, Operation
from pvcd.cluster.schema import OpPhase

from .cluster import CLIENT, PYTHON, UUID, Keys, environment, pvc
from .servers import ZooKeeperServer

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
WAIT_S = 15.0


class Terminal:
    """A shell in tmux, with `pvc` as its users have it."""

    def __init__(self, hosts: str, folder: Path, *shell: str) -> None:
        self._socket = str(folder / "tmux")
        (folder / "pvc").write_text(f"#!/bin/sh\nexec {PYTHON} {CLIENT} \"$@\"\n")
        (folder / "pvc").chmod(0o755)
        environ = {**environment(), "PATH": f"{folder}:{environment()['PATH']}", "PVC_ZOOKEEPER": hosts, "PS1": "$ ", "HISTFILE": "/dev/null",
                   "HOME": str(folder)}
        environ.pop("NO_COLOR", None)
        program = shell or ("bash", "--norc", "--noprofile")
        subprocess.run(["tmux", "-S", self._socket, "-f", "/dev/null", "new-session", "-d", "-x", "150", "-y", "40", *program], check=True, env=environ)
        self.shows("" if shell else "$")

    def types(self, *keys: str) -> None:
        """tmux's names of keys, or text."""
        subprocess.run(["tmux", "-S", self._socket, "send-keys", *keys], check=True)

    def screen(self, colours: bool = False) -> str:
        return subprocess.run(["tmux", "-S", self._socket, "capture-pane", "-p", *(["-e"] if colours else [])], check=True, capture_output=True,
                              text=True).stdout.rstrip()

    def shows(self, text: str, timeout_s: float = WAIT_S) -> str:
        deadline = time.monotonic() + timeout_s
        while text not in (found := self.screen()):
            assert time.monotonic() < deadline, f"'{text}' is not shown:\n{found}"
            time.sleep(0.05)
        return found

    def close(self) -> None:
        subprocess.run(["tmux", "-S", self._socket, "kill-server"], check=False)


@pytest.fixture
def terminal(server: ZooKeeperServer, keys: Keys, tmp_path: Path) -> Iterator[Terminal]:
    found = Terminal(server.hosts, tmp_path)
    yield found
    found.close()


def test_colours_on_a_terminal_and_none_in_a_pipe(terminal: Terminal, server: ZooKeeperServer) -> None:
    terminal.types("pvc node list; echo done", "Enter")
    terminal.shows("\ndone")
    assert "\033[32mrun" in terminal.screen(colours=True)
    terminal.types("clear; NO_COLOR=1 pvc node list; TERM=dumb pvc node list; echo again", "Enter")
    terminal.shows("\nagain")
    assert "\033[32m" not in terminal.screen(colours=True)
    assert "\033" not in pvc(server.hosts, "node", "list").stdout


def test_progress_is_one_line_that_is_written_again(terminal: Terminal, keys: Keys) -> None:
    keys.runs("hv1")
    terminal.types("clear; pvc vm migrate web1 -t hv2 --wait; echo status $?", "Enter")
    terminal.shows("migrate on hv1")
    keys.put(schema.vmmeta(UUID), '{"op": "op1", "moved_mib": 128, "size_mib": 512}')
    keys.put(schema.claim(UUID), Claim("hv1", "hv1/0", Operation("op1", OpPhase.RUN, "hv2", "hv2/0")).encode())
    terminal.shows("web1: migrating from hv1 to hv2 (run): 25 % (128 of 512 MiB)")
    keys.put(schema.vmmeta(UUID), '{"op": "op1", "moved_mib": 384, "size_mib": 512}')
    terminal.shows("75 % (384 of 512 MiB)")
    keys.runs("hv2")
    shown = terminal.shows("status 0")
    assert "web1: runs on hv2" in shown and "migrating" not in shown and "migrate on" not in shown


def test_a_flush_has_a_bar(terminal: Terminal, keys: Keys) -> None:
    keys.runs("hv1")
    terminal.types("clear; pvc node flush hv1 --wait", "Enter")
    terminal.shows("hv1: flush, 1 VMs here  [--------------------]")
    keys.runs("hv2")
    terminal.shows("hv1: flush, 0 VMs here  [####################]")
    keys.put(schema.node_key("hv1", "domainstate"), "flushed")
    terminal.shows("hv1: flushed")


def test_watch_draws_again_on_a_change(terminal: Terminal, keys: Keys) -> None:
    terminal.types("pvc status --watch", "Enter")
    terminal.shows("1 stop")
    before = time.monotonic()
    keys.put(schema.domain_key(UUID, "state"), "failed")
    shown = terminal.shows("critical: web1: failed", 4.0)
    assert time.monotonic() - before < 4.0 and shown.count("Survives the loss") == 1
    terminal.types("C-c")
    terminal.shows("Interrupted")


def test_tab_completes_live_names(terminal: Terminal, keys: Keys) -> None:
    terminal.types('eval "$(_PVC_COMPLETE=bash_source pvc)"; clear; echo load""ed', "Enter")
    terminal.shows("loaded")
    terminal.types("pvc vm sta", "Tab")
    terminal.shows("$ pvc vm start")
    terminal.types("we", "Tab")
    terminal.shows("$ pvc vm start web1")
    terminal.types("C-u", "pvc node flush hv", "Tab", "Tab")
    shown = terminal.shows("hv3")
    assert "hv1" in shown and "hv2" in shown


SHELLS = {"zsh": (("zsh", "-f"), 'PS1="$ "; autoload -U compinit; compinit -u; eval "$(_PVC_COMPLETE=zsh_source pvc)"'),
          "fish": (("fish", "--no-config"), "function fish_prompt; echo '$ '; end; _PVC_COMPLETE=fish_source pvc | source")}


@pytest.mark.parametrize("shell", SHELLS)
def test_tab_in_other_shells(server: ZooKeeperServer, keys: Keys, tmp_path: Path, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    command, setup = SHELLS[shell]
    terminal = Terminal(server.hosts, tmp_path, *command)
    try:
        terminal.types(setup, "Enter")
        terminal.types("clear; echo load\"\"ed", "Enter")
        terminal.shows("loaded")
        terminal.types("pvc vm start we", "Tab")
        terminal.shows("pvc vm start web1")
    finally:
        terminal.close()


def test_the_prompt_of_init_means_what_it_says(terminal: Terminal, keys: Keys) -> None:
    keys.put(schema.node_key("hv1", "daemonstate"), "stop")
    for name in ("hv2", "hv3"):
        keys.put(schema.node_key(name, "daemonstate"), "stop")
    for answer, code in (("n", "4"), ("y", "4"), ("C-c", "130"), ("", "4")):
        terminal.types("clear; pvc init; echo status $?", "Enter")
        terminal.shows("3 nodes and 1 VM definitions")
        terminal.types(*([answer] if answer else []), *([] if answer == "C-c" else ["Enter"]))
        terminal.shows(f"status {code}")
        assert keys.text(schema.domain(UUID)) == "web1"
    terminal.types("clear; pvc init; echo status $?", "Enter")
    terminal.shows("Type 'wipe'")
    terminal.types("wipe", "Enter")
    terminal.shows("status 0")
    assert keys.client.get_children("/domains") == []


def test_stop_asks_on_a_terminal(terminal: Terminal, keys: Keys) -> None:
    keys.runs("hv1")
    terminal.types("clear; pvc vm stop web1; echo status $?", "Enter")
    terminal.shows("Switch VM 'web1' off")
    terminal.types("n", "Enter")
    terminal.shows("status 4")
    assert keys.text(schema.domain_key(UUID, "state")) == "start"


def test_modify_opens_the_editor_and_shows_the_difference(terminal: Terminal, keys: Keys) -> None:
    terminal.types("clear; EDITOR=\"sed -i s/512/768/\" pvc vm modify web1 --no-validate; echo status $?", "Enter")
    terminal.shows("768")
    terminal.types("y", "Enter")
    terminal.shows("status 0")
    assert "768" in keys.text(schema.domain_key(UUID, "xml"))
