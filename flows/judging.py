"""Judging: what a round sets aside for its new policy, and how that policy does on it."""

from dataclasses import dataclass, replace

from cluster.models import Contrast, Policy
from flows.config import RoundConfig
from flows.history import History
from tasks.evaluation import evaluate_policy
from tasks.features import compute_features, likelihoods_alone
from tasks.generation import generate_responses
from tasks.guard_tables import GuardTables
from tasks.guard_texts import write_guard_texts
from tasks.prompts import hold_out_prompts
from tasks.stages import RoundContext
from tasks.tables import Table


@dataclass(frozen=True)
class SetAside:
    """What the policy is judged on: held-out prompts, and text and multiple choice where the config names files."""

    prompts: Table
    texts: Table | None


def set_aside(config: RoundConfig, past: History, here: RoundContext) -> SetAside:
    """Hold prompts out, and read what files give, before anything is trained on."""
    given = config.evaluation.read_given()
    prompts = hold_out_prompts(config.prompts, here)
    return SetAside(prompts, write_guard_texts(given, past.base, here) if given else None)


def judge_policy(policy: Policy, aside: SetAside, past: History, config: RoundConfig, here: RoundContext) -> Table:
    """Have the policy, the base and the round's own answer, and compare; guards contrast the policy with the base.

    A judge scores answers as a proxy scores a pool, beside their likelihoods.
    """
    asked = config.generation.model_copy(update={"num_responses": config.evaluation.num_responses})
    answers = {
        "policy": generate_responses(aside.prompts, policy, asked, here, name="answers"),
        "base": generate_responses(aside.prompts, past.base, asked, here, name="answers_base"),
        "previous": generate_responses(aside.prompts, past.policy, asked, here, name="answers_previous"),
    }
    judged = Contrast(policy=policy, reference=past.contrast(config.training).reference)
    likelihoods = likelihoods_alone(config.features)
    opinion = likelihoods.model_copy(update={"proxy": config.evaluation.judge})
    features = compute_features(answers["policy"], judged, opinion, here, name="answer_features")
    guards = GuardTables(texts=aside.texts)
    if config.evaluation.judge is not None:
        base = Contrast(policy=past.base, reference=past.base)
        scored = compute_features(answers["base"], base, opinion, here, name="answer_features_base")
        guards = replace(guards, base_answers=scored)
    if aside.texts is not None:
        against_base = Contrast(policy=policy, reference=past.base)
        scored = compute_features(aside.texts, against_base, likelihoods, here, name="guard_features")
        guards = replace(guards, features=scored)
    return evaluate_policy(answers, features, config.evaluation, here, guards=guards)
