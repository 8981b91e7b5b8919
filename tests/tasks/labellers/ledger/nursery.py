"""Forks purchases from a process that has imported the ledger, so that each begins within milliseconds.

Reads orders as lines of JSON. A purchase is answered with its process id at once, and begins when the file `go` is
there, if it names one; `{"wait": id}` is answered with its
exit code, or null while it runs: 0 bought, 3 refused, negative where a signal ended it.
"""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import InputError
from cluster.settings import Settings
from tasks.labellers.ledger import Account, Ledger, question_key
from tasks.labellers.protocol import Answer, Answered, Ask, Question, Workplace


@dataclass(frozen=True, kw_only=True)
class Logging:
    """Writes down what it is asked before it answers, and may be killed at its first question."""

    log: str
    chunk: int
    pause: float
    dies: bool = False
    identity: str = "logging"

    def price(self, _: Question) -> float:
        return 1.0

    def __call__(self, asks: Sequence[Ask], _: Workplace) -> Iterator[Answered]:
        for start in range(0, len(asks), self.chunk):
            batch = asks[start : start + self.chunk]
            with Path(self.log).open("a", encoding="utf-8") as file:
                file.write("".join(f"{ask.question.key} {ask.repetition}\n" for ask in batch))
            if self.dies:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(self.pause)
            yield [(ask, Answer(choice="first", cost=0.5)) for ask in batch]


def question(index: int) -> Question:
    key = question_key("p", first=f"a {index}", second=f"b {index}")
    return Question(key=key, messages=[{"role": None, "content": "p"}], first=f"a {index}", second=f"b {index}")


def buy(order: dict[str, Any]) -> int:
    account = Account(**order["account"])
    workplace = Workplace(settings=Settings(), lineage=account.lineage, round=account.round)
    questions = [question(index) for index in range(*order["questions"])]
    while "go" in order and not Path(order["go"]).exists():
        time.sleep(0.001)
    try:
        Ledger(**order["ledger"]).buy(
            questions, Logging(**order["labeller"]), account, workplace, repeats=order["repeats"]
        )
    except InputError:
        return 3
    return 0


def fork(order: dict[str, Any]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = buy(order)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def exit_code(pid: int) -> int | None:
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


if __name__ == "__main__":
    for line in sys.stdin:
        wanted = json.loads(line)
        print(json.dumps(exit_code(wanted["wait"]) if "wait" in wanted else fork(wanted)), flush=True)
