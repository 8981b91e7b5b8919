"""Policies of which everything is known: one table of probabilities, or log-linear in known features.

Comparing the answers to one prompt, each with a feature of its own, makes an electrical network: answers are its nodes,
labels its conductances, and what the policy loses a sum of effective resistances.
"""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, log_softmax

from tasks.design.capped import Problem, bounded_design
from tasks.design.criterion import log_det_criterion, trace_criterion
from tasks.design.kernels import pair_slots
from tasks.design.limits import Limits
from tasks.design.pool import Pool
from tasks.design.search import Effort
from tasks.design.selectors import TraceDesign, VDesign
from tasks.design.simplex import simplex_design

POLICIES = {
    "even": np.full(6, 1 / 6),
    "uneven": np.array([0.5, 0.25, 0.15, 0.1]),
    "two answers": np.array([0.8, 0.2]),
    "nearly certain": np.array([0.96, 0.01, 0.01, 0.01, 0.01]),
}
every_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


def tabular(policy, *, edges=None):
    """One prompt whose responses have features of their own, so that H = diag(pi) - pi pi'."""
    size = len(policy)
    first, second = pair_slots(size)
    offered = None if edges is None else np.isin(first * size + second, [a * size + b for a, b in edges])[None]
    return Pool(
        features=np.eye(size)[None],
        valid=np.ones((1, size), dtype=bool),
        rewards=np.zeros((1, size)),
        beta=1.0,
        fisher=np.diag(policy) - np.outer(policy, policy),
        offered=offered,
    )


def conductive(policy, *, ridge=1e-9, edges=None):
    """The trace in which a label on a pair is a unit conductance."""
    return trace_criterion(tabular(policy, edges=edges), ridge=ridge, logistic=False)


def products(policy):
    first, second = pair_slots(len(policy))
    return (policy[first] * policy[second])[None]


def resistances(weights, size):
    """Effective resistance of every pair by counting spanning trees: det L without both over det L without one."""
    first, second = pair_slots(size)
    laplacian = np.zeros((size, size))
    laplacian[first, second] = laplacian[second, first] = -weights[0]
    laplacian -= np.diag(laplacian.sum(axis=1))

    def forests(*dropped):
        return np.linalg.det(np.delete(np.delete(laplacian, dropped, axis=0), dropped, axis=1))

    return np.array([forests(a, b) / forests(a) for a, b in zip(first, second, strict=True)])[None]


def bounded_at_one_label(criterion, effort, *, start):
    """A budget of one pair never meets its bound of one label a pair."""
    limits = Limits(mask=criterion.mask, budget=1)
    return bounded_design(Problem(criterion, limits), effort, start=start)


every_solver = pytest.mark.parametrize("solver", [bounded_at_one_label, simplex_design])


def best_shares(solver, criterion, *, tolerance=1e-6):
    """The best distribution over pairs, from random weights."""
    start = np.where(criterion.mask, np.random.default_rng(1).random(criterion.mask.shape) + 0.01, 0)
    design = solver(criterion, Effort(tolerance=tolerance, max_passes=20_000), start=start / start.sum())
    assert design.converged
    assert design.lower_bound <= design.objective
    return design


@every_policy
def test_the_policy_fisher_is_a_network_of_conductances_pi_times_pi(policy):
    pool = tabular(policy)
    np.testing.assert_allclose(pool.space.information(products(policy)), pool.policy_fisher, atol=1e-15)


@every_policy
def test_the_trace_is_the_mean_effective_resistance_between_two_draws(policy):
    weights = np.random.default_rng(0).random(products(policy).shape) + 0.1
    expected = (products(policy) * resistances(weights, len(policy))).sum()
    assert conductive(policy).objective(weights) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("ridge", [1e-3, 1e-6])
def test_a_network_in_two_parts_leaves_the_split_between_them_to_the_ridge(ridge):
    policy, edges = np.array([0.4, 0.3, 0.1, 0.15, 0.05]), [(0, 1), (2, 3), (3, 4)]
    criterion = conductive(policy, ridge=ridge, edges=edges)
    split = np.array([3, 3, -2, -2, -2]) / np.sqrt(30)
    expected = split @ tabular(policy).policy_fisher @ split / ridge
    assert criterion.objective(1e3 * criterion.mask) == pytest.approx(expected, rel=1e-4)


@every_policy
def test_even_pairs_and_pairs_drawn_by_the_policy_are_worth_exactly_the_same(policy):
    criterion, drawn = conductive(policy), products(policy)
    expected = (len(policy) - 1) * (1 - np.square(policy).sum()) / 2
    assert criterion.objective(np.full(drawn.shape, 1 / drawn.size)) == pytest.approx(expected, rel=1e-6)
    assert criterion.objective(drawn / drawn.sum()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("size", [3, 6])
@pytest.mark.parametrize("measure", [trace_criterion, log_det_criterion])
@every_solver
def test_an_even_policy_is_compared_evenly(size, measure, solver):
    design = best_shares(solver, measure(tabular(np.full(size, 1 / size)), ridge=1e-6, logistic=False))
    np.testing.assert_allclose(design.weights, 1 / design.weights.size, atol=5e-3)
    if measure is trace_criterion:
        assert design.objective == pytest.approx((size - 1) ** 2 / (2 * size), rel=2e-5)


TREES = {
    "star": [(0, 1), (0, 2), (0, 3), (0, 4), (0, 5)],
    "path": [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)],
    "other": [(0, 3), (1, 3), (3, 4), (2, 4), (2, 5)],
}


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
@every_solver
def test_a_tree_of_pairs_shares_labels_by_the_root_of_what_each_edge_cuts(tree, solver):
    policy = np.random.default_rng(2).dirichlet(np.ones(6))
    criterion = conductive(policy, edges=tree)
    sides = np.array([policy[list(_side(edge, tree))].sum() for edge in sorted(tree)])
    cuts, weights = sides * (1 - sides), np.zeros(criterion.mask.shape)
    weights[criterion.mask] = np.random.default_rng(3).random(5) + 0.1
    assert criterion.objective(weights) == pytest.approx((cuts / weights[criterion.mask]).sum(), rel=1e-6)
    design = best_shares(solver, criterion)
    optimum = np.sqrt(cuts).sum() ** 2
    assert design.lower_bound <= optimum <= design.objective * (1 + 1e-7)  # the ridge lowers every resistance a little
    np.testing.assert_allclose(design.weights[criterion.mask], np.sqrt(cuts / optimum), atol=2e-3)
    even = best_shares(solver, log_det_criterion(tabular(policy, edges=tree), ridge=1e-9))
    np.testing.assert_allclose(even.weights[criterion.mask], 1 / 5, atol=2e-3)


def _side(edge, tree):
    """Nodes that hang together with one end of an edge once it is cut."""
    found, rest = {edge[0]}, [other for other in tree if other != edge]
    for _ in rest:
        found |= {node for other in rest if found & set(other) for node in other}
    return found


@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize("dim", [1, 3, 7])
def test_two_independent_draws_a_label_lose_dim_over_beta_whatever_features_and_policy(dim, beta):
    """(beta / 2) tr(H M^-1) = dim / (beta n), M of n such pairs being n (beta^2 / 4) 2 H at the reference policy."""
    rng = np.random.default_rng(4)
    features, ones = rng.standard_t(3, (20, 6, dim)) * np.arange(1, dim + 1), np.ones((20, 6), dtype=bool)
    policy, (first, second) = rng.dirichlet(np.ones(6), size=20), pair_slots(6)
    drawn = 2 * policy[:, first] * policy[:, second] / 20
    pool = Pool(features=features, valid=ones, rewards=np.zeros((20, 6)), beta=beta)
    fisher = np.mean([np.cov(f, rowvar=False, aweights=p, ddof=0) for f, p in zip(features, policy, strict=True)], 0)
    aimed = trace_criterion(replace(pool, fisher=fisher.reshape(dim, dim)), ridge=1e-12)
    assert beta / 2 * aimed.objective(drawn) == pytest.approx(dim / beta, rel=1e-7)
    sampled, even = trace_criterion(pool, ridge=1e-12), np.full(drawn.shape, 1 / drawn.size)
    assert beta / 2 * sampled.objective(even) == pytest.approx(dim / beta, rel=1e-7)


def test_with_two_responses_a_prompt_the_trace_design_is_the_v_design(make_pool):
    pool = replace(make_pool((60, 2, 5), decay=1.0), rewards=np.zeros((60, 2)))
    trace, mean = (kind(ridge=1e-2)(pool, 15, np.random.default_rng(0)) for kind in (TraceDesign, VDesign))
    assert set(trace.prompt.tolist()) == set(mean.prompt.tolist())
    ratio = pool.beta**2 / 2  # of beta^2 sigma'(0) g g' to its half without them
    assert mean.certificate.objective == pytest.approx(ratio * trace.certificate.objective, rel=1e-9)


class LogLinear:
    """pi(y | x) proportional to pi_0(y | x) exp(phi theta), and a reward that makes `theta` the best policy."""

    def __init__(self, shape=(3, 4, 3), *, beta=0.5, spread=1.5, seed=0):
        rng = np.random.default_rng(seed)
        self.beta, self.features = beta, rng.standard_normal(shape)
        self.base = log_softmax(rng.standard_normal(shape[:2]), axis=1)
        self.theta = spread * rng.standard_normal(shape[2]) / beta
        self.reward = beta * self.features @ self.theta
        first, second = pair_slots(shape[1])
        both = np.exp(self.log_policy(self.theta))
        ones = np.ones(shape[:2], dtype=bool)
        self.pool = Pool(features=self.features, valid=ones, rewards=self.reward, beta=beta)
        fisher = self.pool.space.information(both[:, first] * both[:, second] / shape[0])
        self.pool = replace(self.pool, fisher=fisher)

    def log_policy(self, theta):
        return log_softmax(self.base + np.einsum("pkd,...d->...pk", self.features, theta), axis=-1)

    def value(self, theta):
        log_policy = self.log_policy(theta)
        return (np.exp(log_policy) * (self.reward - self.beta * (log_policy - self.base))).sum(axis=-1).mean(axis=-1)

    def gap(self, theta):
        """beta E_x KL(pi || best policy)."""
        log_policy = self.log_policy(theta)
        divergence = (np.exp(log_policy) * (log_policy - self.log_policy(self.theta))).sum(axis=-1)
        return self.beta * divergence.mean(axis=-1)

    def trained(self, counts, rng, *, repeats):
        """Maximum likelihood on labels drawn from the reward, `counts` of each pair; (repeats, dim)."""
        first, second = pair_slots(self.features.shape[1])
        vectors = self.beta * (self.features[:, first] - self.features[:, second]).reshape(-1, len(self.theta))
        wins = rng.binomial(counts, expit(vectors @ self.theta), size=(repeats, len(counts)))
        theta = np.tile(self.theta, (repeats, 1))
        for _ in range(12):
            chance = expit(theta @ vectors.T)
            hessian = np.einsum("re,ei,ej->rij", counts * chance * (1 - chance), vectors, vectors, optimize=True)
            step = np.linalg.solve(hessian, ((wins - counts * chance) @ vectors)[:, :, None])[:, :, 0]
            theta = theta + step
        assert np.abs(step).max() < 1e-8
        return theta


def test_the_loss_of_a_policy_is_its_divergence_and_near_the_best_the_fisher_form():
    model = LogLinear((5, 6, 3), seed=1)
    direction, errors = np.array([1.0, -0.5, 2.0]), []
    for size in (1e-1, 1e-2, 1e-3):
        theta = model.theta + size * direction
        assert model.value(model.theta) - model.value(theta) == pytest.approx(model.gap(theta), rel=1e-6, abs=1e-14)
        form = model.beta / 2 * size**2 * direction @ model.pool.policy_fisher @ direction
        errors.append(abs(model.gap(theta) / form - 1))
    assert errors[2] < 3e-3
    np.testing.assert_allclose(np.divide(errors[:2], errors[1:]), 10, rtol=0.2)  # the remainder is of third order


def test_the_criterion_predicts_what_policies_trained_on_real_labels_lose():
    model = LogLinear()
    criterion = trace_criterion(model.pool, ridge=1e-9)
    blind = trace_criterion(replace(model.pool, rewards=np.zeros((3, 4))), ridge=1e-9)
    problem, lost = Problem(criterion, Limits(mask=model.pool.pair_mask, budget=5)), {}
    optimum = bounded_design(problem, Effort(tolerance=1e-5))
    for name, weights in {"uniform": np.ones((3, 6)), "design": optimum.weights}.items():
        counts = np.round(20_000 * weights / weights.sum())
        gaps = model.gap(model.trained(counts.ravel().astype(int), np.random.default_rng(2), repeats=4000))
        error = gaps.std() / np.sqrt(len(gaps))
        assert error < 0.03 * gaps.mean()
        assert abs(gaps.mean() - model.beta / 2 * criterion.objective(counts)) < 3 * error
        assert abs(gaps.mean() - model.beta / 2 * blind.objective(counts)) > 6 * error
        lost[name] = gaps.mean() + 3 * error * (1 if name == "design" else -1)
    assert lost["design"] < lost["uniform"]
