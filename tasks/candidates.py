"""Candidates: the pairs that a round may choose from and the labels it holds, read from tables into arrays."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
import pyarrow as pa

from cluster.errors import InputError
from tasks.design.arrays import BoolArray, FloatArray, IntArray
from tasks.design.pool import Labels, Pool
from tasks.design.preprocess import Blocks, Projection, Scaling, fit_projection, fit_scaling
from tasks.feature_tables import VECTOR, concat_features, read_features, vectors_of
from tasks.grid import Grid
from tasks.tables import PREFERENCES, PROXY_SCORE, RESPONSES, PastRound, Table, decided, latest, read

LabelFeatures = Literal["current", "stored"]
Ends = tuple[pa.Table, pa.Table]
"""Features of the chosen and of the rejected responses of some labels, row by row."""


@dataclass(frozen=True)
class Offer:
    """What a round can choose from, and what it knows.

    Attributes:
        features: scores of this round's pool.
        recalled: scores of responses of earlier rounds under this round's policy and reference.
        past: the earlier rounds, in order.
        num_components: principal axes of the standardised vectors that are kept at most; None: the vectors as they are,
            but for one factor that makes their mean square about their mean 1.
    """

    features: Table
    recalled: Table
    past: Sequence[PastRound] = ()
    num_components: int | None = None

    @property
    def digests(self) -> list[str]:
        """The digests of all tables."""
        return [self.features.digest, self.recalled.digest, *(digest for one in self.past for digest in one.digests)]


@dataclass(frozen=True)
class Reading:
    """How an offer is read.

    Attributes:
        beta: inverse temperature of the preference loss.
        labels: whose features the labels held have: "current": those of the recalled responses; "stored": those with
            which their pairs were chosen.
        offer_rounds: number of last rounds whose pools are offered again.
    """

    beta: float
    labels: LabelFeatures
    offer_rounds: int


def candidates(offer: Offer, reading: Reading) -> tuple[Pool, Grid]:
    """The pool that selectors choose from, and where its responses stand.

    Pairs that any earlier round asked about are not offered. The policy Fisher information is that of this round's
    responses alone, for those offered again were written by other policies.

    Raises:
        InputError: the proxy scored some of the valid responses and left out others.
    """
    responses = _offered(offer, reading.offer_rounds)
    scored = responses.table
    grid = Grid.of(scored, responses.staleness)
    valid = grid.fill(scored.column("valid").to_numpy(), False)
    held = _held(offer, reading.labels)
    projection = _projection(responses, held, offer.num_components)
    features = _features(responses, grid, projection)
    pool = Pool(
        features=features,
        valid=valid,
        rewards=grid.fill(_rewards(scored, reading.beta), 0.0),
        beta=reading.beta,
        labels=_labels(offer, held, projection, reading.beta),
        fisher=_fisher(features, valid, grid.staleness),
        scores=_scores(scored, grid),
        log_probs=grid.fill(_numbers(scored, "logp_policy"), 0.0),
        lengths=grid.fill(_numbers(scored, "num_tokens"), 0.0),
        offered=grid.without(_asked(offer.past)),
    )
    return pool, grid


@dataclass(frozen=True, eq=False)
class _Responses:
    """The responses that are offered.

    Attributes:
        table: all columns of their features but the vectors.
        staleness: of each.
        blocks: their vectors, some at a time and in order, float32 (rows, dim); nothing is copied before it is used.
    """

    table: pa.Table
    staleness: list[int]
    blocks: Blocks


def _offered(offer: Offer, offer_rounds: int) -> _Responses:
    """The responses of this round's pool and after them those that are offered again."""
    fresh, recalled = read_features(offer.features.path), read_features(offer.recalled.path)
    again = latest(offer.past, offer_rounds)
    ages = {
        name: age
        for age, one in zip(range(len(again), 0, -1), again, strict=True)
        for name in read(one.pool.path, RESPONSES).column("response_id").to_pylist()
    } | dict.fromkeys(fresh.column("response_id").to_pylist(), 0)
    found = np.array([ages.get(name, 0) for name in recalled.column("response_id").to_pylist()], dtype=np.intp)
    stale = np.flatnonzero(found)
    if not len(stale):
        return _Responses(fresh.drop_columns(VECTOR), [0] * fresh.num_rows, lambda: vectors_of(fresh))
    concat_features([fresh, recalled], str(offer.recalled.path))
    table = pa.concat_tables([fresh.drop_columns(VECTOR), recalled.drop_columns(VECTOR).take(pa.array(stale))])
    staleness = [0] * fresh.num_rows + found[stale].tolist()
    return _Responses(table, staleness, lambda: chain(vectors_of(fresh), vectors_of(recalled, stale)))


def _projection(responses: _Responses, held: Sequence[Ends], num_components: int | None) -> Projection | Scaling:
    """What is fitted on the valid responses that are offered."""
    valid = responses.table.column("valid").to_numpy()

    def blocks() -> Iterator[FloatArray]:
        start = 0
        for block in responses.blocks():
            yield block[valid[start : start + len(block)]]
            start += len(block)

    if num_components is not None:
        return fit_projection(blocks, dim=num_components)
    return fit_scaling(blocks, lambda: chain.from_iterable(vectors_of(end) for ends in held for end in ends))


def _features(responses: _Responses, grid: Grid, projection: Projection | Scaling) -> FloatArray:
    """Projected vectors in their places, (P, K, dim); zeros in padding and for what is not valid."""
    valid, (rows, columns) = responses.table.column("valid").to_numpy(), grid.places
    filled, start = np.zeros((*grid.response_ids.shape, projection.dim), dtype=projection.dtype), 0
    for block in responses.blocks():
        stop = start + len(block)
        kept = valid[start:stop]
        filled[rows[start:stop][kept], columns[start:stop][kept]] = projection(block[kept])
        start = stop
    return filled


def _numbers(scored: pa.Table, name: str) -> FloatArray:
    """A column as float64, 0 where it is null."""
    numbers: FloatArray = scored.column(name).fill_null(0).to_numpy().astype(np.float64)
    return numbers


def _rewards(scored: pa.Table, beta: float) -> FloatArray:
    """Implicit rewards beta (log pi - log pi_ref), nats; 0 where there is no score."""
    return beta * (_numbers(scored, "logp_policy") - _numbers(scored, "logp_reference"))


def _scores(scored: pa.Table, grid: Grid) -> FloatArray | None:
    """Proxy scores, (P, K); None where no valid response has one."""
    valid = scored.filter(scored.column("valid")).column(PROXY_SCORE)
    if valid.null_count == len(valid):
        return None
    if valid.null_count:
        raise InputError(
            f"{valid.null_count} of {len(valid)} valid responses have no proxy score, expected all or none: "
            "were their features written with another features.proxy? Remove those tables and let their stages run "
            "again, or set features.proxy to null"
        )
    return grid.fill(_numbers(scored, PROXY_SCORE), 0.0)


def _fisher(features: FloatArray, valid: BoolArray, staleness: IntArray) -> FloatArray | None:
    """None where the pool is all of this round, and says it itself; rows of this round come first."""
    fresh = int((staleness == 0).sum())
    if fresh == len(staleness):
        return None
    own = Pool(features=features[:fresh], valid=valid[:fresh], rewards=np.zeros(valid[:fresh].shape), beta=1.0)
    return own.policy_fisher


def _asked(past: Sequence[PastRound]) -> Iterable[tuple[str, str]]:
    for one in past:
        yield from _pairs(read(one.preferences.path, PREFERENCES))


def _decided(past: Sequence[PastRound]) -> Iterable[tuple[str, str]]:
    for one in past:
        yield from _pairs(decided(read(one.preferences.path, PREFERENCES)))


def _pairs(labels: pa.Table) -> Iterable[tuple[str, str]]:
    return zip(labels.column("chosen").to_pylist(), labels.column("rejected").to_pylist(), strict=True)


def _held(offer: Offer, labels: LabelFeatures) -> list[Ends]:
    """The labels held, as the features that speak of them."""
    if next(iter(_decided(offer.past)), None) is None:
        return []
    fresh = read_features(offer.features.path)
    if labels == "current":
        held = [_ends(offer.past, read_features(offer.recalled.path))]
    else:
        held = list(_stored_ends(offer.past))
    concat_features([fresh, *(end for ends in held for end in ends)], str(offer.features.path))
    return held


def _labels(offer: Offer, held: Sequence[Ends], projection: Projection | Scaling, beta: float) -> Labels | None:
    if not held:
        return None
    differences = [projection(_vectors(chosen)) - projection(_vectors(rejected)) for chosen, rejected in held]
    margins = [_rewards(chosen, beta) - _rewards(rejected, beta) for chosen, rejected in held]
    return Labels(
        differences=np.concatenate(differences).astype(np.float64),
        margins=np.concatenate(margins),
        score_gaps=_score_gaps(_stored_ends(offer.past)),
        prompts=_prompts(offer.past),
    )


def _vectors(scored: pa.Table) -> FloatArray:
    return np.concatenate(list(vectors_of(scored)))


def _stored_ends(past: Sequence[PastRound]) -> Iterator[Ends]:
    """The ends of each round's labels, as that round scored them; late labels' as the rounds before did."""
    for number, one in enumerate(past, start=1):
        needed = {name for pair in _decided([one]) for name in pair}
        if not needed:
            continue
        scored = _stored([one])
        if not needed <= set(scored.column("response_id").to_pylist()):
            scored = _stored(past[:number])
        yield _ends([one], scored)


def _stored(past: Sequence[PastRound]) -> pa.Table:
    tables = [read_features(table.path) for one in past for table in (one.features, one.recalled_features)]
    return concat_features([table for table in tables if table.num_rows], str(past[-1].features.path))


def _ends(past: Sequence[PastRound], scored: pa.Table) -> Ends:
    """The rows of this table of the chosen and of the rejected responses of some rounds' labels."""
    row_of = {response: row for row, response in enumerate(scored.column("response_id").to_pylist())}
    pairs = list(_decided(past))
    chosen, rejected = (scored.take(pa.array((row_of[pair[side]] for pair in pairs), pa.int64())) for side in range(2))
    return chosen, rejected


def _score_gaps(stored: Iterable[Ends]) -> FloatArray | None:
    """Proxy scores of the chosen responses minus those of the rejected, (n,); None where one is missing.

    They are those of before the label was bought: a policy that has learnt from a label agrees with it, and would say
    nothing of its own worth as a proxy.
    """
    columns = [[end.column(PROXY_SCORE) for end in ends] for ends in stored]
    if any(column.null_count for ends in columns for column in ends):
        return None
    gaps: FloatArray = np.concatenate([chosen.to_numpy() - rejected.to_numpy() for chosen, rejected in columns])
    return gaps


def _prompts(past: Sequence[PastRound]) -> IntArray:
    """A number for the prompt of each label, the same wherever that prompt comes again, (n,)."""
    names = [decided(read(one.preferences.path, PREFERENCES)).column("prompt_id").to_pylist() for one in past]
    return np.unique(np.concatenate(names), return_inverse=True)[1]
