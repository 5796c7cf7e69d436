"""Made-up inputs for networks whose data are not at hand."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# What photographs have in common, whatever they show: rounded from CIFAR-10, and not fitted to any network.
_SLOPE = 1.2  # amplitude falls as 1 / f^1.2
_BETWEEN = 0.25  # share of the variance that lies between the means of samples, at contrast 1
_CONTRAST = 0.3  # standard deviation of the logarithm of a sample's contrast
_COLOUR = 0.85  # correlation of the channels of an image
_ENOUGH = 8  # samples from which positions are put on the same footing
_MOST_COLOURS = 4  # channels up to which a grid counts as an image with colours


def made_up_input(like: Tensor) -> Tensor:
    """Gaussian inputs of mean 0 and variance 1; grids have what is common to natural signals.

    Neighbours are alike: the amplitude falls about as one over the frequency. Samples differ in brightness
    and in contrast, and the colours of an image go together. All of that decides how much of a deep map's
    variance lies between samples, which noise leaves alone and pooling keeps. What else the data are like
    need not be known, since the norms say what the network made of them.

    Args:
        like: A tensor of the wanted shape and type. Integers are handed back as they are, and so is a single
            number per sample, such as a scale or a time: it says what is done to the signal and is none.
    """
    if not like.is_floating_point() or like.dim() < 2:
        return like
    axes = tuple(axis for axis in range(2, like.dim()) if like.shape[axis] > 1)
    if not axes:
        return torch.randn(like.shape, dtype=like.dtype, device=like.device)
    # Every sample comes with its negative, so that what is odd in them is 0 and not left to chance.
    half, ones = (len(like) + 1) // 2, (1,) * (like.dim() - 2)
    contrast = torch.exp(_CONTRAST * _quantiles(half, 1, *ones, device=like.device))
    brightness = _coloured(_quantiles, (half, like.shape[1], *ones), like.device)
    size = (half, *like.shape[1:])
    field = _coloured(lambda *size, device: _falling(size, axes, device), size, like.device)
    field = (1 - _BETWEEN) ** 0.5 * contrast * field + _BETWEEN**0.5 * brightness
    if half >= _ENOUGH:  # no position is louder than others but by chance
        field = field / field.square().mean(0, keepdim=True).sqrt()
    field = torch.stack([field, -field], 1).flatten(0, 1)[: len(like)]
    return (field / field.std()).to(like.dtype)


def _quantiles(*size: int, device: torch.device) -> Tensor:
    """Standard normal values over the samples, evenly spread and in an order of its own in every channel."""
    levels = (torch.arange(size[0], device=device) + 0.5) / size[0]
    order = torch.rand(size, device=device).argsort(0)
    values = 2**0.5 * torch.erfinv(2 * levels - 1)
    if size[0] == 1:
        return torch.ones(size, device=device)
    return (values / values.square().mean().sqrt())[order]


def _coloured(draw: Callable[..., Tensor], size: tuple[int, ...], device: torch.device) -> Tensor:
    """Random values of which the channels of an image share a part."""
    own = draw(*size, device=device)
    if not 1 < size[1] <= _MOST_COLOURS:
        return own
    return _COLOUR**0.5 * draw(size[0], 1, *size[2:], device=device) + (1 - _COLOUR) ** 0.5 * own


def _falling(size: tuple[int, ...], axes: tuple[int, ...], device: torch.device) -> Tensor:
    """Fields of mean 0 and variance 1 whose amplitude falls with the frequency."""
    square = torch.zeros((), device=device)
    for axis in axes:
        frequency = torch.fft.fftfreq(size[axis], device=device)
        square = square + frequency.square().reshape(-1, *(1,) * (len(size) - 1 - axis))
    lowest = 1 / max(size[axis] for axis in axes)
    amplitude = square.sqrt().clamp_min(lowest) ** -_SLOPE
    amplitude = torch.where(square > 0, amplitude, torch.zeros_like(amplitude))
    shaped = torch.fft.ifftn(torch.fft.fftn(torch.randn(size, device=device), dim=axes) * amplitude, dim=axes)
    return shaped.real / shaped.real.std()
