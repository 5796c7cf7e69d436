"""How much each sample deserves attention, from the moments of its history."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Score = Literal["difficulty", "easiness", "variance", "threshold"]
SCORES: tuple[str, ...] = get_args(Score)


def prediction_score(kind: Score, count: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    r"""A raw score :math:`s_i` of the Active Bias paper.

    ============== ===================================================================== =============
    kind           score                                                                 letter
    ============== ===================================================================== =============
    ``difficulty`` :math:`1 - \bar p_i`                                                  D
    ``easiness``   :math:`\bar p_i`                                                      E
    ``variance``   :math:`\sqrt{\mathrm{var}_i + \mathrm{var}_i^2 / (|H_i| - 1)}`        PV
    ``threshold``  :math:`\bar p_i (1 - \bar p_i)`                                       TC
    ============== ===================================================================== =============

    The second term of ``variance`` rewards short histories. The paper's text was not available: the formulas
    are those of independent re-implementations. The reason for the second term (half the sampling variance
    of a variance estimate under a normal law) is recalled and derived, not quoted.

    Args:
        kind: One of the four.
        count: Lengths of the histories; ``variance`` needs 2.
        mean: Their means.
        variance: Their variances.

    Raises:
        ValueError: If the kind is none of the four.

    Example:
        >>> import torch
        >>> from varshift.data import prediction_score
        >>> history = torch.tensor([0.2, 0.4, 0.9], dtype=torch.float64)
        >>> moments = torch.tensor(3), history.mean(), history.var(correction=0)
        >>> round(float(prediction_score("variance", *moments)), 6)
        0.300703
    """
    if kind == "difficulty":
        return 1 - mean
    if kind == "easiness":
        return mean.clone()
    if kind == "threshold":
        return mean * (1 - mean)
    if kind == "variance":
        degrees = (count - 1).clamp(min=1)[(...,) + (None,) * (mean.dim() - count.dim())]
        return torch.sqrt(variance + variance * variance / degrees)
    raise ValueError(f"score={kind!r} must be one of {', '.join(map(repr, SCORES))}.")
