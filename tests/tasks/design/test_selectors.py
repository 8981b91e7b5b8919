from dataclasses import replace
from typing import Annotated

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter, ValidationError

from tasks.design.pool import Pool
from tasks.design.selectors import SELECTORS, AnySelector, TraceDesign, Uniform

BOTH = [Uniform(), TraceDesign()]


def chosen(selection):
    return set(zip(selection.prompt.tolist(), selection.first.tolist(), selection.second.tolist(), strict=True))


def select(selector, pool, budget, seed=0):
    return selector(pool, budget, np.random.default_rng(seed))


@st.composite
def requests(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.tuples(st.integers(1, 7), st.integers(2, 6), st.integers(1, 4)))
    features = rng.standard_normal(shape) * draw(st.sampled_from([0.0, 1e-8, 1.0, 1e8]))
    if draw(st.booleans()):
        features = np.round(features)
    valid = rng.random(shape[:2]) < draw(st.sampled_from([0.5, 0.8, 1.0]))
    valid[0, :2] = True
    rewards = rng.standard_normal(shape[:2]) * draw(st.sampled_from([0.0, 1.0, 1e4]))
    pool = Pool(features=features, valid=valid, rewards=rewards, beta=0.1)
    cap = draw(st.none() | st.integers(1, 4))
    per_prompt = pool.pair_mask.sum(axis=1)
    most = pool.num_pairs if cap is None else int(np.minimum(per_prompt, cap).sum())
    return pool, draw(st.integers(1, most)), cap


@pytest.mark.parametrize("kind", sorted(SELECTORS))
@settings(max_examples=60, deadline=None, derandomize=True)
@given(request=requests())
def test_every_selector_spends_the_exact_budget_on_distinct_valid_pairs_within_the_cap(kind, request):
    pool, budget, cap = request
    selection = select(SELECTORS[kind](max_pairs_per_prompt=cap), pool, budget)
    assert len(selection) == budget == len(chosen(selection))
    assert (selection.first < selection.second).all()
    assert pool.valid[selection.prompt, selection.first].all()
    assert pool.valid[selection.prompt, selection.second].all()
    assert cap is None or np.bincount(selection.prompt).max() <= cap
    for values in (selection.weights, selection.scores, selection.inclusion_probabilities):
        assert values is None or (values.shape == (budget,) and np.isfinite(values).all() and (values >= 0).all())


@pytest.mark.parametrize("selector", BOTH)
def test_a_budget_of_all_pairs_takes_them_all(make_pool, selector):
    pool = make_pool((7, 5, 3), masked=True)
    everything = set(zip(*(x.tolist() for x in pool.pairs(np.flatnonzero(pool.pair_mask))), strict=True))
    assert chosen(select(selector, pool, pool.num_pairs)) == everything


@pytest.mark.parametrize("selector", BOTH)
def test_a_budget_above_the_pool_is_refused(make_pool, selector):
    message = r"budget 37 exceeds the 36 pairs of the pool: lower selection\.budget or raise generation\.num_responses"
    with pytest.raises(ValueError, match=message):
        select(selector, make_pool(), 37)
    with pytest.raises(ValueError, match="budget 13 exceeds the 12 pairs that a cap of 2 per prompt leaves"):
        select(replace(selector, max_pairs_per_prompt=2), make_pool(), 13)


def test_a_seed_fixes_the_uniform_draw_and_another_seed_changes_it(make_pool):
    pool = make_pool((20, 4, 2))
    draws = [select(Uniform(), pool, 15, seed) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(draws[0].prompt, draws[1].prompt)
    np.testing.assert_array_equal(draws[0].second, draws[1].second)
    assert chosen(draws[0]) != chosen(draws[2])


def test_the_trace_design_is_the_same_under_every_seed(make_pool):
    pool = make_pool((20, 4, 2))
    one, other = (select(TraceDesign(), pool, 15, seed) for seed in (1, 2))
    np.testing.assert_array_equal(one.prompt, other.prompt)
    np.testing.assert_array_equal(one.weights, other.weights)


def test_uniform_includes_every_valid_pair_as_often_as_it_says(make_pool):
    pool, rng, draws = make_pool((3, 4, 1), masked=True, seed=4), np.random.default_rng(0), 4000
    budget = pool.num_pairs // 2
    counts = np.zeros((3, 4, 4))
    for _ in range(draws):
        selection = Uniform()(pool, budget, rng)
        counts[selection.prompt, selection.first, selection.second] += 1
    probability = budget / pool.num_pairs
    assert (selection.inclusion_probabilities == probability).all()
    rates = counts[np.unravel_index(np.flatnonzero(counts), counts.shape)] / draws
    assert len(rates) == pool.num_pairs
    assert np.abs(rates - probability).max() < 4 * np.sqrt(probability * (1 - probability) / draws)


def test_probabilities_are_left_out_where_a_cap_or_a_design_makes_them_unknown(make_pool):
    assert select(Uniform(max_pairs_per_prompt=2), make_pool(), 5).inclusion_probabilities is None
    assert select(TraceDesign(), make_pool(), 5).inclusion_probabilities is None


@pytest.mark.parametrize(("name", "value"), [("ridge", 0.0), ("tolerance", -1.0), ("ridge", np.nan), ("ridge", np.inf)])
def test_numbers_that_must_be_positive_are_checked(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        TraceDesign(**{name: value})


@pytest.mark.parametrize("kind", sorted(SELECTORS))
def test_a_cap_below_one_is_refused(kind):
    with pytest.raises(ValueError, match="max_pairs_per_prompt is 0"):
        SELECTORS[kind](max_pairs_per_prompt=0)


def test_the_names_are_the_kinds_of_the_union():
    assert {"uniform": Uniform, "trace_design": TraceDesign} == SELECTORS


def test_pydantic_tells_selectors_apart_by_kind_and_locates_faults():
    adapter = TypeAdapter(Annotated[AnySelector, Field(discriminator="kind")])
    assert adapter.validate_python({"kind": "uniform", "max_pairs_per_prompt": 3}) == Uniform(max_pairs_per_prompt=3)
    assert adapter.validate_python({"kind": "trace_design", "ridge": 0.1}) == TraceDesign(ridge=0.1)
    assert adapter.validate_json(adapter.dump_json(TraceDesign(tolerance=0.01))) == TraceDesign(tolerance=0.01)
    assert len(adapter.json_schema()["oneOf"]) == 2
    with pytest.raises(ValidationError, match="ridge is -1"):
        adapter.validate_python({"kind": "trace_design", "ridge": -1})
    with pytest.raises(ValidationError, match="'uniform', 'trace_design'"):
        adapter.validate_python({"kind": "best"})
