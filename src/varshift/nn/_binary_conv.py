"""Convolution with one-bit weights."""

from __future__ import annotations

import torch

from varshift.functional import binary_weight

from ._scaled_std_conv import PaddingMode, StandardisedConv2d


class BinaryConv2d(StandardisedConv2d):
    r"""Convolution with one-bit weights, with scaled weight standardisation in place of a batch norm.

    .. math::

        \tilde W = \frac{\gamma}{\sqrt N} \frac{W - \operatorname{mean} W}{\operatorname{std} W + \epsilon},
        \quad s_o = \operatorname{mean} |\tilde W_o|, \quad \hat W_o = g_o s_o \operatorname{sign} \tilde W_o

    with a learned gain ``g``. With ``standardise=False`` it is the convolution of binary networks with batch
    norm: ``W`` takes the place of ``W~`` and there is no gain. Training and evaluation are the same function.

    Gradients pass the sign as if it were ``clamp(W~, -1, 1)``, and ``s`` as a constant. Zero padding adds
    zeros, not signs. The input is used as it comes: put `RSign` in front. Variance is not preserved at the
    start: a binary input gives 0.64 for Gaussian latent weights and 0.75 for uniform ones.

    The latent weight starts as torch's convolution does. The released code draws it from U[0, 0.001), so
    small that the default `eps` costs 7 % of the variance, and of one sign where it is not standardised;
    ``torch.nn.init.uniform_(conv.weight, 0, 1e-3)`` gives that start.

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
        bias: See above; none by default, as released.
        padding_mode: See above.
        standardise: Whether to standardise the latent weight and learn a gain.
        eps: Added to the standard deviation.
        sign_of_zero: What the sign of a weight of exactly zero is: 0 as released, or 1, which keeps every
            weight one-bit.
        device: Device of the parameters.
        dtype: Their type.

    Raises:
        ValueError: If the groups do not divide the channels, an argument is out of range, or filters to be
            standardised have one weight only.

    Reference:
        T. Chen, Z. Zhang, X. Ouyang, Z. Liu, Z. Shen, Z. Wang, "BNN - BN = ?: Training Binary Neural
        Networks without Batch Normalization", arXiv 2104.08215, after its code; the paper's own text could
        not be read.

    Example:
        >>> import torch
        >>> from varshift.nn import BinaryConv2d, RSign
        >>> layer = torch.nn.Sequential(RSign(16), BinaryConv2d(16, 32, 3, padding=1))
        >>> layer(torch.randn(1, 16, 8, 8)).shape
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
        bias: bool = False,
        padding_mode: PaddingMode = "zeros",
        standardise: bool = True,
        eps: float = 1e-5,
        sign_of_zero: int = 0,
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
            1.0,
            eps,
            standardise,
            2 if standardise else 1,
            device,
            dtype,
        )
        if sign_of_zero not in (0, 1):
            raise ValueError(
                f"sign_of_zero={sign_of_zero!r} must be 0 (as released) or 1 (every weight one bit)."
            )
        self.standardise = standardise
        self.sign_of_zero = sign_of_zero

    def effective_weight(self) -> torch.Tensor:
        """The one-bit weight with its scale and gain."""
        return binary_weight(
            self.weight, self.gain, self.gamma, self.eps, self.standardise, self.sign_of_zero
        )

    def extra_repr(self) -> str:
        """Torch's, and what this layer adds."""
        return f"{super().extra_repr()}, standardise={self.standardise}, sign_of_zero={self.sign_of_zero}"
