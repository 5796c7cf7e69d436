"""Filter response normalisation and the thresholded linear unit (Singh & Krishnan 2020), as functions."""

from __future__ import annotations

from torch import Tensor

from varshift._arguments import non_negative
from varshift.functional._filter_response_kernel import FilterResponse, Threshold
from varshift.functional._filter_response_plain import plain_norm, plain_threshold
from varshift.functional._observed import observed


def filter_response_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    tau: Tensor | None = None,
    eps: float = 1e-6,
    learned_eps: Tensor | None = None,
) -> Tensor:
    r"""Divides every map by its root mean square, scales and shifts it, and cuts it off below a threshold.

    For the :math:`N` values :math:`x_i` of one channel of one sample

    .. math::

        \nu^2 = \frac{1}{N} \sum_i x_i^2, \qquad
        y_i = \gamma \frac{x_i}{\sqrt{\nu^2 + \varepsilon + |\varepsilon_l|}} + \beta, \qquad
        z_i = \max(y_i, \tau)

    Nothing depends on other samples, and no mean is subtracted. At a tie :math:`y_i = \tau` the gradient goes
    to :math:`y_i`. Statistics are computed in float32 for half-precision input.

    Shape:
        `x` is ``(B, C, *)`` with any number of further axes, the result has the same shape and layout. With
        no further axis, or one position per map, N is 1 and each value is its own group; `learned_eps`
        should then be given, as with a small constant the result is nearly ``sign(x)``.

    Args:
        x: Input, channels second.
        weight: Scale gamma per channel, 1 when None.
        bias: Shift beta per channel, 0 when None.
        tau: Threshold per channel; None leaves the cut off out.
        eps: Constant added under the root, at least 0. With 0 a map of zeros becomes NaN.
        learned_eps: Further constant whose absolute value is added, of one value or one per channel.

    Raises:
        ValueError: If `eps` is negative, `x` has no channel axis, or a parameter does not fit the channels.

    Singh & Krishnan, "Filter Response Normalization Layer", CVPR 2020, arXiv 1911.09737, eqs. 1 to 3. The
    backward pass follows eqs. 4 to 7 with one correction that was derived here: the factor in eq. 7 is
    ``I - xhat xhat^T / N`` (as transcribed, it lacks the N).

    Example:
        >>> import torch
        >>> from varshift import functional
        >>> x = torch.tensor([[[3.0, -4.0, 0.0, 0.0]]])
        >>> functional.filter_response_norm(x, eps=0.0)
        tensor([[[ 1.2000, -1.6000,  0.0000,  0.0000]]])
        >>> functional.filter_response_norm(x, eps=0.0, tau=torch.tensor([-0.5]))
        tensor([[[ 1.2000, -0.5000,  0.0000,  0.0000]]])
    """
    eps = non_negative("eps", eps)
    channels = _channels(x)
    for name, value in (("weight", weight), ("bias", bias), ("tau", tau), ("learned_eps", learned_eps)):
        single = name == "learned_eps" and value is not None and value.numel() == 1
        if value is not None and not single and value.shape != (channels,):
            raise ValueError(
                f"{name} has the shape {tuple(value.shape)}, but the input has {channels} channels "
                f"(its axis 1): it must have the shape ({channels},)."
            )
    total = None if learned_eps is None else (eps + learned_eps.abs()).reshape(-1).expand(channels)
    if observed(x) or x.numel() == 0:
        return plain_norm(x, weight, bias, tau, eps if total is None else total)
    return FilterResponse.apply(x, weight, bias, tau, total, eps)  # type: ignore[return-value]


def thresholded_linear_unit(x: Tensor, tau: Tensor) -> Tensor:
    r"""Cuts a signal off below a learned threshold: :math:`z = \max(y, \tau)`.

    At a tie :math:`y = \tau` the gradient goes to :math:`y`, as in the paper. With :math:`\tau = 0` this is
    ReLU, except that ReLU's gradient at 0 is 0.

    Shape:
        `x` is ``(B, C, *)``; the result has the same shape and layout.

    Args:
        x: Input, channels second.
        tau: Threshold of one value or one per channel.

    Raises:
        ValueError: If `tau` does not fit the channels.

    Singh & Krishnan, "Filter Response Normalization Layer", CVPR 2020, arXiv 1911.09737, eq. 3.

    Example:
        >>> import torch
        >>> from varshift import functional
        >>> functional.thresholded_linear_unit(torch.tensor([[-1.0, 0.5]]), torch.tensor([-0.2, 1.0]))
        tensor([[-0.2000,  1.0000]])
    """
    channels = _channels(x)
    if tau.numel() != 1 and tau.shape != (channels,):
        raise ValueError(
            f"tau has the shape {tuple(tau.shape)}, but the input has {channels} channels (its axis 1): "
            f"it must have one value, or the shape ({channels},)."
        )
    if observed(x) or x.numel() == 0:
        return plain_threshold(x, tau)
    return Threshold.apply(x, tau.reshape(-1).expand(channels))  # type: ignore[return-value]


def _channels(x: Tensor) -> int:
    if x.dim() < 2:
        raise ValueError(
            f"x has the shape {tuple(x.shape)}: it must have a batch and a channel axis, (B, C, ...)."
        )
    return x.shape[1]
