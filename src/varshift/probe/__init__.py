"""The live model: its states, streaming statistics, recalibration and gap attribution."""

from varshift.probe._loader import batch_size_of as batch_size_of
from varshift.probe._loader import model_device as model_device
from varshift.probe._loss import Loss as Loss
from varshift.probe._measure import draw_batches as draw_batches
from varshift.probe._measure import measure as measure
from varshift.probe._measure import measure_shadow as measure_shadow
from varshift.probe._noise_bias import Incomparable as Incomparable
from varshift.probe._noise_bias import measure_noise_bias as measure_noise_bias
from varshift.probe._pass import Progress as Progress
from varshift.probe._recalibrate import LayerChange as LayerChange
from varshift.probe._recalibrate import Recalibration as Recalibration
from varshift.probe._recalibrate import recalibrate as recalibrate
from varshift.probe._trial import Trial as Trial
from varshift.probe._trial import try_readings as try_readings
from varshift.probe._trial_types import Change as Change
from varshift.probe._trial_types import Repeats as Repeats
from varshift.probe._trial_types import Spread as Spread
from varshift.probe._trials import Trials as Trials
from varshift.probe._trials import try_samples as try_samples
from varshift.probe._types import STATES as STATES
from varshift.probe._types import Gap as Gap
from varshift.probe._types import GapStep as GapStep
from varshift.probe._types import LayerMeasurement as LayerMeasurement
from varshift.probe._types import Measurement as Measurement
from varshift.probe._types import NoiseBias as NoiseBias
