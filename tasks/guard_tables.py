"""Guard tables: held-out text and multiple choice with their likelihoods, and what those tell of a policy."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.feature_tables import read_features
from tasks.guards import Estimate, Values, perplexity, share_right, told
from tasks.tables import RESPONSES, Table, read

POLICIES = {"": "logp_policy", "_base": "logp_reference"}
"""Columns of likelihoods by what the measures of whose they are end with."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class GuardTables:
    """What guards read beside the policy's answers; None where the config asks for no such guard.

    Attributes:
        texts: held-out text and multiple choice.
        features: of those texts; they contrast the new policy with the base.
        base_answers: features of the base's answers, with the judge's scores.
    """

    texts: Table | None = None
    features: Table | None = None
    base_answers: Table | None = None

    @property
    def digests(self) -> list[str]:
        """Of the tables that are there."""
        return [table.digest for table in (self.texts, self.features, self.base_answers) if table is not None]


def guard_measures(guards: GuardTables) -> dict[str, float]:
    """Perplexity of the held-out text and accuracy on the multiple choice, of the policy and of the base."""
    if guards.texts is None or guards.features is None:
        return {}
    texts, questions = _texts_and_questions(guards.texts, guards.features)
    found: dict[str, float] = {}
    for ending, column in POLICIES.items():
        if texts:
            found |= told(f"perplexity{ending}", perplexity(_numbers(texts, column), _numbers(texts, "num_tokens")))
        if questions:
            found |= told(f"capability{ending}", accuracy(questions, column))
    return found


def accuracy(questions: Sequence[Sequence[Row]], column: str) -> Estimate:
    """Share of questions answered right, rows of choices with `answer`: whether it is the right one.

    The choice that is taken has the highest log-probability per token. Sums favour short choices, so that
    lm-evaluation-harness divides them by characters (`acc_norm`), which serves models of different vocabularies;
    a policy and its base have one.
    """
    per_token = [_numbers(choices, column) / _numbers(choices, "num_tokens") for choices in questions]
    return share_right(per_token, [[row["answer"] for row in choices].index(True) for choices in questions])


def _texts_and_questions(given: Table, features: Table) -> tuple[list[Row], list[list[Row]]]:
    columns = ["response_id", "num_tokens", *POLICIES.values()]
    scored = {row["response_id"]: row for row in read_features(features.path).select(columns).to_pylist()}
    texts: list[Row] = []
    questions: dict[str, list[Row]] = {}
    for row in read(given.path, RESPONSES).to_pylist():
        answer = json.loads(row["sampling"])["answer"]
        home = texts if answer is None else questions.setdefault(row["prompt_id"], [])
        home.append(scored[row["response_id"]] | {"answer": answer})
    return texts, list(questions.values())


def _numbers(rows: Sequence[Row], column: str) -> Values:
    """Nulls as NaN."""
    return np.array([row[column] for row in rows], dtype=np.float64)
