"""What is kept of a signal to answer for other rates: a few figures per channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ._signal import Signal, channel_mean, channel_variance


@dataclass(frozen=True, slots=True)
class Profile:
    """Moments of a signal, per channel; the rows run over the rates that are asked about.

    Attributes:
        mean: Mean over data and noise.
        variances: The data part, that of the mean over the noise; and in a pass with noise, the noise that is
            independent from element to element, and all other noise: what weights, pools and coherent noise
            have made alike.
    """

    mean: Tensor
    variances: Tensor

    @classmethod
    def of(cls, mean: Tensor, *variances: Tensor) -> Profile:
        """A profile from its parts."""
        return cls(mean, torch.stack(torch.broadcast_tensors(*variances)))

    @property
    def quiet(self) -> bool:
        """Whether it belongs to a pass without noise."""
        return len(self.variances) == 1

    @property
    def data(self) -> Tensor:
        """Variance due to the data."""
        return self.variances[0]

    @property
    def own(self) -> Tensor:
        """Noise variance that is independent from element to element."""
        return torch.zeros_like(self.variances[0]) if self.quiet else self.variances[1]

    @property
    def shared(self) -> Tensor:
        """All other noise variance."""
        return torch.zeros_like(self.variances[0]) if self.quiet else self.variances[2]

    @property
    def noise(self) -> Tensor:
        """The whole noise variance."""
        return self.variances[1:].sum(0)

    @property
    def total(self) -> Tensor:
        """The whole variance."""
        return self.variances.sum(0)

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.mean.shape[-1]

    def scaled(self, factor: Tensor, mean: Tensor) -> Profile:
        """The variances times a factor, and another mean."""
        return Profile(mean, self.variances * factor)

    def averaged(self, channels: int) -> Profile:
        """The same figures in every channel: the average over all of them."""
        return Profile(
            *(part.mean(-1, keepdim=True).expand(*part.shape[:-1], channels) for part in self.parts())
        )

    def parts(self) -> tuple[Tensor, Tensor]:
        """Mean and variances."""
        return self.mean, self.variances


def profile_of(value: object) -> Profile | tuple[Profile | None, ...] | None:
    """The profile of a signal (of each of several); None for anything else."""
    if isinstance(value, (tuple, list)):
        found = [profile_of(item) for item in value]
        return tuple(item if isinstance(item, Profile) else None for item in found)
    signal = Signal(value) if isinstance(value, Tensor) and value.is_floating_point() else value
    if not isinstance(signal, Signal) or not signal.mean.dim() or not signal.mean.numel():
        return None
    figures = [channel_mean(signal.mean), channel_variance(signal.mean), signal.noise()]
    mean, data, noise = torch.stack([part.reshape(1, -1) for part in figures]).double().cpu()
    if not bool(torch.isfinite(mean + data + noise).all()):
        return None
    if isinstance(value, Tensor):
        return Profile.of(mean, data)
    none = torch.zeros_like(noise)
    independent = signal.noisy and signal.independent
    return Profile.of(mean, data, noise if independent else none, none if independent else noise)


def joined(profiles: Sequence[Profile], axis: int) -> Profile:
    """Profiles side by side: their rows (axis -2) or their channels (axis -1)."""
    columns = []
    for parts in zip(*(profile.parts() for profile in profiles), strict=True):
        if axis == -1:
            rows = max(part.shape[-2] for part in parts)
            parts = [part.expand(*part.shape[:-2], rows, part.shape[-1]) for part in parts]
        columns.append(torch.cat(list(parts), axis))
    return Profile(*columns)
