"""`pairwright labels`: what two lineages paid, labels out to TRL and Label Studio, and back in."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.errors import InputError
from cluster.settings import Settings
from cluster.storage import Store, write_json
from flows.labels import app
from tasks.labellers.ledger import Account, Ledger, question_key
from tasks.labellers.people import PeopleLabeller
from tasks.labellers.protocol import Answer, Answered, Ask, Question, Workplace
from tasks.labellers.rewards import Length
from tasks.labellers.simulated import SimulatedLabeller

pytestmark = pytest.mark.labels

COMMAND = Path(sys.executable).with_name("pairwright")
SIMULATED = SimulatedLabeller(reward=Length(per="character"), temperature=1e-6, cost=0.5)
CREW = PeopleLabeller(crew="crew", cost=2.0)

Run = Callable[..., str]


def questions(*numbers: int) -> list[Question]:
    made = []
    for number in numbers:
        messages, texts = [{"role": "user", "content": f"prompt {number}"}], ("long response", f"short {number}")
        key = question_key(f"user: prompt {number}", first=texts[0], second=texts[1])
        made.append(Question(key=key, messages=messages, first=texts[0], second=texts[1]))
    return made


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Of two lineages the second asked two questions again, and one of its own; a third waits for people."""
    settings = Settings(home=tmp_path)
    found = Ledger(url=settings.ledger)
    for lineage, wanted, labeller, repeats in (
        ("demo", questions(0, 1, 2), SIMULATED, 2),
        ("other", questions(1, 2, 3), SIMULATED, 2),
        ("people", questions(0, 1), CREW, 1),
    ):
        workplace = Workplace(settings=settings, lineage=lineage, round=0)
        found.buy(wanted, labeller, Account(lineage=lineage, round=0, budget=100), workplace, repeats=repeats)
    write_json(Store(settings.store).lineage("demo") / "config.json", {"labelling": {"budget": 100}})
    return found


@pytest.fixture
def labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `pairwright labels` in this process, whose environment it may change; gives what it printed."""
    monkeypatch.setattr(os, "environ", os.environ.copy() | {"PAIRWRIGHT_HOME": str(tmp_path)})

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    return run


def cells(output: str, first: str) -> list[str]:
    """The cells of the table's row that begins so."""
    (line,) = (line for line in output.splitlines() if line.strip("│ ").startswith(f"{first} "))
    return [cell.strip() for cell in line.strip("│ ").split("│")]


@pytest.mark.usefixtures("ledger")
def test_status_shows_that_two_lineages_bought_each_label_once(labels: Run) -> None:
    charges, rest = labels("status").split("answers by labeller")
    assert cells(charges, "demo") == ["demo", "6", "3", "0", "0", "100", "6", "3"]
    assert cells(charges, "other") == ["other", "6", "3", "0", "0", "", "2", "1"]
    assert cells(charges, "people") == ["people", "0", "0", "2", "4", "", "0", "0"]
    lineage, labeller, *numbers = cells(rest, "demo")
    assert (lineage, labeller.split(":")[0], numbers) == ("demo", "simulated", ["3", "6", "0", "0", "2", "1", "0"])
    assert (
        "each label was bought once: 8 distinct (pair, labeller, repetition), 8 bought, 4 paid; they serve 12 charges, "
        "so that 4 times a label was used again and not paid again"
    ) in " ".join(rest.split())
    assert "other" not in labels("status", "demo").partition("each label")[0]


@dataclass
class Overtaken:
    """Whose round is bought a second time while it is at work, as by a restart that takes it for dead."""

    meanwhile: Callable[[Any], object]
    identity: str = '{"kind": "overtaken"}'
    name: str = "slow"

    def price(self, _: Question) -> float:
        return 0.5

    def __call__(self, asks: Sequence[Ask], _: Workplace) -> Iterator[Answered]:
        if self.name == "slow":
            self.meanwhile(Overtaken(self.meanwhile, name="fast"))
        yield [(ask, Answer(choice="tie", annotator=self.name)) for ask in asks]


def test_status_says_how_often_an_answer_was_bought_again_and_for_how_much(
    labels: Run, ledger: Ledger, tmp_path: Path
) -> None:
    workplace = Workplace(settings=Settings(home=tmp_path), lineage="demo", round=1)

    def buy(labeller: Any) -> object:
        return ledger.buy(questions(0, 1), labeller, Account(lineage="demo", round=1), workplace, repeats=3)

    buy(Overtaken(buy))
    output = labels("status")
    assert (
        "6 times an answer was bought again, for 3 more: 14 distinct (pair, labeller, repetition), 14 bought, 7 paid; "
        "they serve 18 charges, so that 4 times a label was used again and not paid again ledger"
    ) in " ".join(output.split())
    (line,) = (line for line in output.splitlines() if "overtaken" in line)
    assert [cell.strip() for cell in line.strip("│ ").split("│")][2:] == ["2", "6", "6", "0", "3", "1", "0"]
    path = tmp_path / "answers.jsonl"
    labels("export", "--format", "answers", "--labeller", "overtaken", "--out", str(path))
    brought = labels("import", str(path), "--format", "answers", "--lineage", "demo", "--labeller", "overtaken")
    assert brought.splitlines()[0] == "12 held already"


def test_status_counts_what_changed_and_what_is_charged_to_nobody(labels: Run, ledger: Ledger) -> None:
    first, second = (one.question for one in ledger.open_questions("people"))
    for name, choice in (("anna", "first"), ("bert", "tie"), ("anna", "tie")):
        ledger.answer(first, CREW.identity, Answer(choice=choice, annotator=name))  # type: ignore[arg-type]
    ledger.close("people", 0)
    ledger.answer(second, CREW.identity, Answer(choice="abstain", annotator="anna"))
    charges, rest = labels("status").split("answers by labeller")
    assert cells(charges, "people") == ["people", "1", "2", "0", "0", "", "3", "6"]
    assert cells(rest, "people")[2:] == ["1", "1", "1", "0", "1", "1", "1"]
    assert (
        "each label was bought once: 11 distinct (pair, labeller, repetition), 11 bought, 10 paid; they serve 13 "
        "charges, so that 4 times a label was used again and not paid again; 2 are charged to nobody: they came late, "
        "or nobody asked for so many; 1 answers were changed later and are kept as history"
    ) in " ".join(rest.split())


def test_status_of_an_empty_home_says_so_and_makes_no_ledger(labels: Run, tmp_path: Path) -> None:
    assert labels("status").startswith("no lineage has asked for labels yet")
    assert list(tmp_path.rglob("*.sqlite")) == []


def test_status_counts_what_an_earlier_release_bought(labels: Run, tmp_path: Path) -> None:
    file = Store(Settings(home=tmp_path).store).ledger
    file.parent.mkdir(parents=True)
    columns = "key, labeller, preferred, shown_first, probability, cost, lineage, round, bought_at"
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(f"CREATE TABLE labels ({columns}, PRIMARY KEY (key, labeller))")
        row = ("k", "someone", "a", "a", None, 0.5, "old", 0, "2026-11-27T03:00:00+00:00")
        connection.execute("INSERT INTO labels VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        connection.execute("PRAGMA user_version = 1")
    output = labels("status")
    assert cells(output.split("answers by labeller")[0], "old") == ["old", "1", "0.5", "0", "0", "", "1", "0.5"]
    said = " ".join(output.split())
    assert "each label was bought once: 0 distinct (pair, labeller, repetition), 1 bought, 0.5 paid" in said
    assert "of 1 an earlier release kept no texts" in said


@pytest.mark.usefixtures("ledger")
def test_an_unknown_lineage_is_refused_with_those_that_are_known(labels: Run) -> None:
    for command in (["status", "nobody"], ["export", "--format", "answers", "--lineage", "nobody"]):
        with pytest.raises(
            InputError, match=r"lineage 'nobody' has asked for no labels in .*: found demo, other, people"
        ):
            labels(*command)


@pytest.mark.usefixtures("ledger")
def test_preferences_are_printed_or_written(labels: Run, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in labels("export", "--format", "preference", "--lineage", "demo").splitlines()]
    assert rows == [
        {
            "prompt": [{"role": "user", "content": f"prompt {number}"}],
            "chosen": [{"role": "assistant", "content": "long response"}],
            "rejected": [{"role": "assistant", "content": f"short {number}"}],
        }
        for number in range(3)
    ]
    out = tmp_path / "pairs.jsonl"
    assert labels("export", "--format", "preference", "--out", str(out)) == f"{out}: 4 rows in the format preference\n"
    assert [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()][:3] == rows
    with pytest.raises(InputError, match="no pair is decided: found 0 pairs"):
        labels("export", "--format", "preference", "--prompts", "plain")


@pytest.mark.usefixtures("ledger")
def test_answers_of_all_labellers_are_told_apart_or_chosen(labels: Run, ledger: Ledger) -> None:
    shown = ledger.open_questions("people")[0].question
    ledger.answer(shown, CREW.identity, Answer(choice="tie", annotator="anna"))
    rows = [json.loads(line) for line in labels("export", "--format", "answers").splitlines()]
    assert [row["labeller"] for row in rows] == [*[SIMULATED.identity] * 8, CREW.identity]
    with pytest.raises(
        InputError, match=r"2 labellers answered: choose simulated:\w{8}, people:crew:\w{8} with --labeller"
    ):
        labels("export", "--format", "preference")
    chosen = labels("export", "--format", "answers", "--labeller", "crew")
    assert json.loads(chosen)["annotator"] == "anna"


def test_tasks_go_to_label_studio_and_come_back(labels: Run, ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "tasks.json"
    output = labels("export", "--format", "label-studio", "--lineage", "people", "--out", str(path))
    assert output.startswith(f"{path}: 2 rows in the format label-studio\n")
    assert '<Pairwise name="preference" toName="first,second"/>' in output
    tasks = json.loads(path.read_text(encoding="utf-8"))
    result = {"type": "pairwise", "from_name": "preference", "to_name": "preference", "value": {"selected": "left"}}
    for task in tasks:
        task["annotations"] = [{"result": [result], "completed_by": 7}]
    path.write_text(json.dumps(tasks), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PAIRWRIGHT_")}
    command = [COMMAND, "labels", "import", path, "--format", "label-studio", "--lineage", "people"]

    def bring() -> "subprocess.CompletedProcess[str]":
        own = environment | {"PAIRWRIGHT_HOME": str(tmp_path)}
        return subprocess.run(command, env=own, capture_output=True, text=True, timeout=120, check=False)

    done = bring()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "2 counted",
        "item 1, annotation 1: counted: it counts for round 0 of lineage 'people'",
        "item 2, annotation 1: counted: it counts for round 0 of lineage 'people'",
        "answers that lineage people still waits for: 0",
    ]
    assert [entry.annotator for entry in ledger.entries("people")] == ["7", "7"]
    assert bring().stdout.splitlines()[0] == "2 held already"
    tasks[1]["annotations"][0]["result"][0]["value"]["selected"] = "middle"
    path.write_text(json.dumps(tasks), encoding="utf-8")
    refused = bring()
    assert refused.returncode == 2
    assert "item 2, annotation 1: selected is 'middle': expected left or right" in refused.stderr
