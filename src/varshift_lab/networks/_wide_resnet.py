"""Wide residual networks (Zagoruyko & Komodakis 2016, arXiv 1605.07146)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from ._parts import Noise, Norm, Parts, blocks_of, check_counts
from ._placement import Placement
from ._preresnet import preactivation_block
from ._residual import ResidualNetwork


class WideResNet(ResidualNetwork):
    """A wide residual network, see `wide_resnet`."""


def wide_resnet(
    depth: int = 28,
    num_classes: int = 10,
    *,
    dropout: float = 0.0,
    placement: Placement = "b",
    noise: Noise = "dropout",
    norm: Norm = "batch",
    norm_options: Mapping[str, Any] | None = None,
    widen: int = 10,
    in_channels: int = 3,
    width: int = 16,
) -> WideResNet:
    """Builds a wide residual network, by default WRN-28-10 with 25 norms.

    Pre-activation basic blocks whose shortcut convolution, where there is one, reads the signal behind the
    block's first norm and ReLU; placements ``"A"``, ``"B"`` and ``"C"`` therefore act on it too.
    Placement ``"b"`` (and ``"F"``) is the original one.

    Args:
        depth: ``6 n + 4``.
        num_classes: Number of classes.
        dropout: Strength of the noise, a DROP probability for dropout; see `Parts`.
        placement: Where it stands, see `Parts`.
        noise: Kind of noise, see `Parts`.
        norm: Kind of norm, see `Parts`.
        norm_options: Arguments of the norm, see `Parts`.
        widen: Factor of all widths but the stem's.
        in_channels: Channels of the input.
        width: Channels of the stem.

    Returns:
        The network, in training mode.

    Raises:
        ValueError: If an argument is out of range.
    """
    check_counts(widen=widen, width=width)
    return WideResNet(
        blocks_of(depth, 6, 4),
        num_classes,
        Parts(dropout, placement, noise, norm, norm_options),
        partial(preactivation_block, fork="activation"),
        expansion=1,
        in_channels=in_channels,
        stem=width,
        width=width * widen,
        head_steps=["norm", "act"],
    )
