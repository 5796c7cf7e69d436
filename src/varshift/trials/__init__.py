"""What a trial is: plain data with a seed that says what is run, and what it runs on."""

from __future__ import annotations

from varshift.trials._encode import decode as decode
from varshift.trials._encode import encode as encode
from varshift.trials._trial import Measurements as Measurements
from varshift.trials._trial import Trial as Trial
from varshift.trials._trial import TrialError as TrialError
from varshift.trials._trial import Workbench as Workbench
from varshift.trials._trial import decode_trial as decode_trial
