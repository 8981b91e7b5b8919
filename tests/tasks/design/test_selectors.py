from dataclasses import replace
from typing import Annotated

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter, ValidationError

from tasks.design.pool import Labels, Pool
from tasks.design.selectors import SELECTORS, AnySelector
from tasks.design.selectors.baselines import Uniform
from tasks.design.selectors.designs import TraceDesign

KINDS = sorted(SELECTORS)


def make(kind, **fields):
    if kind == "mixture":  # its cap is that of the selector within
        return SELECTORS[kind](selector=TraceDesign(**fields), uniform_share=0.4)
    return SELECTORS[kind](kind=kind, **fields)


def chosen(selection):
    return set(zip(selection.prompt.tolist(), selection.first.tolist(), selection.second.tolist(), strict=True))


def select(selector, pool, budget, seed=0):
    return selector(pool, budget, np.random.default_rng(seed))


def filled(pool, *, seed=0, labels=0):
    """The pool with all that a selector may need, and with labels held."""
    rng = np.random.default_rng(seed)
    shape = pool.valid.shape
    held = Labels(differences=rng.standard_normal((labels, pool.dim)), margins=rng.standard_normal(labels))
    scores, log_probs = rng.standard_normal(shape), -5 + rng.standard_normal(shape)
    return replace(pool, scores=scores, log_probs=log_probs, labels=held if labels else None)


@st.composite
def requests(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.tuples(st.integers(1, 7), st.integers(2, 6), st.integers(1, 4)))
    features = rng.standard_normal(shape) * draw(st.sampled_from([0.0, 1e-8, 1.0, 1e8]))
    if draw(st.booleans()):
        features = np.round(features)
    valid = rng.random(shape[:2]) < draw(st.sampled_from([0.5, 0.8, 1.0]))
    valid[0, :2] = True
    offered = rng.random((shape[0], shape[1] * (shape[1] - 1) // 2)) < draw(st.sampled_from([0.5, 1.0]))
    offered[0, 0] = True
    rewards = rng.standard_normal(shape[:2]) * draw(st.sampled_from([0.0, 1.0, 1e4]))
    pool = Pool(features=features, valid=valid, rewards=rewards, beta=0.1, offered=offered)
    pool = filled(pool, seed=draw(st.integers(0, 9)), labels=draw(st.sampled_from([0, 1, 8])))
    cap = draw(st.none() | st.integers(1, 4))
    per_prompt = pool.pair_mask.sum(axis=1)
    most = pool.num_pairs if cap is None else int(np.minimum(per_prompt, cap).sum())
    return pool, draw(st.integers(1, most)), cap


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(request=requests())
def test_every_selector_spends_the_exact_budget_on_distinct_offered_pairs_within_the_cap(kind, request):
    pool, budget, cap = request
    selection = select(make(kind, max_pairs_per_prompt=cap), pool, budget)
    assert len(selection) == budget == len(chosen(selection))
    allowed = set(zip(*(ends.tolist() for ends in pool.pairs(np.flatnonzero(pool.pair_mask))), strict=True))
    assert chosen(selection) <= allowed
    assert cap is None or np.bincount(selection.prompt).max() <= cap
    for values in (selection.weights, selection.scores, selection.inclusion_probabilities):
        assert values is None or (values.shape == (budget,) and np.isfinite(values).all())
    for values in (selection.weights, selection.inclusion_probabilities):
        assert values is None or ((values >= 0) & (values <= 1 + 1e-9)).all()


@pytest.mark.parametrize("cap", [None, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_every_selector_spends_money_until_no_pair_is_left_that_it_buys(make_pool, kind, cap):
    pool = filled(make_pool((9, 4, 3), masked=True), labels=4)
    costs = np.random.default_rng(1).uniform(0.5, 3, pool.pair_mask.shape)
    selection = select(make(kind, max_pairs_per_prompt=cap), replace(pool, costs=costs), 9)
    index = pool.index_of(selection.prompt, selection.first, selection.second)
    spent, counts = costs.ravel()[index].sum(), np.bincount(selection.prompt, minlength=9)
    room = pool.pair_mask & (counts < (np.inf if cap is None else cap))[:, None]
    room.flat[index] = False
    assert len(chosen(selection)) == len(selection) > 0
    assert spent <= 9
    assert costs[room].min(initial=np.inf) > 9 - spent


@pytest.mark.parametrize("kind", KINDS)
def test_every_selector_is_decided_by_its_seed(make_pool, kind):
    pool = filled(make_pool((20, 4, 3)), labels=6)
    one, again = (select(make(kind), pool, 15, seed=3) for _ in range(2))
    for name in ("prompt", "first", "second"):
        np.testing.assert_array_equal(getattr(one, name), getattr(again, name))


@pytest.mark.parametrize("kind", KINDS)
def test_every_selector_takes_all_pairs_when_the_budget_does(make_pool, kind):
    pool = filled(make_pool((7, 5, 3), masked=True))
    everything = set(zip(*(x.tolist() for x in pool.pairs(np.flatnonzero(pool.pair_mask))), strict=True))
    assert chosen(select(make(kind), pool, pool.num_pairs)) == everything


@pytest.mark.parametrize("kind", KINDS)
def test_every_selector_refuses_a_budget_above_the_pool(make_pool, kind):
    pool = filled(make_pool())
    message = r"budget 37 exceeds the 36 pairs of the pool: lower selection\.budget or raise generation\.num_responses"
    with pytest.raises(ValueError, match=message):
        select(make(kind), pool, 37)
    with pytest.raises(ValueError, match="budget 13 exceeds the 12 pairs that a cap of 2 per prompt leaves"):
        select(make(kind, max_pairs_per_prompt=2), pool, 13)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if make(kind).needs])
def test_a_pool_without_what_a_selector_needs_is_refused(make_pool, kind):
    needed = sorted(make(kind).needs)[0]
    with pytest.raises(ValueError, match=f"needs the {needed} of the responses, the pool has none"):
        select(make(kind), make_pool(), 3)


@pytest.mark.parametrize("kind", KINDS)
def test_every_selector_says_what_it_is(kind):
    assert SELECTORS[kind].__doc__
    assert len(SELECTORS[kind].__doc__.split()) >= 12
    assert make(kind).kind == kind


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


@pytest.mark.parametrize("name", ["min_pairs_per_prompt", "max_passes"])
def test_counts_without_meaning_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} is -1"):
        TraceDesign(**{name: -1})


@pytest.mark.parametrize(("name", "value"), [("ridge", 0.0), ("tolerance", -1.0), ("ridge", np.nan), ("ridge", np.inf)])
def test_numbers_that_must_be_positive_are_checked(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        TraceDesign(**{name: value})


@pytest.mark.parametrize("kind", KINDS)
def test_a_cap_below_one_is_refused(kind):
    with pytest.raises(ValueError, match="max_pairs_per_prompt is 0"):
        make(kind, max_pairs_per_prompt=0)


def test_pydantic_tells_selectors_apart_by_kind_and_locates_faults():
    adapter = TypeAdapter(Annotated[AnySelector, Field(discriminator="kind")])
    assert adapter.validate_python({"kind": "uniform", "max_pairs_per_prompt": 3}) == Uniform(max_pairs_per_prompt=3)
    assert adapter.validate_python({"kind": "trace_design", "ridge": 0.1}) == TraceDesign(ridge=0.1)
    assert adapter.validate_json(adapter.dump_json(TraceDesign(tolerance=0.01))) == TraceDesign(tolerance=0.01)
    assert len(adapter.json_schema()["oneOf"]) == len(set(SELECTORS.values()))
    with pytest.raises(ValidationError, match="ridge is -1"):
        adapter.validate_python({"kind": "trace_design", "ridge": -1})
    with pytest.raises(ValidationError, match=r"'uniform', .*'trace_design'"):
        adapter.validate_python({"kind": "best"})
