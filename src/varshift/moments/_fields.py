"""Made-up inputs for networks whose data are not at hand."""

from __future__ import annotations

import torch
from torch import Tensor


def made_up_input(like: Tensor) -> Tensor:
    """Gaussian inputs of mean 0 and variance 1; for images and other grids with nature's spectrum, 1 / f.

    Neighbours in natural signals are alike: their amplitude falls about as one over the frequency. What else
    the data are like need not be known, since the norms say what the network made of them.

    Args:
        like: A tensor of the wanted shape and type; integers are handed back as they are.
    """
    if not like.is_floating_point():
        return like
    noise = torch.randn(like.shape, dtype=like.dtype, device=like.device)
    axes = tuple(axis for axis in range(2, like.dim()) if like.shape[axis] > 1)
    if not axes:
        return noise
    square = torch.zeros((), device=like.device)
    for axis in axes:
        frequency = torch.fft.fftfreq(like.shape[axis], device=like.device)
        square = square + frequency.square().reshape(-1, *(1,) * (like.dim() - 1 - axis))
    frequency = square.sqrt()
    lowest = 1 / max(like.shape[axis] for axis in axes)
    shaped = torch.fft.ifftn(
        torch.fft.fftn(noise.float(), dim=axes) / frequency.clamp_min(lowest), dim=axes
    ).real
    return (shaped / shaped.std()).to(like.dtype)
