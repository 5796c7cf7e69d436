"""Normalisation with moments that were propagated through the weights instead of measured."""

from __future__ import annotations

import torch

from varshift._arguments import non_negative

from ._kalman_state import KalmanState
from ._kalman_transitions import full_precision


def analytic_norm(
    x: torch.Tensor,
    state: KalmanState,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[torch.Tensor, KalmanState]:
    r"""Normalises by given moments, and returns the moments of the result.

    .. math::

        y = \gamma\, \frac{x - m}{\sqrt{v + \epsilon}} + \beta, \qquad
        (m, v) \mapsto \left(\beta,\ \gamma^2 \frac{v}{v + \epsilon}\right)

    The moments do not depend on ``x``: gradients reach what lies in front through ``x`` and, by way of the
    moments, through the weights that they were propagated through.

    Shape:
        x of shape (N, C, ...), the moments, weight and bias of shape (C,); the result is as ``x``.

    Args:
        x: The signal.
        state: Its mean and variance per channel.
        weight: ``gamma``; None for 1.
        bias: ``beta``; None for 0.
        eps: Added to the variance.

    Returns:
        The normalised signal and its moments.

    Raises:
        ValueError: If the moments are not one per channel, or ``eps`` is negative.

    Reference:
        A. Shekhovtsov, B. Flach, "Normalization of Neural Networks using Analytic Variance Propagation",
        arXiv 1803.10560. RECONSTRUCTED from its abstract and from what a later paper of the same authors
        (ICLR 2019) says of it; its body could not be read.

    Example:
        >>> import torch
        >>> from varshift.functional import KalmanState, analytic_norm
        >>> x = 3 + 2 * torch.tensor([[-1.0], [1.0]])
        >>> y, state = analytic_norm(x, KalmanState(torch.tensor([3.0]), torch.tensor([4.0])), eps=0.0)
        >>> y.flatten().tolist(), state.var.tolist()
        ([-1.0, 1.0], [1.0])
    """
    eps = non_negative("eps", eps)
    channels = x.shape[1:2]
    if state.mean.shape != channels or state.var.shape != channels:
        raise ValueError(
            f"state has shapes {tuple(state.mean.shape)} and {tuple(state.var.shape)}: x of shape "
            f"{tuple(x.shape)} needs one mean and one variance per channel; pass the moments of this very x."
        )
    with full_precision(x):
        mean, var = state
        inverse = (var + eps).rsqrt()
        scale = inverse if weight is None else weight.to(inverse.dtype) * inverse
        offset = -mean * scale if bias is None else bias.to(inverse.dtype) - mean * scale
        shape = (1, -1, *[1] * (x.dim() - 2))
        signal = x.to(torch.promote_types(x.dtype, scale.dtype))
        y = torch.addcmul(offset.to(signal.dtype).view(shape), signal, scale.to(signal.dtype).view(shape))
        after = KalmanState(
            torch.zeros_like(mean) if bias is None else bias.to(mean.dtype),
            var * (scale * scale),
        )
    return y.to(x.dtype), after
