"""Weight initialisation that knows of dropout."""

from __future__ import annotations

from ._activation_constants import ActivationConstants as ActivationConstants
from ._activation_constants import activation_constants as activation_constants
from ._dropout_corrected import dropout_corrected_ as dropout_corrected_
from ._dropout_corrected import dropout_corrected_gain as dropout_corrected_gain
