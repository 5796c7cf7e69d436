"""The fully connected networks of "Shuffling SGD and batch norm" (Wu, Yun & Sra 2023, arXiv 2302.12444)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from ._chain import Chain, Step
from ._parts import Noise, Norm, Parts, blocks_of, check_counts

LinearPlacement = Literal["none", "a", "b", "A", "B", "C", "D", "E", "F", "last"]
_PLACEMENTS = ("none", "a", "b", "A", "B", "C", "D", "E", "F", "last")


class LinearBN(nn.Module):
    """Linear layers with norms between them; see `linear_bn`."""

    def __init__(self, features: int, steps: list[Step], parts: Parts) -> None:
        super().__init__()
        self.layers = Chain(features, steps, parts, 0)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the class scores of a batch of vectors, or of images, which are flattened."""
        return self.layers(x.flatten(1))[0]


def linear_bn(
    depth: int = 3,
    num_classes: int = 10,
    *,
    dropout: float = 0.0,
    placement: LinearPlacement = "b",
    noise: Noise = "dropout",
    norm: Norm = "batch",
    norm_options: Mapping[str, Any] | None = None,
    in_features: int = 3072,
    width: int = 512,
    activation: Literal["relu"] | None = None,
    bias: bool = False,
) -> LinearBN:
    """Builds a linear network with batch norms, or its ReLU twin.

    With depth 1 it is ``norm linear``, the network of the paper's theory; deeper ones are ``linear norm``
    (and ReLU, if asked for) ``depth - 1`` times, then ``linear``.

    The paper's code normalises with batch statistics in evaluation too:
    ``norm_options={"track_running_stats": False}``.

    Args:
        depth: Number of linear layers.
        num_classes: Number of classes, or of outputs.
        dropout: Strength of the noise, a DROP probability for dropout; see `Parts`.
        placement: Where it stands, once in the whole network, see `Parts`; ``"last"`` is ``"b"``.
        noise: Kind of noise, see `Parts`.
        norm: Kind of norm, see `Parts`.
        norm_options: Arguments of the norm, see `Parts`; the theory has ``{"eps": 0.0}``.
        in_features: Numbers of an input sample.
        width: Units of the hidden layers; the paper's code has 512, and 128 for regression.
        activation: ``"relu"`` or None.
        bias: Whether linear layers have a bias; the paper's have none.

    Returns:
        The network, in training mode.

    Raises:
        ValueError: If an argument is out of range.
    """
    blocks_of(depth, 1, 0)
    check_counts(num_classes=num_classes, in_features=in_features, width=width)
    if activation not in (None, "relu"):
        raise ValueError(f"activation={activation!r} is unknown: use 'relu' or None.")
    parts = Parts(dropout, "b" if placement == "last" else placement, noise, norm, norm_options, _PLACEMENTS)
    steps: list[Step] = ["norm"] if depth == 1 else []
    features = in_features
    for _ in range(depth - 1):
        steps += [nn.Linear(features, width, bias=bias), "norm", *(["act"] if activation else [])]
        features = width
    return LinearBN(in_features, [*steps, nn.Linear(features, num_classes, bias=bias)], parts)
