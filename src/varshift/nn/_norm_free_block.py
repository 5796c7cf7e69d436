"""Residual blocks of binary networks without batch normalisation."""

from __future__ import annotations

import torch
from torch import nn

from varshift._arguments import count, finite, positive

from ._binary_conv import BinaryConv2d
from ._react import RPReLU, RSign
from ._scaled_std_conv import ScaledStdConv2d


class NormFreeBinaryBlock(nn.Module):
    r"""Residual block of one 3x3 binary convolution, without batch norm: that of ReActNet-18.

    .. math::

        h = \operatorname{conv}_{3 \times 3}(\operatorname{RSign}(\beta x)), \qquad
        y = \operatorname{RPReLU}(\alpha h + r)

    The shortcut ``r`` is ``x`` itself where block and input have the same shape, and else the scaled input
    behind average pooling (where strided) and a 1x1 convolution. Training and evaluation are the same
    function; ``alpha`` and ``beta`` are constants.

    Shape:
        Input (N, C_in, H, W), output (N, C_out, ceil(H / stride), ceil(W / stride)).

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        stride: Stride of the block.
        alpha: Factor of the branch; 0.2 in the paper's code.
        beta: Factor of its input, see `varshift.functional.norm_free_betas`.
        binary_weights: Whether weights are one-bit; False is the first of the paper's two training steps, in
            which only activations are. Parameters have the same names and shapes in both.
        sign_of_zero: What the sign of an exact zero is: 0 as released, or 1, which keeps everything one-bit.
        device: Device of the parameters.
        dtype: Their type.

    Raises:
        ValueError: If an argument is out of range.

    Reference:
        T. Chen, Z. Zhang, X. Ouyang, Z. Liu, Z. Shen, Z. Wang, "BNN - BN = ?: Training Binary Neural
        Networks without Batch Normalization", arXiv 2104.08215, after its code. The shortcut's convolution
        sees the pooled signal itself, not its sign. For odd extents the pooling's last window is cut off,
        so that it fits the strided convolution; the released code takes even extents only.

    Example:
        >>> import torch
        >>> from varshift.nn import NormFreeBinaryBlock
        >>> block = NormFreeBinaryBlock(16, 32, stride=2, beta=0.9449)
        >>> block(torch.randn(1, 16, 8, 8)).shape
        torch.Size([1, 32, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        alpha: float = 0.2,
        beta: float = 1.0,
        binary_weights: bool = True,
        sign_of_zero: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.stride = count("stride", stride, 1)
        self.alpha, self.beta = finite("alpha", alpha), positive("beta", beta)
        place = {"device": device, "dtype": dtype}
        convolution = {"binary": binary_weights, "sign_of_zero": sign_of_zero, **place}
        self.sign = RSign(in_channels, sign_of_zero, **place)
        self.conv = _convolution(in_channels, out_channels, 3, stride, **convolution)
        self.shortcut: nn.Module | None = None
        if stride > 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                _pooling(stride), _convolution(in_channels, out_channels, 1, 1, **convolution)
            )
        self.activation = RPReLU(out_channels, **place)

    def reset_parameters(self) -> None:
        """Restores the parts' initial parameters."""
        _reset_parts(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block's output."""
        scaled = self.beta * x
        shortcut = x if self.shortcut is None else self.shortcut(scaled)
        return self.activation(torch.add(shortcut, self.conv(self.sign(scaled)), alpha=self.alpha))

    def extra_repr(self) -> str:
        """The constants."""
        return f"stride={self.stride}, alpha={self.alpha:g}, beta={self.beta:g}"


class NormFreeBinaryPairBlock(nn.Module):
    r"""Residual block of a 3x3 and a 1x1 binary convolution, without batch norm: that of ReActNet-A.

    .. math::

        o &= \operatorname{RPReLU}(r + \alpha \operatorname{conv}_{3 \times 3}(\operatorname{RSign}
        (\beta_1 x))) \\
        y &= \operatorname{RPReLU}(o + \alpha \operatorname{conv}_{1 \times 1}(\operatorname{RSign}
        (\beta_2 o)))

    The first shortcut ``r`` is ``x`` itself, or ``beta_1 x`` behind average pooling where the block is
    strided. A block that doubles its channels has two 1x1 convolutions on the same signs, each with its own
    shortcut ``o``, side by side. Training and evaluation are the same function.

    Shape:
        Input (N, C_in, H, W), output (N, C_out, ceil(H / stride), ceil(W / stride)).

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels: as many, or twice as many.
        stride: Stride of the 3x3 convolution.
        alpha: Factor of the branches; 0.2 in the paper's code.
        betas: Factors of both branches' inputs, see `varshift.functional.norm_free_betas`.
        binary_weights: As for `NormFreeBinaryBlock`.
        sign_of_zero: As for `NormFreeBinaryBlock`.
        device: Device of the parameters.
        dtype: Their type.

    Raises:
        ValueError: If an argument is out of range, or the output has other than once or twice the channels.

    Reference:
        T. Chen, Z. Zhang, X. Ouyang, Z. Liu, Z. Shen, Z. Wang, "BNN - BN = ?: Training Binary Neural
        Networks without Batch Normalization", arXiv 2104.08215, after its code. For odd extents see
        `NormFreeBinaryBlock`.

    Example:
        >>> import torch
        >>> from varshift.nn import NormFreeBinaryPairBlock
        >>> block = NormFreeBinaryPairBlock(16, 32, stride=2, betas=(0.9623, 0.9449))
        >>> block(torch.randn(1, 16, 8, 8)).shape
        torch.Size([1, 32, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        alpha: float = 0.2,
        betas: tuple[float, float] = (1.0, 1.0),
        binary_weights: bool = True,
        sign_of_zero: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.stride = count("stride", stride, 1)
        in_channels = count("in_channels", in_channels, 1)
        if out_channels not in (in_channels, 2 * in_channels):
            raise ValueError(
                f"out_channels={out_channels!r} must be in_channels={in_channels} or twice as many: the "
                "shortcut has nothing else to add."
            )
        if len(betas) != 2:
            raise ValueError(f"betas={betas!r} must be two factors, one per branch.")
        self.alpha = finite("alpha", alpha)
        self.betas = (positive("betas[0]", betas[0]), positive("betas[1]", betas[1]))
        place = {"device": device, "dtype": dtype}
        convolution = {"binary": binary_weights, "sign_of_zero": sign_of_zero, **place}
        self.sign1 = RSign(in_channels, sign_of_zero, **place)
        self.conv1 = _convolution(in_channels, in_channels, 3, stride, **convolution)
        self.pool = _pooling(stride) if stride > 1 else None
        self.activation1 = RPReLU(in_channels, **place)
        self.sign2 = RSign(in_channels, sign_of_zero, **place)
        self.conv2 = nn.ModuleList(
            _convolution(in_channels, in_channels, 1, 1, **convolution)
            for _ in range(out_channels // in_channels)
        )
        self.activation2 = RPReLU(out_channels, **place)

    def reset_parameters(self) -> None:
        """Restores the parts' initial parameters."""
        _reset_parts(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block's output."""
        scaled = self.betas[0] * x
        shortcut = x if self.pool is None else self.pool(scaled)
        middle = self.activation1(torch.add(shortcut, self.conv1(self.sign1(scaled)), alpha=self.alpha))
        signs = self.sign2(self.betas[1] * middle)
        halves = [torch.add(middle, conv(signs), alpha=self.alpha) for conv in self.conv2]
        return self.activation2(halves[0] if len(halves) == 1 else torch.cat(halves, 1))

    def extra_repr(self) -> str:
        """The constants."""
        return f"stride={self.stride}, alpha={self.alpha:g}, betas=({self.betas[0]:g}, {self.betas[1]:g})"


def _convolution(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int,
    binary: bool,
    sign_of_zero: int,
    **place: object,
) -> nn.Module:
    sizes = (in_channels, out_channels, kernel_size, stride, kernel_size // 2)
    if binary:
        return BinaryConv2d(*sizes, sign_of_zero=sign_of_zero, **place)  # pyright: ignore[reportArgumentType]
    return ScaledStdConv2d(*sizes, bias=False, **place)  # pyright: ignore[reportArgumentType]


def _pooling(stride: int) -> nn.Module:
    if stride == 1:
        return nn.Identity()
    # A last window that is cut off, for odd extents, as the strided convolution has one.
    return nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)


def _reset_parts(block: nn.Module) -> None:
    for module in block.modules():
        if module is not block and isinstance(module, (RSign, RPReLU, nn.Conv2d)):
            module.reset_parameters()
