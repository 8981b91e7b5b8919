"""What a judge's answers tell about the judge: whether the order of the responses sways it, and what it took."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from tasks.labellers.judge.rubric import AS_ASKED, AS_TURNED, Verdict
from tasks.labellers.protocol import Label

ASKED, TURNED, REFUSED = "verdict_asked", "verdict_turned", "refused"
TOKENS_IN, TOKENS_OUT, RETRIES, SECONDS = "tokens_in", "tokens_out", "retries", "seconds"


def judge_measures(labels: Sequence[Label]) -> dict[str, float]:
    """Measures over the labels that a judge gave; one that has nothing to be measured by is left out.

    `order_dependent_share`: of the pairs with a verdict in both orders, those whose verdicts differ.
    `first_shown_share`: how often a verdict for one response is for the one shown first; 0.5 is no bias. Its
    `_stderr` takes the pairs as independent, not the verdicts: the two of one pair are not (ratio estimator).
    `unparsable_share`: of all replies, those without a verdict. `refused_share`: of all pairs, those not taken.
    """
    judged = [label for label in labels if ASKED in label.detail]
    if not judged:
        return {}
    heard = [label for label in judged if not label.detail[REFUSED]]
    totals = {name: sum(_number(label, name) for label in judged) for name in (TOKENS_IN, TOKENS_OUT, RETRIES)}
    return {
        **_orders(heard),
        **_position(heard),
        "refused_share": 1 - len(heard) / len(judged),
        **totals,
        "cost": sum(label.cost for label in judged),
        "seconds_mean": sum(_number(label, SECONDS) for label in judged) / len(judged),
        "seconds_max": max(_number(label, SECONDS) for label in judged),
    }


def _orders(heard: Sequence[Label]) -> dict[str, float]:
    if not heard:
        return {}
    verdicts = [_verdicts(label) for label in heard]
    unparsable = sum(verdict == "NONE" for both in verdicts for verdict in both)
    parsed = [both for both in verdicts if "NONE" not in both]
    shares = {"unparsable_share": unparsable / (2 * len(heard))}
    if parsed:
        differing = sum(AS_ASKED[asked] != AS_TURNED[turned] for asked, turned in parsed)
        shares["order_dependent_share"] = differing / len(parsed)
    return shares


def _position(heard: Sequence[Label]) -> dict[str, float]:
    """Count, pair by pair, the verdicts for the response shown first and those for either."""
    counts: Mapping[str, list[int]] = defaultdict(lambda: [0, 0])
    for label in heard:
        verdicts = _verdicts(label)
        counts[label.key][0] += verdicts.count("A")
        counts[label.key][1] += verdicts.count("A") + verdicts.count("B")
    decided = [(first, either) for first, either in counts.values() if either]
    if not decided:
        return {}
    num_pairs, total = len(decided), sum(either for _, either in decided)
    share = sum(first for first, _ in decided) / total
    measures = {"first_shown_share": share}
    if num_pairs > 1:
        squares = sum((first - share * either) ** 2 for first, either in decided)
        measures["first_shown_share_stderr"] = math.sqrt(num_pairs / (num_pairs - 1) * squares) / total
    return measures


def _verdicts(label: Label) -> tuple[Verdict, Verdict]:
    return _verdict(label, ASKED), _verdict(label, TURNED)


def _verdict(label: Label, name: str) -> Verdict:
    return next((verdict for verdict in AS_ASKED if verdict == label.detail[name]), "NONE")


def _number(label: Label, name: str) -> float:
    return float(label.detail[name])
