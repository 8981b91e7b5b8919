import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.labellers.judge import Judge
from tasks.labellers.judge.endpoint import Endpoint
from tasks.labellers.ledger import Account, Ledger
from tasks.labellers.protocol import Question, Workplace

pytestmark = pytest.mark.labels

CONCURRENCY = 3
WORDS = [f"word {number}" for number in range(20)]
CHILD = """
import sys
from pathlib import Path
from cluster.settings import Settings
from tasks.labellers.judge import Judge
from tasks.labellers.judge.endpoint import Endpoint
from tasks.labellers.ledger import Account, Ledger, question_key
from tasks.labellers.protocol import Question, Workplace

ledger, url, concurrency, *words = sys.argv[1:]
messages = [{"role": "user", "content": "say something"}]
questions = [
    Question(
        key=question_key("user: say something", first=word, second="bad"), messages=messages, first=word, second="bad"
    )
    for word in words
]
judge = Judge(model="m", endpoint=Endpoint(base_url=url, max_concurrency=int(concurrency)))
place = Workplace(settings=Settings(home=Path(ledger).parent), lineage="demo", round=0)
Ledger.at(Path(ledger)).buy(questions, judge, Account(lineage="demo", round=0), place)
"""


def test_a_kill_loses_the_pairs_under_way_and_no_others(
    endpoint: Any, make_question: Callable[..., Question], workplace: Workplace, tmp_path: Path
) -> None:
    endpoint.reply = lambda _: replace(endpoint.completion("[[TIE]]"), delay=0.1)
    path = tmp_path / "ledger.sqlite"
    command = [sys.executable, "-c", CHILD, str(path), endpoint.url, str(CONCURRENCY), *WORDS]
    with subprocess.Popen(command, env={**os.environ, "OPENAI_API_KEY": ""}) as child:
        deadline = time.monotonic() + 60
        while len(endpoint.requests) < 15 and time.monotonic() < deadline:
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    ledger, account = Ledger.at(path), Account(lineage="demo", round=0)
    num_asked, num_kept = len(endpoint.requests), ledger.spend("demo").num_labels
    assert 0 < num_kept < len(WORDS)
    judge = Judge(model="m", endpoint=Endpoint(base_url=endpoint.url, max_concurrency=CONCURRENCY))
    labels = ledger.buy([make_question(word, "bad") for word in WORDS], judge, account, workplace)
    assert [label.choice for (label,) in labels] == ["tie"] * len(WORDS)
    assert len(endpoint.requests) - num_asked == 2 * (len(WORDS) - num_kept)
    assert num_asked - 2 * num_kept <= 2 * 2 * CONCURRENCY
