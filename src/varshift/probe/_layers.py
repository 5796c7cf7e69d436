"""From the statistics of the passes to the figures of each norm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from varshift.model import Norm
from varshift.probe._moments import Moments, rms
from varshift.probe._tap import Tap
from varshift.probe._types import LayerMeasurement

_Estimates = dict[str, tuple[Tensor, Tensor]]


def measure_layers(
    norms: Sequence[Norm],
    train: Tap,
    clean: Tap,
    shipped: Tap,
    healthy: Tap,
    noisy: Tap,
    *,
    estimator: Literal["pooled", "ema"],
) -> tuple[LayerMeasurement, ...]:
    """Works out the figures of every norm (defined in `LayerMeasurement`).

    Args:
        norms: The norms in the order of the model's modules.
        train: Statistics in ``train``.
        clean: Statistics in ``clean``.
        shipped: Statistics in ``eval`` as shipped.
        healthy: Statistics in ``eval`` with those of the clean pass.
        noisy: Statistics in ``eval`` with those of the train pass.
        estimator: How variances are estimated.
    """
    estimates = [tap.estimates(estimator) for tap in (train, clean, shipped, healthy, noisy)]
    in_train, in_clean, in_shipped = _series(train), _series(clean), _series(shipped)
    # The calls of a shared norm differ by where they stand in the network, not as batches do.
    for name in clean.shared:
        in_clean.pop(name, None)
    return tuple(_measure(norm, estimates, in_train, in_clean, in_shipped, train) for norm in norms)


def _series(tap: Tap) -> dict[str, tuple[Moments, slice]]:
    return {
        norm.name: (moments, slices[norm.name]) for norms, slices, moments in tap.moments for norm in norms
    }


def _measure(
    norm: Norm,
    estimates: Sequence[_Estimates],
    in_train: dict[str, tuple[Moments, slice]],
    in_clean: dict[str, tuple[Moments, slice]],
    in_shipped: dict[str, tuple[Moments, slice]],
    train_tap: Tap,
) -> LayerMeasurement:
    rows = _seen_rows(norm, *in_shipped[norm.name])
    train, clean, shipped, healthy, noisy = (_chosen(found.get(norm.name), rows) for found in estimates)
    moving_mean = norm.mean.detach().reshape(-1).double().cpu()[rows]
    moving_var = norm.var.detach().reshape(-1).double().cpu()[rows]
    eps = float(getattr(norm.module, "eps", 0.0) or 0.0)
    if shipped is None:
        return LayerMeasurement(norm.name, False, _finite(float(moving_var.mean())))
    real_mean, real_var = shipped
    # A kernel adds eps to a variance before it uses it; so do the per-channel figures, which keeps channels
    # without any signal from dominating them.
    log_ratio = ((real_var + eps) / (moving_var + eps)).log()
    offset = (real_mean - moving_mean) / (real_var + eps).sqrt()
    stale = _staleness(norm, train, in_train[norm.name], rows, moving_mean, moving_var, eps)
    effective, effective_error = (
        effective_batch(*in_clean[norm.name]) if norm.name in in_clean and norm.rows == 1 else (None, None)
    )
    return LayerMeasurement(
        name=norm.name,
        reached=True,
        moving_var=_finite(float(moving_var.mean())),
        real_var=_finite(float(real_var.mean())),
        ratio=_ratio(real_var, moving_var, eps),
        channel_log_ratio_rms=_finite(rms(log_ratio)),
        mean_offset=_finite(rms(offset)),
        local_ratio=_ratio(clean and clean[1], train and train[1], eps),
        control_ratio=_ratio(healthy and healthy[1], clean and clean[1], eps),
        fresh_ratio=_ratio(noisy and noisy[1], train and train[1], eps),
        train_var=_finite(float(train[1].mean())) if train else None,
        stale_ratio=stale[0],
        stale_error=stale[1],
        stale_mean=stale[2],
        stale_mean_error=stale[3],
        values_per_channel=train_tap.smallest.get(norm.name),
        effective_batch=effective,
        effective_batch_error=effective_error,
    )


def _seen_rows(norm: Norm, moments: Moments, part: slice) -> slice | Tensor:
    """Which of a norm's statistics belong to kinds of samples that the data held."""
    return slice(None) if norm.rows == 1 else moments.pool.count[part].cpu() > 1


def _chosen(found: tuple[Tensor, Tensor] | None, rows: slice | Tensor) -> tuple[Tensor, Tensor] | None:
    return None if found is None else (found[0][rows], found[1][rows])


def _staleness(
    norm: Norm,
    train: tuple[Tensor, Tensor] | None,
    series: tuple[Moments, slice],
    rows: slice | Tensor,
    moving_mean: Tensor,
    moving_var: Tensor,
    eps: float,
) -> tuple[float | None, float | None, float | None, float | None]:
    """How far the stored statistics are from what training on these batches would store, with errors.

    Training stores a moving average of within-batch variances, so that is what is compared. Its own sampling
    noise belongs to the error: with momentum m it averages about (2 - m) / m batches.
    """
    if train is None:
        return None, None, None, None
    if not norm.centred:  # a mean square holds what lies between batches as well
        return _ratio(train[1], moving_var, eps), None, None, None
    moments, part = series
    within = moments.within(part).cpu()[rows]
    mean_error, var_error = (error[part].cpu()[rows] for error in moments.errors())
    batches = float(moments.batches[part].max())
    momentum = norm.momentum or 0.0
    widen = math.sqrt(1 + batches * momentum / (2 - momentum)) if momentum < 2 else 1.0
    offset = rms((train[0] - moving_mean) / (train[1] + eps).sqrt())
    total = float(within.sum())
    # Errors of channels may all point the same way; their weighted mean is the safe bound for the sum.
    variance_error = (
        float((var_error * within).nan_to_num(posinf=math.inf).sum()) / total if total > 0 else None
    )
    return (
        _ratio(within, moving_var, eps),
        _finite(None if variance_error is None else variance_error * widen),
        _finite(offset),
        _finite(rms(mean_error) * widen),
    )


def effective_batch(moments: Moments, part: slice) -> tuple[float | None, float | None]:
    within, between = (values[part].cpu() for values in moments.effective_batch())
    batches = float(moments.batches[part].max())
    used = within > 0
    if batches < 3 or not bool(used.any()):
        return None, None
    scale = within[used] + between[used]
    spread = float((between[used] / scale).mean())
    if spread <= 0:
        return None, None
    value = float((within[used] / scale).mean()) / spread
    # Channels are correlated: a quarter of them is taken to be independent.
    error = math.sqrt(2 / ((batches - 1) * max(1.0, int(used.sum()) / 4)))
    return _finite(value), error


def _ratio(above: Tensor | None, below: Tensor | None, eps: float) -> float | None:
    """Ratio of channel means, with eps on both sides as the norm itself adds it."""
    if above is None or below is None:
        return None
    divisor = float(below.mean()) + eps
    return _finite((float(above.mean()) + eps) / divisor) if divisor > 0 else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
