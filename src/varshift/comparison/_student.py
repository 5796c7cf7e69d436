r"""Student's t in plain floats: what a paired test of few seeds needs.

For whole degrees of freedom the probability :math:`A(t, \nu) = P(|T| \le t)` is a finite sum. With
:math:`\theta = \arctan(t / \sqrt\nu)`, integration of the density by parts, two degrees at a time, gives

.. math::
    A(t, \nu) = \sin\theta \sum_{k=0}^{\nu/2 - 1} a_k \cos^{2k}\theta, \quad
        a_k = a_{k-1} \frac{2k - 1}{2k} \qquad (\nu \text{ even})

    A(t, \nu) = \frac{2}{\pi} \Big(\theta
        + \sin\theta \sum_{k=0}^{(\nu-3)/2} b_k \cos^{2k+1}\theta\Big), \quad
        b_k = b_{k-1} \frac{2k}{2k + 1} \qquad (\nu \text{ odd})
"""

from __future__ import annotations

import functools
import math

import torch

# How far above 1 W is followed, in standard deviations, and the number of points on the way.
_WIDE, _POINTS = 9.0, 4001


def two_sided(t: float, degrees: int) -> float:
    """The probability that Student's t with `degrees` degrees of freedom is further from 0 than `t`.

    Args:
        t: The statistic; its sign does not matter.
        degrees: Degrees of freedom, at least 1.
    """
    t = abs(t)
    if math.isinf(t):
        return 0.0
    angle = math.atan2(t, math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    term, total = (1.0, 1.0) if degrees % 2 == 0 else (cosine, cosine)
    steps = degrees // 2 - 1 if degrees % 2 == 0 else (degrees - 3) // 2
    for k in range(1, steps + 1):
        factor = (2 * k - 1) / (2 * k) if degrees % 2 == 0 else 2 * k / (2 * k + 1)
        term *= factor * cosine * cosine
        total += term
    if degrees % 2 == 0:
        inside = sine * total
    else:
        inside = 2 / math.pi * (angle + (sine * total if degrees > 1 else 0.0))
    return min(max(1.0 - inside, 0.0), 1.0)


@functools.lru_cache(maxsize=4096)
def critical(level: float, degrees: int) -> float:
    """The t beyond which, on either side, a share `level` lies.

    Args:
        level: The share, in (0, 1).
        degrees: Degrees of freedom, at least 1.
    """
    low, high = 0.0, 1.0
    while two_sided(high, degrees) > level:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided(middle, degrees) > level else (low, middle)
    return high


def power(effect: float, count: int, level: float) -> float:
    r"""The probability that a two-sided paired t test sees an effect.

    With :math:`W = \sqrt{\chi^2_\nu / \nu}`, :math:`\nu = n - 1`, which is independent of the mean, and the
    critical value :math:`c`, the test rejects where :math:`|Z + \sqrt n\,d| > c W`:

    .. math::
        E_W[\Phi(\sqrt n\,d - c W) + \Phi(-\sqrt n\,d - c W)]

    The expectation is taken over a grid of :math:`W`.

    Args:
        effect: Mean of the differences over their standard deviation.
        count: Number of pairs, at least 2.
        level: Level of the test.
    """
    degrees = count - 1
    limit = critical(level, degrees)
    # W lies around 1 with a standard deviation of about 1 / sqrt(2 nu). With few degrees and a large limit
    # all depends on values near 0, so that points are taken at cubes.
    x = torch.linspace(0, 1, _POINTS, dtype=torch.float64)[1:]
    w = (1 + _WIDE / math.sqrt(2 * degrees)) * x**3
    density = ((degrees - 1) * w.log() + degrees * (1 - w * w) / 2).exp() * x**2
    shift = math.sqrt(count) * abs(effect)
    seen = torch.special.ndtr(shift - limit * w) + torch.special.ndtr(-shift - limit * w)
    return float((density * seen).sum() / density.sum())


def needed(effect: float, level: float, wanted: float, most: int) -> int | None:
    """The smallest number of pairs with which the test sees an effect with the wanted power.

    Args:
        effect: Mean of the differences over their standard deviation.
        level: Level of the test.
        wanted: The power.
        most: Where to stop looking.

    Returns:
        The number; None where more than `most` would be needed.
    """
    # A known standard deviation would take (z_{level/2} + z_{power})^2 / effect^2 pairs; an unknown one more.
    quantiles = torch.tensor([1 - level / 2, wanted], dtype=torch.float64)
    z = float(torch.special.ndtri(quantiles).sum())
    number = max(2, int((z / effect) ** 2)) if abs(effect) > 1e-6 else most + 1
    while number <= most and power(effect, number, level) < wanted:
        number += 1
    while 2 < number <= most and power(effect, number - 1, level) >= wanted:
        number -= 1
    return number if number <= most else None
