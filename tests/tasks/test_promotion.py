"""Promotion: the alias moves through the gate alone, and the reason is kept either way."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from cluster.storage import Manifest, StageKey
from tasks.promotion import CHAMPION, PromotionConfig, decide, promote_policy
from tasks.stages import ADAPTER, Publish, RoundContext, manifest_of, run_stage
from tasks.tables import Table

MODEL = "pairwright-demo"
GATE = PromotionConfig()

Promote = Callable[[RoundContext, float, float], Table]


def stage(here: RoundContext, name: str, measures: Mapping[str, float]) -> Table:
    """A finished stage that measured this."""
    key = StageKey(name, {"round": here.round, **measures}, [])
    return run_stage(key, lambda _: measures, here, publish=Publish(name))


def measured(rate: float, error: float) -> dict[str, float]:
    return {"win_base": rate, "win_base_se": error, "win_previous": 0.1, "win_previous_se": 0.01}


def evaluation(here: RoundContext, rate: float, error: float) -> Manifest:
    return manifest_of(stage(here, "scores", measured(rate, error)))


@pytest.fixture
def promote(tmp_path: Path) -> Promote:
    """Promote the round's adapter, after an evaluation with this win rate and standard error."""

    def run(here: RoundContext, rate: float, error: float) -> Table:
        adapter = tmp_path / f"adapter-{here.round}"
        adapter.mkdir(exist_ok=True)
        (adapter / "adapter_config.json").write_text("{}")
        here.tracker.log_folder(here.run, adapter, artifact_path=ADAPTER)
        trained = stage(here, "adapter", {})
        return promote_policy.fn(trained, stage(here, "scores", measured(rate, error)), GATE, here)

    return run


def champion(here: RoundContext) -> str | None:
    return here.tracker.get_alias(MODEL, CHAMPION)


def versions(here: RoundContext) -> int:
    return len(here.tracker.client.search_model_versions(f"name = '{MODEL}'"))


@pytest.mark.parametrize(
    ("rate", "error", "config", "promoted"),
    [
        (0.70, 0.10, GATE, True),  # 0.70 - 1.645 x 0.10 = 0.536
        (0.66, 0.10, GATE, False),  # 0.4955
        (0.50, 0.00, GATE, False),  # the bound has to exceed the threshold, not to reach it
        (0.70, 0.10, PromotionConfig(confidence=0.99), False),  # 0.70 - 2.326 x 0.10 = 0.467
        (0.66, 0.10, PromotionConfig(threshold=0.4), True),
        (0.70, 0.10, PromotionConfig(against="previous"), False),
    ],
)
def test_the_lower_bound_has_to_exceed_the_threshold(
    here: RoundContext, rate: float, error: float, config: PromotionConfig, *, promoted: bool
) -> None:
    assert decide(evaluation(here, rate, error), config)["promoted"] is promoted


def test_the_reason_states_rate_error_bound_and_threshold(here: RoundContext) -> None:
    decision = decide(evaluation(here, 0.7, 0.1), GATE)
    assert decision["lower_bound"] == pytest.approx(0.7 - 1.6448536 * 0.1)
    assert decision["reason"] == (
        "promoted: win rate against base is 0.700 +- 0.100, its 95% lower bound 0.536 is above 0.500"
    )


def test_a_policy_above_the_gate_becomes_champion(here: RoundContext, promote: Promote) -> None:
    table = promote(here, 0.9, 0.1)
    assert champion(here) == "1"
    assert manifest_of(table).measures["promoted"] == 1.0


def test_a_policy_below_the_gate_is_registered_and_no_champion(here: RoundContext, promote: Promote) -> None:
    table = promote(here, 0.6, 0.1)
    assert champion(here) is None
    assert versions(here) == 1
    assert manifest_of(table).measures["promoted"] == 0.0


@pytest.mark.parametrize(("rate", "verdict"), [(0.9, "promoted: "), (0.6, "not promoted: ")])
def test_the_reason_is_kept_either_way(
    here: RoundContext, promote: Promote, tmp_path: Path, rate: float, verdict: str
) -> None:
    table = promote(here, rate, 0.1)
    (version,) = here.tracker.client.search_model_versions(f"name = '{MODEL}'")
    reason = version.tags["pairwright.promotion"]
    assert reason.startswith(verdict)
    text = Path(here.tracker.client.download_artifacts(here.run, "promotion.txt", str(tmp_path))).read_text()
    assert text == reason + "\n"
    assert reason in (table.path / "decision.json").read_text()


def test_a_worse_policy_leaves_the_champion(
    here: RoundContext, promote: Promote, join_round: Callable[..., RoundContext]
) -> None:
    promote(here, 0.9, 0.1)
    promote(join_round(here.settings.root, round_number=1), 0.6, 0.1)
    assert (champion(here), versions(here)) == ("1", 2)


def test_a_better_policy_takes_the_alias(
    here: RoundContext, promote: Promote, join_round: Callable[..., RoundContext]
) -> None:
    promote(here, 0.9, 0.1)
    promote(join_round(here.settings.root, round_number=1), 0.8, 0.1)
    assert (champion(here), versions(here)) == ("2", 2)


def test_promoting_again_registers_nothing_twice(here: RoundContext, promote: Promote) -> None:
    tables = [promote(here, 0.9, 0.1) for _ in range(2)]
    assert tables[0] == tables[1]
    assert (champion(here), versions(here)) == ("1", 1)


def test_an_earlier_round_that_runs_again_dethrones_no_later_one(
    here: RoundContext, promote: Promote, join_round: Callable[..., RoundContext]
) -> None:
    promote(here, 0.9, 0.1)
    promote(join_round(here.settings.root, round_number=1), 0.8, 0.1)
    promote(here, 0.9, 0.1)
    assert (champion(here), versions(here)) == ("2", 2)
