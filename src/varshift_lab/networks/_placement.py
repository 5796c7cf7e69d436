"""Where a network applies its dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from torch import nn

Placement = Literal["none", "a", "b", "before_pooling", "last"]


def check_placement(placement: str, dropout: float) -> None:
    """Raises ValueError when the placement is unknown or the rate is not a drop probability in [0, 1)."""
    if placement not in get_args(Placement):
        known = ", ".join(get_args(Placement))
        raise ValueError(f"placement={placement!r} is unknown: use one of {known}.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout!r} must be a drop probability in [0, 1).")


def noise_at(place: Placement, placement: Placement, dropout: float) -> Callable[[], nn.Module]:
    """Builds the module that stands at one place of a network: dropout where it was asked for, else nothing.

    A rate of 0 builds no dropout, so that such a network has no noise site at all.
    """
    if place == placement and dropout > 0:
        return lambda: nn.Dropout(dropout)
    return nn.Identity
