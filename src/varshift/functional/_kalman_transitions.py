"""Moments of a layer's output, predicted from the moments of the signal before it."""

from __future__ import annotations

import contextlib
import math

import torch
from torch.nn import functional as F

from ._kalman_state import KalmanState

_SMALLEST_VARIANCE = 1e-12  # a slope by the variance has 1 / standard deviation in it
_FAR = 40.0  # standard deviations beyond which the normal distribution is 0 or 1 in any precision


def full_precision(tensor: torch.Tensor) -> contextlib.AbstractContextManager:
    """Keeps autocast, where it is on, away from moments: they need more than 8 bits."""
    kind = tensor.device.type
    if torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()


def rectified_moments(state: KalmanState, negative_slope: float = 0.0) -> KalmanState:
    r"""Mean and variance of a Gaussian behind a (leaky) ReLU, in closed form.

    .. math::

        a = m / \sqrt v, \quad e = m \Phi(a) + \sqrt v\, \phi(a), \quad
        w = (m^2 + v) \Phi(a) + m \sqrt v\, \phi(a) - e^2

    for ReLU; a slope ``b`` on the negative side gives mean ``(1-b) e + b m`` and variance
    ``(1-b)^2 w + b^2 v + 2 b (1-b) v Phi(a)``. The variance is evaluated in a form that does not cancel for
    large ``a``; variances below 1e-12 count as 1e-12.

    Args:
        state: Mean and variance, of any shape.
        negative_slope: The slope ``b``; 1 is the identity.

    Reference:
        Replaces, without noise, the sampled map of the released code of G. Wang et al., "Kalman
        Normalization", NeurIPS 2018. The closed form is not in the paper's code; it was derived for this
        package.

    Example:
        >>> import torch
        >>> from varshift.functional import KalmanState, rectified_moments
        >>> mean, var = rectified_moments(KalmanState(torch.zeros(1), torch.ones(1)))
        >>> print(f"{mean.item():.4f} {var.item():.4f}")
        0.3989 0.3408
    """
    mean, var = state
    if negative_slope == 1:
        return KalmanState(mean, var)
    safe = var.clamp(min=_SMALLEST_VARIANCE)
    std = safe.sqrt()
    a = (mean / std).clamp(-_FAR, _FAR)
    below, above = torch.special.ndtr(a), torch.special.ndtr(-a)
    density = torch.exp(-0.5 * a * a) / math.sqrt(2 * math.pi)
    # (a^2 + 1) below + a density - (a below + density)^2, with 1 - below written as above.
    share = below + a * a * below * above + a * density * (above - below) - density * density
    rectified = KalmanState(mean * below + std * density, safe * share.clamp(min=0))
    if negative_slope == 0:
        return rectified
    b = negative_slope
    return KalmanState(
        (1 - b) * rectified.mean + b * mean,
        (1 - b) ** 2 * rectified.var + b * b * safe + 2 * b * (1 - b) * safe * below,
    )


def conv_moments(
    state: KalmanState,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    groups: int = 1,
    negative_slope: float = 0.0,
) -> KalmanState:
    r"""Moments behind a (leaky) ReLU and a convolution or linear layer, per output channel.

    .. math::

        \mu'_o = b_o + \sum_c e_c \sum_k W_{ock}, \qquad v'_o = \sum_c w_c \sum_k W_{ock}^2

    with the rectified moments ``e, w`` of `rectified_moments`. The input elements are taken as Gaussian in
    front of the ReLU and as uncorrelated behind it; positions whose window reaches into the padding are left
    out of account, so padding, stride and dilation do not matter.

    Shape:
        state of shape (..., C_in); weight of shape ``(C_out, C_in / groups, *kernel)``, the kernel empty for
        a linear layer; the result has shape (..., C_out).

    Args:
        state: Moments in front of the activation.
        weight: The layer's weight.
        bias: The layer's bias.
        groups: The convolution's groups.
        negative_slope: Slope of the activation's negative side; 1 for no activation.

    Raises:
        ValueError: If the channels do not fit the weight.

    Reference:
        Replaces, without noise, the sampled map of the released code of G. Wang et al., "Kalman
        Normalization", NeurIPS 2018; derived for this package.

    Example:
        >>> import torch
        >>> from varshift.functional import KalmanState, conv_moments
        >>> conv = torch.nn.Conv2d(2, 3, 3)
        >>> state = KalmanState(torch.zeros(1, 2), torch.ones(1, 2))
        >>> conv_moments(state, conv.weight, conv.bias).mean.shape
        torch.Size([1, 3])
    """
    channels = weight.shape[1] * groups
    if state.mean.shape[-1] != channels:
        raise ValueError(
            f"state has {state.mean.shape[-1]} channels: the weight takes {channels}; "
            "pass the state of the norm that feeds this layer."
        )
    with full_precision(state.mean):
        e, w = rectified_moments(state, negative_slope)
        taps = weight.to(e.dtype).flatten(2) if weight.dim() > 2 else weight.to(e.dtype)[..., None]
        mean, var = _apply(e, taps.sum(-1), groups), _apply(w, taps.square().sum(-1), groups)
        return KalmanState(mean if bias is None else mean + bias.to(mean.dtype), var)


def conv_sample_moments(
    state: KalmanState,
    weight: torch.Tensor,
    size: tuple[int, ...],
    bias: torch.Tensor | None = None,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    negative_slope: float = 0.0,
) -> KalmanState:
    r"""Moments behind a (leaky) ReLU and a convolution, from one random feature map, as released.

    One map ``s ~ N(mean, var)`` is drawn per row of the state, passed through the activation and the
    convolution with stride 1 and as much padding as keeps its size, and its mean and biased variance over
    all positions are taken. The estimate is noisy, and biased by the padding on small maps: `conv_moments`
    is its expectation without border. It draws from torch's global generator.

    Shape:
        state of shape (splits, C_in), the result of shape (splits, C_out).

    Args:
        state: Moments in front of the activation.
        weight: The convolution's weight.
        size: Extents of the feature map in front of the convolution.
        bias: The convolution's bias.
        dilation: Its dilation.
        groups: Its groups.
        negative_slope: Slope of the activation's negative side; 1 for no activation.

    Raises:
        ValueError: If the weight is not that of a convolution over as many axes as `size` has, or the
            channels do not fit.

    Reference:
        G. Wang et al., "Kalman Normalization", NeurIPS 2018, as in the released code.

    Example:
        >>> import torch
        >>> from varshift.functional import KalmanState, conv_sample_moments
        >>> state = KalmanState(torch.zeros(1, 2), torch.ones(1, 2))
        >>> conv_sample_moments(state, torch.ones(3, 2, 3, 3), (8, 8)).mean.shape
        torch.Size([1, 3])
    """
    convolutions = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
    if len(size) not in convolutions or weight.dim() != len(size) + 2:
        raise ValueError(
            f"size={size!r} must have as many extents as the convolution of weight {tuple(weight.shape)} "
            "has axes; a linear layer has no positions to sample: use conv_moments."
        )
    if state.mean.shape[-1] != weight.shape[1] * groups:
        raise ValueError(
            f"state has {state.mean.shape[-1]} channels: the weight takes {weight.shape[1] * groups}; "
            "pass the state of the norm that feeds this layer."
        )
    mean, var = (part.reshape(-1, part.shape[-1], *[1] * len(size)) for part in state)
    with full_precision(mean):
        std = var.clamp(min=_SMALLEST_VARIANCE).sqrt()
        noise = torch.randn(*mean.shape[:2], *size, device=mean.device, dtype=mean.dtype)
        sample = mean + std * noise
        sample = torch.where(sample > 0, sample, negative_slope * sample)
        bias = None if bias is None else bias.to(mean.dtype)
        out = convolutions[len(size)](
            _padded(sample, weight.shape[2:], dilation),
            weight.to(mean.dtype),
            bias,
            dilation=dilation,
            groups=groups,
        )
        var, mean = torch.var_mean(out, tuple(range(2, out.dim())), correction=0)
        return KalmanState(mean, var)


def _padded(x: torch.Tensor, kernel: tuple[int, ...], dilation: int | tuple[int, ...]) -> torch.Tensor:
    """Zeros around, as many as keep the size; of an odd number the larger half behind."""
    steps = [dilation] * len(kernel) if isinstance(dilation, int) else dilation
    pads: list[int] = []
    for extent, step in zip(reversed(kernel), reversed(steps), strict=True):
        around = step * (extent - 1)
        pads += [around // 2, around - around // 2]
    return F.pad(x, pads)


def linear_moments(state: KalmanState, matrix: torch.Tensor, noise: torch.Tensor | float) -> KalmanState:
    r"""Moments behind a linear state transition with noise: the filter's textbook prediction, diagonal only.

    .. math:: \mu' = A m, \qquad v' = (A \circ A) v + \rho

    RECONSTRUCTED: the paper is recalled to learn ``A`` and a noise covariance, its text and initial values
    could not be read, and the released code has neither. Correlations between channels are not propagated.

    Args:
        state: Moments of shape (..., C_in).
        matrix: The transition ``A`` of shape (C_out, C_in).
        noise: The variance ``rho`` that the transition adds, per channel or one for all.

    Raises:
        ValueError: If the channels do not fit the matrix.

    Reference:
        G. Wang et al., "Kalman Normalization", NeurIPS 2018; see the warning above.

    Example:
        >>> import torch
        >>> from varshift.functional import KalmanState, linear_moments
        >>> state = KalmanState(torch.ones(1, 2), torch.ones(1, 2))
        >>> linear_moments(state, 2 * torch.eye(2), 0.5).var.tolist()
        [[4.5, 4.5]]
    """
    if state.mean.shape[-1] != matrix.shape[1]:
        raise ValueError(
            f"state has {state.mean.shape[-1]} channels: the matrix of shape {tuple(matrix.shape)} "
            f"takes {matrix.shape[1]}."
        )
    with full_precision(state.mean):
        matrix = matrix.to(state.mean.dtype)
        return KalmanState(F.linear(state.mean, matrix), F.linear(state.var, matrix.square()) + noise)


def _apply(rows: torch.Tensor, matrix: torch.Tensor, groups: int) -> torch.Tensor:
    """Multiplies rows (..., C_in) by a matrix (C_out, C_in / groups) that is block-diagonal in the groups."""
    if groups == 1:
        return F.linear(rows, matrix)
    blocks = matrix.unflatten(0, (groups, -1))
    return torch.einsum("...gc,goc->...go", rows.unflatten(-1, (groups, -1)), blocks).flatten(-2)
