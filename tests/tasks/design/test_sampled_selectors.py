from dataclasses import dataclass, replace

import numpy as np
import pytest

from tasks.design.criterion import log_det_criterion, trace_criterion
from tasks.design.pool import Labels
from tasks.design.sampling import inclusion_probabilities
from tasks.design.search import Effort
from tasks.design.selection import selection_of
from tasks.design.selectors.base import Capped
from tasks.design.selectors.baselines import Uniform
from tasks.design.selectors.designs import TraceDesign
from tasks.design.selectors.mixture import MixtureOf
from tasks.design.selectors.sampled import Dope, ReferenceWeighted, SampledTraceDesign, reference_weights
from tasks.design.simplex import simplex_design

SAMPLED = [ReferenceWeighted, SampledTraceDesign, Dope]


def flat_index(pool, selection):
    return pool.index_of(selection.prompt, selection.first, selection.second)


@dataclass(frozen=True, kw_only=True)
class First(Capped):
    """The first pairs that fit: a deterministic inner selector."""

    def __call__(self, pool, budget, rng):  # noqa: ARG002 (the protocol's)
        chosen = self.limits(pool, budget).take(np.flatnonzero(pool.pair_mask))
        return selection_of(pool, chosen, notes=("the first",))


@pytest.fixture(scope="module")
def written_pool(make_pool):
    """A pool whose reference policy is known."""

    def build(*args, **kwargs):
        pool = make_pool(*args, **kwargs)
        rng = np.random.default_rng(9)
        return replace(pool, log_probs=pool.rewards / pool.beta + rng.normal(-2, 1, pool.valid.shape))

    return build


def select(selector, pool, budget, seed=0):
    return selector(pool, budget, np.random.default_rng(seed))


def rates_of(selector, pool, budget, draws):
    rng, counts = np.random.default_rng(5), np.zeros(pool.pair_mask.size)
    for _ in range(draws):
        counts[flat_index(pool, selector(pool, budget, rng))] += 1
    return counts / draws


def assert_rates(rates, probabilities, draws):
    assert (np.abs(rates - probabilities) <= 4 * np.sqrt(probabilities * (1 - probabilities) / draws) + 1e-12).all()


@pytest.mark.parametrize("cap", [None, 2])
@pytest.mark.parametrize("kind", SAMPLED)
def test_draws_are_valid_distinct_and_within_the_cap(written_pool, kind, cap):
    pool = written_pool((12, 4, 3), masked=True)
    selection = select(kind(max_pairs_per_prompt=cap), pool, 9)
    index = flat_index(pool, selection)
    assert len(np.unique(index)) == 9
    assert pool.pair_mask.ravel()[index].all()
    assert cap is None or np.bincount(selection.prompt).max() <= cap
    assert (selection.inclusion_probabilities is None) == (cap is not None)
    assert selection.certificate is None


@pytest.mark.parametrize("kind", SAMPLED)
def test_a_seed_fixes_the_draw_and_another_seed_changes_it(written_pool, kind):
    pool = written_pool((20, 4, 8))
    one, same, other = (flat_index(pool, select(kind(), pool, 8, seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert set(one) != set(other)


@pytest.mark.parametrize("kind", SAMPLED)
def test_costs_are_paid_and_leave_probabilities_undefined(written_pool, kind):
    pool = written_pool((12, 4, 3))
    pool = replace(pool, costs=np.random.default_rng(0).uniform(0.5, 3, pool.pair_mask.shape))
    selection = select(kind(), pool, 12)
    assert 9 < pool.costs.ravel()[flat_index(pool, selection)].sum() <= 12
    assert selection.inclusion_probabilities is None


def test_reference_weights_are_products_of_the_reference_policy_within_each_prompt(written_pool):
    pool = written_pool((5, 3, 2), masked=True, seed=1)
    probability = np.exp(pool.log_probs - pool.rewards / pool.beta) * pool.valid
    for prompt, weights in enumerate(reference_weights(pool)):
        products = probability[prompt, [0, 0, 1]] * probability[prompt, [1, 2, 2]]
        np.testing.assert_allclose(weights, products / max(products.sum(), 1e-300))


def test_reference_weights_survive_log_probabilities_of_whole_responses(written_pool):
    pool = written_pool((5, 4, 2))
    weights = reference_weights(replace(pool, log_probs=400 * pool.log_probs - 3000))
    np.testing.assert_allclose(weights.sum(axis=1), 1)


def test_the_reference_needs_log_probs(make_pool):
    with pytest.raises(ValueError, match="ReferenceWeighted needs the log_probs"):
        select(ReferenceWeighted(), make_pool(), 3)
    with pytest.raises(ValueError, match="has no log_probs"):
        reference_weights(make_pool())


def test_reference_weighted_pairs_come_as_often_as_the_selection_says(written_pool):
    pool, draws = written_pool((3, 4, 1), masked=True, seed=4), 4000
    budget = pool.num_pairs // 2
    probabilities = np.zeros(pool.pair_mask.shape)
    probabilities[pool.pair_mask] = inclusion_probabilities(reference_weights(pool)[pool.pair_mask], budget)
    selection = select(ReferenceWeighted(), pool, budget)
    told = probabilities.ravel()[flat_index(pool, selection)]
    np.testing.assert_array_equal(selection.inclusion_probabilities, told)
    assert_rates(rates_of(ReferenceWeighted(), pool, budget, draws), probabilities.ravel(), draws)


def test_under_a_cap_the_first_pair_still_comes_by_weight(written_pool):
    pool, draws, rng = written_pool((3, 3, 1), seed=2), 4000, np.random.default_rng(0)
    counts = np.zeros(9)
    for _ in range(draws):
        counts[flat_index(pool, ReferenceWeighted(max_pairs_per_prompt=1)(pool, 3, rng))[0]] += 1
    assert_rates(counts / draws, reference_weights(pool).ravel() / 3, draws)


@pytest.mark.parametrize(
    ("selector", "criterion_of"),
    [
        (SampledTraceDesign(), lambda pool: trace_criterion(pool, ridge=1e-3, logistic=False)),
        (SampledTraceDesign(logistic=True), lambda pool: trace_criterion(pool, ridge=1e-3)),
        (Dope(), lambda pool: log_det_criterion(pool, ridge=1e-6, logistic=False)),
    ],
)
def test_sampled_designs_report_weights_and_scores_of_the_simplex_design(make_pool, selector, criterion_of):
    pool = make_pool((30, 5, 6), decay=0.5)
    design = simplex_design(criterion_of(pool), Effort())
    selection = select(selector, pool, 5)
    index = flat_index(pool, selection)
    np.testing.assert_array_equal(selection.weights, design.weights.ravel()[index])
    np.testing.assert_array_equal(selection.scores, design.scores.ravel()[index])
    expected = inclusion_probabilities(design.weights.ravel(), 5)[index]
    np.testing.assert_allclose(selection.inclusion_probabilities, expected, rtol=1e-12)
    assert selection.notes[0].startswith(f"simplex design: objective {design.objective:.6g}, gap {design.gap:.2e}")


def test_labels_held_count_per_label_of_the_budget(make_pool):
    pool = make_pool((30, 5, 4))
    labels = Labels(differences=3 * np.eye(4)[:2], margins=np.zeros(2))
    criterion = trace_criterion(replace(pool, labels=labels), ridge=1e-3, logistic=False)
    design = simplex_design(replace(criterion, prior=criterion.prior / 7), Effort())
    selection = select(SampledTraceDesign(), replace(pool, labels=labels), 7)
    np.testing.assert_array_equal(selection.weights, design.weights.ravel()[flat_index(pool, selection)])


def test_a_budget_beyond_the_support_is_filled_uniformly_and_says_so(make_pool):
    pool = make_pool((30, 4, 2), margin=0.0)
    selection = select(Dope(), pool, 60)
    without = selection.weights == 0
    assert 0 < without.sum() < 60
    assert (selection.inclusion_probabilities[~without] == 1).all()
    assert len(set(selection.inclusion_probabilities[without])) == 1
    assert selection.notes[-1] == f"{without.sum()} of 60 pairs have no weight: drawn uniformly to fill the budget"


def test_a_search_that_stops_short_says_so(make_pool):
    notes = select(SampledTraceDesign(tolerance=1e-9, max_passes=2), make_pool((30, 5, 6)), 5).notes
    assert "the search stopped after 2 passes" in notes[1]


@pytest.mark.parametrize("kind", [SampledTraceDesign, Dope])
@pytest.mark.parametrize(("name", "value"), [("ridge", 0.0), ("tolerance", np.inf), ("max_passes", 0)])
def test_numbers_that_must_be_positive_are_checked(kind, name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        kind(**{name: value})


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_mixture_spends_the_share_on_uniform_pairs(make_pool, share):
    pool = make_pool((10, 4, 3), masked=True, seed=3)
    selection = select(MixtureOf(selector=First(), uniform_share=share), pool, 10)
    index, num_uniform = flat_index(pool, selection), round(10 * share)
    inner = np.flatnonzero(pool.pair_mask)[: 10 - num_uniform]
    assert len(np.unique(index)) == 10
    assert pool.pair_mask.ravel()[index].all()
    np.testing.assert_array_equal(index[np.isin(index, inner)], inner)
    certain = selection.inclusion_probabilities == 1
    assert certain.sum() == 10 - num_uniform
    np.testing.assert_allclose(
        selection.inclusion_probabilities[~certain], num_uniform / (pool.num_pairs - 10 + num_uniform)
    )
    assert selection.notes == (*(() if share == 1 else ("the first",)), selection.notes[-1])
    assert selection.notes[-1] == f"{num_uniform} pairs were drawn uniformly from those left over"


def test_pairs_of_a_mixture_come_as_often_as_it_says(make_pool):
    pool, draws = make_pool((3, 4, 1), masked=True, seed=4), 4000
    budget, pairs = pool.num_pairs // 2, np.flatnonzero(pool.pair_mask)
    num_uniform = round(0.5 * budget)
    expected = np.zeros(pool.pair_mask.size)
    expected[pairs] = num_uniform / (len(pairs) - budget + num_uniform)
    expected[pairs[: budget - num_uniform]] = 1.0
    assert_rates(rates_of(MixtureOf(selector=First(), uniform_share=0.5), pool, budget, draws), expected, draws)


def test_prefixes_of_a_mixture_are_mixtures(make_pool):
    pool, draws, rng = make_pool((10, 4, 1)), 2000, np.random.default_rng(0)
    mixture = MixtureOf(selector=First(), uniform_share=0.25)
    places = sum(mixture(pool, 12, rng).inclusion_probabilities < 1 for _ in range(draws))
    assert_rates(places / draws, np.full(12, 0.25), draws)


@pytest.mark.parametrize("inner", [Uniform, TraceDesign, First])
def test_the_cap_of_the_inner_selector_holds_for_the_whole_mixture(make_pool, inner):
    pool = make_pool((8, 4, 3), masked=True)
    mixture = MixtureOf(selector=inner(max_pairs_per_prompt=2), uniform_share=0.5)
    most = int(np.minimum(pool.pair_mask.sum(axis=1), 2).sum())
    for budget in (1, 5, most):
        selection = select(mixture, pool, budget)
        assert len(np.unique(flat_index(pool, selection))) == budget
        assert np.bincount(selection.prompt).max() <= 2
        assert (selection.inclusion_probabilities > 0).all()
    assert mixture.max_pairs_per_prompt == 2
    with pytest.raises(ValueError, match="cap of 2"):
        select(mixture, pool, most + 1)


def test_pairs_of_a_capped_mixture_come_as_often_as_it_says(make_pool):
    pool, draws = make_pool((4, 4, 1), masked=True, seed=4), 4000
    mixture = MixtureOf(selector=First(max_pairs_per_prompt=2), uniform_share=0.5)
    budget = int(np.minimum(pool.pair_mask.sum(axis=1), 2).sum()) - 1
    said, rng = np.zeros(pool.pair_mask.size), np.random.default_rng(5)
    for _ in range(draws):
        selection = mixture(pool, budget, rng)
        said[flat_index(pool, selection)] = selection.inclusion_probabilities
    assert 0 < said[said > 0].min() < said.max() == 1
    assert_rates(rates_of(mixture, pool, budget, draws), said, draws)


def test_a_mixture_pays_its_costs(make_pool):
    pool = make_pool((12, 4, 3))
    pool = replace(pool, costs=np.random.default_rng(0).uniform(0.5, 3, pool.pair_mask.shape))
    selection = select(MixtureOf(selector=First(), uniform_share=0.5), pool, 12)
    assert 9 < pool.costs.ravel()[flat_index(pool, selection)].sum() <= 12
    assert selection.inclusion_probabilities is None


def test_a_mixture_needs_what_its_selector_needs(make_pool):
    mixture = MixtureOf(selector=ReferenceWeighted())
    assert mixture.needs == {"log_probs"}
    with pytest.raises(ValueError, match="ReferenceWeighted needs the log_probs"):
        select(mixture, make_pool(), 5)


@pytest.mark.parametrize("share", [-0.1, 1.1, np.nan])
def test_a_share_outside_of_zero_to_one_is_refused(share):
    with pytest.raises(ValueError, match=f"uniform_share is {share}"):
        MixtureOf(selector=Uniform(), uniform_share=share)


def test_flat_indices_undo_the_pairs_of_a_pool(make_pool):
    pool = make_pool((4, 5, 2))
    order = np.random.default_rng(0).permutation(40)
    np.testing.assert_array_equal(flat_index(pool, selection_of(pool, order)), order)
