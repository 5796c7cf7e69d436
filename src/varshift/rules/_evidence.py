"""Everything a rule may look at: plain data from the rooms below, no tensors and no live modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # rules are listed and explained without importing torch
    from varshift.flow import Flow
    from varshift.model import NormFacts
    from varshift.moments import Prediction
    from varshift.probe import LoaderFacts, Measurement, ModeFacts


@dataclass(frozen=True)
class Evidence:
    """What is known about a network.

    Attributes:
        train: Flow of the network in train mode, None when it could not be captured.
        eval: Flow in eval mode, likewise.
        norms: Facts about each norm module by name.
        modes: Training flags.
        loader: Facts about the data loader, None without data.
        measurement: Measurements, None without data.
        prediction: What the weights and statistics alone predict, None where there is nothing to predict.
    """

    train: Flow | None
    eval: Flow | None
    norms: Mapping[str, NormFacts] = field(default_factory=dict)
    modes: ModeFacts | None = None
    loader: LoaderFacts | None = None
    measurement: Measurement | None = None
    prediction: Prediction | None = None
