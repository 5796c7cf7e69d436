"""The fixed down-scalings of residual networks without normalisation."""

from __future__ import annotations

from collections.abc import Sequence

from varshift._arguments import count, finite


def norm_free_betas(
    transitions: Sequence[bool], branches: int = 1, alpha: float = 0.2, rule: str = "released"
) -> list[tuple[float, ...]]:
    r"""Factors that bring the input of every residual branch to unit variance, by expectation.

    Each branch adds the variance ``alpha^2`` to the trunk's, which starts at 1, and is fed
    ``beta = 1 / sqrt(variance)`` times the trunk. A transition block starts the trunk anew at unit variance:

    * ``"released"``: as the code of BNN - BN does, the variance is 1 AFTER the whole transition block.
    * ``"nf-resnet"``: as NF-ResNets do, the transition's own first branch is already added to the new trunk:
      the variance behind it is ``1 + alpha^2``. This one is right where the transition's shortcut carries the
      scaled signal, as in all blocks here.

    Args:
        transitions: For every block whether it is a transition. ReActNet-A: its strided blocks. ReActNet-18:
            the first block of each stage, that of the first stage included.
        branches: Number of residual branches per block: 2 in ReActNet-A, 1 in ReActNet-18.
        alpha: Factor of each branch's output.
        rule: ``"released"`` or ``"nf-resnet"``.

    Returns:
        For every block one factor per branch.

    Raises:
        ValueError: If the rule is unknown or a number is out of range.

    Reference:
        T. Chen et al., "BNN - BN = ?", arXiv 2104.08215, after its code; A. Brock et al., arXiv 2101.08692.

    Example:
        >>> from varshift.functional import norm_free_betas
        >>> blocks = norm_free_betas([True, False, False, False] * 2)
        >>> [round(beta, 4) for (beta,) in blocks]
        [1.0, 1.0, 0.9806, 0.9623, 0.9449, 1.0, 0.9806, 0.9623]
    """
    branches, step = count("branches", branches, 1), finite("alpha", alpha) ** 2
    if rule not in ("released", "nf-resnet"):
        raise ValueError(f"rule={rule!r} must be 'released' or 'nf-resnet'.")
    variance, blocks = 1.0, []
    for transition in transitions:
        betas = []
        for branch in range(branches):
            betas.append(variance**-0.5)
            if transition and branch == 0 and rule == "nf-resnet":
                variance = 1.0
            variance += step
        if transition and rule == "released":
            variance = 1.0
        blocks.append(tuple(betas))
    return blocks
