"""Labelling: ask the labeller which response of each selected pair is better; the ledger pays each answer once."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveInt, model_validator

from cluster.errors import InputError
from cluster.rendering import plain_text
from cluster.storage import StageKey
from tasks.labellers import AnyLabeller
from tasks.labellers.aggregation import AnyAggregation, Majority, Verdict, agreement
from tasks.labellers.ledger import Account, Ledger, question_key
from tasks.labellers.people import PeopleLabeller
from tasks.labellers.protocol import Label, Question, Workplace
from tasks.labellers.simulated import SimulatedLabeller
from tasks.parking import late_keys, require_answers
from tasks.stages import Publish, RoundContext, round_record, run_stage, stage_task
from tasks.tables import PAIRS, PREFERENCES, RESPONSES, UNANSWERED, Table, part_path, read, write_part

NUM_EXAMPLES = 10

Row = dict[str, Any]


class LabellingConfig(BaseModel):
    """Who labels, how often a pair is asked, and what the lineage may spend."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    labeller: Annotated[AnyLabeller, Field(discriminator="kind")] = SimulatedLabeller()
    repeats: PositiveInt = Field(1, description="answers to each pair")
    aggregation: Annotated[AnyAggregation, Field(discriminator="kind")] = Field(
        Majority(), description="what several answers to a pair make of it"
    )
    budget: NonNegativeFloat | None = Field(None, description="most that the lineage's labels may cost in all")

    @model_validator(mode="after")
    def _repeats_can_differ(self) -> "LabellingConfig":
        if self.repeats > 1 and self.labeller.repeats_itself:
            raise ValueError(
                f"repeats is {self.repeats}, and labeller {self.labeller.kind} would only repeat its answer and be "
                "paid for it again: set repeats to 1, or a judge's temperature above 0"
            )
        return self


@stage_task("label pairs")
def label_pairs(
    pairs: Table, responses: Sequence[Table], past: Sequence[Table], config: LabellingConfig, here: RoundContext
) -> Table:
    """Have every pair of these responses labelled, asking only what the ledger doesn't know.

    `past` are the preferences of earlier rounds: pairs of theirs that were answered after their round had closed are
    taken in.

    Raises:
        Parked: people have not answered yet.
        InputError: the labels would cost more than the lineage may spend.
    """
    ledger = Ledger(url=here.settings.ledger)
    late = _late(past, ledger, config, here)
    key = _key(config, late, [pairs, *responses], here)
    asked = _asked(read(pairs.path, PAIRS).to_pylist(), _texts(responses))
    labels = [] if _is_closed(key, here) else _labels(asked, late, ledger, config, here)

    def work(folder: Path) -> Mapping[str, Any]:
        rows = _rows([*asked, *late], labels, config)
        write_part(part_path(folder, 0), rows, PREFERENCES)
        return _measures(rows, labels, config)

    table = run_stage(key, work, here, publish=Publish("preferences", parquet=True))
    ledger.close(here.lineage, here.round)
    log_spend(ledger, here)
    show_examples(key, here)
    return table


def _key(config: LabellingConfig, late: Sequence[Row], tables: Sequence[Table], here: RoundContext) -> StageKey:
    """When people's answers are in is a matter of each lineage, so that it shares no finished stage."""
    settled = {
        "lineage": here.lineage if isinstance(config.labeller, PeopleLabeller) else None,
        "labeller": config.labeller.identity,
        "repeats": config.repeats,
        "aggregation": asdict(config.aggregation) if config.repeats > 1 else None,
        "late": [row["pair_id"] for row in late],
    }
    return StageKey("preferences", settled, [table.digest for table in tables], version=3)


def log_spend(ledger: Ledger, here: RoundContext) -> None:
    """Log what the lineage's labels come to by the end of this round, as the ledger has it."""
    spends = [ledger.spend(here.lineage, number) for number in range(here.round + 1)]
    found = {"labels/spent": sum(one.num_labels for one in spends), "labels/cost": sum(one.cost for one in spends)}
    here.tracker.log_metrics(here.run, found, step=here.round)


def show_examples(key: StageKey, here: RoundContext) -> None:
    """Log some pairs with their label as a table that a person can read."""
    rows = read(here.store.stage(key).path, PREFERENCES).slice(0, NUM_EXAMPLES).to_pylist()
    columns = {
        "prompt": [plain_text(row["messages"]) for row in rows],
        "chosen": [row["chosen_text"] for row in rows],
        "rejected": [row["rejected_text"] for row in rows],
        "outcome": [row["outcome"] for row in rows],
        "labeller": [row["labeller"] for row in rows],
    }
    here.tracker.log_table(here.run, columns, artifact_file="examples.json")


def _labels(
    asked: Sequence[Row], late: Sequence[Row], ledger: Ledger, config: LabellingConfig, here: RoundContext
) -> list[list[Label]]:
    """The labels of the round's own pairs, and then those of late ones, which count for no deadline and ask nobody."""
    own = _answers([_question_of(row) for row in asked], ledger, config, here)
    questions = [_question_of(row) for row in late]
    return own + ledger.use_known(questions, config.labeller, _account(config, here), repeats=config.repeats)


def _answers(
    questions: Sequence[Question], ledger: Ledger, config: LabellingConfig, here: RoundContext
) -> list[list[Label]]:
    """The labels of every question; fewer than asked for only where people had their time."""
    workplace = Workplace(
        settings=here.settings,
        lineage=here.lineage,
        round=here.round,
        tracker=here.tracker,
        run=here.run,
    )
    account = _account(config, here)
    labels = ledger.buy(questions, config.labeller, account, workplace, repeats=config.repeats)
    wanted, found = len(questions) * config.repeats, sum(len(each) for each in labels)
    if found < wanted:
        if not isinstance(labeller := config.labeller, PeopleLabeller):
            raise InputError(
                f"labeller {labeller.kind} left {wanted - found} of {wanted} asks without an answer: see why, and run "
                "the round again; the answers given are kept"
            )
        require_answers(ledger, labeller.terms, lineage=here.lineage, round_number=here.round)
        return ledger.buy(questions, labeller, account, workplace, repeats=config.repeats)  # some came meanwhile
    return labels


def _account(config: LabellingConfig, here: RoundContext) -> Account:
    return Account(lineage=here.lineage, round=here.round, budget=config.budget)


def _is_closed(key: StageKey, here: RoundContext) -> bool:
    """Whether this very round has had its labels."""
    record = round_record(here.store, here.lineage, here.round) / "preferences.json"
    return (
        here.store.stage(key).manifest is not None
        and record.exists()
        and json.loads(record.read_text(encoding="utf-8"))["digest"] == key.digest
    )


def _late(past: Sequence[Table], ledger: Ledger, config: LabellingConfig, here: RoundContext) -> list[Row]:
    """Rows of earlier rounds that had no answer then and have one now."""
    if not isinstance(config.labeller, PeopleLabeller):
        return []
    waiting = {_question_of(row).key: row for row in _unanswered(past)}
    if waiting:
        config.labeller.collect(ledger, here.tracker, here.lineage)
    keys = late_keys(ledger, waiting, store=here.store, lineage=here.lineage, round_number=here.round)
    return [waiting[key] for key in keys]


def _unanswered(past: Sequence[Table]) -> Iterator[Row]:
    """Pairs of these tables that no later one has an answer to."""
    rows = [row for table in past for row in read(table.path, PREFERENCES).to_pylist()]
    newest = {row["pair_id"]: row for row in rows}
    return (row for row in newest.values() if row["outcome"] == UNANSWERED)


def _texts(responses: Sequence[Table]) -> dict[str, Row]:
    tables = [
        read(table.path, RESPONSES).select(["response_id", "messages", "text", "token_ids"]) for table in responses
    ]
    return {row["response_id"]: row for table in tables for row in table.to_pylist()}


def _asked(pairs: Sequence[Row], texts: Mapping[str, Row]) -> list[Row]:
    """Rows of PREFERENCES in the order of the pairs, before anybody has said anything."""
    ends = [(pair, texts[pair["response_a"]], texts[pair["response_b"]]) for pair in pairs]
    return [
        {
            "pair_id": pair["pair_id"],
            "prompt_id": pair["prompt_id"],
            "messages": first["messages"],
            "chosen": pair["response_a"],
            "rejected": pair["response_b"],
            "chosen_text": first["text"],
            "rejected_text": second["text"],
            "chosen_token_ids": first["token_ids"],
            "rejected_token_ids": second["token_ids"],
            "weight": pair["loss_weight"],
        }
        for pair, first, second in ends
    ]


def _question_of(row: Row) -> Question:
    first, second = row["chosen_text"], row["rejected_text"]
    key = question_key(plain_text(row["messages"]), first=first, second=second)
    return Question(key=key, messages=row["messages"], first=first, second=second)


def _rows(asked: Sequence[Row], labels: Sequence[Sequence[Label]], config: LabellingConfig) -> list[Row]:
    verdicts = config.aggregation([_question_of(row) for row in asked], labels)
    odds = verdicts if config.repeats == 1 else [_with_odds(verdict) for verdict in verdicts]
    identity = config.labeller.identity
    return [_row(*each) | {"labeller": identity} for each in zip(asked, odds, labels, strict=True)]


def _row(asked: Row, verdict: Verdict, labels: Sequence[Label]) -> Row:
    turned = verdict.choice == "second"
    probability = verdict.probability
    votes = (verdict.votes_first, verdict.votes_second)[:: -1 if turned else 1]
    return (_turned(asked) if turned else asked) | {
        "outcome": verdict.outcome if labels else UNANSWERED,
        "swapped": bool(labels) and labels[0].swapped,
        "probability": 1 - probability if turned and probability is not None else probability,
        "votes_chosen": votes[0],
        "votes_rejected": votes[1],
        "num_answers": verdict.num_answers,
    }


def _with_odds(verdict: Verdict) -> Verdict:
    """A pair of which one answer alone came has the share of its votes, as the others of its round have."""
    if verdict.outcome != "preferred" or verdict.probability is not None:
        return verdict
    return replace(verdict, probability=verdict.votes_first / (verdict.votes_first + verdict.votes_second))


def _turned(asked: Row) -> Row:
    sides = {"chosen": "rejected", "rejected": "chosen"}
    return asked | {
        f"{side}{part}": asked[f"{other}{part}"]
        for side, other in sides.items()
        for part in ("", "_text", "_token_ids")
    }


def _measures(rows: Sequence[Row], labels: Sequence[Sequence[Label]], config: LabellingConfig) -> dict[str, Any]:
    outcomes = [row["outcome"] for row in rows]
    counts = {f"num_{outcome}": outcomes.count(outcome) for outcome in sorted(set(outcomes))}
    given = [label for each in labels for label in each]
    alpha = agreement(labels)
    return {
        **config.labeller.measures(given),
        **counts,
        "num_answers": len(given),
        "cost": sum(label.cost for label in given),
        **({} if alpha is None else {"agreement": alpha}),
    }
