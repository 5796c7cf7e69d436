"""Analytic propagation of mean and variance through a Flow: what norms will see, without data."""

from __future__ import annotations

from ._beside import predict_captured as predict_captured
from ._beside import samples_for_prediction as samples_for_prediction
from ._initialise import LayerInitialisation as LayerInitialisation
from ._initialise import initialise_network_ as initialise_network_
from ._predict import examples_for as examples_for
from ._predict import most_samples as most_samples
from ._predict import predict as predict
from ._prediction import LayerPrediction as LayerPrediction
from ._prediction import Prediction as Prediction
from ._prediction import State as State
from ._shape import stated_shape as stated_shape
