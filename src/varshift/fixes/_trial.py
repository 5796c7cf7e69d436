"""What a single module of the user's makes of an input, found out without a trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from varshift.model import one_at_a_time, shadowed


def output_in_evaluation(
    module: nn.Module, inputs: Tensor, then: Callable[[nn.Module, Tensor], Any] | None = None
) -> Any:
    """The output of a copy of a module in evaluation mode; None where it cannot be called like that.

    What its forward and its hooks write, and the random numbers that they draw, is put back.

    Args:
        module: The module.
        inputs: What it is called with.
        then: Called with the copy and its output; returns what is wanted instead of the output.
    """
    try:
        with one_at_a_time, shadowed(module, seed=0, resets=False) as shadow, shadow, shadow, torch.no_grad():
            network = shadow.network.eval()
            output = network(inputs)
            return output if then is None else then(network, output)
    except Exception:  # whatever a module of the user's may raise
        return None
