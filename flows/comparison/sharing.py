"""What the lineages of a comparison had in common: stages that were done once, answers that were paid once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from cluster.storage import Manifest, Store
from flows.comparison.config import Member
from flows.report import rounds_of
from tasks.labellers.ledger import Ledger

FIRST_ROUND = {"pool": "generated", "features": "computed"}
"""Stages of round 0 that lineages of a seed share, and how they come about."""

Uses = Mapping[str, Sequence[str]]
"""Lineages that use a stage, by its digest."""


def shared(everyone: Sequence[Member], store: Store, ledger: Ledger) -> tuple[str, ...]:
    """What was shared, in words, as records and manifests have it."""
    return (*_of_first_rounds(everyone, store), *_of_stages(everyone, store), *_of_labels(everyone, ledger))


def _of_first_rounds(everyone: Sequence[Member], store: Store) -> Iterator[str]:
    for seed in dict.fromkeys(member.seed for member in everyone):
        lineages = [member.lineage for member in everyone if member.seed == seed]
        for stage, verb in FIRST_ROUND.items():
            uses: dict[str, list[str]] = defaultdict(list)
            made: dict[str, Manifest] = {}
            for lineage in lineages:
                for report in rounds_of(store, lineage)[:1]:
                    if stage in report.manifests:
                        found = report.manifests[stage]
                        made[found.digest] = found
                        uses[found.digest].append(lineage)
            if made:
                yield f"round-0 {stage} of seed {seed}: {_told(uses, made, verb)}"


def _told(uses: Uses, made: Mapping[str, Manifest], verb: str) -> str:
    if len(uses) == 1:
        ((digest, lineages),) = uses.items()
        one = made[digest]
        return f"{verb} once ({one.rows} rows, {one.seconds:.1f} s), used by {_count(len(lineages))}"
    parts = (f"{digest[:8]} used by {', '.join(lineages)}" for digest, lineages in uses.items())
    return f"{len(uses)} different ones: {'; '.join(parts)}"


def _of_stages(everyone: Sequence[Member], store: Store) -> Iterator[str]:
    """How many stages of a lineage were another's, too; within a lineage a stage counts once."""
    made: dict[str, Manifest] = {}
    num_uses, seconds = 0, 0.0
    for member in everyone:
        own = {one.digest: one for report in rounds_of(store, member.lineage) for one in report.manifests.values()}
        num_uses += len(own)
        seconds += sum(one.seconds for one in own.values())
        made.update(own)
    saved = seconds - sum(one.seconds for one in made.values())
    if num_uses > len(made):
        yield f"stages: {num_uses} in all lineages, {len(made)} different ones: {saved:.0f} s of work were shared"


def _of_labels(everyone: Sequence[Member], ledger: Ledger) -> Iterator[str]:
    spends = [ledger.spend(member.lineage) for member in everyone]
    charged, bought = sum(one.num_labels for one in spends), sum(one.num_bought for one in spends)
    if charged:
        cost, paid = sum(one.cost for one in spends), sum(one.paid for one in spends)
        yield f"labels: {charged} charged to the lineages at {cost:g}, {bought} bought at {paid:g}"


def _count(number: int) -> str:
    return f"{number} lineage{'' if number == 1 else 's'}"
