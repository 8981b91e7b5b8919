"""Before a comparison: who takes part, and whether they differ in anything but selector, seed and budget."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cluster.errors import InputError
from cluster.settings import Settings
from cluster.storage import Store, digest_of
from flows.comparison.config import ComparisonConfig, Member, members, named
from flows.config import LineageConfig, RoundConfig
from flows.filing import filing_of
from flows.history import MAY_CHANGE, recorded, settled
from flows.opening import check_round
from flows.parking import round_on_record
from flows.report import lineages_of

FREE = ("selection.selector", "seed", "selection.budget")
"""Where the rounds of a comparison may differ."""
FIRST = ("model", "labelling.labeller", "training.reference")
"""The differences that are shown first."""
COMMON = ("prompts", "held_out", "pool")
"""Stages of round 0 that are the same for all lineages of a seed."""
OURS = "the comparison's config"


@dataclass(frozen=True)
class Party:
    """Who takes part in a comparison.

    Attributes:
        members: lineages that it runs, in order, each with the config that it has on record, if it has one.
        joined: lineages that ran before.
        confounds: differences between them other than selector, seed and budget, in words.
    """

    members: tuple[Member, ...]
    joined: tuple[Member, ...]
    confounds: tuple[str, ...]

    @property
    def everyone(self) -> tuple[Member, ...]:
        """All lineages of the report."""
        return self.members + self.joined


def check_comparison(
    config: ComparisonConfig, settings: Settings, *, allow_confounded: bool, only: Sequence[str] = ()
) -> Party:
    """Look at all that the members' rounds need, and at what they differ in, before any work.

    Raises:
        InputError: a lineage in `only` is none of the comparison's; a round can't be served, see `check_round`.
        InputError: the lineages differ in more than selector, seed and budget, and that is not allowed.
    """
    party = party_of(config, Store(settings.store))
    known = [member.lineage for member in party.members]
    if unknown := [name for name in only if name not in known]:
        raise InputError(
            f"comparison {config.comparison!r} does not run lineage {', '.join(unknown)}: it runs {', '.join(known)}"
        )
    require_fair(config, party, allow_confounded=allow_confounded)
    running = named(party.members, only or known)
    for round_config in {_key(member.config.round): member.config.round for member in running}.values():
        check_round(round_config, settings)
    return party


def require_fair(config: ComparisonConfig, party: Party, *, allow_confounded: bool) -> None:
    """See that lineages differ in selector, seed and budget alone.

    Raises:
        InputError: they differ in more, and that is not allowed.
    """
    if party.confounds and not allow_confounded:
        raise InputError(
            f"the lineages of comparison {config.comparison!r} differ in more than selector, seed and budget, so that "
            "nothing could be said of selectors:\n  "
            + "\n  ".join(party.confounds)
            + "\nrestore the values, leave those lineages out, or go on with --allow-confounded: the report will say so"
        )


def party_of(config: ComparisonConfig, store: Store) -> Party:
    """Who takes part, as things stand in the store.

    Raises:
        InputError: a lineage that is to join doesn't exist, or stands for the same as another.
        InputError: a member has run with another selector than the config gives it.
    """
    own = members(config)
    joined = tuple(_join(config, name, store) for name in config.lineages)
    _require_places(own + joined)
    rounds = {member.lineage: round_on_record(store, member.lineage) for member in own}
    for member in own:
        _require_selector(member, rounds[member.lineage])
    kept = tuple(_as_recorded(member, rounds[member.lineage]) for member in own)
    everyone = kept + joined
    return Party(kept, joined, tuple(_differences(config.base.round, everyone) or _mixtures(everyone, store)))


def _join(config: ComparisonConfig, lineage: str, store: Store) -> Member:
    found = round_on_record(store, lineage)
    if found is None:
        there = ", ".join(lineages_of(store)) or "none"
        raise InputError(f"lineages has {lineage!r}, which is not in {store.root}: found {there}; run it first")
    same = [name for name, selector in config.selectors.items() if selector == found.selection.selector]
    kind = found.selection.selector.kind
    selector = same[0] if same else (lineage if kind in config.selectors else kind)
    filed = filing_of(store, lineage).model_dump()
    lineage_config = LineageConfig.model_validate(
        {**filed, "lineage": lineage, "rounds": config.num_rounds, "round": found}
    )
    return Member(lineage, selector, found.seed, found.selection.budget, lineage_config)


def _require_places(everyone: Sequence[Member]) -> None:
    """Refuse two lineages that stand for the same selector, seed and budget."""
    taken: dict[tuple[str, int, int], Member] = {}
    for member in everyone:
        other = taken.setdefault((member.selector, member.seed, member.budget), member)
        if other is not member:
            raise InputError(
                f"lineages {other.lineage} and {member.lineage} are both selector {member.selector} with seed "
                f"{member.seed} and budget {member.budget}: leave one out of lineages"
            )


def _require_selector(member: Member, kept: RoundConfig | None) -> None:
    if kept is None:
        return
    had, has = _selector(kept), _selector(member.config.round)
    if (had, kept.seed, kept.selection.budget) != (has, member.seed, member.budget):
        raise InputError(
            f"lineage {member.lineage!r} has run with selector {had}, seed {kept.seed} and budget "
            f"{kept.selection.budget}, and the comparison gives it {has}: give the selector another name, or "
            "restore its values"
        )


def _selector(config: RoundConfig) -> str:
    return _text(config.model_dump(mode="json")["selection"]["selector"])


def _as_recorded(member: Member, kept: RoundConfig | None) -> Member:
    """With the round on record, where it isn't the comparison's, but for what may change."""
    if kept is None or settled(kept) == settled(member.config.round):
        return member
    values, wanted = (config.model_dump(mode="json") for config in (kept, member.config.round))
    for place in MAY_CHANGE:
        *folders, last = place.split(".")
        old, new = values, wanted
        for folder in folders:
            old, new = old[folder], new[folder]
        if last in old and last in new:
            old[last] = new[last]
    update = {"round": RoundConfig.model_validate(values)}
    return replace(member, config=member.config.model_copy(update=update))


def _differences(base: RoundConfig, everyone: Sequence[Member]) -> list[str]:
    """Values of rounds that are not the comparison's, each with the lineages that have them."""
    ours = settled(base)
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for member in everyone:
        for place, here, there in _apart(ours, settled(member.config.round)):
            found[place].setdefault(_text(here), [OURS])
            found[place][_text(there)].append(member.lineage)
    return [f"{place}: {_sides(found[place])}" for place in sorted(found, key=_importance)]


def _mixtures(everyone: Sequence[Member], store: Store) -> Iterator[str]:
    """What lineages of one seed should share and don't: files may have changed under configs that agree."""
    for seed in dict.fromkeys(member.seed for member in everyone):
        rounds = {member.lineage: recorded(store, member.lineage, 0) for member in everyone if member.seed == seed}
        for stage in COMMON:
            sides: dict[str, list[str]] = defaultdict(list)
            for lineage, tables in rounds.items():
                if stage in tables:
                    sides[tables[stage].digest[:12]].append(lineage)
            if len(sides) > 1:
                yield f"{stage} of round 0, seed {seed}: {_sides(sides)}"
                break


def _sides(sides: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{value} in {', '.join(who)}" for value, who in sides.items())


def _apart(ours: object, theirs: object, place: str = "") -> Iterator[tuple[str, object, object]]:
    """Places at which two configs differ; what is of different kinds differs as a whole."""
    if ours == theirs or place in FREE:
        return
    if not (isinstance(ours, dict) and isinstance(theirs, dict)) or ours.get("kind") != theirs.get("kind"):
        yield place, ours, theirs
        return
    for key in dict.fromkeys([*ours, *theirs]):
        yield from _apart(ours.get(key), theirs.get(key), f"{place}.{key}" if place else str(key))


def _importance(place: str) -> tuple[bool, str]:
    return not any(f"{place}.".startswith(f"{first}.") for first in FIRST), place


def _text(value: object) -> str:
    if isinstance(value, dict) and "kind" in value:
        rest = {key: inner for key, inner in value.items() if key != "kind"}
        return f"{value['kind']} {json.dumps(rest)}" if rest else str(value["kind"])
    return json.dumps(value)


def _key(config: RoundConfig) -> str:
    """What rounds have in common that need the same."""
    values: dict[str, Any] = config.model_dump(mode="json")
    selection = {key: value for key, value in values["selection"].items() if key not in {"selector", "budget"}}
    return digest_of(values | {"selection": selection, "seed": 0})
