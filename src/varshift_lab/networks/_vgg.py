"""The VGG-like network of Hendrycks & Gimpel (2016, arXiv 1607.02488)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

from torch import Tensor, nn

from ._chain import Chain, Step
from ._parts import Noise, Norm, Parts, check_counts, convolution, initialise
from ._placement import HeadPlacement

VGGPlacement = Literal["paper", HeadPlacement]

# For every convolution of five stages the DROP probability behind it, in the paper's code.
_RATES = ((0.3, 0), (0.4, 0), (0.4, 0.4, 0), (0.4, 0.4, 0), (0.4, 0.4, 0))
_HEAD_RATE = 0.5
_WIDTHS = (1, 2, 4, 8, 8)


class VGG(nn.Module):
    """Thirteen convolutions in five stages, each followed by max-pooling, and a classifier; see `vgg`."""

    def __init__(
        self,
        hidden: int,
        num_classes: int,
        parts: Parts,
        *,
        default_rates: bool,
        in_channels: int,
        width: int,
        image_size: int,
    ) -> None:
        super().__init__()

        def noise(rate: float, dimensions: int) -> list[Step]:
            wanted = replace(parts, dropout=rate) if default_rates else parts
            layer = wanted.noise_at("paper", dimensions) if rate else None
            return [] if layer is None else [layer]

        channels, steps = in_channels, []
        bias = parts.norm == "none"
        for stage, rates in enumerate(_RATES):
            for rate in rates:
                out = width * _WIDTHS[stage]
                steps += [convolution(channels, out, 3, bias=bias), "norm", "act", *noise(rate, 2)]
                channels = out
            head = parts.noise_at("before_pooling") if stage == len(_RATES) - 1 else None
            steps += [] if head is None else [head]
            steps.append(nn.MaxPool2d(2))
        self.features = Chain(in_channels, steps, parts.quiet())
        features, units = channels * (image_size // 2 ** len(_RATES)) ** 2, channels
        steps = noise(_HEAD_RATE, 0)
        for _ in range(hidden):
            steps += [nn.Linear(features, units, bias=bias), "norm", "act", *noise(_HEAD_RATE, 0)]
            features = units
        last = parts.noise_at("last", 0)
        steps += [] if last is None else [last]
        self.classifier = Chain(features, [*steps, nn.Linear(features, num_classes)], parts.quiet(), 0)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the class scores of a batch of images."""
        return self.classifier(self.features(x)[0].flatten(1))[0]


def vgg(
    depth: int = 15,
    num_classes: int = 10,
    *,
    dropout: float | None = None,
    placement: VGGPlacement = "paper",
    noise: Noise = "dropout",
    norm: Norm = "none",
    norm_options: Mapping[str, Any] | None = None,
    in_channels: int = 3,
    width: int = 64,
    image_size: int = 32,
) -> VGG:
    """Builds the network with which weight initialisation under dropout was tested; it has no norm.

    Thirteen 3x3 convolutions (2 of 64 channels, 2 of 128, 3 of 256, 3 of 512, 3 of 512), each with ReLU, max
    pooling behind every stage, then fully connected layers of 512. Weights start as in the other networks;
    `varshift.nn.init.dropout_corrected_` gives the paper's start.

    Args:
        depth: 15, one hidden fully connected layer as in the paper's code, or 16, two as in its text.
        num_classes: Number of classes.
        dropout: Strength of the noise at all places, or None for the paper's: DROP probabilities 0.3 behind
            the first convolution, 0.4 behind each later one that no pooling follows, 0.5 in front of each
            fully connected layer.
        placement: ``"paper"``: those places; ``"last"``: in front of the last layer only;
            ``"before_pooling"``: in front of the last max-pooling only; ``"none"``.
        noise: Kind of noise, see `Parts`.
        norm: Kind of norm between weight and ReLU, see `Parts`; with one, these layers have no bias.
        norm_options: Arguments of the norm, see `Parts`.
        in_channels: Channels of the input.
        width: Channels of the first stage.
        image_size: Height and width of the images, at least 32.

    Returns:
        The network, in training mode.

    Raises:
        ValueError: If an argument is out of range.
    """
    if depth not in (15, 16):
        raise ValueError(f"depth={depth!r} must be 15 (the paper's code) or 16 (its text).")
    check_counts(num_classes=num_classes, in_channels=in_channels, width=width, image_size=image_size)
    if image_size < 2 ** len(_RATES):
        raise ValueError(f"image_size={image_size!r} must be at least 32: five poolings halve it.")
    if dropout is None and placement not in ("paper", "none"):
        raise ValueError(f"dropout=None means the paper's rates: name one for placement={placement!r}.")
    if dropout is None and noise != "dropout":
        raise ValueError(f"dropout=None means the paper's DROP probabilities: name a strength for {noise=}.")
    return VGG(
        depth - 14,
        num_classes,
        Parts(dropout or 0.0, placement, noise, norm, norm_options, ("paper", *get_args(HeadPlacement))),
        default_rates=dropout is None,
        in_channels=in_channels,
        width=width,
        image_size=image_size,
    )
