"""The live model: its four states, streaming statistics, recalibration and gap attribution."""

from varshift.probe._recalibrate import LayerChange as LayerChange
from varshift.probe._recalibrate import Recalibration as Recalibration
from varshift.probe._recalibrate import recalibrate as recalibrate
from varshift.probe._types import Gap as Gap
from varshift.probe._types import GapStep as GapStep
from varshift.probe._types import LayerMeasurement as LayerMeasurement
from varshift.probe._types import LoaderFacts as LoaderFacts
from varshift.probe._types import Measurement as Measurement
from varshift.probe._types import ModeFacts as ModeFacts
from varshift.probe._types import NormFacts as NormFacts
from varshift.probe._types import State as State
