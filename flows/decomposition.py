"""What a referee's losses are made of: what the choice of pairs costs, and what the noise of their labels costs.

Ours. Against the best of the family (fitted to all pairs of the pool, each with the chances of its label) a selection
loses its bias, which would be left if every pair were asked without end, and its variance, which one label a pair adds.
The bias has two parts: reach, what so few pairs and their ridge leave of the best even where the family is right, and
misfit, what these pairs hold of utility that the features can't express. A difference of two selectors is the
difference of their biases and that of their variances.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from tasks.design.arrays import BoolArray, FloatArray
from tasks.design.statistics import Difference, compare_pairs

Part = Literal["reach", "misfit", "bias", "variance"]

PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True, eq=False, kw_only=True)
class Parts:
    """What a selector loses of the metric, (n, B) each; higher is worse, and below 0 is luck or another target.

    Attributes:
        reach: value of the best less that of the selection's pairs, were the chances those that the best gives.
        misfit: that less the value of the pairs with their true chances.
        variance: that less the value of the pairs with their labels.
    """

    reach: FloatArray
    misfit: FloatArray
    variance: FloatArray

    @property
    def bias(self) -> FloatArray:
        """What the choice of pairs costs, however well each is labelled."""
        return self.reach + self.misfit

    @property
    def loss(self) -> FloatArray:
        """Value of the best less that of the labels."""
        return self.bias + self.variance

    def at(self, kept: BoolArray) -> "Parts":
        """The same at some of the budgets."""
        return Parts(reach=self.reach[:, kept], misfit=self.misfit[:, kept], variance=self.variance[:, kept])

    def of(self, part: Part) -> FloatArray:
        """One of the parts by its name."""
        return {"reach": self.reach, "misfit": self.misfit, "bias": self.bias, "variance": self.variance}[part]


def parts_of(values_of: Callable[[str], FloatArray]) -> Parts:
    """Parts from the values, higher is better, of the fits named by their prefix in the outcomes; none: the labels'."""
    best, ideal, asked = (values_of(f"{fit}_") for fit in ("best", "without_misfit", "without_noise"))
    return Parts(reach=best - ideal, misfit=ideal - asked, variance=asked - values_of(""))


def compare_parts(parts: Mapping[str, Parts], base: str) -> dict[Part, dict[str, list[Difference]]]:
    """How much less of each part every selector loses than the base, budget by budget; a family for each part."""
    found: dict[Part, dict[str, list[Difference]]] = {}
    for part in PARTS:
        gains = {name: -of.of(part) for name, of in parts.items()}
        entries = compare_pairs(gains, [base], np.random.default_rng(4))
        found[part] = {selector: differences for (selector, _), differences in entries.items()}
    return found
