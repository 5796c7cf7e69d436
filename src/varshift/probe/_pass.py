"""One forward pass under a tap, and when enough of them have run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from varshift.model import Call, Forward
from varshift.probe._distributed import Ranks
from varshift.probe._tap import Tap

Progress = Callable[[str, int, "int | None"], None]


def run_pass(network: nn.Module, forward: Forward | None, call: Call, tap: Tap, *, held: bool = False) -> Any:
    """Runs one batch without gradients; its batch statistics join the tap's accumulators.

    A batch that is held back joins only those of all batches.

    Raises:
        ModelError: If the model or the user's forward fails, from its own error.
    """
    with torch.no_grad(), tap:
        tap.begin(held=held)
        outputs = call.outputs(network, forward)
        tap.end()
    return outputs


class Stop:
    """Decides when every norm's estimate is good enough.

    The errors are looked at on a schedule that all processes share, at growing distances, since each look
    waits for the device.

    Args:
        tolerance: Largest accepted error.
    """

    # The spread over fewer batches says too little about the error.
    _FIRST = 4

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self.reached = False
        self._next = self._FIRST

    def due(self, rounds: int) -> bool:
        """Whether the errors should be looked at after this many rounds."""
        if rounds < self._next:
            return False
        self._next = max(rounds + 1, int(rounds * 1.1))
        return True

    def look(self, tap: Tap, ranks: Ranks) -> bool:
        """Looks at the errors of all norms; true when all are within the tolerance.

        Over several processes with equal shares the variance of the common estimate is the mean of theirs
        divided by their number.
        """
        worst = torch.tensor(layer_errors(tap), dtype=torch.float64, device="cpu")
        rows = torch.stack(ranks.gather(worst))
        common = (rows.square().mean(0) / ranks.size).sqrt()
        self.reached = bool((common <= self.tolerance).all())
        return self.reached


def layer_errors(tap: Tap) -> list[float]:
    """The larger error of each norm that was reached: standard deviation (relative) or mean (in sigmas)."""
    errors: list[float] = []
    for norms, slices, moments in tap.moments:
        mean_error, var_error = moments.errors()
        count = moments.pool.count
        for norm in norms:
            part = slices[norm.name]
            if float(count[part][0]) == 0:
                errors.append(0.0)
                continue
            # d sigma / sigma = d var / (2 var)
            worst = torch.maximum(
                mean_error[part].square().mean().sqrt(), var_error[part].square().mean().sqrt() / 2
            )
            errors.append(float(worst))
    return errors
