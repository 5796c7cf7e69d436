"""Variance of multiplicative noise ``m`` with ``E[m] = 1``, and rates that give equal variance."""

from __future__ import annotations

from varshift._arguments import between, finite, keep_probability, non_negative

_BERNOULLI = ("dropout", "channel_dropout", "drop_path", "drop_block")


def bernoulli_noise_variance(keep: float) -> float:
    """Variance of inverted dropout's factor, which is ``1 / keep`` with probability `keep` and else 0.

    ``s2 = (1 - keep) / keep``. Source: derived; for dropout it is implied by variance shift, eq. 7.

    Args:
        keep: KEEP probability in (0, 1].

    Raises:
        ValueError: If `keep` is outside (0, 1].
    """
    keep = keep_probability("keep", keep)
    return (1 - keep) / keep


def uniform_noise_variance(beta: float) -> float:
    """Variance of Uout's factor ``1 + r`` with ``r ~ U(-beta, beta)``.

    ``s2 = beta**2 / 3``. Source: variance shift, the second strategy ("variance-stable dropout").

    Args:
        beta: Half-width in [0, 1].

    Raises:
        ValueError: If `beta` is outside [0, 1].
    """
    return between("beta", beta, 0, 1) ** 2 / 3


def gaussian_noise_variance(sigma: float) -> float:
    """Variance of the Gaussian factor ``1 + r`` with ``r ~ N(0, sigma**2)``: ``s2 = sigma**2``.

    Args:
        sigma: Standard deviation, at least 0.

    Raises:
        ValueError: If `sigma` is negative or not finite.
    """
    return non_negative("sigma", sigma) ** 2


def noise_variance(kind: str, rate: float) -> float:
    """Variance of the factor of a noise site, by its kind and rate as a captured network names them.

    Args:
        kind: ``"dropout"``, ``"channel_dropout"``, ``"drop_path"``, ``"drop_block"``, ``"uniform"`` or
            ``"gaussian"``. Drop block rescales by the share that survived in the batch, so for it the figure
            is the limit of many blocks.
        rate: DROP probability in [0, 1) for the Bernoulli kinds, half-width for ``"uniform"``, standard
            deviation for ``"gaussian"``.

    Raises:
        ValueError: If the kind is not multiplicative noise of mean 1, or the rate does not fit it.
    """
    if kind in _BERNOULLI:
        rate = finite("rate", rate)
        if not 0 <= rate < 1:
            raise ValueError(f"rate={rate!r} must be a drop probability in [0, 1) for {kind!r}.")
        return rate / (1 - rate)
    if kind == "uniform":
        return between("rate", rate, 0, 1) ** 2 / 3
    if kind == "gaussian":
        return non_negative("rate", rate) ** 2
    known = ", ".join((*_BERNOULLI, "uniform", "gaussian"))
    raise ValueError(f"kind={kind!r} must be multiplicative noise of mean 1: {known}.")


def equal_noise_keep(variance: float) -> float:
    """Keep probability of the dropout whose factor has this variance: ``keep = 1 / (1 + variance)``.

    Compare kinds of noise at equal variance, not at equal rate.

    Args:
        variance: Variance of the factor, at least 0.

    Raises:
        ValueError: If `variance` is negative or not finite.
    """
    return 1 / (1 + non_negative("variance", variance))


def uniform_equal_keep(beta: float) -> float:
    """Keep probability of the dropout that is as noisy as Uout: ``3 / (3 + beta**2)``.

    0.923 at beta 0.5 and 0.75 at beta 1: Uout is much the weaker noise. Source: derived.

    Args:
        beta: Half-width in [0, 1].

    Raises:
        ValueError: If `beta` is outside [0, 1].
    """
    return equal_noise_keep(uniform_noise_variance(beta))
