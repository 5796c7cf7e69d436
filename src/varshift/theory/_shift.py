"""Variance shift at one norm: variance in evaluation over variance in training, with upstream unchanged."""

from __future__ import annotations

from collections.abc import Sequence

from varshift._arguments import (
    between,
    count,
    finite,
    keep_probability,
    non_negative,
    positive,
    vector,
    vectors,
)

from ._noise import gaussian_noise_variance, uniform_noise_variance


def noise_delta(noise_variance: float, mean: float = 0.0, variance: float = 1.0) -> float:
    """Shift where noise feeds a norm directly, for any multiplicative noise of mean 1.

    ``delta = v / (v + s2 (v + c**2))`` with ``s2 = noise_variance``, ``c = mean``, ``v = variance`` of the
    noise site's input. A mean makes the shift worse; the width of the layer does not enter.
    Source: variance shift, case (a), generalised (derived).

    Args:
        noise_variance: Variance of the factor, at least 0 (see `varshift.theory.noise_variance`).
        mean: Mean of one unit's input.
        variance: Its variance, above 0.

    Returns:
        The shift, in (0, 1].

    Raises:
        ValueError: If an argument is out of range.
    """
    s2 = non_negative("noise_variance", noise_variance)
    c, v = finite("mean", mean), positive("variance", variance)
    return v / (v + s2 * (v + c**2))


def delta_a(keep: float, mean: float = 0.0, variance: float = 1.0) -> float:
    """Shift of Dropout-(a): the dropout feeds the norm directly.

    ``delta = v / ((c**2 + v) / keep - c**2)``, which is at most `keep`, and equal to it only for mean 0.
    Source: variance shift, eq. 7 and 8.

    Args:
        keep: KEEP probability in (0, 1].
        mean: Mean ``c`` of the dropout's input.
        variance: Variance ``v`` of the dropout's input, above 0.

    Returns:
        The shift, in (0, 1].

    Raises:
        ValueError: If an argument is out of range.
    """
    return positive("variance", variance) / dropped_variance(keep, mean, variance)


def uniform_delta(beta: float, mean: float = 0.0, variance: float = 1.0) -> float:
    """Shift of Uout feeding a norm directly: ``v / (v + (beta**2 / 3)(v + c**2))``.

    ``3 / (3 + beta**2)`` for mean 0. Source: variance shift, the second strategy; the form with
    a mean is derived.

    Args:
        beta: Half-width in [0, 1].
        mean: Mean of the input.
        variance: Variance of the input, above 0.

    Raises:
        ValueError: If an argument is out of range.
    """
    return noise_delta(uniform_noise_variance(beta), mean, variance)


def gaussian_delta(sigma: float, mean: float = 0.0, variance: float = 1.0) -> float:
    """Shift of multiplicative Gaussian noise ``N(1, sigma**2)`` feeding a norm directly.

    ``1 / (1 + sigma**2)`` for mean 0. Source: derived; the paper names this noise without an experiment.

    Args:
        sigma: Standard deviation of the factor, at least 0.
        mean: Mean of the input.
        variance: Variance of the input, above 0.

    Raises:
        ValueError: If an argument is out of range.
    """
    return noise_delta(gaussian_noise_variance(sigma), mean, variance)


def dropped_variance(keep: float, mean: float = 0.0, variance: float = 1.0) -> float:
    """Variance of ``a x / keep``, a unit behind inverted dropout: ``(c**2 + v) / keep - c**2``.

    Source: variance shift, eq. 7.

    Args:
        keep: KEEP probability in (0, 1].
        mean: Mean ``c`` of the input.
        variance: Variance ``v`` of the input, at least 0.

    Raises:
        ValueError: If an argument is out of range.
    """
    keep = keep_probability("keep", keep)
    c, v = finite("mean", mean), non_negative("variance", variance)
    return (c**2 + v) / keep - c**2


def dropped_correlation(keep: float, mean: float, variance: float, correlation: float) -> float:
    """Correlation of two units behind independent dropout masks.

    ``rho_ax = rho_x v / ((c**2 + v) / keep - c**2)``: dropout decorrelates, and leaves the covariance as it
    was. Source: variance shift, case (b).

    Args:
        keep: KEEP probability in (0, 1].
        mean: Mean of each unit.
        variance: Variance of each unit, above 0.
        correlation: Correlation of the two units before the dropout, in [-1, 1].

    Raises:
        ValueError: If an argument is out of range.
    """
    rho = between("correlation", correlation, -1, 1)
    return rho * positive("variance", variance) / dropped_variance(keep, mean, variance)


def cosine_squared(weights: Sequence[float]) -> float:
    """Squared cosine between a filter and the all-ones vector: ``(sum w)**2 / (d sum w**2)``.

    A filter of a convolution is flattened to ``d = in_channels / groups * kernel elements`` values.
    Source: variance shift, eq. 12.

    Args:
        weights: The filter's values, not all zero.

    Returns:
        A value in [0, 1].

    Raises:
        ValueError: If the filter is empty, all zero or not finite.
    """
    return alignment(weights) / len(weights)


def alignment(weights: Sequence[float]) -> float:
    """The width factor ``K = d cos**2 = (sum w)**2 / sum w**2`` of case (b).

    1 on average for independent symmetric weights whatever the width; well above 1 in wide trained nets.
    Source: variance shift, eq. 14 and Table 1.

    Args:
        weights: The filter's values, not all zero.

    Returns:
        A value in [0, d].

    Raises:
        ValueError: If the filter is empty, all zero or not finite.
    """
    values = vector("weights", weights)
    largest = max(abs(value) for value in values)
    if largest == 0:
        raise ValueError("weights are all zero: the angle to the all-ones vector is not defined.")
    scaled = [value / largest for value in values]  # squares of very small or large weights stay in range
    return sum(scaled) ** 2 / sum(value**2 for value in scaled)


def minimum_correlation(width: int) -> float:
    """Lowest correlation that `width` equally correlated variables can have: ``-1 / (width - 1)``.

    Args:
        width: Number of variables, at least 2.

    Raises:
        ValueError: If `width` is below 2.
    """
    return -1 / (count("width", width, 2) - 1)


def delta_b(
    keep: float,
    mean: float,
    variance: float,
    correlation: float,
    alignment: float,
    *,
    width: int | None = None,
) -> float:
    """Shift of Dropout-(b): dropout, then a weight layer, then the norm.

    With ``K = alignment`` and ``rho = correlation``::

        delta = (v + v rho (K - 1)) / (V1 + v rho (K - 1)),   V1 = (c**2 + v) / keep - c**2

    For ``rho = 0`` it equals `delta_a` at every width: only positively correlated inputs together with
    ``K > 1`` make (b) better than (a). Units are taken as identically distributed and equally correlated; use
    `exact_delta` where they are not. Source: variance shift, eq. 12 and 14.

    Args:
        keep: KEEP probability in (0, 1].
        mean: Mean ``c`` of each input of the dropout.
        variance: Variance ``v`` of each input, above 0.
        correlation: Their common correlation.
        alignment: ``K = d cos**2`` of the filter, at least 0 (`varshift.theory.alignment`).
        width: Number of inputs ``d``; when given, what is impossible at this width is refused.

    Returns:
        The shift, in (0, 1].

    Raises:
        ValueError: If an argument is out of range, or no equally correlated variables can have this
            correlation (it is below ``-1 / (width - 1)``, or the response would have no variance).
    """
    v = positive("variance", variance)
    rho = between("correlation", correlation, -1, 1)
    k = non_negative("alignment", alignment)
    if width is not None:
        width = count("width", width, 1)
        if k > width * (1 + 1e-9):
            raise ValueError(f"alignment={alignment!r} must be at most width={width}: it is d cos**2.")
        if width > 1 and rho < minimum_correlation(width) * (1 + 1e-9):
            raise ValueError(
                f"correlation={correlation!r} must be at least -1 / (width - 1) = "
                f"{minimum_correlation(width):.6g} for width={width} equally correlated variables."
            )
    shared = v * rho * (k - 1)
    if v + shared <= 0:
        raise ValueError(
            f"correlation={correlation!r} must be above -1 / (alignment - 1) for alignment={alignment!r}: "
            "the response would have no variance."
        )
    return (v + shared) / (dropped_variance(keep, mean, variance) + shared)


def exact_delta(
    test_variance: float,
    weights: Sequence[float],
    second_moments: Sequence[float],
    noise_variance: float,
) -> float:
    """Shift behind noise and a weight layer, with nothing assumed about the inputs' distribution.

    ``delta = V / (V + s2 sum_i w_i**2 E[x_i**2])``, where ``V`` is the response's variance without noise. The
    noise is independent per unit and of the inputs. Case (a) is a single weight of 1. For masks that drop
    whole channels a "unit" is a channel: pass weights of 1 and, as second moments,
    ``E[(sum_t w_ct x_ct)**2]``, the second moment of each channel's share of the response.
    Source: derived; variance shift states it under equal variances and correlations only (eq. 14).

    Args:
        test_variance: Variance ``V`` of the response without noise, at least 0.
        weights: One weight per unit.
        second_moments: ``E[x_i**2]`` of each unit without noise, at least 0.
        noise_variance: Variance ``s2`` of the factor, at least 0. For dropout:
            ``bernoulli_noise_variance(keep)``.

    Returns:
        The shift, in [0, 1].

    Raises:
        ValueError: If an argument is out of range, the vectors differ in length, or there is neither signal
            nor noise.
    """
    v = non_negative("test_variance", test_variance)
    s2 = non_negative("noise_variance", noise_variance)
    pairs = vectors("weights", weights, "second_moments", second_moments)
    noise = s2 * sum(weight**2 * non_negative("second_moments", moment) for weight, moment in pairs)
    if v + noise == 0:
        raise ValueError("test_variance=0 without any noise: the shift is not defined.")
    return v / (v + noise)
