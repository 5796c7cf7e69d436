"""Where a network applies its noise: the places of two papers, found in any chain of layers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, get_args

HeadPlacement = Literal["none", "before_pooling", "last"]
Placement = Literal["none", "a", "b", "A", "B", "C", "D", "E", "F", "G", "T", "P", "before_pooling", "last"]
# Behind every norm: for networks of independent-component layers.
ICPlacement = Literal["ic", Placement]

HEAD: tuple[str, ...] = get_args(HeadPlacement)
BRANCH: tuple[str, ...] = get_args(Placement)
IC: tuple[str, ...] = ("ic", *BRANCH)

_NAMES = {
    "A": "before_first_norm",
    "B": "behind_first_norm",
    "C": "before_weight",
    "a": "before_norm",
    "D": "before_norm",
    "b": "before_conv",
    "E": "behind_norm",
    "F": "before_conv",
    "G": "behind_branch",
}


def check_placement(placement: str, allowed: Collection[str]) -> None:
    """Raises ValueError when this kind of network has no such place."""
    if placement not in allowed:
        raise ValueError(f"placement={placement!r} is unknown: use one of {', '.join(allowed)}.")


def noise_slots(kinds: Sequence[str], placement: str) -> dict[int, str]:
    """Finds where in a chain of layers a placement puts noise.

    The letters are defined for ``norm act weight norm act weight``; here they go by their neighbours, so
    that they mean the same in every block: A in front of the first norm, B right behind it, C in front of
    the next weight; D (the variance-shift paper's a) in front of the last norm, E right behind it, F in front
    of the last weight, if the last norm lies before it; b in front of the last weight wherever it lies; G
    behind everything.

    Args:
        kinds: What the layers are, in order: ``"norm"``, ``"act"``, ``"weight"`` or ``"other"``.
        placement: The place.

    Returns:
        For every noise the index of the layer that it stands in front of, and its name.

    Raises:
        ValueError: If the chain has no such place.
    """
    norms = [index for index, kind in enumerate(kinds) if kind == "norm"]
    weights = [index for index, kind in enumerate(kinds) if kind == "weight"]
    if placement == "ic":
        return {norm + 1: f"noise{number}" for number, norm in enumerate(norms, 1)}
    if placement not in _NAMES:
        return {}
    if placement in ("E", "F") and weights[-1] < norms[-1]:
        raise ValueError(
            f"placement={placement!r} does not exist here: the branch ends with a norm, so that nothing lies "
            "behind its last norm and in front of its last weight. Use 'b', in front of the last weight."
        )
    behind = [weight for weight in weights if weight > norms[0]]
    if placement == "C" and not behind:
        raise ValueError(
            "placement='C' does not exist here: no weight lies behind the branch's first norm. Use 'b', in "
            "front of its last weight."
        )
    where = {
        "A": lambda: norms[0],
        "B": lambda: norms[0] + 1,
        "C": lambda: behind[0],
        "a": lambda: norms[-1],
        "D": lambda: norms[-1],
        "b": lambda: weights[-1],
        "E": lambda: norms[-1] + 1,
        "F": lambda: weights[-1],
        "G": lambda: len(kinds),
    }[placement]()
    return {where: _NAMES[placement]}
