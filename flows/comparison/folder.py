"""Where a comparison is kept: its record in the store, and the folder of its report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from cluster.settings import Settings
from cluster.storage import atomic_path, write_json
from flows.comparison.config import ComparisonConfig

if TYPE_CHECKING:
    from flows.comparison.evidence import Evidence

REPORT = ("report.html", "report.md", "evidence.json")
"""Files of a report; figures lie in `FIGURES`."""
FIGURES = "figures"


@dataclass(frozen=True)
class Folder:
    """The folders of a comparison.

    Attributes:
        record: its own in the store: the config it ran with last, and why rounds are missing.
        out: that of the report, the record's where no other is named.
    """

    record: Path
    out: Path

    @classmethod
    def of(cls, config: ComparisonConfig, settings: Settings, out: Path | None) -> Folder:
        """The folders of this comparison."""
        record = settings.store / "comparisons" / config.comparison
        return cls(record, out or record)

    def keep_config(self, config: ComparisonConfig) -> None:
        """Note the config with which the comparison runs."""
        write_json(self.record / "config.json", config.model_dump(mode="json"))

    def keep_reasons(self, news: Mapping[str, str]) -> None:
        """Note why lineages stopped; "" strikes out what was noted before."""
        found = {**self.reasons, **news}
        write_json(self.record / "reasons.json", {lineage: why for lineage, why in found.items() if why})

    @property
    def reasons(self) -> dict[str, str]:
        """Why lineages stopped when they ran last."""
        file = self.record / "reasons.json"
        return cast(dict[str, str], json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}

    def keep_evidence(self, evidence: Evidence) -> None:
        """Write what the report rests on."""
        from flows.comparison.evidence import to_json

        with atomic_path(self.out / "evidence.json") as temporary:
            temporary.write_text(to_json(evidence), encoding="utf-8")
