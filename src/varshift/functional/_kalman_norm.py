"""Kalman normalisation: batch statistics fused with a prediction made from the layer before."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from varshift._arguments import between, count

from ._kalman_state import KalmanState
from ._map_statistics import map_affine, map_moments, maps_are_worth_it

GUARD = 100.0


def fuse_kalman_states(
    prediction: KalmanState,
    observed: KalmanState,
    prediction_weight: float | torch.Tensor,
    guard: float = GUARD,
) -> KalmanState:
    r"""Moments of the mixture of a prediction and an observation.

    .. math::

        \mu = \pi \mu' + (1 - \pi) \bar x, \qquad
        v = \pi v' + (1 - \pi) S + \pi (1 - \pi) (\bar x - \mu')^2

    A row whose mean of ``v' / S`` over the channels is `guard` or more takes the observation alone. The
    released code takes that mean over all splits at once; here each row is judged by itself, so that splits
    and samples do not depend on each other. With one split both are the same.

    Args:
        prediction: ``mu', v'`` of shape (rows, C), or without rows.
        observed: ``x_bar, S`` of shape (rows, C).
        prediction_weight: ``pi`` in [0, 1]. The papers call it p; it is no drop probability.
        guard: The ratio from which the prediction is not believed.

    Reference:
        G. Wang et al., "Kalman Normalization", NeurIPS 2018, as in the released code (diagonal, with a fixed
        weight). The paper's full covariance and learned gain could not be read.

    Example:
        >>> import torch
        >>> from varshift.functional import KalmanState, fuse_kalman_states
        >>> one, zero = torch.ones(1, 1), torch.zeros(1, 1)
        >>> fuse_kalman_states(KalmanState(zero, one), KalmanState(one, one), 0.5).var.item()
        1.25
    """
    mean, var = observed
    tiny = torch.finfo(var.dtype).tiny
    believed = (prediction.var / var.clamp(min=tiny)).mean(-1, keepdim=True) < guard
    # Chosen before it is fused, so that an overflowing prediction leaves no trace.
    predicted_mean = torch.where(believed, prediction.mean, mean)
    predicted_var = torch.where(believed, prediction.var, var)
    gap = mean - predicted_mean
    keep = 1 - prediction_weight
    return KalmanState(
        mean - prediction_weight * gap,
        prediction_weight * predicted_var + keep * var + prediction_weight * keep * gap * gap,
    )


def batch_kalman_norm(
    x: torch.Tensor,
    prediction: KalmanState | None = None,
    running_mean: torch.Tensor | None = None,
    running_var: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    prediction_weight: float | torch.Tensor = 0.9,
    training: bool = True,
    momentum: float | torch.Tensor = 0.1,
    eps: float = 1e-5,
    splits: int = 1,
    guard: float = GUARD,
) -> tuple[torch.Tensor, KalmanState]:
    r"""Batch normalisation with statistics that are fused with a prediction.

    .. math:: y = \gamma\, (x - \mu) / \sqrt{v + \epsilon} + \beta

    with ``mu, v`` of `fuse_kalman_states`. Without a prediction this is batch norm.

    In training the running statistics move towards the fused moments, averaged over the splits; the variance
    is the biased one, as released (torch's batch norm keeps the unbiased one). In evaluation ``x`` goes
    through ``torch.nn.functional.batch_norm`` with the running statistics and the prediction is not used.

    Shape:
        x of shape ``(N, C, *)``; prediction of shape (splits, C) or (C,); the state of shape (splits, C), in
        evaluation (1, C).

    Args:
        x: The signal.
        prediction: Predicted moments of ``x``; None for plain batch statistics.
        running_mean: Updated in training, used in evaluation.
        running_var: Likewise.
        weight: ``gamma``.
        bias: ``beta``.
        prediction_weight: Weight of the prediction in [0, 1].
        training: Whether to use the batch.
        momentum: Share of the new statistics in the running ones.
        eps: Added to the variance.
        splits: Number of equal slices of the batch that are normalised each with its own statistics.
        guard: See `fuse_kalman_states`.

    Returns:
        The normalised signal and the moments that it was normalised with.

    Raises:
        ValueError: If shapes do not fit, the batch does not divide into the splits, or a split holds one
            value per channel and there is nothing to normalise it with.

    Reference:
        G. Wang et al., "Batch Kalman Normalization", arXiv 1802.03133, and "Kalman Normalization", NeurIPS
        2018, after the released code.

    Example:
        >>> import torch
        >>> from varshift.functional import KalmanState, batch_kalman_norm
        >>> x = torch.randn(2, 3, 4, 4)
        >>> prediction = KalmanState(torch.zeros(3), torch.ones(3))
        >>> y, state = batch_kalman_norm(x, prediction)
        >>> y.shape, state.mean.shape
        (torch.Size([2, 3, 4, 4]), torch.Size([1, 3]))
    """
    if x.dim() < 2:
        raise ValueError(f"x of shape {tuple(x.shape)} must have at least the axes (N, C).")
    channels = x.shape[1]
    splits = count("splits", splits, 1)
    if isinstance(prediction_weight, (int, float)):
        prediction_weight = between("prediction_weight", prediction_weight, 0, 1)
    if not training or x.numel() == 0:
        return _with_running(x, running_mean, running_var, weight, bias, eps)
    if x.shape[0] % splits:
        raise ValueError(
            f"splits={splits} must divide the batch of {x.shape[0]}: "
            "drop the last batch, or choose a divisor."
        )
    if x.numel() // (channels * splits) == 1:
        raise ValueError(
            f"x of shape {tuple(x.shape)} has one value per channel and split (splits={splits}): "
            "more than one is needed in training."
        )
    if prediction is not None:
        _check_prediction(prediction, splits, channels)
    y, state = _normalise(x, prediction, prediction_weight, weight, bias, eps, splits, guard)
    with torch.no_grad():
        if running_mean is not None:
            running_mean.lerp_(state.mean.mean(0).to(running_mean.dtype), _share(momentum, running_mean))
        if running_var is not None:
            running_var.lerp_(state.var.mean(0).to(running_var.dtype), _share(momentum, running_var))
    return y, state


def _normalise(
    x: torch.Tensor,
    prediction: KalmanState | None,
    prediction_weight: float | torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    splits: int,
    guard: float,
) -> tuple[torch.Tensor, KalmanState]:
    """Statistics of the splits, fused, and the signal normalised with them."""
    precision = torch.promote_types(x.dtype, torch.float32)
    by_maps = maps_are_worth_it(x)
    if by_maps:
        mean, var = (part.unflatten(0, (splits, -1)) for part in map_moments(x))
        between_maps, mean = torch.var_mean(mean, 1, correction=0)
        observed = KalmanState(mean, var.mean(1) + between_maps)
    else:
        parts = x.unflatten(0, (splits, -1)).to(precision)
        var, mean = torch.var_mean(parts, (1, *range(3, parts.dim())), correction=0)
        observed = KalmanState(mean, var)
    state = observed
    if prediction is not None:
        prediction = KalmanState(*(part.to(precision) for part in prediction))
        state = fuse_kalman_states(prediction, observed, prediction_weight, guard)
    scale = torch.rsqrt(state.var + eps)
    if weight is not None:
        scale = scale * weight.to(precision)
    if by_maps:
        # About the observed mean, as a constant, so that nothing cancels beside a large one.
        centre = observed.mean.detach()
        shift = (centre - state.mean) * scale
        shift = shift if bias is None else shift + bias.to(precision)
        rows = (
            part[:, None].expand(-1, x.shape[0] // splits, -1).flatten(0, 1)
            for part in (centre, scale, shift)
        )
        return map_affine(x, *rows), state
    parts = x.unflatten(0, (splits, -1)).to(precision)
    shape = (splits, 1, -1) + (1,) * (parts.dim() - 3)
    y = (parts - state.mean.reshape(shape)) * scale.reshape(shape)
    if bias is not None:
        y = y + bias.to(precision).reshape(1, 1, -1, *[1] * (parts.dim() - 3))
    return y.to(x.dtype).flatten(0, 1), state


def _with_running(
    x: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, KalmanState]:
    """Evaluation, and training on nothing at all."""
    if running_mean is None or running_var is None:
        if x.numel():
            raise ValueError("running_mean and running_var must be given for evaluation.")
        running_mean, running_var = x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])
    y = F.batch_norm(x, running_mean, running_var, weight, bias, False, 0.0, eps)
    # Copies: a later training pass writes the buffers, and the state may still be waiting in a graph.
    return y, KalmanState(running_mean[None].clone(), running_var[None].clone())


def _check_prediction(prediction: KalmanState, splits: int, channels: int) -> None:
    for name, part in zip(("mean", "var"), prediction, strict=True):
        rows = part.shape[0] if part.dim() == 2 else 1
        # Comparisons one by one: a compiler for open shapes cannot look a shape up among several.
        if not (1 <= part.dim() <= 2 and part.shape[-1] == channels and (rows == 1 or rows == splits)):
            raise ValueError(
                f"prediction.{name} of shape {tuple(part.shape)} must have shape "
                f"({splits}, {channels}), one row per split and one column per channel."
            )


def _share(momentum: float | torch.Tensor, like: torch.Tensor) -> float | torch.Tensor:
    return momentum.to(like.dtype) if isinstance(momentum, torch.Tensor) else momentum
