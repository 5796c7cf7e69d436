"""Initialisation that normalises every layer on the way, from the data set's moments alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from varshift._arguments import count
from varshift.functional import KalmanState

from ._analytic_network import AnalyticNetwork
from ._analytic_rules import kind_rule


@torch.no_grad()
def analytic_init_(
    network: AnalyticNetwork,
    shape: Sequence[int],
    skip: Collection[nn.Module] = (),
    eps: float = 1e-12,
) -> AnalyticNetwork:
    r"""Rescales all weights, in place, so that every layer's output has mean 0 and variance 1.

    Layer by layer, from the input on, with the predicted moments ``m, v`` of a layer's output:

    .. math:: W_o \leftarrow W_o / \sqrt{v_o}, \qquad b_o \leftarrow (b_o - m_o) / \sqrt{v_o}

    per output channel ``o``, so that the prediction behind it is (0, 1) when the next layer is treated. Only
    the data set's moments are needed, no sample. Weights keep their directions: draw them first, as you
    like. A layer without bias keeps its mean. Channels whose predicted variance is 0 keep their weights.

    Args:
        network: The network; `varshift.nn.AnalyticNorm2d` and its kin may be in it, but need not.
        shape: Shape of one sample, without the batch: (C, ...).
        skip: Layers, or modules with all layers in them, that keep their weights. Think of the head behind a
            global average pool: independent positions would make the pool's variance far smaller than it is,
            and the head would be scaled up for it.
        eps: Variances up to this count as 0.

    Returns:
        The network.

    Raises:
        ValueError: If a module has no rule, or a weight cannot be written, as under weight standardisation.

    Reference:
        A. Shekhovtsov, B. Flach, arXiv 1803.10560: "suitable for initialisation and normalisation".
        RECONSTRUCTED from the abstract; the body could not be read.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from varshift.nn import AnalyticNetwork, analytic_init_
        >>> body = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 5))
        >>> net = analytic_init_(AnalyticNetwork(body, [0.0] * 3, [1.0] * 3), (3,))
        >>> [round(value, 3) for value in net.moments(torch.zeros(1, 3)).var.tolist()]
        [1.0, 1.0, 1.0, 1.0, 1.0]
    """
    sizes = [count(f"shape[{index}]", extent, 1) for index, extent in enumerate(shape)]
    like = next(network.body.parameters(), network.mean)
    kept = {layer for module in skip for layer in module.modules()}
    layers = [
        module
        for module in network.modules()
        if isinstance(module, (nn.Linear, _ConvNd)) and module not in kept
    ]
    modes = [(module, module.training) for module in network.modules()]
    for layer in layers:
        # Found in place of the rule for the layer's kind, and taken once: a shared layer is normalised where
        # it comes first.
        layer.__dict__["propagate_moments"] = _Normalising(layer, eps)
    try:
        network.eval()
        network.moments(like.new_zeros(1, *sizes))
    finally:
        for layer in layers:
            layer.__dict__.pop("propagate_moments", None)
        for module, mode in modes:
            module.training = mode
    return network


class _Normalising:
    """The rule of one layer, which rescales its weight at its first call."""

    def __init__(self, layer: nn.Module, eps: float) -> None:
        self.layer, self.eps, self.done = layer, eps, False

    def __call__(self, state: KalmanState, before: torch.Size, after: torch.Size) -> KalmanState:
        layer = self.layer
        rule = kind_rule(layer)
        if rule is None:
            raise ValueError(f"module of class {type(layer).__name__} must be one whose moments are known.")
        found = rule(layer, state, before, after)
        if self.done:
            return found
        self.done = True
        weight, bias = layer._parameters.get("weight"), layer._parameters.get("bias")
        if weight is None or hasattr(layer, "effective_weight"):
            raise ValueError(
                f"weight of {layer!r} must be a plain parameter: rescale what it is computed from yourself, "
                "or leave the scale to a norm."
            )
        scale = torch.where(found.var > self.eps, found.var, 1).rsqrt().to(weight.dtype)
        if isinstance(layer, _ConvTransposeNd):
            blocks = weight.unflatten(0, (layer.groups, -1))
            blocks.mul_(scale.view(layer.groups, 1, -1, *[1] * (weight.dim() - 2)))
        else:
            weight.mul_(scale.view(-1, *[1] * (weight.dim() - 1)))
        if bias is not None:
            bias.sub_(found.mean.to(bias.dtype)).mul_(scale)
        return rule(layer, state, before, after)
