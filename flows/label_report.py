"""What labels cost: tables of charges and labellers, and whether every label was bought once."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich.table import Table as RichTable

from cluster.storage import Store
from tasks.labellers.ledger import Entry, Ledger
from tasks.labellers.names import name_of


@dataclass
class Tally:
    """What a labeller said: its answers in force by choice, to which asks, by whom, and how many are history."""

    choices: Counter[str] = field(default_factory=Counter)
    asks: set[tuple[str, int]] = field(default_factory=set)
    annotators: set[str] = field(default_factory=set)
    num_superseded: int = 0

    def add(self, entry: Entry) -> None:
        """Count an answer."""
        if entry.superseded:
            self.num_superseded += 1
            return
        self.choices[entry.choice] += 1
        self.asks.add((entry.key, entry.repetition))
        self.annotators.add(entry.annotator)

    @property
    def num_pairs(self) -> int:
        """Pairs that it has answered."""
        return len({key for key, _ in self.asks})


def tallies(entries: Iterable[Entry]) -> dict[str, Tally]:
    """What each labeller said, by its identity."""
    found: dict[str, Tally] = {}
    for entry in entries:
        found.setdefault(entry.labeller, Tally()).add(entry)
    return found


def charges_table(ledger: Ledger, store: Store, lineages: Sequence[str]) -> RichTable:
    """What lineages are charged, what is reserved, their budgets, and what was really paid for them first."""
    table = RichTable(title="labels by lineage")
    for heading in ("lineage", "labels charged", "cost", "asked, unanswered", "reserved", "budget", "bought", "paid"):
        table.add_column(heading, justify="left" if heading == "lineage" else "right")
    for lineage in lineages:
        spend = ledger.spend(lineage)
        table.add_row(
            lineage,
            str(spend.num_labels),
            f"{spend.cost:g}",
            str(spend.num_pending),
            f"{spend.pending:g}",
            _budget(store, lineage),
            str(spend.num_bought),
            f"{spend.paid:g}",
        )
    return table


def labellers_table(ledger: Ledger, lineages: Sequence[str]) -> RichTable:
    """What the labellers of lineages said, of the answers charged to each."""
    table = RichTable(title="answers by labeller")
    for heading in (
        "lineage",
        "labeller",
        "pairs",
        "answers",
        "ties",
        "abstentions",
        "repeats",
        "annotators",
        "changed",
    ):
        table.add_column(heading, justify="left" if heading in {"lineage", "labeller"} else "right")
    for lineage in lineages:
        for identity, tally in sorted(tallies(ledger.entries(lineage)).items()):
            table.add_row(
                lineage,
                name_of(identity),
                *map(str, (tally.num_pairs, tally.choices.total(), tally.choices["tie"], tally.choices["abstain"])),
                str(1 + max((repetition for _, repetition in tally.asks), default=0)),
                str(len(tally.annotators)),
                str(tally.num_superseded),
            )
    return table


def bought_once(ledger: Ledger) -> str:
    """Whether every label of the ledger was bought once, and how often one served again; with the numbers."""
    found, spend = tallies(ledger.entries()).values(), ledger.spend()
    num_asks = sum(len(tally.asks) for tally in found)
    num_twice = sum(tally.choices.total() for tally in found) - num_asks
    num_superseded = sum(tally.num_superseded for tally in found)
    num_again = max(0, spend.num_labels - spend.num_bought)
    said = [
        f"{num_twice} labels were bought twice" if num_twice else "each label was bought once",
        f"{num_asks} distinct (pair, labeller, repetition), {spend.num_bought} bought, {spend.paid:g} paid",
        f"they serve {spend.num_labels} charges, so that {num_again} times a label was used again and not paid again",
    ]
    if num_superseded:
        said.append(f"{num_superseded} answers were changed later and are kept as history")
    if num_old := spend.num_bought - num_asks - num_twice:
        said.append(f"of {num_old} an earlier release kept no texts, so that only their price is known")
    return f"{said[0]}: {'; '.join(said[1:])}"


def _budget(store: Store, lineage: str) -> str:
    """The most that a lineage may be charged, as its config on record says."""
    file = store.lineage(lineage) / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    budget = config.get("labelling", {}).get("budget")
    return "" if budget is None else f"{budget:g}"
