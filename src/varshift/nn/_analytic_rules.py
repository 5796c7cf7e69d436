"""How each kind of module moves the mean and the variance of its channels: one small rule per kind."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from varshift.functional import (
    KalmanState,
    averaged_moments,
    conv_moments,
    elementwise_moments,
    exponential_moments,
    gelu_moments,
    maximum_moments,
    padded_conv_moments,
    piecewise_moments,
    pooled_cells,
    rectified_moments,
    transposed_conv_moments,
)

from ._dropout import Dropout, GaussianDropout, UniformDropout
from ._filter_response_norm import ThresholdedLinearUnit

# A module, the moments of its input, the shapes of its input and of its output.
MomentRule = Callable[[Any, KalmanState, torch.Size, torch.Size], KalmanState]

_RULES: dict[type[nn.Module], MomentRule] = {}
_IDENTITY = (0.0, 1.0)
_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805


def moment_rule(*kinds: type[nn.Module]) -> Callable[[MomentRule], MomentRule]:
    """Registers how modules of some kinds move per-channel moments, for `varshift.nn.propagate`.

    The rule takes the module, the moments of its input (`varshift.functional.KalmanState`, one mean and one
    variance per channel), and the shapes of its input and output; it returns the moments of the output. A
    later rule for the same kind takes the place of an earlier one.

    Args:
        kinds: Classes of modules.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from varshift.functional import elementwise_moments
        >>> from varshift.nn import moment_rule
        >>> class Sine(nn.Module):
        ...     def forward(self, x):
        ...         return torch.sin(x)
        >>> @moment_rule(Sine)
        ... def sine(module, state, before, after):
        ...     return elementwise_moments(torch.sin, state)
    """

    def register(rule: MomentRule) -> MomentRule:
        _RULES.update(dict.fromkeys(kinds, rule))
        return rule

    return register


def find_rule(module: nn.Module) -> MomentRule | None:
    """A module's own `propagate_moments`, else the rule for its kind; None if there is neither."""
    own = getattr(module, "propagate_moments", None)
    if own is not None:
        return lambda _, state, before, after: own(state, before, after)
    return kind_rule(module)


def kind_rule(module: nn.Module) -> MomentRule | None:
    """The rule for a module's class or its nearest base; None if the class computes something else."""
    kind = type(module)
    for base in kind.__mro__:
        rule = _RULES.get(base)
        if rule is not None:
            # A derived class with a forward of its own may do anything, unless it tells its weight.
            return rule if kind.forward is base.forward or hasattr(module, "effective_weight") else None
    return None


@moment_rule(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
@moment_rule(nn.FeatureAlphaDropout, Dropout, GaussianDropout, UniformDropout, nn.UpsamplingNearest2d)
@moment_rule(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d)
@moment_rule(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d)
@moment_rule(nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d)
def _unchanged(module: nn.Module, state: KalmanState, before: torch.Size, after: torch.Size) -> KalmanState:
    return state  # of noise, too: the moments are those of the clean signal, alike in both modes


@moment_rule(nn.Linear)
def _linear(module: nn.Linear, state: KalmanState, before: torch.Size, after: torch.Size) -> KalmanState:
    if len(before) != 2:
        raise ValueError(
            f"x of shape {tuple(before)} in front of {module!r} must have 2 axes: channels are on axis 1; "
            "flatten it, or use a convolution with a kernel of 1."
        )
    return conv_moments(state, module.weight, module.bias, negative_slope=1.0)


@moment_rule(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def _conv(module: _ConvNd, state: KalmanState, before: torch.Size, after: torch.Size) -> KalmanState:
    effective = getattr(module, "effective_weight", None)  # of layers that standardise or binarise theirs
    weight = module.weight if effective is None else effective()
    padding: list[tuple[int, int]] = []
    for axis, (kernel, apart) in enumerate(zip(module.kernel_size, module.dilation, strict=True)):
        if module.padding_mode != "zeros" or module.padding == "valid":
            padding.append((0, 0))  # what fills the border is like what is inside
        elif isinstance(module.padding, str):
            total = apart * (kernel - 1)
            padding.append((total // 2, total - total // 2))
        else:
            padding.append((module.padding[axis], module.padding[axis]))
    return padded_conv_moments(
        state, weight, module.bias, before[2:], module.stride, padding, module.dilation, module.groups
    )


@moment_rule(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def _conv_transpose(
    module: _ConvTransposeNd, state: KalmanState, before: torch.Size, after: torch.Size
) -> KalmanState:
    return transposed_conv_moments(
        state,
        module.weight,
        module.bias,
        before[2:],
        after[2:],
        module.stride,
        tuple(int(cut) for cut in module.padding),
        module.dilation,
        module.groups,
    )


@moment_rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
def _batch_norm(
    module: nn.BatchNorm2d, state: KalmanState, before: torch.Size, after: torch.Size
) -> KalmanState:
    mean, var = torch.zeros_like(state.mean), torch.ones_like(state.var)
    if module.weight is not None:
        var = var * module.weight.to(var.dtype).square()
    if module.bias is not None:
        mean = mean + module.bias.to(mean.dtype)
    return KalmanState(mean, var)


# ---------------------------------------------------------------------- activations


@moment_rule(nn.ReLU)
def _relu(module: nn.ReLU, state: KalmanState, before: torch.Size, after: torch.Size) -> KalmanState:
    return rectified_moments(state)


@moment_rule(nn.LeakyReLU)
def _leaky(module: nn.LeakyReLU, state: KalmanState, before: torch.Size, after: torch.Size) -> KalmanState:
    return rectified_moments(state, float(module.negative_slope))


@moment_rule(nn.PReLU)
def _prelu(module: nn.PReLU, state: KalmanState, before: torch.Size, after: torch.Size) -> KalmanState:
    # prelu(x) = relu(x) - b relu(-x), of which one is always 0: Cov(relu(x), relu(-x)) = -E E.
    slope = module.weight.to(state.mean.dtype)
    up, down = rectified_moments(state), rectified_moments(KalmanState(-state.mean, state.var))
    var = up.var + slope.square() * down.var + 2 * slope * up.mean * down.mean
    return KalmanState(up.mean - slope * down.mean, var.clamp(min=0))


@moment_rule(ThresholdedLinearUnit)
def _thresholded(
    module: ThresholdedLinearUnit, state: KalmanState, before: torch.Size, after: torch.Size
) -> KalmanState:
    tau = module.tau.to(state.mean.dtype)
    above = rectified_moments(KalmanState(state.mean - tau, state.var))
    return KalmanState(above.mean + tau, above.var)


@moment_rule(nn.ReLU6, nn.Hardtanh)
def _clipped(module: nn.Hardtanh, state: KalmanState, before: torch.Size, after: torch.Size) -> KalmanState:
    low, high = float(module.min_val), float(module.max_val)
    return piecewise_moments(state, (low, high), ((low,), _IDENTITY, (high,)))


@moment_rule(nn.Hardsigmoid)
def _hardsigmoid(
    module: nn.Hardsigmoid, state: KalmanState, before: torch.Size, after: torch.Size
) -> KalmanState:
    return piecewise_moments(state, (-3.0, 3.0), ((0.0,), (0.5, 1 / 6), (1.0,)))


@moment_rule(nn.Hardswish)
def _hardswish(
    module: nn.Hardswish, state: KalmanState, before: torch.Size, after: torch.Size
) -> KalmanState:
    return piecewise_moments(state, (-3.0, 3.0), ((0.0,), (0.0, 0.5, 1 / 6), _IDENTITY))


@moment_rule(nn.Hardshrink)
def _hardshrink(
    module: nn.Hardshrink, state: KalmanState, before: torch.Size, after: torch.Size
) -> KalmanState:
    limit = float(module.lambd)
    return piecewise_moments(state, (-limit, limit), (_IDENTITY, (0.0,), _IDENTITY))


@moment_rule(nn.Softshrink)
def _softshrink(
    module: nn.Softshrink, state: KalmanState, before: torch.Size, after: torch.Size
) -> KalmanState:
    limit = float(module.lambd)
    return piecewise_moments(state, (-limit, limit), ((limit, 1.0), (0.0,), (-limit, 1.0)))


@moment_rule(nn.Threshold)
def _threshold(
    module: nn.Threshold, state: KalmanState, before: torch.Size, after: torch.Size
) -> KalmanState:
    return piecewise_moments(state, (float(module.threshold),), ((float(module.value),), _IDENTITY))


@moment_rule(nn.ELU)
def _elu(module: nn.ELU, state: KalmanState, before: torch.Size, after: torch.Size) -> KalmanState:
    return exponential_moments(state, 1.0, float(module.alpha))


@moment_rule(nn.CELU)
def _celu(module: nn.CELU, state: KalmanState, before: torch.Size, after: torch.Size) -> KalmanState:
    return exponential_moments(state, 1.0, float(module.alpha), 1 / float(module.alpha))


@moment_rule(nn.SELU)
def _selu(module: nn.SELU, state: KalmanState, before: torch.Size, after: torch.Size) -> KalmanState:
    return exponential_moments(state, _SELU_SCALE, _SELU_SCALE * _SELU_ALPHA)


@moment_rule(nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink)
def _smooth(module: nn.Module, state: KalmanState, before: torch.Size, after: torch.Size) -> KalmanState:
    # past the module's hooks, which are for its signal
    return elementwise_moments(lambda x: type(module).forward(module, x), state)


@moment_rule(nn.GELU)
def _gelu(module: nn.GELU, state: KalmanState, before: torch.Size, after: torch.Size) -> KalmanState:
    return gelu_moments(state) if module.approximate == "none" else _smooth(module, state, before, after)


# ---------------------------------------------------------------------- pools and shapes


@moment_rule(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
def _average(module: nn.AvgPool2d, state: KalmanState, before: torch.Size, after: torch.Size) -> KalmanState:
    axes = len(before) - 2
    kernel, step, around = (_each(v, axes) for v in (module.kernel_size, module.stride, module.padding))
    if not any(around) or not module.count_include_pad or getattr(module, "divisor_override", None):
        divisor = getattr(module, "divisor_override", None)
        scale = 1.0 if divisor is None else math.prod(kernel) / divisor
        return averaged_moments(
            KalmanState(state.mean * scale, state.var * scale**2), float(math.prod(kernel))
        )
    weight = state.mean.new_full((len(state.mean), 1, *kernel), 1 / math.prod(kernel))
    padding = [(zeros, zeros) for zeros in around]
    return padded_conv_moments(
        state, weight, None, before[2:], step, padding, [1] * axes, groups=len(state.mean)
    )


@moment_rule(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
def _adaptive_average(
    module: nn.Module, state: KalmanState, before: torch.Size, after: torch.Size
) -> KalmanState:
    return averaged_moments(state, pooled_cells(before[2:], after[2:]))


@moment_rule(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
def _maximum(module: nn.MaxPool2d, state: KalmanState, before: torch.Size, after: torch.Size) -> KalmanState:
    return maximum_moments(state, math.prod(_each(module.kernel_size, len(before) - 2)))


@moment_rule(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
def _adaptive_maximum(
    module: nn.Module, state: KalmanState, before: torch.Size, after: torch.Size
) -> KalmanState:
    cells = (-(-extent // bins) for extent, bins in zip(before[2:], after[2:], strict=True))
    return maximum_moments(state, math.prod(cells))


@moment_rule(nn.Flatten)
def _flatten(module: nn.Flatten, state: KalmanState, before: torch.Size, after: torch.Size) -> KalmanState:
    if len(before) < 3 or before[1] == after[1]:
        return state
    return KalmanState(*(part.repeat_interleave(after[1] // before[1]) for part in state))


@moment_rule(nn.Upsample)
def _upsample(module: nn.Upsample, state: KalmanState, before: torch.Size, after: torch.Size) -> KalmanState:
    if module.mode not in ("nearest", "nearest-exact"):
        raise ValueError(
            f"mode={module.mode!r} must be 'nearest': only copies have the moments of the input."
        )
    return state


@moment_rule(nn.PixelShuffle)
def _pixel_shuffle(
    module: nn.PixelShuffle, state: KalmanState, before: torch.Size, after: torch.Size
) -> KalmanState:
    means, variances = (part.unflatten(0, (after[1], -1)) for part in state)
    return KalmanState(means.mean(1), variances.mean(1) + means.var(1, correction=0))


@moment_rule(nn.PixelUnshuffle)
def _pixel_unshuffle(
    module: nn.PixelUnshuffle, state: KalmanState, before: torch.Size, after: torch.Size
) -> KalmanState:
    return KalmanState(*(part.repeat_interleave(after[1] // before[1]) for part in state))


@moment_rule(nn.ChannelShuffle)
def _channel_shuffle(
    module: nn.ChannelShuffle, state: KalmanState, before: torch.Size, after: torch.Size
) -> KalmanState:
    return KalmanState(*(part.unflatten(0, (module.groups, -1)).T.flatten() for part in state))


@moment_rule(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)
def _zeros_around(
    module: nn.Module, state: KalmanState, before: torch.Size, after: torch.Size
) -> KalmanState:
    share = math.prod(before[2:]) / math.prod(after[2:])
    return KalmanState(state.mean * share, share * (state.var + (1 - share) * state.mean.square()))


def _each(value: int | tuple[int, ...], axes: int) -> tuple[int, ...]:
    """One number per axis."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * axes
