"""The models of crowds against plain loops, closed forms and crowd-kit."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import approx_fprime, brentq
from scipy.special import expit

from tasks.labellers.crowd import Bouts, FloatArray, Votes, alpha, dawid_skene, noisy_bradley_terry

pytestmark = pytest.mark.labels

COUNTS = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=40)


def votes_of(rows: list[tuple[int, int, int]], *, num_questions: int = 8) -> Votes:
    columns = np.array(rows, dtype=np.intp)
    return Votes(*columns.T, num_questions)


def drawn(reliability: list[float], num_questions: int, *, seed: int = 0) -> tuple[Votes, FloatArray]:
    """All annotators answer all questions; and the truth."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, num_questions)
    rows = [
        (place, annotator, int(truth[place] if rng.random() < chance else 1 - truth[place]))
        for place in range(num_questions)
        for annotator, chance in enumerate(reliability)
    ]
    return votes_of(rows, num_questions=num_questions), truth


def one_step_by_loops(
    rows: list[tuple[int, int, int]], chances: FloatArray, *, right: float, wrong: float
) -> list[float]:
    """An M and an E step in the words of the model, of the questions that were asked."""
    size, asked = chances.shape[1], sorted({question for question, _, _ in rows})
    known = [right + wrong, right + wrong, 1.0][:size]
    prior = [
        (sum(chances[question][true] for question in asked) + known[true]) / (len(asked) + sum(known))
        for true in range(size)
    ]

    def confusion(annotator: int, true: int, said: int) -> float:
        seen = [right if said == true else wrong / (size - 1)]
        seen += [chances[q][true] for q, other, choice in rows if other == annotator and choice == said]
        everything = [right + wrong] + [chances[q][true] for q, other, _ in rows if other == annotator]
        return float(sum(seen) / sum(everything))

    found = []
    for question in asked:
        joint = [
            prior[true] * math.prod(confusion(a, true, choice) for q, a, choice in rows if q == question)
            for true in range(size)
        ]
        found += [value / sum(joint) for value in joint]
    return found


@settings(deadline=None)
@given(COUNTS)
def test_dawid_skene_rests_where_a_step_of_plain_loops_changes_nothing(rows: list[tuple[int, int, int]]) -> None:
    votes = votes_of(rows)
    chances = dawid_skene(votes, right=2, wrong=1)
    size = 3 if any(choice == 2 for _, _, choice in rows) else 2
    assert chances.sum(axis=1) == pytest.approx(np.ones(8))
    assert (chances[:, size:] == 0).all()
    asked = sorted({question for question, _, _ in rows})
    expected = one_step_by_loops(rows, chances[:, :size], right=2, wrong=1)
    assert chances[asked, :size].ravel() == pytest.approx(expected, abs=1e-5)


def test_chances_of_one_question_of_one_annotator_solve_their_equation() -> None:
    """Two votes for the first: p = s c^2 / (s c^2 + (1 - s) d^2), s its share, c the chance of a right answer, d of a
    wrong one.
    """
    found = dawid_skene(votes_of([(0, 0, 0), (0, 0, 0)], num_questions=1), right=2, wrong=1)[0, 0]

    def excess(p: float) -> float:
        share, right, wrong = (3 + p) / 7, (2 + 2 * p) / (3 + 2 * p), (1 + 2 * (1 - p)) / (3 + 2 * (1 - p))
        return share * right**2 / (share * right**2 + (1 - share) * wrong**2) - p

    assert found == pytest.approx(brentq(excess, 0.5, 1), abs=1e-7)


def test_dawid_skene_says_what_crowd_kit_says_where_votes_are_many() -> None:
    import pandas as pd
    from crowdkit.aggregation import DawidSkene

    votes, truth = drawn([0.9, 0.8, 0.7, 0.5, 0.2], 400)
    frame = pd.DataFrame({"task": votes.question, "worker": votes.annotator, "label": votes.choice})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas on its own future
        peer = DawidSkene(n_iter=60, tol=1e-7).fit_predict_proba(frame).sort_index()[[0, 1]].to_numpy()
    ours = dawid_skene(votes, right=2, wrong=1)[:, :2]
    assert np.mean(ours.argmax(axis=1) == peer.argmax(axis=1)) > 0.97
    assert np.abs(ours - peer).mean() < 0.02
    assert np.mean(ours.argmax(axis=1) == truth) > 0.9


def test_alpha_is_that_of_the_published_example() -> None:
    """Meg and Owen, ten articles, in section B of Krippendorff (2011): 1 - 19 * 4 / (14 * 6)."""
    said = ("0100000010", "1110010000")
    rows = [(place, who, int(letter)) for who, letters in enumerate(said) for place, letter in enumerate(letters)]
    assert alpha(votes_of(rows, num_questions=10)) == pytest.approx(0.095, abs=5e-4)


def test_alpha_is_one_where_all_agree_and_none_where_it_is_not_defined() -> None:
    assert alpha(votes_of([(0, 0, 0), (0, 1, 0), (1, 0, 1), (1, 1, 1)])) == 1.0
    for rows in ([(0, 0, 0), (1, 0, 1)], [(0, 0, 1), (0, 1, 1), (1, 0, 1), (2, 0, 0)]):
        assert alpha(votes_of(rows)) is None
    assert alpha(Votes(*np.zeros((3, 0), dtype=np.intp), 4)) is None


@settings(deadline=None)
@given(COUNTS)
def test_alpha_is_that_of_crowd_kit(rows: list[tuple[int, int, int]]) -> None:
    """One vote of an annotator on a question, as it expects, and only questions with two votes."""
    import pandas as pd
    from crowdkit.metrics.data import alpha_krippendorff

    unique = [(q, a, choice) for (q, a), choice in {(q, a): choice for q, a, choice in rows}.items()]
    paired = [row for row in unique if sum(other[0] == row[0] for other in unique) > 1]
    ours = alpha(votes_of(unique))
    if len({choice for _, _, choice in paired}) < 2:
        assert ours is None
    else:
        frame = pd.DataFrame(paired, columns=["task", "worker", "label"])
        assert ours == pytest.approx(alpha_krippendorff(frame), abs=1e-9)


@pytest.mark.parametrize("wins", [1, 3, 10])
def test_scores_of_two_items_solve_their_equation_where_everyone_looks(wins: int) -> None:
    """n sigma(-d) = d / (2 spread^2), d the difference of scores."""
    bouts = Bouts(
        items=np.tile([0, 1], (wins, 1)),
        annotator=np.zeros(wins, dtype=np.intp),
        sign=np.ones(wins),
        weight=np.ones(wins),
        num_items=2,
    )
    scores = noisy_bradley_terry(bouts, spread=1.5, trust=1 - 1e-12)
    root = brentq(lambda d: wins * expit(-d) - d / (2 * 1.5**2), 0, 50)
    assert scores[0] - scores[1] == pytest.approx(root, abs=1e-5)
    assert scores.sum() == pytest.approx(0, abs=1e-6)


def test_scores_are_where_the_written_out_posterior_has_no_slope() -> None:
    rng, spread, trust = np.random.default_rng(0), 1.3, 0.8
    items = np.array([rng.choice(5, 2, replace=False) for _ in range(60)])
    bouts = Bouts(items, rng.integers(0, 3, 60), rng.choice([-1.0, 1.0], 60), rng.choice([0.5, 1.0], 60), 5)

    def surprise(x: FloatArray) -> float:
        total = (x[:5] ** 2).sum() / (2 * spread**2) + (x[5:8] ** 2).sum() / 2
        total += ((x[8:] - math.log(trust / (1 - trust))) ** 2).sum() / 2
        for (first, second), who, sign, weight in zip(items, bouts.annotator, bouts.sign, bouts.weight, strict=True):
            gamma = expit(x[8 + who])
            chance = gamma * expit(sign * (x[first] - x[second])) + (1 - gamma) * expit(sign * x[5 + who])
            total -= weight * math.log(chance)
        return float(total)

    from scipy.optimize import minimize

    peer = minimize(surprise, np.concatenate([np.zeros(8), np.full(3, math.log(4))]), options={"gtol": 1e-7})
    assert np.abs(approx_fprime(peer.x, surprise)).max() < 1e-3
    assert noisy_bradley_terry(bouts, spread=spread, trust=trust) == pytest.approx(peer.x[:5], abs=1e-3)
