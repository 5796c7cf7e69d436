"""Random states of a run's own."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from varshift.data import generator_of

# Apart from the numbers that the same seed and epoch give the order and the augmentation.
_MASKS = 0x6D61736B73


def own_random_state(device: torch.device | str) -> AbstractContextManager[None]:
    """Puts torch's random states, of the processor and of this device, back on the way out."""
    device = torch.device(device)
    there = device.type == "cuda" and torch.cuda.is_available()
    return torch.random.fork_rng(devices=[device] if there else [])


def seed_masks(seed: int, epoch: int, rank: int) -> None:
    """Seeds the masks of an epoch, which every process draws for itself."""
    torch.manual_seed(generator_of(seed ^ _MASKS, (epoch << 20) + rank).initial_seed())
