"""Probabilities of a comparison against the formulas of their papers, written out with strengths."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.labellers.bradley_terry import tie_probability, win_probability

pytestmark = pytest.mark.labels

margins = st.floats(-50, 50)
temperatures = st.floats(0.5, 20)


@given(margins, temperatures, st.floats(0, 0.99))
def test_wins_and_ties_are_those_of_davidsons_strengths(margin: float, temperature: float, rate: float) -> None:
    stronger, weaker, nu = math.exp(margin / temperature), 1.0, 2 * rate / (1 - rate)
    middle = nu * math.sqrt(stronger * weaker)
    tie = tie_probability(margin, temperature, rate)
    assert tie == pytest.approx(middle / (stronger + weaker + middle), rel=1e-9)
    won = (1 - tie) * win_probability(margin, temperature)
    assert won == pytest.approx(stronger / (stronger + weaker + middle), rel=1e-9, abs=1e-15)


@given(margins, temperatures, st.floats(0, 0.99))
def test_both_orders_tie_alike_and_their_wins_add_up_to_one(margin: float, temperature: float, rate: float) -> None:
    assert tie_probability(margin, temperature, rate) == tie_probability(-margin, temperature, rate)
    assert win_probability(margin, temperature) + win_probability(-margin, temperature) == 1


@pytest.mark.parametrize("margin", [0.0, 1.0, 1e308, -1e308])
@pytest.mark.parametrize("temperature", [1e-300, 1.0, 1e300])
def test_no_margin_and_no_temperature_is_too_extreme(margin: float, temperature: float) -> None:
    assert 0 <= win_probability(margin, temperature) <= 1
    assert 0 <= tie_probability(margin, temperature, 0.5) <= 0.5
    assert tie_probability(margin, temperature, 0.0) == 0


def test_equals_tie_at_the_rate_and_others_less() -> None:
    rates = [tie_probability(margin, 1.0, 0.3) for margin in (0.0, 0.5, 1.0, 4.0)]
    assert rates[0] == pytest.approx(0.3)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.15
