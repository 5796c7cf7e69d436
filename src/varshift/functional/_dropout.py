"""Multiplicative noise of mean 1 on every value: dropout, and its uniform and Gaussian kin."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from varshift._arguments import between, non_negative
from varshift.functional._noise import random_mask, random_normal, random_symmetric, scaled, takes_kernel


def dropout(
    input: Tensor, p: float = 0.5, training: bool = True, *, generator: torch.Generator | None = None
) -> Tensor:
    """Sets values to zero at random and scales up the others, as torch's own dropout does, only faster.

    ``y = x a / keep`` with ``a`` 1 with probability ``keep`` and else 0, independently for every value. On a
    CPU ``keep = 1 - p`` is rounded to a multiple of ``2**-16`` (of ``2**-32`` or ``2**-64`` where `p` is
    within 1/256 of 0 or 1) and the scale is the inverse of the rounded figure, so that the mean is unbiased;
    the mask is kept as a byte per value. Elsewhere, and for compilers, it is torch's own dropout.

    Args:
        input: Any floating-point or complex tensor.
        p: DROP probability in [0, 1].
        training: Without it the input is returned as it is.
        generator: Source of the random numbers; the global one by default.

    Raises:
        ValueError: If `p` is outside [0, 1] or the input holds integers.

    Example:
        >>> import torch
        >>> from varshift.functional import dropout
        >>> x = torch.ones(1000)
        >>> y = dropout(x, p=0.25, generator=torch.Generator().manual_seed(0))
        >>> y.unique()
        tensor([0.0000, 1.3333])
        >>> dropout(x, p=0.25, training=False) is x
        True
    """
    p = between("p", p, 0, 1)
    _check_values(input)
    if not training or p == 0:
        return input
    if p == 1:
        return input * 0.0
    if input.device.type == "cpu" and takes_kernel(input):
        mask, keep = random_mask(input, p, generator)
        return scaled(input, mask, 1 / keep, offset=False)
    if generator is None:
        return F.dropout(input, p, training=True)
    return _times(input, _room(input).bernoulli_(1 - p, generator=generator).div_(1 - p))


def uniform_dropout(
    input: Tensor,
    beta: float,
    training: bool = True,
    *,
    per_channel: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Multiplies values with uniform noise around 1 (Uout).

    ``y = x (1 + r)`` with ``r ~ U(-beta, beta)``, of variance ``beta**2 / 3``: as noisy as dropout with a
    DROP probability of ``beta**2 / (3 + beta**2)``. In eager mode ``r`` takes ``2**15`` evenly spaced
    values (``2**16`` on a GPU) with mean 0.

    Args:
        input: Any floating-point or complex tensor; with `per_channel`, of shape ``(N, C, ...)``.
        beta: Half-width in [0, 1].
        training: Without it the input is returned as it is.
        per_channel: Whether all values of a channel of a sample share one draw.
        generator: Source of the random numbers; the global one by default.

    Raises:
        ValueError: If `beta` is outside [0, 1], the input holds integers or has no channels to draw for.

    Example:
        >>> import torch
        >>> from varshift.functional import uniform_dropout
        >>> y = uniform_dropout(torch.ones(2, 3, 8, 8), beta=0.2, per_channel=True)
        >>> bool(((y >= 0.8) & (y <= 1.2)).all()), y.flatten(2).unique(dim=2).shape
        (True, torch.Size([2, 3, 1]))
    """
    beta = between("beta", beta, 0, 1)
    _check_values(input)
    if per_channel and input.dim() < 2:
        raise ValueError(
            f"input has shape {tuple(input.shape)}: per_channel=True needs samples and channels, (N, C, ...)."
        )
    if not training or beta == 0:
        return input
    if not per_channel and takes_kernel(input):
        noise, unit = random_symmetric(input, generator)
        return scaled(input, noise, beta * unit, offset=True)
    noise = _room(input, per_channel).uniform_(1 - beta, 1 + beta, generator=generator)
    if per_channel and input.dtype in (torch.float16, torch.bfloat16):
        noise = noise.to(input.dtype)  # the small factor, not the large product
    return _times(input, noise)


def gaussian_dropout(
    input: Tensor, sigma: float, training: bool = True, *, generator: torch.Generator | None = None
) -> Tensor:
    """Multiplies values with Gaussian noise around 1.

    ``y = x (1 + sigma n)`` with ``n ~ N(0, 1)`` for every value. The argument is the standard deviation; the
    noise that is as strong as dropout with DROP probability ``p`` has ``sigma**2 = p / (1 - p)``. In eager
    mode ``n`` is rounded to float16, which is symmetric and changes its variance by less than one part in ten
    million.

    Args:
        input: Any floating-point or complex tensor.
        sigma: Standard deviation, at least 0.
        training: Without it the input is returned as it is.
        generator: Source of the random numbers; the global one by default.

    Raises:
        ValueError: If `sigma` is negative or not finite, or the input holds integers.

    Example:
        >>> import torch
        >>> from varshift.functional import gaussian_dropout
        >>> y = gaussian_dropout(torch.ones(100_000), sigma=0.5)
        >>> abs(float(y.std()) - 0.5) < 0.01
        True
    """
    sigma = non_negative("sigma", sigma)
    _check_values(input)
    if not training or sigma == 0:
        return input
    if takes_kernel(input):
        return scaled(input, random_normal(input, generator), sigma, offset=True)
    return _times(input, _room(input).normal_(1.0, sigma, generator=generator))


def _check_values(input: Tensor) -> None:
    if not (input.is_floating_point() or input.is_complex()):
        raise ValueError(
            f"input is of type {input.dtype}, but noise multiplies real or complex numbers: convert it first."
        )


def _room(input: Tensor, per_channel: bool = False) -> Tensor:
    """An empty tensor for the noise, real and of at least single precision."""
    wide = torch.float64 if input.dtype in (torch.float64, torch.complex128) else torch.float32
    if per_channel:
        return input.new_empty((*input.shape[:2], *(1 for _ in input.shape[2:])), dtype=wide)
    return torch.empty_like(input, dtype=wide)


def _times(input: Tensor, noise: Tensor) -> Tensor:
    product = input * noise
    return product if product.dtype == input.dtype else product.to(input.dtype)
