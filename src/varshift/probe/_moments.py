"""Streaming per-channel moments, pooled over batches by Chan's rule in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Pool:
    """Pooled moments of many channels: number of values, mean and sum of squared deviations, all float64."""

    count: Tensor
    mean: Tensor
    squares: Tensor

    @property
    def var(self) -> Tensor:
        """Unbiased variance; zero where only one value was seen."""
        return self.squares / (self.count - 1).clamp_min(1)


def merge(first: Pool, second: Pool, between: Tensor | float = 1.0) -> Pool:
    """Pools two sets of moments (Chan, Golub and LeVeque 1979).

    The second moment about the common mean is
    ``M2 = M2_1 + M2_2 + (mean_2 - mean_1)^2 n_1 n_2 / (n_1 + n_2)``.

    Args:
        first: Moments of the first set.
        second: Moments of the second set.
        between: Factor on the last term per channel; 0 leaves out what lies between the sets, which is how an
            instance norm averages its statistics.
    """
    count = first.count + second.count
    weight = second.count / count.clamp_min(1)
    delta = second.mean - first.mean
    mean = first.mean + delta * weight
    squares = first.squares + second.squares + delta.square() * (first.count * weight) * between
    return Pool(count, mean, squares)


class Moments:
    """Accumulates per-channel batch statistics into pooled moments, moving averages and their errors.

    All channels of all norms lie in one flat vector, so that a batch costs a dozen operations however many
    norms there are. Beside the pooled moments it keeps the sums over batches of each batch's mean and second
    moment (about the first batch's mean, which avoids cancellation), from which standard errors follow.

    Args:
        channels: Total number of channels.
        momentum: Per-channel momentum of the moving average; NaN for a cumulative average.
        between: Per-channel factor on the between-batch term (see `merge`).
        average: Whether to keep the moving averages.
        series: Whether to keep the sums over batches, which the errors need.
    """

    def __init__(
        self, channels: int, momentum: Tensor, between: Tensor, *, average: bool, series: bool
    ) -> None:
        device = between.device
        self._keep_average, self._keep_series = average, series

        def zeros() -> Tensor:
            return torch.zeros(channels, dtype=torch.float64, device=device)

        self.pool = Pool(zeros(), zeros(), zeros())
        self.batches = zeros()
        self._momentum, self.between = momentum, between
        self._ema_mean, self._ema_var, self._ema_rest = zeros(), zeros(), zeros() + 1
        self._reference = zeros()
        self._sum_mean, self._sum_mean2 = zeros(), zeros()
        self._sum_moment, self._sum_moment2, self._sum_cross = zeros(), zeros(), zeros()
        self._sum_within, self._sum_within_var, self._spread = zeros(), zeros(), zeros()
        self._sum_count2, self._sum_weighted, self._sum_weighted2 = zeros(), zeros(), zeros()

    def add(self, count: Tensor, mean: Tensor, var: Tensor, part: slice = slice(None)) -> None:
        """Adds one batch.

        Args:
            count: Number of values per channel, 0 where the batch did not arrive.
            mean: Batch mean per channel.
            var: Unbiased batch variance per channel (ignored where there is a single value).
            part: The channels that are meant, all by default.
        """
        arrived = count > 0
        mean = torch.where(arrived, mean.double(), 0.0)
        squares = torch.where(count > 1, var.double() * (count - 1), 0.0)
        batch = Pool(count, mean, squares)
        whole = self.pool
        merged = merge(
            Pool(whole.count[part], whole.mean[part], whole.squares[part]), batch, self.between[part]
        )
        whole.count[part], whole.mean[part], whole.squares[part] = merged.count, merged.mean, merged.squares
        if self._keep_average:
            self._add_average(arrived, batch, part)
        if self._keep_series:
            self._add_series(arrived, batch, part)
        self.batches[part] += arrived

    def _add_average(self, arrived: Tensor, batch: Pool, part: slice) -> None:
        number = self.batches[part] + 1
        momentum = self._momentum[part]
        momentum = torch.where(momentum.isnan(), 1 / number, momentum) * arrived
        for average, value in ((self._ema_mean, batch.mean), (self._ema_var, batch.var)):
            average[part] += momentum * (value - average[part])
        self._ema_rest[part] *= 1 - momentum

    def _add_series(self, arrived: Tensor, batch: Pool, part: slice) -> None:
        first = arrived & (self.batches[part] == 0)
        self._reference[part] = torch.where(first, batch.mean, self._reference[part])
        shifted = torch.where(arrived, batch.mean - self._reference[part], 0.0)
        within = batch.squares / batch.count.clamp_min(1)
        moment = within + shifted.square() * self.between[part]
        self._sum_mean[part] += shifted
        self._sum_mean2[part] += shifted.square()
        self._sum_moment[part] += moment
        self._sum_moment2[part] += moment.square()
        self._sum_cross[part] += moment * shifted
        self._sum_within[part] += batch.squares
        self._sum_within_var[part] += batch.var
        self._spread[part] += batch.count > 1
        weighted = batch.count * shifted
        self._sum_count2[part] += batch.count.square()
        self._sum_weighted[part] += weighted
        self._sum_weighted2[part] += weighted * shifted

    def average(
        self, start_mean: Tensor | None = None, start_var: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Moving averages of batch mean and unbiased batch variance.

        Args:
            start_mean: Value the average of the mean started from, as a norm's own buffer does. Without
                starting values the averages are divided by the weight they have gathered.
            start_var: The same for the variance.
        """
        if start_mean is None or start_var is None:
            weight = (1 - self._ema_rest).clamp_min(torch.finfo(torch.float64).tiny)
            return self._ema_mean / weight, self._ema_var / weight
        # A start that is not finite would stay so for ever; it is forgotten instead.
        ok = torch.isfinite(start_mean) & torch.isfinite(start_var)
        fresh_mean, fresh_var = self.average()
        return (
            torch.where(ok, self._ema_mean + self._ema_rest * start_mean, fresh_mean),
            torch.where(ok, self._ema_var + self._ema_rest * start_var, fresh_var),
        )

    def errors(self) -> tuple[Tensor, Tensor]:
        """Standard errors over batches of the mean, in sigmas, and of the variance, relative to it.

        The variance is a function of two batch averages, ``E2 - (mean - reference)^2``; its error follows
        from their covariance by the delta method. Infinite where fewer than two batches arrived.
        """
        k = self.batches
        degrees = (k - 1).clamp_min(1)
        mean_bar, moment_bar = self._sum_mean / k.clamp_min(1), self._sum_moment / k.clamp_min(1)
        var_mean = (self._sum_mean2 - k * mean_bar.square()).clamp_min(0) / degrees
        var_moment = (self._sum_moment2 - k * moment_bar.square()).clamp_min(0) / degrees
        cross = (self._sum_cross - k * mean_bar * moment_bar) / degrees
        slope = -2 * mean_bar * self.between
        var_var = (var_moment + 2 * slope * cross + slope.square() * var_mean).clamp_min(0)
        var = self.pool.var.clamp_min(torch.finfo(torch.float64).tiny)
        few = k < 2
        mean_error = (var_mean / k.clamp_min(1) / var).sqrt().masked_fill(few, torch.inf)
        var_error = ((var_var / k.clamp_min(1)).sqrt() / var).masked_fill(few, torch.inf)
        return mean_error, var_error

    def within(self, part: slice = slice(None)) -> Tensor:
        """Mean over batches of the unbiased within-batch variance: what a norm's moving average estimates.

        Batches of a single value per channel have none and are left out.
        """
        return self._sum_within_var[part] / self._spread[part].clamp_min(1)

    def effective_batch(self) -> tuple[Tensor, Tensor]:
        """Mean within-batch variance, and variance of the means of batches of typical size, per channel.

        Their ratio is the number of independent values that a batch is worth. The mean of ``n`` values varies
        as ``1 / n``, so the squared deviations are weighted by ``n``: a small last batch then counts for as
        much as any other. The typical size is the one in which a value finds itself, ``sum n^2 / sum n``.
        """
        count = self.pool.count.clamp_min(1)
        deviations = (self._sum_weighted2 - self._sum_weighted.square() / count).clamp_min(0)
        between = deviations / (self.batches - 1).clamp_min(1) * count / self._sum_count2.clamp_min(1)
        return self._sum_within / count, between


def rms(values: Tensor) -> float:
    """Root mean square of a tensor as a float."""
    return float(values.double().square().mean().sqrt())


def expand(counts: Sequence[int], channels: Tensor) -> Tensor:
    """One number per norm, repeated for each of its channels."""
    numbers = torch.tensor(counts, dtype=torch.float64, device=channels.device)
    return numbers.repeat_interleave(channels)
