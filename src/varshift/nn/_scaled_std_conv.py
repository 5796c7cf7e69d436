"""Convolution with scaled weight standardisation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from varshift._arguments import count, finite, non_negative
from varshift.functional import activation_gain, scaled_std_weight

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


class StandardisedConv2d(nn.Conv2d, ABC):
    """Base of the convolutions that compute their weight from a latent one with a learned gain per filter."""

    gain: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int],
        padding: str | int | tuple[int, int],
        dilation: int | tuple[int, int],
        groups: int,
        bias: bool,
        padding_mode: PaddingMode,
        gamma: float | str | Callable[[torch.Tensor], torch.Tensor],
        eps: float,
        with_gain: bool,
        least_fan_in: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        in_channels = count("in_channels", in_channels, 1)
        out_channels = count("out_channels", out_channels, 1)
        groups = count("groups", groups, 1)
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups:
                raise ValueError(f"groups={groups} must divide {name}={channels}.")
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        fan_in = self.weight[0].numel()
        if fan_in < least_fan_in:
            raise ValueError(
                f"kernel_size={self.kernel_size} with {in_channels // groups} input channels per group gives "
                "filters of one weight: standardised, nothing is left of it; use torch's own convolution."
            )
        self.gamma = finite("gamma", gamma) if isinstance(gamma, (int, float)) else activation_gain(gamma)
        self.eps = non_negative("eps", eps)
        shape = (out_channels, 1, 1, 1)
        self.register_parameter(
            "gain", nn.Parameter(torch.ones(shape, device=device, dtype=dtype)) if with_gain else None
        )

    def reset_parameters(self) -> None:
        """Restores a new layer: torch's initial weight, gain 1."""
        super().reset_parameters()
        if getattr(self, "gain", None) is not None:  # torch calls this before there is one
            nn.init.ones_(self.gain)  # pyright: ignore[reportArgumentType]

    @abstractmethod
    def effective_weight(self) -> torch.Tensor:
        """The weight that the convolution uses."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Convolves the input."""
        return self._conv_forward(input, self.effective_weight(), self.bias)

    def extra_repr(self) -> str:
        """Torch's, and what this layer adds."""
        return f"{super().extra_repr()}, gamma={self.gamma:g}, eps={self.eps:g}"


class ScaledStdConv2d(StandardisedConv2d):
    r"""Convolution whose filters are standardised and scaled by their fan-in.

    .. math:: \hat W_o = g_o \frac{\gamma}{\sqrt N} \frac{W_o - \operatorname{mean} W_o}
        {\operatorname{std} W_o + \epsilon}

    with a learned gain ``g``, the population standard deviation over the ``N`` weights of a filter, and the
    gain ``gamma`` of the activation in front. It keeps the signal's variance and removes the activation's
    mean without looking at the data: training and evaluation are the same function.

    Shape:
        As ``torch.nn.Conv2d``.

    Args:
        in_channels: As for torch's convolution, as are the next eight.
        out_channels: See above.
        kernel_size: See above.
        stride: See above.
        padding: See above.
        dilation: See above.
        groups: See above.
        bias: See above. The released code has none, DeepMind's always one.
        padding_mode: See above.
        gamma: The factor itself, or the activation in front (its name, function or module), of which
            `varshift.functional.activation_gain` is taken. The paper's binary networks use 1.
        eps: Added to the standard deviation, as released (others add it to the variance).
        device: Device of the parameters.
        dtype: Their type.

    Raises:
        ValueError: If the groups do not divide the channels, an argument is out of range, or filters have
            one weight only.

    Reference:
        A. Brock, S. De, S. L. Smith, "Characterizing signal propagation to close the performance gap in
        unnormalized ResNets", arXiv 2101.08692; in the form of the code of T. Chen et al., "BNN - BN = ?",
        arXiv 2104.08215.

    Example:
        >>> import torch
        >>> from varshift.nn import ScaledStdConv2d
        >>> conv = ScaledStdConv2d(64, 32, 3, padding=1, gamma="relu")
        >>> conv(torch.relu(torch.randn(1, 64, 8, 8))).shape
        torch.Size([1, 32, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        gamma: float | str | Callable[[torch.Tensor], torch.Tensor] = 1.0,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            gamma,
            eps,
            True,
            2,
            device,
            dtype,
        )

    def effective_weight(self) -> torch.Tensor:
        """The standardised and scaled weight."""
        return scaled_std_weight(self.weight, self.gain, self.gamma, self.eps)
