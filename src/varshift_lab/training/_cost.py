"""How much work a step of training is."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from varshift_lab.data import Images
from varshift_lab.training._random import own_random_state


def flops_per_sample(model: nn.Module, images: Images, samples: int) -> float:
    """Floating-point operations of one sample, forward and backward, of matrix products and convolutions.

    Counted on a copy of the network, so that this one stays as it is, and with the batch of the training, as
    some norms take no other.
    """
    twin = copy.deepcopy(model).train()
    place = next((one.device for one in twin.parameters()), torch.device("cpu"))
    few = images.take(torch.arange(samples) % len(images)).to(place)
    with own_random_state(place), FlopCounterMode(display=False) as counter:
        F.cross_entropy(twin(few.normalised()), few.labels).backward()
    return counter.get_total_flops() / samples
