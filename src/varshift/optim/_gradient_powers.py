"""What an optimiser remembers of past gradients, and how it changes when the unit of weights does."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.optim import Optimizer

# A weight that is divided by c gets gradients c times as large. An entry of the state that is of degree p in
# the gradients must therefore be multiplied by c^p; one that is itself a weight, or a step of one, has -1.
_ADAM = {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2}
_POWERS: dict[str, dict[str, int]] = {
    "SGD": {"momentum_buffer": 1},
    "Muon": {"momentum_buffer": 1},
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "NAdam": _ADAM,
    "RAdam": _ADAM,
    "SparseAdam": _ADAM,
    "Adamax": {"exp_avg": 1, "exp_inf": 1},
    "RMSprop": {"square_avg": 2, "grad_avg": 1},  # its momentum buffer holds quotients of gradients: degree 0
    "Adagrad": {"sum": 2},
    "Adadelta": {"square_avg": 2, "acc_delta": -2},
    "ASGD": {"ax": -1},
    "Rprop": {"prev": 1, "step_size": -1},
}


def gradient_powers(optimizer: Optimizer, own: Mapping[str, int] | None) -> Mapping[str, int]:
    """The degree of each entry of an optimiser's state in the gradients.

    Raises:
        ValueError: If the optimiser is not one of torch's whose state is known and `own` is not given.
    """
    if own is not None:
        return own
    for name, powers in _POWERS.items():
        known = getattr(torch.optim, name, None)
        if known is not None and isinstance(optimizer, known):
            return powers
    raise ValueError(
        f"optimizer is a {type(optimizer).__name__}, and how its state depends on the gradients is not "
        "known: give state_powers={'momentum': 1, ...}, the degree of each entry of its state in the "
        "gradients, or scale_state=False to leave the state as it is."
    )
