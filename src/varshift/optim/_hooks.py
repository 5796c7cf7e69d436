"""Running a function between the backward pass and the optimiser's step, or right after the step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle


def before_step(optimizer: Optimizer, run: Callable[[Tensor | None], Any]) -> RemovableHandle:
    """Calls ``run(grad_scale)`` whenever the gradients are about to be used by the optimiser.

    ``grad_scale`` is the factor that the gradients still carry: a `GradScaler` leaves it to a fused optimiser
    to take it out, and everybody else sees None. An optimiser that is given a closure computes its gradients
    inside its step; then the closure is wrapped.
    """

    def hook(optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            run(getattr(optimizer, "grad_scale", None))
            return None

        def wrapped() -> Any:
            loss = closure()
            with torch.no_grad():
                run(None)
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": wrapped}
        return (*args[:1], wrapped, *args[2:]), kwargs

    return checked(optimizer).register_step_pre_hook(hook)


def checked(optimizer: Any) -> Optimizer:
    """Returns the optimiser, or raises ValueError when it has no hooks."""
    if not isinstance(optimizer, Optimizer):
        raise ValueError(
            f"optimizer is a {type(optimizer).__name__}: it must be a torch.optim.Optimizer. For "
            "others, call step() yourself at the right place."
        )
    return optimizer
