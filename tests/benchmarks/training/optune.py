"""OPTUNE: a second round in which only a share of the prompts gets a new pool, on the demo's model."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from measuring import Finding

CONFIG = Path(__file__).parents[3] / "configs" / "demo-optune.yaml"
SHARES = (1.0, 0.7, 0.5, 0.3)
GENERATION = ("pool", "features", "recalled_features")
"""Stages whose work shrinks with the share."""


def regeneration(_repeats: int) -> Iterator[Finding]:
    """Wall seconds of round 1 at every share, and the win rate that it ends with; round 0 is the same for all."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        _run(_config(Path(folder), SHARES[0]), 0, home)
        found = {share: _second_round(Path(folder), share, home) for share in SHARES}
    whole, _ = found[1.0]
    for share, (seconds, stages) in found.items():
        parts = ", ".join(f"{stage} {stages[stage]['seconds']:.0f} s" for stage in (*GENERATION, "training", "answers"))
        wins = stages["evaluation"]
        yield Finding(
            workload=f"round 1 of the demo's model, rho = {share:g}: speed-up over rho = 1, everything included",
            ours=f"{seconds:.0f} s ({parts}); win rate {wins['win_base']:.2f} (s.e. {wins['win_base_se']:.2f})",
            peer=f"rho = 1: {whole:.0f} s",
            number=whole / seconds,
        )


def _second_round(folder: Path, share: float, home: Path) -> tuple[float, dict[str, Any]]:
    """Wall seconds of the command, and the measures of every stage."""
    config = _config(folder, share)
    if share != SHARES[0]:
        _run(config, 0, home)  # every stage is found finished
    begun = time.perf_counter()
    _run(config, 1, home)
    seconds = time.perf_counter() - begun
    record = home / "store" / "lineages" / _name(share) / "round-001"
    return seconds, {file.stem: _measures(file) for file in record.glob("*.json")}


def _measures(file: Path) -> dict[str, Any]:
    manifest = json.loads((Path(json.loads(file.read_text())["path"]) / "manifest.json").read_text())
    return {**manifest["measures"], "seconds": manifest["seconds"]}


def _config(folder: Path, share: float) -> Path:
    values = yaml.safe_load(CONFIG.read_text())
    values["lineage"] = _name(share)
    values["round"]["prompts"]["path"] = str(CONFIG.parent / values["round"]["prompts"]["path"])
    values["round"]["prompts"]["regenerate"]["rho"] = share
    path = folder / f"{_name(share)}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def _name(share: float) -> str:
    return f"optune-{share:g}"


def _run(config: Path, number: int, home: Path) -> None:
    command = [str(Path(sys.executable).parent / "pairwright"), "round", str(config), "--round", str(number)]
    subprocess.run(command, env={**os.environ, "PAIRWRIGHT_HOME": str(home)}, stdout=sys.stderr, check=True)
