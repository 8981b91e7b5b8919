"""Pairs in MLflow's review queues: offered once, and what is said there enters the ledger once."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.review_items import BRIEF, Reviewed
from cluster.reviews import Reviews
from cluster.settings import Settings
from cluster.tracking import Tracker
from tasks.labellers.ledger import Account, Ledger, question_key, shown
from tasks.labellers.people import PeopleLabeller
from tasks.labellers.protocol import Answer, Ask, Label, Question, Workplace
from tasks.review_queue import KEY_TAG, PLACE_TAG, offer, take_in

pytestmark = pytest.mark.labels

LABELLER = PeopleLabeller()


def question(name: str) -> Question:
    first, second = f"{name} in short", f"{name} at length"
    messages = [{"role": "user", "content": f"What is {name}?"}]
    bare = Question(key="", messages=messages, first=first, second=second)
    key = question_key(bare.prompt, first=first, second=second)
    return Question(key=key, messages=messages, first=first, second=second)


@dataclass(frozen=True, kw_only=True)
class Crew:
    """One lineage, its ledger, and MLflow as its people use it."""

    ledger: Ledger
    workplace: Workplace
    tracker: Tracker
    run: str

    @property
    def lineage(self) -> str:
        return self.workplace.lineage

    @property
    def reviews(self) -> Reviews:
        return Reviews(tracker=self.tracker)

    def ask(self, *names: str, repeats: int = 1) -> list[list[Label]]:
        account = Account(lineage=self.lineage, round=self.workplace.round)
        return self.ledger.buy([question(name) for name in names], LABELLER, account, self.workplace, repeats=repeats)

    def item(self, name: str) -> Reviewed:
        tags = {"pairwright.lineage": self.lineage, KEY_TAG: question(name).key}
        (found,) = self.reviews.read(tags)
        return found

    def pending(self, name: str) -> bool:
        item = self.item(name)
        return item.trace in self.reviews.pending(item.queue)

    def say(self, name: str, value: object, who: str = "default", why: str | None = None) -> None:
        """What MLflow's page does when a reviewer submits; it marks the item as reviewed, too."""
        from mlflow.entities import AssessmentSource, Feedback
        from mlflow.tracing.client import TracingClient

        item, source = self.item(name), AssessmentSource(source_type="HUMAN", source_id=who)
        before = next((each.identifier for each in item.opinions if each.reviewer == who), None)
        opinion = Feedback(name="preference", value=value, source=source, rationale=why, overrides=before)
        TracingClient(self.tracker.tracking_uri).log_assessment(item.trace, opinion)
        self.reviews.settle(item.queue, item.trace, by=who)

    def take_in(self) -> list[str]:
        """What becomes of the answers that are new, or why they can't be used."""
        intake = take_in(self.ledger, self.tracker, self.lineage)
        return [receipt.status for receipt in intake.receipts] + list(intake.refused)


@pytest.fixture(scope="module")
def store(tracking_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    folder = tmp_path_factory.mktemp("reviews")
    path = shutil.copy(tracking_template, folder)
    return Tracker(tracking_uri=f"sqlite:///{path}", experiment="reviews", artifact_root=str(folder / "artifacts"))


@pytest.fixture
def make_crew(store: Tracker, tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[int], Crew]:
    def make(number: int = 0) -> Crew:
        lineage = request.node.name[:60]
        run = store.open_round(store.open_lineage(lineage, {}), lineage, round_number=number, tags={})
        settings = Settings(home=tmp_path)
        workplace = Workplace(settings=settings, lineage=lineage, round=number, tracker=store, run=run)
        return Crew(ledger=Ledger(url=settings.ledger), workplace=workplace, tracker=store, run=run)

    return make


@pytest.fixture
def crew(make_crew: Callable[[int], Crew]) -> Crew:
    return make_crew(0)


def test_an_opinion_enters_the_ledger_once_in_the_order_in_which_it_was_shown(crew: Crew) -> None:
    crew.ask("rain", "snow", "hail", "fog")
    for name, value in {"rain": "B", "snow": "A", "hail": "tie", "fog": "skip"}.items():
        crew.say(name, value, why=f"{name} it is")
    assert crew.take_in() == ["counted"] * 4
    assert crew.take_in() == []
    ((rain,), (snow,), (hail,), (fog,)) = crew.ask("rain", "snow", "hail", "fog")
    for label, name, side in ((rain, "rain", "second"), (snow, "snow", "first")):
        preferred = getattr(question(name), label.choice)
        assert preferred == getattr(shown(question(name)), side)
        assert (label.annotator, label.rationale) == ("default", f"{name} it is")
    assert (hail.choice, fog.choice) == ("tie", "abstain")
    assert len(list(crew.ledger.entries())) == 4


def test_asking_again_offers_nothing_twice_and_takes_in_what_was_said(crew: Crew) -> None:
    crew.ask("rain")
    crew.say("rain", "A")
    assert [len(labels) for labels in crew.ask("rain", "snow")] == [1, 0]
    assert len(list(crew.reviews.read({"pairwright.lineage": crew.lineage}))) == 2
    assert len(crew.item("rain").opinions) == 1
    assert not crew.pending("rain")
    assert crew.pending("snow")


def test_the_round_is_told_where_its_pairs_are_labelled(crew: Crew) -> None:
    assert PLACE_TAG not in crew.tracker.tags_of_round(crew.lineage, 0)
    crew.ask("rain")
    assert crew.item("rain").queue in crew.tracker.tags_of_round(crew.lineage, 0)[PLACE_TAG]


def test_a_change_of_mind_replaces_the_answer_and_keeps_the_history(crew: Crew) -> None:
    crew.ask("rain")
    crew.say("rain", "A")
    assert crew.take_in() == ["counted"]
    crew.say("rain", "tie")
    assert crew.take_in() == ["replaced"]
    assert crew.take_in() == []
    ((label,),) = crew.ask("rain")
    assert label.choice == "tie"
    assert [entry.superseded for entry in crew.ledger.entries()] == [True, False]


@pytest.mark.parametrize("value", ["C", "first", 1, True, ["A"]])
def test_an_opinion_outside_the_scheme_is_said_once_and_not_used(crew: Crew, value: object) -> None:
    crew.ask("rain")
    crew.say("rain", value)
    (refusal,) = crew.take_in()
    assert f"found {value!r} in MLflow, expected A, B, tie, skip" in refusal
    assert question("rain").key[:12] in refusal
    assert crew.take_in() == []
    assert crew.ask("rain") == [[]]
    crew.say("rain", "A")
    assert crew.take_in() == ["counted"]


def test_two_reviewers_fill_two_repetitions_and_the_pair_is_put_back_between_them(crew: Crew) -> None:
    crew.ask("rain", repeats=2)
    crew.say("rain", "A", who="ann")
    assert crew.take_in() == ["counted"]
    assert crew.pending("rain")
    crew.say("rain", "B", who="bob")
    assert crew.take_in() == ["counted"]
    assert not crew.pending("rain")
    (labels,) = crew.ask("rain", repeats=2)
    assert {label.annotator for label in labels} == {"ann", "bob"}


def test_a_pair_that_was_answered_elsewhere_is_marked_as_reviewed(crew: Crew) -> None:
    crew.ask("rain", "snow")
    crew.ledger.answer(shown(question("rain")), LABELLER.identity, Answer(choice="first", annotator="ann"))
    crew.take_in()
    assert not crew.pending("rain")
    assert crew.pending("snow")
    crew.ledger.answer(shown(question("snow")), LABELLER.identity, Answer(choice="first", annotator="ann"))
    crew.take_in()
    assert not crew.pending("snow")


def test_what_is_said_after_the_round_has_closed_is_kept_for_the_next(make_crew: Callable[[int], Crew]) -> None:
    crew = make_crew(0)
    crew.ask("rain", "snow")
    crew.ledger.close(crew.lineage, 0)
    crew.take_in()
    assert crew.pending("rain")
    crew.say("rain", "A")
    assert crew.take_in() == ["kept"]
    assert crew.take_in() == []
    assert crew.ledger.answered(crew.lineage, before=1) == {question("rain").key}


def test_a_ledger_that_was_lost_gets_the_answers_again(crew: Crew) -> None:
    crew.ask("rain")
    crew.say("rain", "A")
    assert crew.take_in() == ["counted"]
    Path(crew.ledger.url.removeprefix("sqlite:///")).unlink()
    assert crew.ask("rain") == [[]]
    assert crew.take_in() == ["counted"]
    assert crew.take_in() == []


def test_a_pair_that_this_ledger_does_not_know_is_refused_and_left_to_the_one_that_does(
    crew: Crew, tmp_path: Path
) -> None:
    crew.ask("rain", "snow")
    crew.say("rain", "A")
    intake = take_in(Ledger.at(tmp_path / "other.sqlite"), crew.tracker, crew.lineage)
    assert not intake.receipts
    assert "knows no pair" in intake.refused[0]
    assert crew.pending("snow")
    assert crew.take_in() == ["counted"]


def test_a_later_round_takes_in_what_is_said_in_the_queues_of_earlier_ones(make_crew: Callable[[int], Crew]) -> None:
    early, late = make_crew(0), make_crew(1)
    early.ask("rain")
    late.ask("snow")
    early.say("rain", "A")
    assert not take_in(late.ledger, late.tracker, late.lineage, round_number=1).receipts, "it was asked to look at one"
    assert late.take_in() == ["counted"]


def test_a_long_pair_has_a_preview_for_every_database(crew: Crew) -> None:
    import tasks.review_queue as module

    long = Question(key="k", messages=[{"role": None, "content": "p\t" * 900}], first="*" * 9000, second="<é>" * 900)
    item = module._item(long, "people", crew.workplace)
    assert max(len(item.brief.request), len(item.brief.response)) <= BRIEF
    assert len(item.shown.response) > 9000
    assert "of 9000 characters" in item.brief.response


def test_a_store_without_review_queues_warns_and_leaves_the_page(
    crew: Crew, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    old = Tracker(tracking_uri=f"file://{tmp_path / 'mlruns'}", experiment="old")
    run = old.open_lineage("old", {})
    where = Workplace(settings=crew.workplace.settings, lineage="old", round=0, tracker=old, run=run)
    with caplog.at_level(logging.WARNING):
        offer([Ask(question=question("rain"))], "people", where)
    assert "no review queues" in caplog.text
    assert "pairwright label old" in caplog.text


def test_without_a_run_nothing_is_offered(crew: Crew, tmp_path: Path) -> None:
    bare = Workplace(settings=crew.workplace.settings, lineage=crew.lineage, round=0)
    offer([Ask(question=question("rain"))], "people", bare)
    assert list(crew.reviews.read({"pairwright.lineage": crew.lineage})) == []
