"""What the passes through a network found at its norms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from varshift.flow import NoiseSite

from ._anchor import Anchor
from ._clean_pass import CleanPass, Observed
from ._train_pass import TrainPass

Key = tuple[str, int]  # a norm and which of its calls
Watch = Callable[[str, TrainPass | CleanPass], object]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the passes found.

    Attributes:
        anchors: What every norm met in training.
        observed: What it met without noise, by state.
        untreated: Noise sites that could not be followed.
        failed: Operations that could not be run, with the reason.
    """

    anchors: Mapping[Key, Anchor]
    observed: Mapping[str, Mapping[Key, Observed]]
    untreated: Mapping[int, NoiseSite]
    failed: Mapping[str, str]
