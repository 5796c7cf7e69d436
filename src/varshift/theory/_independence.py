"""What independent dropout gates do to the dependence of features: the independent-component layer."""

from __future__ import annotations

import math

from varshift._arguments import between, count, finite, keep_probability, non_negative, positive


def information_scale(keep: float, copies: int = 1) -> float:
    """Factor by which dropout shrinks what one feature tells about another, or about `copies` of itself.

    ``keep (1 - (1 - keep)**m)`` with ``m = copies``, each dropped by itself; ``keep**2`` for one other
    feature. An equality for features that are never exactly 0, as behind a batch norm; with an atom at 0, as
    behind a ReLU, the information falls further. Source: the independent-component paper says that it falls
    quadratically; the exact form and the one for copies are derived.

    Args:
        keep: KEEP probability in (0, 1].
        copies: Number of features on the other side, at least 1.

    Raises:
        ValueError: If an argument is out of range.
    """
    keep = keep_probability("keep", keep)
    return keep * (1 - (1 - keep) ** count("copies", copies, 1))


def dropped_entropy(keep: float, entropy: float) -> float:
    """Entropy in nats of a discrete feature behind dropout: ``keep H + H(gate)``.

    For a feature that is never exactly 0, which shows whether it was dropped. Source: derived.

    Args:
        keep: KEEP probability in (0, 1].
        entropy: Entropy of the feature in nats, at least 0.

    Raises:
        ValueError: If an argument is out of range.
    """
    keep = keep_probability("keep", keep)
    gate = sum(-p * math.log(p) for p in (keep, 1 - keep) if p > 0)
    return keep * non_negative("entropy", entropy) + gate


def component_correlation(keep: float, correlation: float, first: float = 0.0, second: float = 0.0) -> float:
    """Correlation of two features behind independent gates, whatever their means.

    ``keep rho / sqrt((1 + (1 - keep) first**2) (1 + (1 - keep) second**2))``; ``keep rho`` for mean 0.
    Source: the independent-component paper says that it falls linearly; the exact form is derived.

    Args:
        keep: KEEP probability in (0, 1].
        correlation: Correlation before the dropout, in [-1, 1].
        first: Mean of the first feature over its standard deviation; behind an affine norm, shift over scale.
        second: The same of the second feature.

    Raises:
        ValueError: If an argument is out of range.
    """
    keep, rho = keep_probability("keep", keep), between("correlation", correlation, -1, 1)
    first, second = finite("first", first), finite("second", second)
    return keep * rho / math.sqrt((1 + (1 - keep) * first**2) * (1 + (1 - keep) * second**2))


def dropped_condition(keep: float, largest: float, smallest: float) -> float:
    """Condition number of the second moments of standardised features behind dropout.

    ``(keep largest + 1 - keep) / (keep smallest + 1 - keep)``: an even ridge on every weight. Source:
    derived.

    Args:
        keep: KEEP probability in (0, 1].
        largest: Largest eigenvalue of the features' correlation matrix, above 0.
        smallest: Its smallest eigenvalue, at least 0.

    Raises:
        ValueError: If an argument is out of range, or nothing is dropped and the smallest eigenvalue is 0.
    """
    keep = keep_probability("keep", keep)
    below = keep * non_negative("smallest", smallest) + 1 - keep
    if below == 0:
        raise ValueError(f"smallest={smallest!r} must be above 0 when keep is 1: the condition is infinite.")
    return (keep * positive("largest", largest) + 1 - keep) / below
