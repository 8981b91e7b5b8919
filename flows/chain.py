"""The chain of a lineage: which adapter came from which, by which labels, out of which pools.

It is read from the manifests of stages and from nothing else, in the store or as MLflow has them. Since the digest of a
stage is that of its config and inputs, a chain read from MLflow can be checked against itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.errors import InputError
from cluster.runs import read_text, runs_of
from cluster.storage import Manifest, StageKey, Store
from cluster.tracking import Tracker
from flows.report import rounds_of
from tasks.stages import CHAINED, manifest_artifact

Manifests = Mapping[str, Manifest]


@dataclass(frozen=True)
class Link:
    """One round of a chain; everything but the number is a digest of a stage or of the base policy.

    Attributes:
        round: its number.
        pool: its responses.
        writer: the policy that wrote them, the base or an earlier adapter; None: they are logged ones alone.
        offered: pools that its pairs could be chosen from, its own and those of earlier rounds that it offered again.
        selection: the pairs chosen.
        labels: the round's own preferences.
        learnt_from: all preferences that training read, oldest first.
        start: the policy that training started from.
        reference: the policy that it was pulled to.
        adapter: what came of it, the policy of the next round.
    """

    round: int
    pool: str
    writer: str | None
    offered: tuple[str, ...]
    selection: str
    labels: str
    learnt_from: tuple[str, ...]
    start: str
    reference: str
    adapter: str


@dataclass(frozen=True)
class Chain:
    """A lineage's rounds as far as they have been trained, from the first."""

    lineage: str
    links: tuple[Link, ...]
    base: str | None = None
    """The policy of round 0; None before any round was trained."""

    def name(self, digest: str | None) -> str:
        """What a digest of the chain is, in words."""
        if digest is None:
            return "logged"
        names: dict[str | None, str] = {link.adapter: f"adapter of round {link.round}" for link in reversed(self.links)}
        names |= {link.labels: f"labels of round {link.round}" for link in reversed(self.links)}
        names |= {link.pool: f"pool of round {link.round}" for link in reversed(self.links)}
        return "base" if digest == self.base else names.get(digest, "unknown")


def chain_of_store(store: Store, lineage: str) -> Chain:
    """Read the chain from the manifests of the store."""
    return _chain(lineage, {report.number: report.manifests for report in rounds_of(store, lineage)})


def chain_of_tracking(tracker: Tracker, lineage: str) -> Chain:
    """Read the chain from MLflow alone.

    Raises:
        InputError: a manifest in it isn't that of the stage that its run names, or doesn't give its own digest.
    """
    found: dict[int, dict[str, Manifest]] = {}
    for number, run in runs_of(tracker, lineage).rounds.items():
        digests = {stage: run.tags[f"digest.{stage}"] for stage in CHAINED if f"digest.{stage}" in run.tags}
        found[number] = {
            stage: _checked(
                read_text(tracker, run.run, manifest_artifact(stage)), digest, place=f"{stage} of {run.run}"
            )
            for stage, digest in digests.items()
        }
    return _chain(lineage, found)


def _checked(text: str, digest: str, *, place: str) -> Manifest:
    manifest = Manifest.model_validate_json(text)
    key = StageKey(manifest.stage, manifest.config, manifest.inputs, manifest.stage_version)
    if not digest == manifest.digest == key.digest:
        raise InputError(
            f"the manifest of {place} in MLflow doesn't fit: its run names {digest}, it names {manifest.digest}, and "
            f"its config and inputs give {key.digest}; expected the same. Run the round again, which logs it anew"
        )
    return manifest


def _chain(lineage: str, rounds: Mapping[int, Manifests]) -> Chain:
    trained: dict[int, Manifests] = {}
    for number in range(len(rounds)):
        if not all(stage in rounds.get(number, {}) for stage in CHAINED[1:]):
            break
        trained[number] = rounds[number]
    links = tuple(_link(number, trained) for number in trained)
    return Chain(lineage, links, trained[0]["training"].inputs[0] if trained else None)


def _link(number: int, rounds: Mapping[int, Manifests]) -> Link:
    own = rounds[number]
    _, start, reference, *_ = own["training"].inputs  # see `tasks.lessons.Lessons.digests`
    return Link(
        round=number,
        pool=own["pool"].digest,
        writer=_writer(own),
        offered=(own["pool"].digest, *_offered_again(own, [rounds[earlier] for earlier in range(number)])),
        selection=own["selection"].digest,
        labels=own["preferences"].digest,
        learnt_from=_learnt_from(own["training"].inputs),
        start=start,
        reference=reference,
        adapter=own["training"].digest,
    )


def _writer(own: Manifests) -> str | None:
    """The policy of the responses that were drawn, see `tasks.generation`."""
    drawn = own.get("drawn", own["pool"])
    return drawn.inputs[1] if drawn.stage == "responses" else None


def _offered_again(own: Manifests, past: Sequence[Manifests]) -> list[str]:
    number = int(own["recalled"].config.get("offer_rounds", 0))
    return [one["pool"].digest for one in past[max(0, len(past) - number) :]]


def _learnt_from(inputs: Sequence[str]) -> tuple[str, ...]:
    """The digests of labels: after those of three policies, and their number."""
    return tuple(inputs[4 : 4 + int(inputs[3])])
