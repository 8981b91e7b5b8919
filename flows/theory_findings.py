"""What the theory study shows of the synthetic findings of Han, Goyal and Ma (arXiv:2606.19607).

All differences are of log gaps, paired over worlds: +0.10 is a gap some 10 % larger, and, where gaps fall as 1 / n, as
many more labels for the same gap.
"""

from collections.abc import Sequence

import numpy as np

from flows.claims import Claim, Finding, Named, decide
from flows.theory import Gaps, TheoryConfig
from tasks.design.arrays import BoolArray, FloatArray

Logs = dict[str, FloatArray]
"""Log of the mean gap over draws, by design, (N, seeds)."""


def findings(config: TheoryConfig, measured: Sequence[Gaps]) -> list[Finding]:
    """The findings in every environment with every ridge; all contrasts are one family."""
    return decide([claim for gaps in measured for claim in _claims(config, gaps)])


def place_of(gaps: Gaps) -> str:
    """Environment and ridge in words."""
    return f"{gaps.name}, ridge {gaps.ridge:g}"


def _claims(config: TheoryConfig, gaps: Gaps) -> list[Claim]:
    logs = {name: np.log(values.mean(axis=2)) for name, values in gaps.values.items()}
    small, place = gaps.num_labels <= config.small, place_of(gaps)
    return [
        _closeness(place, logs, small, config.close),
        _uniform(place, logs, small),
        _worst(place, logs, small),
        _variation(place, gaps),
        _agreement(place, gaps, config.agreement),
    ]


def _closeness(place: str, logs: Logs, small: BoolArray, close: float) -> Claim:
    loss = logs["plug_in"] - logs["oracle"]
    deciding = {f"less than {close:.0%} above it": np.log1p(close) - loss.mean(axis=0)}
    return Claim(f"{place}: plug-in is close to oracle", deciding, beside=_split("plug-in v. oracle", loss, small))


def _uniform(place: str, logs: Logs, small: BoolArray) -> Claim:
    others = ("plug_in", "oracle")
    worse = {f"uniform v. {word(name)}": logs["uniform"] - logs[name] for name in others}
    deciding = {f"{words}, small n": _mean(values, small) for words, values in worse.items()}
    beside = {f"{words}, larger n": _mean(values, ~small) for words, values in worse.items()}
    return Claim(f"{place}: uniform is worse than both at small budgets", deciding, beside=beside)


def _worst(place: str, logs: Logs, small: BoolArray) -> Claim:
    more = {name: logs["reference"] - values for name, values in logs.items() if name != "reference"}
    deciding = {f"reference-weighted v. {word(name)}": values.mean(axis=0) for name, values in more.items()}
    beside = _split("reference-weighted v. uniform", more["uniform"], small)
    return Claim(f"{place}: reference-weighted is worst", deciding, beside=beside)


def _variation(place: str, gaps: Gaps) -> Claim:
    spreads = {name: np.log(values.std(axis=2, ddof=1)).mean(axis=0) for name, values in gaps.values.items()}
    deciding = {
        f"deviation of its gaps v. {word(name)}": spreads["reference"] - values
        for name, values in spreads.items()
        if name != "reference"
    }
    return Claim(f"{place}: reference-weighted varies most", deciding)


def _agreement(place: str, gaps: Gaps, tolerance: float) -> Claim:
    """Two one-sided contrasts a design: neither number exceeds the other by more than the tolerance."""
    deciding: dict[str, FloatArray] = {}
    for name, scaled in gaps.scaled.items():
        excess = np.log(scaled[:, -1] / gaps.predicted[name])
        deciding[f"{word(name)} less than {tolerance:.0%} above"] = np.log1p(tolerance) - excess
        deciding[f"{word(name)} less than {tolerance:.0%} below"] = np.log1p(tolerance) + excess
    return Claim(f"{place}: at n = {gaps.num_labels[-1]:.0f} n x gap is as predicted", deciding)


def _split(words: str, values: FloatArray, small: BoolArray) -> Named:
    return {f"{words}, small n": _mean(values, small), f"{words}, larger n": _mean(values, ~small)}


def _mean(values: FloatArray, chosen: BoolArray) -> FloatArray:
    """Means of (N, seeds) over some n, (seeds,); NaN over none."""
    if not chosen.any():
        return np.full(values.shape[1], np.nan)
    means: FloatArray = values[chosen].mean(axis=0)
    return means


def word(design: str) -> str:
    """A design as a reader knows it."""
    return {"reference": "reference-weighted", "plug_in": "plug-in"}.get(design, design)
