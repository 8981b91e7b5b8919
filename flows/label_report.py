"""What labels cost: tables of charges and labellers, and whether every label was bought once."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rich.table import Table as RichTable

from cluster.storage import Store
from tasks.labellers.ledger import Entry, Ledger
from tasks.labellers.names import name_of


@dataclass
class Tally:
    """What a labeller said: its answers in force by choice, to which asks, by whom; and those that are not in force."""

    choices: Counter[str] = field(default_factory=Counter)
    asks: set[tuple[str, int]] = field(default_factory=set)
    annotators: set[str] = field(default_factory=set)
    num_changed: int = 0
    """Answers in whose place a later one is in force."""
    again: list[Entry] = field(default_factory=list)
    """Answers that came when their ask had one already, which stayed in force: those were bought in vain."""

    def add(self, entry: Entry) -> None:
        """Count an answer; they have to come in the order in which the ledger gives them."""
        ask = (entry.key, entry.repetition)
        if not entry.superseded:
            self.choices[entry.choice] += 1
            self.asks.add(ask)
            self.annotators.add(entry.annotator)
        elif ask in self.asks:
            self.again.append(entry)
        else:
            self.num_changed += 1

    @property
    def num_pairs(self) -> int:
        """Pairs that it has answered."""
        return len({key for key, _ in self.asks})

    @property
    def num_per_pair(self) -> int:
        """The most answers in force to one pair."""
        return max(Counter(key for key, _ in self.asks).values(), default=0)


def tallies(entries: Iterable[Entry]) -> dict[str, Tally]:
    """What each labeller said, by its identity."""
    found: dict[str, Tally] = {}
    for entry in entries:
        found.setdefault(entry.labeller, Tally()).add(entry)
    return found


def charges_table(ledger: Ledger, store: Store, lineages: Sequence[str]) -> RichTable:
    """What lineages are charged, what is reserved, their budgets, and what they bought first and paid for it."""
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
    """What the labellers of lineages said, of the answers charged to each; `per pair`: the most to any one."""
    table = RichTable(title="answers by labeller")
    for heading in (
        "lineage",
        "labeller",
        "pairs",
        "answers",
        "ties",
        "abstentions",
        "per pair",
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
                str(tally.num_per_pair),
                str(len(tally.annotators)),
                str(tally.num_changed),
            )
    return table


def bought_once(ledger: Ledger) -> str:
    """Whether every label of the ledger was bought once, and how often one served again; with the numbers."""
    found, spend = tallies(ledger.entries()).values(), ledger.spend()
    again = [entry for tally in found for entry in tally.again]
    num_asks, num_charged = sum(len(tally.asks) for tally in found), _num_charged(ledger)
    num_old = spend.num_bought - num_asks
    num_reused = max(0, spend.num_labels - num_charged - num_old)
    twice = f"{len(again)} times an answer was bought again, for {sum(one.cost for one in again):g} more"
    said = [
        f"{num_asks} distinct (pair, labeller, repetition), {spend.num_bought} bought, {spend.paid:g} paid",
        f"they serve {spend.num_labels} charges, so that {num_reused} times a label was used again and not paid again",
        *_remarks(
            {
                "at most {} were paid twice, asked again after a purchase broke off in between": spend.num_repeated
                - len({(one.labeller, one.key, one.repetition) for one in again if one.cost}),
                "{} are charged to nobody: they came late, or nobody asked for so many": num_asks - num_charged,
                "{} answers were changed later and are kept as history": sum(tally.num_changed for tally in found),
                "of {} an earlier release kept no texts, so that only their price is known": num_old,
            }
        ),
    ]
    return f"{twice if again else 'each label was bought once'}: {'; '.join(said)}"


def _remarks(numbers: Mapping[str, int]) -> list[str]:
    """What is to be said where its number isn't 0."""
    return [remark.format(number) for remark, number in numbers.items() if number > 0]


def _num_charged(ledger: Ledger) -> int:
    """Answers in force, with texts, that any lineage is charged for."""
    charged: set[tuple[str, str, int]] = set()
    for lineage in ledger.lineages():
        for identity, tally in tallies(ledger.entries(lineage)).items():
            charged.update((identity, *ask) for ask in tally.asks)
    return len(charged)


def _budget(store: Store, lineage: str) -> str:
    """The most that a lineage may be charged, as its config on record says."""
    file = store.lineage(lineage) / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    budget = config.get("labelling", {}).get("budget")
    return "" if budget is None else f"{budget:g}"
