"""What is kept of a signal to answer for other rates: a few figures per channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ._signal import Signal, channel_mean, channel_variance


@dataclass(frozen=True, slots=True)
class Profile:
    """Moments of a signal, per channel; a leading axis runs over the rates that are asked about.

    Attributes:
        mean: Mean over data and noise.
        data: Variance over the data of its mean over the noise.
        own: Noise variance that is independent from element to element.
        shared: All other noise variance: what weights, pools and coherent noise have made alike.
    """

    mean: Tensor
    data: Tensor
    own: Tensor
    shared: Tensor

    @property
    def noise(self) -> Tensor:
        """The whole noise variance."""
        return self.own + self.shared

    @property
    def total(self) -> Tensor:
        """Variance in training."""
        return self.data + self.own + self.shared

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.mean.shape[-1]

    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All figures, with as many rows each."""
        mean, data, own, shared = torch.broadcast_tensors(self.mean, self.data, self.own, self.shared)
        return mean, data, own, shared

    def but(self, **changes: Tensor) -> Profile:
        """A copy with some figures changed."""
        return replace(self, **changes)

    def scaled(self, factor: Tensor | float) -> Profile:
        """The variances times a factor; the mean as it is."""
        return Profile(self.mean, self.data * factor, self.own * factor, self.shared * factor)

    def averaged(self, channels: int) -> Profile:
        """The same figures in every channel: the average over all of them."""
        return Profile(*(part.mean(-1, keepdim=True).expand(-1, channels) for part in self.parts()))


def profile_of(value: object) -> Profile | tuple[Profile | None, ...] | None:
    """The profile of a signal (of each of several); None for anything else."""
    if isinstance(value, (tuple, list)):
        found = [profile_of(item) for item in value]
        return tuple(item if isinstance(item, Profile) else None for item in found)
    signal = Signal(value) if isinstance(value, Tensor) and value.is_floating_point() else value
    if not isinstance(signal, Signal) or not signal.mean.dim() or not signal.mean.numel():
        return None
    mean, data, noise = (
        part.reshape(1, -1).double().cpu()
        for part in (channel_mean(signal.mean), channel_variance(signal.mean), signal.noise())
    )
    if not bool(torch.isfinite(mean + data + noise).all()):
        return None
    nothing = torch.zeros_like(noise)
    if signal.noisy and signal.independent:
        return Profile(mean, data, noise, nothing)
    return Profile(mean, data, nothing, noise)


def joined(profiles: Sequence[Profile]) -> Profile:
    """Profiles side by side."""
    parts = [profile.parts() for profile in profiles]
    rows = max(mean.shape[0] for mean, *_ in parts)
    return Profile(
        *(torch.cat([part.expand(rows, -1) for part in column], -1) for column in zip(*parts, strict=True))
    )
