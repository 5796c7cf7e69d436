"""From the copy to the original: what worked there is done here, in one go or not at all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from varshift._errors import ModelError
from varshift.fixes._cured import Cured
from varshift.fixes._optimizer import sync_optimizer
from varshift.fixes._surgery import Surgery
from varshift.model import Holder, State, protected, release_signals, watch_signals


def transplant(tried: Cured, network: nn.Module, optimizer: Optimizer | None) -> Cured:
    """Does to a network what was done to its copy.

    Args:
        tried: The treated copy.
        network: The network itself.
        optimizer: Its optimiser, if it is to be kept in step.

    Raises:
        ModelError: If the root itself would have to be replaced.
    """
    if not isinstance(tried.model, type(network)):
        raise ModelError(
            f"model is the {type(network).__name__} that has to be replaced: use varshift.fix, which returns "
            "the new one."
        )
    statistics = _statistics(tried)
    surgery = Surgery(network, optimizer=optimizer)
    try:
        _operate(surgery, tried, statistics, optimizer)
        return replace(tried, model=network, optimizer=optimizer, way_back=lambda: _undo(surgery))
    except BaseException:  # an interrupt among others: without a handle nobody could undo it
        try:
            _undo(surgery)
        finally:
            _undo(surgery)
        raise


@protected
def _operate(
    surgery: Surgery, tried: Cured, statistics: list[tuple[str, tuple[Any, ...], Tensor]], optimizer: Any
) -> None:
    """All of the changes; signals wait until they are made."""
    holder = Holder()
    try:
        watch_signals(holder)
        for edit in tried.plan.edits:
            if edit.acts_on != "loader":  # the loader that it made is there already
                edit.apply(surgery)
        for path, keys, value in statistics:
            surgery.write(State(surgery.network.get_submodule(path), keys).tensor, value)
        if optimizer is not None:
            sync_optimizer(optimizer, surgery)
    finally:
        release_signals(holder)


@protected
def _undo(surgery: Surgery) -> None:
    holder = Holder()
    try:
        watch_signals(holder)
        surgery.undo()
    finally:
        release_signals(holder)


def _statistics(tried: Cured) -> list[tuple[str, tuple[Any, ...], Tensor]]:
    """The re-estimated statistics of the copy by module path."""
    if tried.recalibration is None:
        return []
    paths = {id(module): path for path, module in tried.model.named_modules()}
    return [
        (paths[id(state.module)], state.keys, state.tensor.detach().clone())
        for state in tried.recalibration.places
    ]
