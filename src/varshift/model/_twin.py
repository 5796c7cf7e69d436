"""A full copy of a network, for good, and of an optimiser that trains the copy."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from torch.optim import Optimizer

from varshift._errors import ModelError
from varshift.model._copy import ModelCopier, Uncopyable
from varshift.model._tensors import TensorCopier


def twin_of(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """A copy of a module tree with everything that it holds: what was shared stays shared.

    Returns:
        The copy, and what its user should know: that it uses some object of the original.

    Raises:
        ModelError: If a module cannot be copied.
    """
    copier = ModelCopier(TensorCopier())
    try:
        return copier.copy_model(model), (_limit(copier),) if copier.shared else ()
    except (Uncopyable, RecursionError) as error:
        raise ModelError(
            f"the model cannot be copied ({error}), and nothing is tried on itself: carry out by hand "
            "what check names."
        ) from error


def twin_optimizer(optimizer: Optimizer, model: nn.Module, twin: nn.Module) -> Optimizer:
    """A copy of an optimiser, with its state, that trains the copy of a model.

    Args:
        optimizer: The optimiser.
        model: The model that it trains.
        twin: A copy of it with the same modules.
    """
    memo: dict[int, Any] = {}
    own = dict(twin.named_parameters(remove_duplicate=False))
    for name, parameter in model.named_parameters(remove_duplicate=False):
        memo[id(parameter)] = own[name]
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            memo.setdefault(id(parameter), parameter)  # of another model: it is trained on as it is
    return copy.deepcopy(optimizer, memo)


def _limit(copier: ModelCopier) -> str:
    names = ", ".join(sorted({type(item).__name__ for item in copier.shared}))
    return f"The model holds what cannot be copied ({names}): the copy uses the same."
