import subprocess
import sys

import pytest

from cluster.errors import InputError
from tasks.labellers.rewards import REWARDS, Length, Sentiment

pytestmark = pytest.mark.labels


def test_sentiment_has_the_sign_of_the_text_and_lies_in_its_range() -> None:
    good, bad, plain, empty = Sentiment()(["What a wonderful, happy day!", "This is horrible.", "A table.", ""])
    assert -1 <= bad < 0 < good <= 1
    assert plain == empty == 0


@pytest.mark.parametrize(("per", "expected"), [("word", [0.0, 0.3]), ("character", [0.0, 1.3])])
def test_length_counts_words_or_characters_in_units(per: str, expected: list[float]) -> None:
    reward = Length(per="word" if per == "word" else "character", unit=10.0)
    assert reward(["", "one two\nthree"]) == expected


@pytest.mark.parametrize("unit", [0.0, -1.0, float("nan")])
def test_a_unit_that_is_not_positive_is_refused(unit: float) -> None:
    with pytest.raises(InputError, match="expected a number above 0"):
        Length(unit=unit)


@pytest.mark.parametrize("kind", REWARDS)
def test_every_reward_scores_each_text_by_itself(kind: str) -> None:
    texts = ["I love it", "", "I hate every bit of it"]
    reward = REWARDS[kind]()
    assert reward.kind == kind
    assert reward(texts) == [reward([text])[0] for text in texts]
    assert reward([]) == []


def test_importing_labellers_does_not_import_the_sentiment_lexicon() -> None:
    code = "import sys, tasks.labellers; sys.exit('vaderSentiment' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
