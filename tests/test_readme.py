"""What the README shows works as it stands there."""

import re
import subprocess
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cluster.settings import Settings
from tasks.design.arrays import FloatArray
from tasks.design.pool import Pool
from tasks.design.selectors import SELECTORS
from tasks.design.selectors.base import Ranked
from tasks.design.selectors.baselines import Uniform
from tasks.design.selectors.designs import TraceDesign
from tasks.features import DEFAULT_KIND, FEATURES
from tasks.gradients.projections import PROJECTIONS
from tasks.labellers import LABELLERS
from tasks.labellers.ledger import Account, Ledger, question_key
from tasks.labellers.protocol import Answer, Answered, Ask, Label, Question, Workplace

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SELECTOR, LABELLER = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
NAMES = (dataclass, Literal, Sequence, Pool, Ranked, TraceDesign, Uniform)
LABELLING = (Iterator, Mapping, Answer, Ask, Label, Question, Workplace)


def shown(block: str) -> dict[str, Any]:
    """The names that a block defines, given the imports of the file it belongs to."""
    names = {getattr(name, "__name__", None) or name._name: name for name in (*NAMES, *LABELLING)}
    names |= {"np": np, "FloatArray": FloatArray, "Answered": Answered}
    exec(block, names)
    return names


def test_the_selector_of_the_readme_selects() -> None:
    names = shown(SELECTOR)
    features = np.array([[[0.0], [1.0], [5.0]], [[0.0], [0.5], [0.6]]])
    pool = Pool(features=features, valid=np.ones((2, 3), dtype=bool), rewards=np.zeros((2, 3)), beta=0.1)
    selection = names["LongestDifference"]()(pool, 2, np.random.default_rng(0))
    np.testing.assert_allclose(selection.scores, [5.0, 4.0])
    assert names["LongestDifference"] in typing.get_args(names["PlainSelector"])


def test_the_table_of_the_readme_names_every_selector() -> None:
    table = README.split("## Selectors")[1].split("\n## ")[0]
    kinds = [kind for row in table.splitlines() if row.startswith("| ") for kind in re.findall("`([a-z_]+)`", row)]
    assert sorted(set(kinds) - {"random_twin"}) == sorted(SELECTORS)


def test_the_tables_of_the_readme_name_every_kind_of_features_and_every_projection() -> None:
    section = README.split("## Features")[1].split("\n## ")[0]
    rows = [re.findall("`([a-z_]+)`", row.split("|")[1]) for row in section.splitlines() if row.startswith("| `")]
    assert [name for (name, *_) in filter(None, rows)] == [*FEATURES, *PROJECTIONS]
    assert f"A config that names no kind gets `{DEFAULT_KIND}`" in section


def test_the_labeller_of_the_readme_is_paid_once(tmp_path: Path) -> None:
    labeller = shown(LABELLER)["Shorter"]()
    key = question_key("why", first="because", second="so")
    question = Question(key=key, messages=[{"role": None, "content": "why"}], first="because", second="so")
    ledger = Ledger.at(tmp_path / "ledger.sqlite")
    for lineage in "ab":
        workplace = Workplace(settings=Settings(), lineage=lineage, round=0)
        [[label]] = ledger.buy([question], labeller, Account(lineage=lineage, round=0), workplace)
        assert (label.choice, label.bought) == ("second", lineage == "a")


def test_the_table_of_the_readme_names_every_labeller() -> None:
    table = README.split("## Labels")[1].split("\n## ")[0]
    rows = [row for row in table.splitlines() if row.startswith("| `")]
    assert [re.findall("`([a-z_]+)`", row.split("|")[1])[0] for row in rows[1:]] == list(LABELLERS)


def test_the_tree_of_the_readme_names_every_module() -> None:
    tree = README.split("## The tree")[1].split("```")[1]
    command = ["git", "ls-files", "flows", "tasks", "cluster"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    modules = [Path(name) for name in listed.stdout.split() if name.endswith(".py") and "__init__" not in name]
    assert modules
    names = [module.name if len(module.parts) == 2 else f"  {module.parent.name}/" for module in modules]
    assert [name for name in names if name not in tree] == []


def test_every_command_of_the_readme_exists() -> None:
    from flows.cli import app

    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    groups = {group.name: group.typer_instance.registered_commands for group in app.registered_groups}
    within = {f"{name} {one.name or one.callback.__name__}" for name, group in groups.items() for one in group}
    lines = [line.split() for line in README.splitlines() if line.startswith("pairwright ")]
    assert {" ".join(words[1 : 3 if words[1] in groups else 2]) for words in lines} == commands | within
