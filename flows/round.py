"""One preference round: its stages, in the order in which they happen."""

from typing import cast

from prefect import flow

from cluster.models import Contrast
from cluster.settings import Settings
from flows.config import RoundConfig
from flows.filing import Filing
from flows.history import History
from flows.judging import judge_policy, set_aside
from flows.opening import check_round, open_round
from flows.pools import write_explored, write_pool
from tasks.candidates import Offer
from tasks.features import compute_features, likelihoods_alone
from tasks.labelling import label_pairs
from tasks.margins import Taught, compute_margins, gather_selected
from tasks.parking import Parked, Waiting
from tasks.promotion import promote_policy
from tasks.prompts import draw_prompts
from tasks.recall import recall_responses
from tasks.selection import select_pairs
from tasks.stages import RoundContext
from tasks.training import train_policy, trained_policy


@flow(name="preference-round", flow_run_name="{lineage}-r{round_number:03d}")
def preference_round(
    config: RoundConfig, lineage: str, round_number: int, filing: Filing | None = None
) -> Waiting | None:
    """Run the stages of a round; gives what it waits for, where people have not answered yet.

    Stages that are finished in the store are reused, so running a round again repeats only what was lost. Without
    `filing`, MLflow has its run where the lineage's are.
    """
    settings = Settings()
    check_round(config, settings)
    try:
        with open_round(config, lineage, round_number, settings, filing=filing) as (here, past):
            go_through(config, past, here)
    except Parked as parked:
        return cast(Waiting, parked.waiting.state)
    return None


def go_through(config: RoundConfig, past: History, here: RoundContext) -> None:
    """Write a pool, choose pairs, have them labelled, train, evaluate, promote.

    Raises:
        Parked: people have not answered yet.
    """
    contrast = past.contrast(config.training)
    prompts = draw_prompts(config.prompts, past.rounds, here)
    aside = set_aside(config, past, here)
    pool = write_pool(prompts, past, config, here)
    features = compute_features(pool, contrast, config.features, here)
    recalled = recall_responses(
        past.rounds, here, labelled=config.selection.labels == "current", offer_rounds=config.selection.offer_rounds
    )
    recalled_features = compute_features(recalled, contrast, config.features, here, name="recalled_features")
    offer = Offer(features, recalled_features, past.rounds, config.features.num_components)
    pairs = select_pairs(offer, config.selection_in(here.round), config.training.beta, here)
    preferences = label_pairs(pairs, [pool, recalled], past.preferences, config.labelling, here)
    explored = write_explored(prompts, past, config, here)
    lessons = past.lessons(config.training, preferences, [features, recalled_features], explored)
    trained = train_policy(lessons, config.training, here)
    policy = trained_policy(past.base, trained)
    selected = gather_selected(pairs, [pool, recalled], here)
    taught = Contrast(policy=policy, reference=contrast.reference)
    after = compute_features(selected, taught, likelihoods_alone(config.features), here, name="selected_features")
    compute_margins(Taught(pairs, preferences, [features, recalled_features], after), config.training.beta, here)
    scores = judge_policy(policy, aside, past, config, here)
    promote_policy(trained, scores, config.promotion, here)
