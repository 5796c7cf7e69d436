"""Analytic propagation of mean and variance through a Flow: what norms will see, without data."""

from __future__ import annotations

from ._initialise import LayerInitialisation as LayerInitialisation
from ._initialise import initialise_network_ as initialise_network_
from ._predict import predict as predict
from ._prediction import LayerPrediction as LayerPrediction
from ._prediction import Prediction as Prediction
from ._prediction import State as State
from ._shape import guess_shape as guess_shape
