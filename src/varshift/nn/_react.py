"""Activations of binary networks with learned shifts."""

from __future__ import annotations

import torch
from torch import nn

from varshift._arguments import count, finite
from varshift.functional import shifted_prelu, shifted_sign


class RSign(nn.Module):
    r"""Sign of a signal with a learned threshold per channel.

    .. math:: y = \operatorname{sign}(x + b), \qquad
        \frac{\partial y}{\partial x} := \max(0,\; 2 - 2 |x + b|)

    Without a batch norm in front it is the shift ``b`` that keeps a drifting channel mean from turning the
    sign into a constant. Training and evaluation are the same function.

    Shape:
        Input and output: ``(N, C, *)``.

    Args:
        num_features: Number of channels C.
        sign_of_zero: What an exact zero gives: 0 as released, or 1, so that every output is one bit.
        device: Device of the shift.
        dtype: Its type.

    Raises:
        ValueError: If an argument is out of range, or the input has other channels.

    Reference:
        Z. Liu et al., "ReActNet", arXiv 2003.03488 (the shift); Z. Liu et al., "Bi-Real Net",
        arXiv 1808.00278 (the gradient); both as in the code of T. Chen et al., "BNN - BN = ?",
        arXiv 2104.08215.

    Example:
        >>> import torch
        >>> from varshift.nn import RSign
        >>> RSign(2)(torch.tensor([[-0.5, 2.0]]).reshape(1, 2, 1, 1)).flatten().tolist()
        [-1.0, 1.0]
    """

    def __init__(
        self,
        num_features: int,
        sign_of_zero: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features = count("num_features", num_features, 1)
        if sign_of_zero not in (0, 1):
            raise ValueError(
                f"sign_of_zero={sign_of_zero!r} must be 0 (as released) or 1 (every output one bit)."
            )
        self.sign_of_zero = sign_of_zero
        self.shift = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets the shift to 0."""
        nn.init.zeros_(self.shift)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The sign of the shifted input."""
        return shifted_sign(x, self.shift, self.sign_of_zero)

    def extra_repr(self) -> str:
        """The number of channels and the convention at zero."""
        return f"{self.num_features}, sign_of_zero={self.sign_of_zero}"


class RPReLU(nn.Module):
    r"""PReLU between two learned shifts, all per channel.

    .. math:: y = \operatorname{PReLU}_a(x + b) + c

    Training and evaluation are the same function.

    Shape:
        Input and output: ``(N, C, *)``.

    Args:
        num_features: Number of channels C.
        init: Initial slope ``a``; the shifts start at 0.
        device: Device of the parameters.
        dtype: Their type.

    Raises:
        ValueError: If an argument is out of range, or the input has other channels.

    Reference:
        Z. Liu et al., "ReActNet", arXiv 2003.03488, as in the code of T. Chen et al., "BNN - BN = ?",
        arXiv 2104.08215.

    Example:
        >>> import torch
        >>> from varshift.nn import RPReLU
        >>> RPReLU(1)(torch.tensor([[-4.0], [2.0]])).flatten().tolist()
        [-1.0, 2.0]
    """

    def __init__(
        self,
        num_features: int,
        init: float = 0.25,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features = count("num_features", num_features, 1)
        self.init = finite("init", init)
        self.shift_in, self.slope, self.shift_out = (
            nn.Parameter(torch.empty(num_features, device=device, dtype=dtype)) for _ in range(3)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets the shifts to 0 and the slope to its initial value."""
        nn.init.zeros_(self.shift_in)
        nn.init.constant_(self.slope, self.init)
        nn.init.zeros_(self.shift_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The activation."""
        return shifted_prelu(x, self.shift_in, self.slope, self.shift_out)

    def extra_repr(self) -> str:
        """The number of channels and the initial slope."""
        return f"{self.num_features}, init={self.init:g}"
