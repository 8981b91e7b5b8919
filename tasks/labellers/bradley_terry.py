"""Bradley & Terry (1952), and Davidson's ties: what a margin between two responses makes of a comparison."""

import math


def win_probability(margin: float, temperature: float) -> float:
    """P(a preferred to b | one of them is) = sigmoid(margin / temperature), where `margin` is r_a - r_b.

    Computed so that the probabilities of both orders add up to 1 exactly, and no margin overflows.
    """
    return (1 + math.tanh(margin / (2 * temperature))) / 2


def tie_probability(margin: float, temperature: float, tie_rate: float) -> float:
    """P(tie) of Davidson (1970), whose parameter nu is written as the rate t of ties between equals.

    With strengths pi = exp(r / temperature), and nu = 2 t / (1 - t),

        P(tie) = nu sqrt(pi_a pi_b) / (pi_a + pi_b + nu sqrt(pi_a pi_b)) = t s / (1 - t + t s),

    where s = 1 / cosh(margin / (2 temperature)): t at a margin of 0, and less the further apart the two are. Of the
    comparisons that do not tie, a wins as `win_probability` says, whatever t: odds are as without ties.
    """
    decay = math.exp(-abs(margin) / (2 * temperature))
    sech = 2 * decay / (1 + decay * decay)
    return tie_rate * sech / (1 - tie_rate + tie_rate * sech)
