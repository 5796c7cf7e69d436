"""The trainer: which network, on which data, how, with what a paper adds, and what is measured of it."""

from __future__ import annotations

from ._checkpoints import Checkpoints as Checkpoints
from ._data_choice import DataChoice as DataChoice
from ._evaluate import Evaluation as Evaluation
from ._evaluate import evaluate as evaluate
from ._fit import fit as fit
from ._history import History as History
from ._history import Probe as Probe
from ._measured import adjusted as adjusted
from ._measured import errors as errors
from ._measured import geometry as geometry
from ._measured import shift as shift
from ._measured import shift_of as shift_of
from ._measures import Measure as Measure
from ._measures import find_measure as find_measure
from ._measures import measure as measure
from ._network import Network as Network
from ._random import own_random_state as own_random_state
from ._settings import TrainingSettings as TrainingSettings
from ._treatment import Part as Part
from ._treatment import Treatment as Treatment
from ._trial import TrainingTrial as TrainingTrial
