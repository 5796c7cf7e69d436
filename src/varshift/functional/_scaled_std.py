"""Scaled weight standardisation, for real and for binary weights."""

from __future__ import annotations

import math

import torch

from varshift._arguments import finite, non_negative

from ._binary_sign import check_sign_of_zero, sign, straight_through


def scaled_std_weight(
    weight: torch.Tensor, gain: torch.Tensor | None = None, gamma: float = 1.0, eps: float = 1e-5
) -> torch.Tensor:
    r"""Standardises each filter of a weight and scales it by its fan-in.

    .. math:: \hat W_o = g_o \frac{\gamma}{\sqrt N} \frac{W_o - \operatorname{mean} W_o}
        {\operatorname{std} W_o + \epsilon}

    with the population standard deviation over the ``N`` weights of a filter. A filter of the result has
    mean 0 and, but for ``eps``, the L2 norm ``g gamma``: a signal of unit variance keeps its variance, and an
    activation's mean does not reach the next layer. ``eps`` is added to the standard deviation, as in the
    released code, not to the variance.

    Shape:
        weight of shape ``(C_out, *)``, gain of shape (C_out, 1, ...); the result is shaped like the weight.

    Args:
        weight: The latent weight.
        gain: One factor per filter; None for 1.
        gamma: Gain of the activation in front, see `activation_gain`.
        eps: Added to the standard deviation.

    Raises:
        ValueError: If `gamma` is not finite or `eps` is negative.

    Reference:
        A. Brock, S. De, S. L. Smith, "Characterizing signal propagation to close the performance gap in
        unnormalized ResNets", arXiv 2101.08692; in the form of the code of T. Chen et al., "BNN - BN = ?",
        arXiv 2104.08215.

    Example:
        >>> import torch
        >>> from varshift.functional import scaled_std_weight
        >>> weight = scaled_std_weight(torch.randn(4, 3, 3, 3))
        >>> weight.flatten(1).norm(dim=1).round(decimals=3).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    gamma, eps = finite("gamma", gamma), non_negative("eps", eps)
    standard = _standardised(weight, gamma, eps)
    return (standard if gain is None else standard * gain.to(standard.dtype)).to(weight.dtype)


def binary_weight(
    weight: torch.Tensor,
    gain: torch.Tensor | None = None,
    gamma: float = 1.0,
    eps: float = 1e-5,
    standardise: bool = True,
    sign_of_zero: int = 0,
) -> torch.Tensor:
    r"""One-bit weight of each filter, with one real scale per filter.

    .. math::

        \tilde W = \frac{\gamma}{\sqrt N} \frac{W - \operatorname{mean} W}{\operatorname{std} W + \epsilon},
        \quad s_o = \operatorname{mean} |\tilde W_o|, \quad \hat W_o = g_o s_o \operatorname{sign} \tilde W_o

    Without standardisation ``W`` takes the place of ``W~``: the binary weight of networks with batch norm.

    Gradients pass the sign as if it were ``clamp(W~, -1, 1)`` (straight through), and the scale ``s`` as a
    constant. The result does not preserve variance: for standardised weights ``z`` the output variance of a
    binary signal is ``(g gamma E|z|)^2``, 0.64 for Gaussian latent weights at gain 1; the gain has to learn
    the rest. The sum of signs is not 0, so some of the input's mean passes.

    Args:
        weight: The latent weight, of shape ``(C_out, *)``.
        gain: One factor per filter, of shape (C_out, 1, ...); None for 1.
        gamma: Gain of the activation in front; binary activations need none.
        eps: Added to the standard deviation.
        standardise: Whether to standardise first.
        sign_of_zero: What the sign of an exact zero is: 0 as released, or 1, which keeps the weight one-bit.

    Raises:
        ValueError: If an argument is out of range.

    Reference:
        T. Chen, Z. Zhang, X. Ouyang, Z. Liu, Z. Shen, Z. Wang, "BNN - BN = ?: Training Binary Neural
        Networks without Batch Normalization", arXiv 2104.08215, after its code; the paper's own text could
        not be read.

    Example:
        >>> import torch
        >>> from varshift.functional import binary_weight
        >>> binary_weight(torch.tensor([[1.0, 2.0, 4.0, 6.0]])).tolist()
        [[-0.455..., -0.455..., 0.455..., 0.455...]]
    """
    gamma, eps = finite("gamma", gamma), non_negative("eps", eps)
    check_sign_of_zero(sign_of_zero)
    precision = torch.promote_types(weight.dtype, torch.float32)
    latent = _standardised(weight, gamma, eps) if standardise else weight.to(precision)
    scale = latent.detach().abs().mean(tuple(range(1, latent.dim())), keepdim=True)
    binary = straight_through(scale * sign(latent.detach(), sign_of_zero), latent.clamp(-1, 1))
    return (binary if gain is None else binary * gain.to(precision)).to(weight.dtype)


def _standardised(weight: torch.Tensor, gamma: float, eps: float) -> torch.Tensor:
    latent = weight.to(torch.promote_types(weight.dtype, torch.float32))
    axes = tuple(range(1, latent.dim()))
    fan_in = math.prod(latent.shape[1:])
    centred = latent - latent.mean(axes, keepdim=True)
    # The norm's slope is 0 for a filter of equal weights, where that of a root of a variance is infinite.
    std = torch.linalg.vector_norm(centred, dim=axes, keepdim=True) / math.sqrt(max(fan_in, 1))
    return centred * (gamma / math.sqrt(max(fan_in, 1)) / (std + eps))
