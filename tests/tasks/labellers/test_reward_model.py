"""A real tiny classifier as labeller, over a real local Ray, against its scores of one response at a time."""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file

from cluster.classifiers import TorchClassifier
from cluster.errors import InputError
from cluster.rendering import plain_text
from cluster.session import ray_session
from cluster.settings import Settings, TorchSettings
from tasks.labellers.ledger import Account, Ledger, question_key
from tasks.labellers.protocol import Answer, Answered, Ask, Label, Labeller, Question, Workplace
from tasks.labellers.reward_model import RewardModelLabeller, conversations, shards_of
from tasks.labellers.simulated import SimulatedLabeller

pytestmark = [pytest.mark.labels, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]

TEXTS = ["good", "bad, and for a longer reason than any other", "", "dull <script>", "love 😀", "awful", "fine"]
SHARPNESS = 1e-2
"""Temperature at which the scores of an untrained model are far from certain and from a coin."""


def ask(first: str, second: str, *, prompt: str = "say", repetition: int = 0, role: str | None = "user") -> Ask:
    messages = [{"role": role, "content": prompt}]
    key = question_key(plain_text(messages), first=first, second=second)
    question = Question(key=key, messages=messages, first=first, second=second)
    return Ask(question=question, repetition=repetition)


def chain(*, prompt: str = "say") -> list[Ask]:
    """Each text against the next one: all but two of the responses stand in two pairs."""
    return [ask(first, second, prompt=prompt) for first, second in pairwise(TEXTS)]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    settings = Settings(torch=TorchSettings(num_actors=2))
    with ray_session(settings):
        yield Workplace(settings=settings, lineage="demo", round=0)


@pytest.fixture(scope="module")
def lone(workplace: Workplace) -> Workplace:
    """Where one actor alone works."""
    return replace(workplace, settings=Settings(torch=TorchSettings(num_actors=1)))


@pytest.fixture(scope="module")
def labeller(tiny_classifier: Path) -> RewardModelLabeller:
    return RewardModelLabeller(path=tiny_classifier, temperature=SHARPNESS, batch_size=3, shard_size=2)


Score = Callable[[Question], tuple[float, float]]


@pytest.fixture(scope="module")
def scored(labeller: RewardModelLabeller) -> Score:
    alone = TorchClassifier(labeller.resolve(), TorchSettings())
    torch.set_num_threads(1)

    def score(question: Question) -> tuple[float, float]:
        first, second = (
            alone.score([question.messages], [text], 1)[0][0] for text in (question.first, question.second)
        )
        return first, second

    return score


def by_ask(chunks: Sequence[Sequence[tuple[Ask, Answer]]]) -> dict[tuple[str, int], Answer]:
    answered = [(asked.question.key, asked.repetition) for chunk in chunks for asked, _ in chunk]
    assert len(set(answered)) == len(answered), "nothing is answered twice"
    return {(asked.question.key, asked.repetition): answer for chunk in chunks for asked, answer in chunk}


def with_another_head(folder: Path, factor: float) -> None:
    """Multiply all scores of a classifier."""
    weights = load_file(folder / "model.safetensors")
    weights["score.weight"] = weights["score.weight"] * factor
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_answers_are_soft_preferences_by_the_scores_of_one_response_at_a_time(
    labeller: RewardModelLabeller, workplace: Workplace, scored: Score
) -> None:
    asks = [*chain(), *chain(prompt="whisper"), ask("good", "bad", role=None), replace(chain()[0], repetition=1)]
    chunks = list(labeller(asks, workplace))
    found = by_ask(chunks)
    assert len(found) == len(asks)
    assert len(chunks) > 2, "answers come as shards are finished"
    for one in asks:
        first, second = scored(one.question)
        answer = found[one.question.key, one.repetition]
        assert [answer.detail["score_first"], answer.detail["score_second"]] == pytest.approx([first, second], abs=1e-5)
        assert answer.probability == pytest.approx(1 / (1 + math.exp((second - first) / SHARPNESS)), abs=1e-2)
        assert answer.choice == ("first" if first > second else "second")
    probabilities = [answer.probability for answer in found.values() if answer.probability is not None]
    assert min(probabilities) < 0.4
    assert max(probabilities) > 0.6


def test_turned_pairs_get_turned_answers(labeller: RewardModelLabeller, workplace: Workplace) -> None:
    asks = chain()
    turned = [replace(q, question=replace(q.question, first=q.question.second, second=q.question.first)) for q in asks]
    there, back = (by_ask(list(labeller(some, workplace))) for some in (asks, turned))
    for key, answer in there.items():
        assert {answer.choice, back[key].choice} == {"first", "second"}
        assert answer.probability is not None
        assert back[key].probability == pytest.approx(1 - answer.probability, abs=1e-4)


class Stopping(RewardModelLabeller):
    """The same labeller in a run that ends once the first answers are kept."""

    def __call__(self, asks: Sequence[Ask], workplace: Workplace) -> Iterator[Answered]:
        yield next(super().__call__(asks, workplace))
        raise KeyboardInterrupt


def test_a_stopped_run_loses_only_what_was_not_finished(
    labeller: RewardModelLabeller, workplace: Workplace, lone: Workplace, scored: Score, tmp_path: Path
) -> None:
    """And two actors go on where one has stopped."""
    ledger, account = Ledger.at(tmp_path / "labels.db"), Account(lineage="demo", round=0)
    questions = [one.question for one in chain()]
    with pytest.raises(KeyboardInterrupt):
        ledger.buy(questions, Stopping(**asdict(labeller)), account, lone)
    kept = list(ledger.entries())
    assert 0 < len(kept) < len(questions)

    labels = [label for labels in ledger.buy(questions, labeller, account, workplace) for label in labels]

    assert list(ledger.entries())[: len(kept)] == kept
    assert ledger.spend().num_bought == len(labels) == len(questions)
    for question, label in zip(questions, labels, strict=True):
        first, second = scored(question)
        assert label.choice == ("first" if first > second else "second")
        assert label.probability == pytest.approx(1 / (1 + math.exp((second - first) / SHARPNESS)), abs=1e-2)
    assert {label.swapped for label in labels} == {False, True}
    gaps = [abs(first - second) for first, second in map(scored, questions)]
    assert labeller.measures(labels)["mean_score_gap"] == pytest.approx(sum(gaps) / len(gaps), abs=1e-4)


def test_scores_within_the_margin_tie_and_equal_ones_always_do(
    labeller: RewardModelLabeller, workplace: Workplace, scored: Score
) -> None:
    asks = chain()
    gaps = sorted(abs(first - second) for first, second in (scored(one.question) for one in asks))
    margin = (gaps[2] + gaps[3]) / 2
    found = by_ask(list(replace(labeller, tie_margin=margin)(asks, workplace)))
    assert [answer.choice for answer in found.values()].count("tie") == 3
    for one in asks:
        first, second = scored(one.question)
        assert (found[one.question.key, 0].choice == "tie") == (abs(first - second) < margin)
    [same] = by_ask(list(labeller([ask("good", "good")], workplace))).values()
    assert (same.choice, same.probability) == ("tie", 0.5)


def test_a_score_that_is_no_number_is_refused_with_its_pair(
    labeller: RewardModelLabeller, lone: Workplace, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(str(labeller.path), tmp_path / "broken"))
    with_another_head(broken, math.nan)
    asked = ask("good", "bad")
    with pytest.raises(
        InputError, match=r"scores the responses of pair .* with nan and nan: expected finite"
    ) as refused:
        list(replace(labeller, path=broken)([asked], lone))
    assert asked.question.key in str(refused.value)
    assert str(broken) in str(refused.value)


def test_nothing_starts_where_nothing_is_asked(workplace: Workplace, tmp_path: Path) -> None:
    assert list(RewardModelLabeller(path=tmp_path / "nowhere")([], workplace)) == []


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_every_response_is_scored_once_however_many_pairs_it_is_in(size: int) -> None:
    asks = [*chain(), *chain(), ask(TEXTS[0], TEXTS[-1]), replace(chain()[0], repetition=1), *chain(prompt="whisper")]
    shards = shards_of(asks, size)
    scored = [one for shard in shards for one in shard]
    assert len(scored) == len(set(scored)) == 2 * len(TEXTS)
    assert set(scored) == {one for asked in asks for one in conversations(asked.question)}
    assert all(0 < len(shard) <= 2 * size for shard in shards)


def test_identity_is_that_of_the_bytes_and_of_what_decides_an_answer(
    labeller: RewardModelLabeller, tmp_path: Path
) -> None:
    moved, changed = (Path(shutil.copytree(str(labeller.path), tmp_path / name)) for name in ("moved", "changed"))
    with_another_head(changed, 2.0)
    same = [replace(labeller, path=moved), replace(labeller, batch_size=1, shard_size=7, cost=3.0)]
    assert {one.identity for one in same} == {labeller.identity}
    others = [
        replace(labeller, path=changed),
        replace(labeller, temperature=1),
        replace(labeller, tie_margin=0.1),
        replace(labeller, max_length=8),
    ]
    assert len({labeller.identity, *(one.identity for one in others)}) == 5
    assert json.loads(labeller.identity)["digest"] == labeller.resolve().digest
    assert replace(labeller, temperature=1).identity == replace(labeller, temperature=1.0).identity


def test_its_price_is_its_cost(labeller: RewardModelLabeller) -> None:
    priced: Labeller = replace(labeller, cost=0.25)
    assert priced.price(ask("a", "b").question) == 0.25


def test_it_measures_how_far_apart_scores_are(labeller: RewardModelLabeller) -> None:
    def label(first: float, second: float) -> Label:
        return Label(
            key="k", repetition=0, choice="first", probability=0.5, swapped=False, annotator="", rationale="",
            cost=0.0, bought=True, detail={"score_first": first, "score_second": second},
        )  # fmt: skip

    assert labeller.measures([label(1.0, -1.0), label(0.5, 1.5)]) == {"mean_score_gap": 1.5}
    assert labeller.measures([]) == {}


def test_a_model_of_the_hub_is_found_in_its_cache(
    labeller: RewardModelLabeller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    home = tmp_path / "models--someone--rewards"
    shutil.copytree(str(labeller.path), home / "snapshots" / commit)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    hub = replace(labeller, path=None, name="someone/rewards")
    hub.check()
    assert hub.identity == labeller.identity
    assert replace(hub, revision=commit).identity == labeller.identity


def test_a_model_that_is_not_in_the_cache_is_explained_without_a_network() -> None:
    with pytest.raises(
        InputError, match=r"'nobody/nothing' \(revision 'main'\) can't be had.*kind: reward_model, path"
    ):
        RewardModelLabeller(name="nobody/nothing").check()


def test_what_is_no_classifier_is_refused_before_the_work(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no sequence classifier: found LlamaForCausalLM.*labelling\.labeller\.path"):
        RewardModelLabeller(path=tiny_model).check()
    with pytest.raises(InputError, match=r"nowhere does not exist: check labelling\.labeller\.path"):
        RewardModelLabeller(path=tmp_path / "nowhere").check()


CONFIG: TypeAdapter[SimulatedLabeller | RewardModelLabeller] = TypeAdapter(
    Annotated[SimulatedLabeller | RewardModelLabeller, Field(discriminator="kind")], config=ConfigDict(extra="forbid")
)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": None}, "a path, a folder, or a name on the hub: found neither, expected one"),
        ({"name": "someone/rewards"}, "found both, expected one"),
        ({"temperature": 0.0}, "temperature is 0.0: expected a finite number above 0"),
        ({"tie_margin": -1.0}, "tie_margin is -1.0: expected a finite number, 0 or more"),
        ({"cost": math.inf}, "cost is inf"),
        ({"max_length": 0}, "max_length of the reward model is 0"),
        ({"batch_size": 0}, "batch_size is 0: expected 1 or more"),
        ({"shard_size": -1}, "shard_size is -1"),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CONFIG.validate_python({"kind": "reward_model", "path": "rewards", **fields})


def test_a_config_names_a_folder_or_a_model_of_the_hub() -> None:
    kind: Literal["reward_model"] = "reward_model"
    written = {"kind": kind, "path": "/rewards", "tie_margin": 0.1}
    assert CONFIG.validate_python(written) == RewardModelLabeller(path=Path("/rewards"), tie_margin=0.1)
    hub = CONFIG.validate_python({"kind": kind, "name": "someone/rewards", "revision": "v2"})
    assert hub == RewardModelLabeller(name="someone/rewards", revision="v2")
    assert CONFIG.validate_json(CONFIG.dump_json(hub)) == hub
