"""What the words of a comparison's report mean."""

HOW_TO_READ = (
    "Lineages of one seed share prompts, the first pool, label draws, initial policy and training seeds; only the "
    "selector differs. So differences are taken seed by seed first, and averaged then.",
    "A verdict holds at 5 % for all selectors and budgets of this report together: the chance of one false verdict or "
    "more is at most that. “No difference shown” does not say that there is none: it says that these seeds "
    "can't tell, and how many more could.",
    "Judge by differences and their intervals, not by curves: intervals of single means hold what a seed does to all "
    "selectors alike, and are wider.",
    "Look at the frontier before you believe a win rate: a policy that moved further from its reference has more "
    "reward at any quality of its labels. “Reward at matched KL” takes that out.",
    "A gain that breaks a guard is marked, and may be no gain: longer answers, a worse language model, lost skills, "
    "answers all alike, or a reward that was gamed.",
)

DEFINITIONS = (
    ("selector", "the rule that chooses which pairs of responses are worth a label; uniform draws them at random"),
    ("lineage", "one config, selector, budget and seed over all rounds"),
    ("budget", "labels that a lineage may spend in each round"),
    (
        "win rate against the base policy",
        "share of pairings with responses of the base policy, to held-out prompts, "
        "that the policy's response wins by reward; ties count half; 0.5 is no better",
    ),
    ("length-controlled win rate", "the win rate that is left if both responses were of equal length"),
    ("difference to uniform", "mean over seeds of the metric minus uniform's in the same seed, after the same round"),
    ("95 % interval", "Student's, over seeds: of the differences, or of a single mean where it says so"),
    (
        "P(above uniform)",
        "chance, given these seeds, that the selector's mean is above uniform's (Student's distribution, flat prior)",
    ),
    ("labels saved", "labels that uniform needs for the same mean, per label used; 2 is half the labels"),
    ("reward at matched KL", "reward above uniform's where both are equally far from the base policy"),
    ("further seeds", "seeds to run beyond these to show the observed difference, were it the true one"),
    ("overlap", "pairs that both selectors chose over pairs that either chose, from one pool (Jaccard)"),
    ("KL", "Kullback-Leibler divergence of the policy from its reference, nats a response"),
    ("reward hacking", "the reward that was trained for rose, and a second judge's score fell"),
)
