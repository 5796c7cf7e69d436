"""Sign and PReLU with shifts per channel, the activations of binary networks."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ._binary_sign import binary_sign


def shifted_sign(x: torch.Tensor, shift: torch.Tensor, sign_of_zero: int = 0) -> torch.Tensor:
    r"""Sign with a threshold per channel: ``sign(x + b)``, with the gradient of `binary_sign`.

    Shape:
        x of shape ``(N, C, *)``, shift of shape (C,).

    Args:
        x: The signal.
        shift: The shift ``b``.
        sign_of_zero: What an exact zero gives, 0 or 1.

    Raises:
        ValueError: If the shift does not fit, or `sign_of_zero` is neither 0 nor 1.

    Reference:
        Z. Liu et al., "ReActNet", arXiv 2003.03488.

    Example:
        >>> import torch
        >>> from varshift.functional import shifted_sign
        >>> shifted_sign(torch.tensor([[0.5, 0.5]]), torch.tensor([0.0, -1.0])).tolist()
        [[1.0, -1.0]]
    """
    return binary_sign(x + per_channel("shift", shift, x), sign_of_zero)


def shifted_prelu(
    x: torch.Tensor, shift_in: torch.Tensor, slope: torch.Tensor, shift_out: torch.Tensor
) -> torch.Tensor:
    r"""PReLU between two shifts: ``PReLU_a(x + b) + c``, all per channel.

    Shape:
        x of shape ``(N, C, *)``, the others of shape (C,).

    Args:
        x: The signal.
        shift_in: The shift ``b`` in front.
        slope: The slope ``a`` of the negative side.
        shift_out: The shift ``c`` behind.

    Raises:
        ValueError: If a parameter does not fit.

    Reference:
        Z. Liu et al., "ReActNet", arXiv 2003.03488.

    Example:
        >>> import torch
        >>> from varshift.functional import shifted_prelu
        >>> one = torch.ones(1)
        >>> shifted_prelu(torch.tensor([[-3.0]]), one, 0.5 * one, one).item()
        0.0
    """
    shifted = x + per_channel("shift_in", shift_in, x)
    per_channel("slope", slope, x)
    return F.prelu(shifted, slope.to(x.dtype)) + per_channel("shift_out", shift_out, x)


def per_channel(name: str, parameter: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A parameter of shape (C,) laid beside an input ``(N, C, *)``, in the input's type."""
    if x.dim() < 2 or tuple(parameter.shape) != (x.shape[1],):
        raise ValueError(
            f"{name} of shape {tuple(parameter.shape)} must have one value for each channel of x on axis 1; "
            f"x has shape {tuple(x.shape)}."
        )
    return parameter.to(x.dtype).reshape(-1, *[1] * (x.dim() - 2))
