"""Claims, put to the test."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from varshift_lab.render._values import Results, Spread, numbers, spread
from varshift_lab.studies import Claim

CLAIMS = "claims"  # their name beside those of tables and figures
Outcome = Literal["reproduced", "not reproduced", "undecided"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a claim.

    Attributes:
        claim: The claim.
        outcome: Whether it was reproduced.
        difference: ``lower - higher``, over pairs of equal seed.
        lower: What was said to be smaller.
        higher: What was said to be larger.
        missing: Pairs without both results.
    """

    claim: Claim
    outcome: Outcome
    difference: Spread
    lower: Spread
    higher: Spread
    missing: int


def verdict(claim: Claim, results: Results) -> Verdict:
    """Tests a claim by the rule of `Claim`: two standard errors of the paired difference decide.

    With fewer than two pairs, or with pairs missing, it is undecided.
    """
    lower, higher = numbers(claim.lower, results), numbers(claim.higher, results)
    pairs = [seed for seed in lower if seed in higher]
    difference = spread(lower[seed] - higher[seed] for seed in pairs)
    wanted = {trial.seed for trial in claim.lower.trials} & {trial.seed for trial in claim.higher.trials}
    missing = len(wanted) - len(pairs)
    return Verdict(
        claim,
        "undecided" if missing else _outcome(difference, claim.margin),
        difference,
        spread(lower.values()),
        spread(higher.values()),
        missing,
    )


def _outcome(difference: Spread, margin: float) -> Outcome:
    if difference.count < 2 or math.isnan(difference.error):
        return "undecided"
    beyond = difference.mean - margin
    if beyond < -2 * difference.error:
        return "reproduced"
    return "not reproduced" if beyond > 2 * difference.error else "undecided"
