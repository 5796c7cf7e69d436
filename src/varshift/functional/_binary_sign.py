"""The sign of a signal, with a gradient that training can use."""

from __future__ import annotations

import torch
from torch import Tensor


def binary_sign(x: Tensor, sign_of_zero: int = 0) -> Tensor:
    r"""Sign of a signal, with the gradient of a piecewise quadratic.

    .. math:: y = \operatorname{sign}(x), \qquad
        \frac{\partial y}{\partial x} := \max(0,\; 2 - 2 |x|)

    The surrogate is continuous, 2 at 0 and 0 outside (-1, 1).

    Args:
        x: The signal, of any shape.
        sign_of_zero: What an exact zero gives: 0 as in the released code (and torch), or 1, so that every
            output is one bit. The gradient is the same.

    Raises:
        ValueError: If `sign_of_zero` is neither 0 nor 1.

    Reference:
        Z. Liu et al., "Bi-Real Net", arXiv 1808.00278 (the surrogate), as in the code of T. Chen et al.,
        "BNN - BN = ?", arXiv 2104.08215.

    Example:
        >>> import torch
        >>> from varshift.functional import binary_sign
        >>> x = torch.tensor([-0.75, 0.0, 0.5], requires_grad=True)
        >>> y = binary_sign(x)
        >>> y.sum().backward()
        >>> y.tolist(), x.grad.tolist()
        ([-1.0, 0.0, 1.0], [0.5, 2.0, 1.0])
    """
    check_sign_of_zero(sign_of_zero)
    if torch.compiler.is_compiling():
        inside = x.clamp(-1, 1)  # its derivative is 1 at the ends, where the quadratic's is 0
        return straight_through(sign(x.detach(), sign_of_zero), inside * (2 - inside.abs()))
    return _BinarySign.apply(x, sign_of_zero)  # pyright: ignore[reportReturnType]


def sign(x: Tensor, sign_of_zero: int) -> Tensor:
    """The sign by the chosen convention, without a gradient."""
    if sign_of_zero == 0:
        return torch.sign(x)
    return torch.sign(x).masked_fill(x == 0, 1.0)


def straight_through(value: Tensor, surrogate: Tensor) -> Tensor:
    """The value, exactly, with the gradient of the surrogate, which must be finite."""
    return value.detach() + (surrogate - surrogate.detach())


def check_sign_of_zero(sign_of_zero: int) -> None:
    """Raises ValueError unless the convention is known."""
    if sign_of_zero not in (0, 1):
        raise ValueError(
            f"sign_of_zero={sign_of_zero!r} must be 0 (as released) or 1 (every output one bit)."
        )


class _BinarySign(torch.autograd.Function):
    """Keeps nothing but the input, where the composite form keeps every step."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, sign_of_zero: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return sign(x, sign_of_zero)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, gradient: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            return gradient * (2 - 2 * x.abs()).clamp(min=0), None
        return x.abs().mul_(-2).add_(2).clamp_(min=0).mul_(gradient), None
