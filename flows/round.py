"""One preference round: its stages, in the order in which they happen."""

from typing import cast

from prefect import flow

from cluster.models import Contrast
from cluster.settings import Settings
from flows.config import RoundConfig
from flows.history import History
from flows.opening import check_round, open_round
from flows.pools import write_explored, write_pool
from tasks.candidates import Offer
from tasks.evaluation import evaluate_policy
from tasks.features import compute_features, likelihoods_alone
from tasks.generation import generate_responses
from tasks.labelling import label_pairs
from tasks.parking import Parked, Waiting
from tasks.promotion import promote_policy
from tasks.prompts import draw_prompts, hold_out_prompts
from tasks.recall import recall_responses
from tasks.selection import select_pairs
from tasks.stages import RoundContext
from tasks.training import train_policy, trained_policy


@flow(name="preference-round", flow_run_name="{lineage}-r{round_number:03d}")
def preference_round(config: RoundConfig, lineage: str, round_number: int) -> Waiting | None:
    """Run the stages of a round; gives what it waits for, where people have not answered yet.

    Stages that are finished in the store are reused, so running a round again repeats only what was lost.
    """
    settings = Settings()
    check_round(config, settings)
    try:
        with open_round(config, lineage, round_number, settings) as (here, past):
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
    held_out = hold_out_prompts(config.prompts, here)
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

    asked = config.generation.model_copy(update={"num_responses": config.evaluation.num_responses})
    answers = {
        "policy": generate_responses(held_out, policy, asked, here, name="answers"),
        "base": generate_responses(held_out, past.base, asked, here, name="answers_base"),
        "previous": generate_responses(held_out, past.policy, asked, here, name="answers_previous"),
    }
    judged = Contrast(policy=policy, reference=contrast.reference)
    likelihoods = likelihoods_alone(config.features)
    answer_features = compute_features(answers["policy"], judged, likelihoods, here, name="answer_features")
    scores = evaluate_policy(answers, answer_features, config.evaluation, here)
    promote_policy(trained, scores, config.promotion, here)
