"""Parts of what is lost: they add up, in every environment, and so do the differences that they make."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.settings import Settings
from flows.config import load
from flows.decomposition import PARTS, Parts, compare_parts, parts_of
from flows.figures import MOST_LINES, families_of
from flows.referee import UNIFORM, RefereeConfig, Stand, compare, read_results
from flows.standings import publish
from flows.verdict import Verdict, verdicts
from tasks.design.selectors import SELECTORS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")

WORLD = {"kind": "linear", "dim": 4, "num_prompts": 20, "num_responses": 4}
VALUES: dict[str, Any] = {
    "seeds": 3,
    "budgets": [10, 30, 120],
    "uniform_budgets": [60],
    "environments": {
        "plain": {"environment": WORLD, "selectors": ["top_gap", "first_two"]},
        "scored": {
            "environment": {**WORLD, "fit": 0.5},
            "proxies": [0.6],
            "metric": "utility",
            "num_rounds": 2,
            "budgets": [10, 30],
        },
    },
    "selectors": {kind: {"kind": kind} for kind in ("top_gap", "first_two", "best_worst")}
    | {f"capped{cap}": {"kind": "uniform", "max_pairs_per_prompt": cap} for cap in range(2, 12)},
}


def values(**of: list[float]) -> Any:
    return lambda prefix: np.array([of[prefix or "labels"]])


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Stand, RefereeConfig]:
    """A small referee that was run."""
    home = tmp_path_factory.mktemp("home")
    config = RefereeConfig.model_validate(VALUES)
    stand = Stand(home / "trials", home / "out")
    compare(config, stand, Settings(home=home))
    return stand, config


@pytest.fixture(scope="module")
def found(played: tuple[Stand, RefereeConfig]) -> list[Verdict]:
    stand, config = played
    return list(verdicts(config, read_results(config, stand)))


def test_parts_are_the_steps_from_the_best_to_the_labels() -> None:
    parts = parts_of(values(best_=[9.0], without_misfit_=[7.0], without_noise_=[6.5], labels=[2.5]))
    assert {part: parts.of(part).item() for part in PARTS} == {
        "reach": 2.0,
        "misfit": 0.5,
        "bias": 2.5,
        "variance": 4.0,
    }
    assert parts.loss.item() == 6.5


def test_who_loses_less_of_a_part_stands_above_in_it() -> None:
    lost = np.arange(12.0).reshape(6, 2) + 1
    parts = {name: Parts(reach=reach * lost, misfit=lost, variance=3 * lost) for name, reach in (("a", 1), ("b", 2))}
    found = compare_parts(parts, "b")
    assert [entry.mean for entry in found["reach"]["a"]] == pytest.approx(lost.mean(axis=0))
    assert {entry.verdict for entry in found["bias"]["a"]} == {"above"}
    assert [(entry.mean, entry.error) for entry in found["variance"]["a"]] == [(0.0, 0.0)] * 2


def test_bias_and_variance_are_all_that_is_lost(found: list[Verdict]) -> None:
    for verdict in found:
        best = np.concatenate([runs.values + runs.parts.loss for runs in verdict.runs.values()], axis=1)
        np.testing.assert_allclose(best, np.broadcast_to(best[:, :1], best.shape), rtol=1e-9)
        for name, entries in verdict.differences.items():
            of = [verdict.part_differences[part][name] for part in PARTS]
            for whole, reach, misfit, bias, variance in zip(entries, *of, strict=True):
                assert whole.mean == pytest.approx(bias.mean + variance.mean, abs=1e-12)
                assert bias.mean == pytest.approx(reach.mean + misfit.mean, abs=1e-12)


def test_all_pairs_have_variance_alone(found: list[Verdict]) -> None:
    plain = found[0]
    for parts in plain.parts.values():
        np.testing.assert_allclose(parts.bias[:, -1], 0.0, atol=1e-9)
        assert (parts.bias[:, 0] > 1e-3).all()
        assert (parts.variance[:, -1] > 0).all()


def test_an_environment_may_have_rounds_and_selectors_of_its_own(found: list[Verdict]) -> None:
    plain, scored = found
    assert list(plain.runs) == [UNIFORM, "first_two"]
    assert plain.absent == ("top_gap",)
    assert list(scored.runs) == [UNIFORM, *VALUES["selectors"]]


def test_report_summary_and_figures_tell_the_parts(played: tuple[Stand, RefereeConfig]) -> None:
    stand, config = played
    publish(config, stand)
    report = (stand.out / "report.md").read_text()
    assert "**plain, no proxy: bias, and gain on uniform**" in report
    assert "![scored, proxy 0.6, parts of the loss](scored-proxy-0.6-parts.png)" in report
    summary = json.loads((stand.out / "summary.json").read_text())
    for part in summary:
        lost = part["uniform_parts"]
        np.testing.assert_allclose(
            np.add(lost["bias"]["mean"], lost["variance"]["mean"]),
            np.add.reduce([lost[name]["mean"] for name in ("reach", "misfit", "variance")]),
        )
    assert len(config.selectors) > MOST_LINES, "the scored world is drawn as rows"
    for name in ("plain", "plain-parts", "scored-proxy-0.6", "scored-proxy-0.6-parts"):
        assert (stand.out / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_study_of_preferences_compares_every_selector_there_is() -> None:
    config = load(Path(__file__).parents[2] / "configs" / "study-preferences.yaml", RefereeConfig)
    assert {type(selector) for selector in config.selectors.values()} == set(SELECTORS.values())
    batch, rounds = (config.selectors_of(config.environments[name]) for name in ("d32", "d32_rounds"))
    assert batch | rounds == config.selectors
    assert set(config.selectors) - set(batch) == {"max_margin", "min_margin", "near_tie"}
    for arena in config.environments.values():
        assert (config.seeds, config.budgets_of(arena)) == (20, (64, 128, 256, 512, 1024, 2048, 4096))


def test_families_are_those_of_the_rules() -> None:
    mixture = SELECTORS["mixture"](selector=SELECTORS["badge"]())
    named = {"u": SELECTORS["uniform"](), "m": mixture, "g": SELECTORS["top_gap"]()}
    assert families_of(named) == {"u": "baselines", "m": "diversity", "g": "rewards"}


def test_unknown_selectors_of_an_environment_are_refused() -> None:
    plain = {"environment": WORLD, "selectors": ["top-gap"]}
    with pytest.raises(ValueError, match=r"environments.plain.selectors has \['top-gap'\]: name some of"):
        RefereeConfig.model_validate({**VALUES, "environments": {"plain": plain}})
