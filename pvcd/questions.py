# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Asks management controllers on threads of their own, so that a slow one holds up no other, no commit and no recovery.

WORKERS threads that exist from the start take questions in order, one at a time per subject; the fence thread asks and
collects the answers, and waits for neither. An order is sent behind its gate: the transaction that says that all is
still as it was decided on.

The time between the gate and the power: ZooKeeper executes the gate, and its answer takes at most GATE_S (a later one
counts as shut); `off` then has OFF_CALL_S in all (ipmitool is killed); a controller acts at most ACTS_S after it has
accepted. A node that boots during its fence waits longer than the sum before it takes any VM
(`registration.LATE_POWER_OFF_S`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from .bmc import Answer, Bmc, Controllers, Kind, Power, Purpose, Question
from .cluster.errors import PVCError
from .cluster.store import Store

WORKERS = 4
CHECKS_AT_ONCE = 1
GATE_S = 4.0
OFF_CALL_S = 12.0
ACTS_S = 10.0
PATIENCE_S = 1.0


class Questions:
    """The queue, the workers, and the answers that nobody has collected yet."""

    def __init__(
        self,
        controllers: Controllers,
        store: Store,
        clock: Callable[[], float],
        wake: Callable[[], None],
        beat: Callable[[str], None],
        workers: int = WORKERS,
    ) -> None:
        self._controllers, self._store, self._clock, self._wake, self._beat = controllers, store, clock, wake, beat
        self._condition = threading.Condition()
        self._waiting: deque[Question] = deque()
        self._under_way: list[Question] = []
        self._answers: list[Answer] = []
        self._stopped = False
        self.threads = [
            threading.Thread(target=self._work, name=f"bmc-{number}", daemon=True) for number in range(workers)
        ]

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """No further question is begun. One that is under way ends with its deadline."""
        with self._condition:
            self._stopped = True
            self._waiting.clear()
            self._condition.notify_all()

    def ask(self, question: Question) -> None:
        """Queue it; the answer comes by `collect`."""
        with self._condition:
            self._waiting.append(question)
            self._condition.notify()

    def collect(self) -> list[Answer]:
        """The answers since the last time."""
        with self._condition:
            found, self._answers = self._answers, []
            return found

    def take(self) -> Question | None:
        """The next question that may begin, or None. Fences come first; checks share one worker."""
        with self._condition:
            if self._stopped:
                return None
            busy = {(question.node, question.purpose) for question in self._under_way}
            checks = sum(question.purpose is Purpose.CHECK for question in self._under_way)
            ready = [
                question
                for question in self._waiting
                if (question.node, question.purpose) not in busy
                and (question.purpose is not Purpose.CHECK or checks < CHECKS_AT_ONCE)
            ]
            if not ready:
                return None
            found = min(ready, key=lambda question: question.purpose is not Purpose.FENCE)
            self._waiting.remove(found)
            self._under_way.append(found)
            return found

    def finish(self, answer: Answer) -> None:
        """Hand the answer over, and let the next question about this controller begin."""
        with self._condition:
            self._under_way.remove(answer.question)
            self._answers.append(answer)
            self._condition.notify()
        self._wake()

    def _work(self) -> None:
        """Worker thread: one question a turn. The longest is an identity: a name and three calls in two cipher suites
        each.
        """
        while not self._stopped:
            self._beat(threading.current_thread().name)
            question = self.take()
            if question is None:
                with self._condition:
                    self._condition.wait(PATIENCE_S)
            else:
                self.finish(self.answer(question))

    # --------------------------------------------------------------------------------------------------------- effects

    def answer(self, question: Question) -> Answer:
        """Do it; blocks for as long as it takes."""
        found = Answer(question, self._clock())
        bmc = replace(question.bmc, host=question.address) if question.address else question.bmc
        if question.kind in (Kind.OFF, Kind.ON):
            found = self._order(question, bmc, found)
        elif question.kind is Kind.STATUS:
            reading = self._controllers.status(bmc)
            found = replace(found, power=reading.power, said=reading.detail)
        else:
            found = self._identity(bmc, found)
            if question.kind is Kind.OWN:
                found = replace(
                    found, local=self._controllers.local_guid() or "", product=self._controllers.product_uuid()
                )
        return replace(found, answered=self._clock())

    def _identity(self, bmc: Bmc, found: Answer) -> Answer:
        """Where its name leads, whether it answers, and whose it says it is."""
        if bmc.problem:
            return replace(found, problem=bmc.problem)
        addresses = self._controllers.addresses(bmc)
        if not addresses:
            return replace(found, problem=f"{bmc.host} has no address: its name is not known here")
        at = replace(bmc, host=addresses[0])
        reading = self._controllers.status(at)
        problem = f"{bmc.host} does not answer ({reading.detail})" if reading.power is Power.UNKNOWN else ""
        guid = None if problem else self._controllers.guid(at)
        return replace(
            found,
            addresses=addresses,
            power=reading.power,
            said=reading.detail,
            problem=problem,
            guid=guid,
            cipher=self._controllers.cipher(at),
        )

    def _order(self, question: Question, bmc: Bmc, found: Answer) -> Answer:
        """The gate, and at once the order. A gate that is shut, unknown or late sends nothing."""
        if self._controllers.cipher(bmc) is None:
            return replace(found, said="it has just stopped answering")
        before = self._clock()
        try:
            self._store.apply(question.gate)
        except PVCError as error:
            return replace(found, said=str(error))
        if self._clock() - before > GATE_S:
            return replace(found, said="ZooKeeper's answer to the gate was late")
        off = question.kind is Kind.OFF
        said = self._controllers.off(bmc, OFF_CALL_S) if off else self._controllers.on(bmc)
        return replace(found, sent=True, said=said)
