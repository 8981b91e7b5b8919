"""Features may be arrays of other libraries, on other devices: the design is that of numpy."""

import subprocess
import sys
from dataclasses import replace

import array_api_compat
import array_api_strict
import numpy as np
import pytest
import torch

from tasks.design.arrays import index_like, namespace, take_rows, to_like, to_numpy
from tasks.design.capped import Problem, bounded_design
from tasks.design.limits import Limits
from tasks.design.pool import Labels
from tasks.design.search import Effort
from tasks.design.selectors import SELECTORS
from tasks.design.simplex import simplex_design

every_design = pytest.mark.parametrize("kind", ["trace_design", "d_design", "a_design", "v_design"])


def as_torch(features):
    return torch.from_numpy(features.copy())


def as_torch_view(features):
    """A tensor whose memory is in another order."""
    return torch.from_numpy(np.ascontiguousarray(features.T)).permute(*reversed(range(features.ndim)))


def as_cuda(features):
    return as_torch(features).cuda()


@pytest.fixture
def as_strict(monkeypatch):
    """Arrays that have what the standard names and nothing else; their host has a name of its own."""
    to_device, host = array_api_compat.to_device, array_api_strict.Device("CPU_DEVICE")

    def named(array, device, /, **options):
        strict = array_api_compat.is_array_api_strict_namespace(namespace(array))
        return to_device(array, host if strict else device, **options)

    monkeypatch.setattr(array_api_compat, "to_device", named)
    return array_api_strict.asarray


@pytest.fixture(params=["torch", "torch view", "strict", pytest.param("cuda", marks=pytest.mark.gpu)])
def library(request):
    """From numpy features to those of another library."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no accelerator")
    if request.param == "strict":
        return request.getfixturevalue("as_strict")
    return {"torch": as_torch, "torch view": as_torch_view, "cuda": as_cuda}[request.param]


@pytest.fixture
def pool(make_pool):
    """Holes, labels already held, and more prompts than one chunk takes."""
    plain, rng = make_pool((1200, 4, 5), masked=True, decay=0.5), np.random.default_rng(0)
    return replace(plain, labels=Labels(differences=rng.standard_normal((7, 5)), margins=rng.standard_normal(7)))


def select(kind, pool, budget=40):
    return SELECTORS[kind](max_pairs_per_prompt=2)(pool, budget, np.random.default_rng(0))


def pairs_of(selection):
    return list(zip(selection.prompt, selection.first, selection.second, strict=True))


@every_design
def test_features_of_another_library_give_the_same_selection(pool, library, kind):
    here, there = select(kind, pool), select(kind, replace(pool, features=library(pool.features)))
    assert set(pairs_of(there)) == set(pairs_of(here))
    for name in ("objective", "relaxed_objective", "lower_bound", "efficiency", "effective_rank"):
        assert getattr(there.certificate, name) == pytest.approx(getattr(here.certificate, name), rel=1e-6), name
    assert type(there.weights) is type(there.scores) is np.ndarray
    np.testing.assert_allclose(np.sort(there.scores), np.sort(here.scores), rtol=1e-6)


@every_design
def test_single_precision_of_another_library_comes_as_close_as_its_rounding(pool, library, kind):
    features = pool.features.astype(np.float32)
    here = select(kind, replace(pool, features=features)).certificate
    there = select(kind, replace(pool, features=library(features))).certificate
    assert there.objective == pytest.approx(here.objective, rel=1e-6)
    assert there.lower_bound == pytest.approx(here.lower_bound, rel=1e-3)  # both within the tolerance of one optimum
    assert there.objective == pytest.approx(select(kind, pool).certificate.objective, rel=1e-5)


@every_design
def test_every_limit_and_solver_knows_other_libraries(pool, library, kind):
    foreign, found = replace(pool, features=library(pool.features)), []
    for each in (pool, foreign):
        criterion = SELECTORS[kind]().criterion(each)
        exact = int(np.minimum(pool.pair_mask.sum(axis=1), 1).sum())
        one_each = Limits(mask=pool.pair_mask, budget=exact, cap=1, floor=1)
        priced = Limits(mask=pool.pair_mask, budget=50, costs=1 + np.arange(7200).reshape(1200, 6) % 7 / 7)
        designs = [bounded_design(Problem(criterion, limits), Effort(max_passes=6)) for limits in (one_each, priced)]
        found.append([design.objective for design in [*designs, simplex_design(criterion)]])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6)


def test_what_one_library_holds_comes_back_the_same(library):
    rng = np.random.default_rng(1)
    there = library(rng.standard_normal((5, 3)))
    index, values = np.array([4, 0, 0]), rng.standard_normal((3, 2)).T
    assert namespace(to_like(values, there)) is namespace(there)
    assert array_api_compat.device(index_like(index, there)) == array_api_compat.device(there)
    np.testing.assert_array_equal(to_numpy(to_like(values, there)), values)
    np.testing.assert_array_equal(to_numpy(take_rows(there, index)), to_numpy(there)[index])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_are_refused_with_their_place_in_any_library(pool, library, bad):
    features = pool.features.copy()
    features[1111, 3, 2] = bad
    with pytest.raises(ValueError, match=rf"features holds {bad} at prompt 1111, response 3"):
        replace(pool, features=library(features))
    with pytest.raises(ValueError, match="pass floats"):
        replace(pool, features=library(np.ones(features.shape, dtype=np.int64)))


def test_the_design_needs_none_of_the_libraries_that_may_hold_its_features():
    heavy = ["torch", "transformers", "ray", "prefect", "mlflow", "pyarrow", "pydantic", "cvxpy", "sklearn"]
    code = f"import sys, tasks.design.selectors, tasks.design.simplex; print(sorted(set({heavy}) & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
