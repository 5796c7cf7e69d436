"""The functions behind the layers of `varshift.nn`; a layer and its twin share one kernel."""

from __future__ import annotations

from ._activation_moments import ActivationMoments as ActivationMoments
from ._activation_moments import activation_gain as activation_gain
from ._activation_moments import activation_moments as activation_moments
