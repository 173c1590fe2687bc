# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Health → one line as monitoring plugins print it, or Prometheus text for node_exporter's textfile directory. Pure."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pvcd.cluster.schema import printable

if TYPE_CHECKING:
    from .health import Facts, Problem

SHOWN = 3


def _numbers(facts: Facts) -> dict[str, int]:
    from pvcd.cluster.placement import WANTED
    from pvcd.cluster.schema import VMState

    from .health import survives
    return {"nodes": len(facts.view.nodes), "nodes_running": sum(map(facts.view.is_running, facts.view.nodes)), "vms": len(facts.domains),
            "vms_wanted": sum(record.state in WANTED for record in facts.domains.values()),
            "vms_held": sum(facts.holder(uuid) is not None for uuid in facts.domains),
            "vms_failed": sum(record.state is VMState.FAILED for record in facts.domains.values()),
            "vms_stranded": sum(map(len, survives(facts).values()))}


def _plain(text: str) -> str:
    """One line, without the sign that begins the performance data."""
    return printable(text).replace("|", "/")


def nagios(facts: Facts, problems: Sequence[Problem]) -> str:
    """`PVC WARNING - 2 problems: … | nodes=3 …`"""
    word = problems[0].level.name if problems else "OK"
    shown = "; ".join(f"{problem.subject}: {problem.text}" for problem in problems[:SHOWN]) + (" …" if len(problems) > SHOWN else "")
    numbers = _numbers(facts)
    text = f"{len(problems)} problem{'s' * (len(problems) != 1)}: {shown}" if problems else (
        f"{numbers['nodes_running']} nodes run, {numbers['vms_held']} VMs")
    return f"PVC {word} - {_plain(text)} | {' '.join(f'{name}={value}' for name, value in numbers.items())}"


def unknown(reason: str) -> str:
    return f"PVC UNKNOWN - {_plain(reason)}"


def prometheus(facts: Facts | None, problems: Sequence[Problem]) -> str:
    """Gauges; only `pvc_reachable 0` where the cluster does not answer."""
    lines = ["# HELP pvc_reachable Whether the cluster's ZooKeeper answers.", "# TYPE pvc_reachable gauge", f"pvc_reachable {int(facts is not None)}"]
    if facts is not None:
        for name, value in _numbers(facts).items():
            lines += [f"# TYPE pvc_{name} gauge", f"pvc_{name} {value}"]
        lines += ["# HELP pvc_problem One for each problem, as `pvc status` shows them; the value is 1 (warning) or 2 (critical).",
                  "# TYPE pvc_problem gauge"]
        lines += [f'pvc_problem{{code="{problem.code}",subject="{_label(problem.subject)}"}} {int(problem.level)}' for problem in
                  {(problem.code, problem.subject): problem for problem in problems}.values()]
    return "\n".join(lines) + "\n"


def _label(text: str) -> str:
    return printable(text).replace("\\", "\\\\").replace('"', '\\"')
