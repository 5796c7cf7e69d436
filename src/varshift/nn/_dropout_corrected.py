"""Weight initialisation corrected for dropout: the norm that filters need, and filling them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from varshift._arguments import keep_probability
from varshift.nn._activation_constants import Constants, Nonlinearity, activation_constants

Mode = Literal["forward", "autograd", "paper", "mean"]
Distribution = Literal["sphere", "orthogonal", "uniform"]

# How the forward term (first) and the backward term (second) make the denominator.
_MODES: dict[str, Callable[[float, float], float]] = {
    "forward": lambda forward, backward: forward,
    "autograd": lambda forward, backward: forward + backward,
    "paper": lambda forward, backward: forward + backward,
    "mean": lambda forward, backward: (forward + backward) / 2,
}
_DISTRIBUTIONS = ("sphere", "orthogonal", "uniform")


def dropout_corrected_gain(
    nonlinearity: Nonlinearity = "relu",
    output_nonlinearity: Nonlinearity = "same",
    *,
    keep_in: float = 1.0,
    keep_out: float = 1.0,
    mode: Mode = "forward",
    constants: Constants = "exact",
) -> float:
    r"""The norm that every filter of a layer gets, so that dropout leaves the variance of its signal alone.

    .. math:: \text{forward } \left(\tfrac{A}{k}\right)^{-1/2} \quad
              \text{autograd } \left(\tfrac{A}{k} + \tfrac{B}{k'}\right)^{-1/2} \quad
              \text{paper } \left(\tfrac{A}{k} + k' B\right)^{-1/2}

    with :math:`A = E[f(z)^2]` of the activation that feeds the layer, :math:`B = E[g'(z)^2]` of the one
    behind it, ``z`` standard normal, and the KEEP probabilities :math:`k` of the dropout on the layer's
    input and :math:`k'` of that on its output.

    Args:
        nonlinearity: What feeds the layer: a name of torch (``"relu"``, ``"gelu"``), any elementwise
            function or module, ``"identity"`` for a network's first layer, or None for unknown, which takes
            0.5 for both constants.
        output_nonlinearity: What stands behind the layer, ``"same"`` as before it by default; ``"identity"``
            for a network's last layer. Mode ``"forward"`` does not read it.
        keep_in: KEEP probability in (0, 1] of the dropout on the layer's input: 1 minus torch's `p`; 1
            without dropout.
        keep_out: The same on the layer's output. Mode ``"forward"`` does not read it.
        mode: ``"forward"`` preserves the variance of the signal and is the choice for deep networks;
            ``"autograd"`` adds the variance of the gradient, as inverted dropout passes it on; ``"paper"`` is
            the formula as printed, whose backward factor is that of a mask without its scale; ``"mean"``
            halves ``"autograd"``. The two sums shrink a signal in depth (by half a layer for ReLU without
            dropout), the mean does not.
        constants: ``"exact"`` for quadrature, ``"paper"`` for the values that the paper prints, of which
            the slopes of tanh (0.216, exactly 0.464) and GELU (0.444, exactly 0.456) are off.

    Raises:
        ValueError: If a keep probability, a mode or an activation is none, or the activation is zero
            everywhere.

    Reference:
        D. Hendrycks, K. Gimpel, "Adjusting for dropout variance in batch normalization and weight
        initialization", arXiv 1607.02488, section 2. Read in the version of November 2016; the modes
        ``"autograd"`` and ``"mean"`` were derived for this package.

    Example:
        >>> from varshift.nn.init import dropout_corrected_gain
        >>> print(f"{dropout_corrected_gain('relu', keep_in=0.7):.6f}")
        1.183216
    """
    forward, backward = _terms(nonlinearity, output_nonlinearity, keep_in, keep_out, mode, constants)
    return _MODES[mode](forward, backward) ** -0.5


def dropout_corrected_(
    target: Tensor | nn.Module,
    nonlinearity: Nonlinearity = "relu",
    output_nonlinearity: Nonlinearity = "same",
    *,
    keep_in: float = 1.0,
    keep_out: float = 1.0,
    mode: Mode = "forward",
    constants: Constants = "exact",
    distribution: Distribution = "sphere",
    generator: torch.Generator | None = None,
) -> Tensor | nn.Module:
    """Fills the weights of a layer so that dropout leaves the variance of its signal alone.

    Every filter (all weights of one output unit or channel) gets the norm of `dropout_corrected_gain`. A
    module's bias becomes 0. Of a transposed convolution the filters are those of its output channels; a
    stride above 1 gives each output value only a part of the filter, which the formula does not know.

    With a batch norm directly behind the layer the scale of its weights does not matter to the forward
    signal.

    Args:
        target: A linear or convolutional layer, transposed ones included, or a weight of shape ``(out, in,
            ...)``.
        nonlinearity: What feeds the layer; see `dropout_corrected_gain`.
        output_nonlinearity: What stands behind it.
        keep_in: KEEP probability in (0, 1] of the dropout on the layer's input.
        keep_out: KEEP probability in (0, 1] of the dropout on the layer's output.
        mode: ``"forward"``, ``"autograd"``, ``"paper"`` or ``"mean"``.
        constants: ``"exact"`` or ``"paper"``.
        distribution: ``"sphere"`` for directions drawn evenly; ``"orthogonal"`` for orthonormal filters, of
            norm 1 also where there are more of them than dimensions (the authors' code leaves those shorter);
            ``"uniform"`` for the Xavier-like form, which weighs the two terms with the layer's fans and
            fixes the variance, not the norm.
        generator: Source of the random numbers; the global one by default.

    Returns:
        The target.

    Raises:
        ValueError: If the target has no weights of a known layout, or an argument is none of those named.

    Reference:
        D. Hendrycks, K. Gimpel, arXiv 1607.02488, sections 2 and 3. The paper normalises "the last
        dimension" of a matrix whose layout it leaves open; the norm of each output unit is what its
        mathematics needs.

    Example:
        >>> import torch
        >>> from varshift.nn.init import dropout_corrected_
        >>> layer = torch.nn.Linear(512, 512)  # dropout 0.5, then this layer
        >>> layer = dropout_corrected_(layer, "relu", keep_in=0.5)
        >>> layer.weight.norm(dim=1)[:3]
        tensor([1.0000, 1.0000, 1.0000], grad_fn=<SliceBackward0>)
    """
    if distribution not in _DISTRIBUTIONS:
        raise ValueError(f"distribution={distribution!r} must be one of {', '.join(_DISTRIBUTIONS)}.")
    forward, backward = _terms(nonlinearity, output_nonlinearity, keep_in, keep_out, mode, constants)
    weight, transposed, groups = _weight(target)
    outputs = weight.shape[1] * groups if transposed else weight.shape[0]
    fan_in = weight.numel() // max(outputs, 1)
    wide = torch.promote_types(weight.dtype, torch.float32)
    filters = torch.empty(outputs, fan_in, device=weight.device, dtype=wide)
    with torch.no_grad():
        if distribution == "uniform":
            taps = math.prod(weight.shape[2:])
            denominator = _MODES[mode](fan_in * forward, outputs // groups * taps * backward)
            bound = math.sqrt(3 / denominator) if denominator else 0.0
            filters.uniform_(-bound, bound, generator=generator)
        else:
            if distribution == "sphere" or not filters.numel():
                filters.normal_(generator=generator)
            else:
                nn.init.orthogonal_(filters, generator=generator)
            filters = F.normalize(filters, dim=1) * _MODES[mode](forward, backward) ** -0.5
        if transposed:
            within = filters.view(groups, weight.shape[1], weight.shape[0] // groups, -1)
            filters = within.transpose(1, 2)
        weight.copy_(filters.reshape(weight.shape))
        if isinstance(target, nn.Module) and isinstance(target.bias, Tensor):
            target.bias.zero_()
    return target


def _terms(
    nonlinearity: Nonlinearity,
    output_nonlinearity: Nonlinearity,
    keep_in: float,
    keep_out: float,
    mode: str,
    constants: Constants,
) -> tuple[float, float]:
    """The forward and the backward term; the latter is 0 where the mode does not read it."""
    keep_in, keep_out = keep_probability("keep_in", keep_in), keep_probability("keep_out", keep_out)
    if mode not in _MODES:
        raise ValueError(f"mode={mode!r} must be one of {', '.join(_MODES)}.")
    forward = activation_constants(nonlinearity, constants).square / keep_in
    backward = 0.0
    if mode != "forward":
        same = isinstance(output_nonlinearity, str) and output_nonlinearity == "same"
        behind = nonlinearity if same else output_nonlinearity
        slope = activation_constants(behind, constants).slope
        if math.isnan(slope):
            raise ValueError(f"output_nonlinearity={behind!r} has no derivative: use mode='forward'.")
        backward = slope * keep_out if mode == "paper" else slope / keep_out
    if _MODES[mode](forward, backward) <= 0:
        raise ValueError(f"nonlinearity={nonlinearity!r} is zero everywhere: no weights restore its signal.")
    return forward, backward


def _weight(target: Tensor | nn.Module) -> tuple[Tensor, bool, int]:
    """A target's weight, whether its first two axes are swapped, and its number of groups."""
    if isinstance(target, nn.Module):
        if not isinstance(target, (nn.Linear, _ConvNd)):
            raise ValueError(
                f"target is a {type(target).__name__}: it must be a linear or convolutional layer, or a "
                "weight of shape (out, in, ...). Initialise layer by layer, each with its own dropout."
            )
        weight = target.weight
        if is_parametrized(target, "weight") or not isinstance(weight, nn.Parameter):
            raise ValueError(
                "target has a weight computed from other parameters: initialise it before that is set up."
            )
    else:
        weight = target
    conv = target if isinstance(target, _ConvNd) else None
    if is_lazy(weight):
        raise ValueError("target has a weight without a shape yet: run the network once on a batch first.")
    if not isinstance(weight, Tensor) or weight.dim() < 2 or not weight.is_floating_point():
        raise ValueError("target must have a floating-point weight of shape (out, in, ...).")
    return weight, conv is not None and conv.transposed, conv.groups if conv is not None else 1
