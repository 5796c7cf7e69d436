"""varshift finds, explains and cures networks that are good in `train()` and bad in `eval()`.

Start with ``report = varshift.check(model, loader)`` and ``handle = varshift.recalibrate(model, loader)``.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from varshift import data as data
    from varshift import functional as functional
    from varshift import nn as nn
    from varshift import optim as optim
    from varshift import theory as theory
    from varshift._check import check as check
    from varshift._compare import compare as compare
    from varshift._errors import DataError as DataError
    from varshift._errors import ModelError as ModelError
    from varshift._errors import VarshiftError as VarshiftError
    from varshift._errors import VarshiftWarning as VarshiftWarning
    from varshift._fix import apply_plan as apply_plan
    from varshift._fix import fix as fix
    from varshift._fix import fix_ as fix_
    from varshift._mode import Mode as Mode
    from varshift._mode import mode as mode
    from varshift._sites import SiteId as SiteId
    from varshift._watch import watch as watch
    from varshift.comparison import Comparison as Comparison
    from varshift.comparison import Variant as Variant
    from varshift.fixes import Cured as Cured
    from varshift.fixes import Plan as Plan
    from varshift.moments import Prediction as Prediction
    from varshift.moments import predict as predict
    from varshift.monitor import Watch as Watch
    from varshift.probe import Recalibration as Recalibration
    from varshift.probe import merge_statistics as merge_statistics
    from varshift.probe import recalibrate as recalibrate
    from varshift.report import Report as Report
    from varshift.rules import Cure as Cure
    from varshift.rules import Finding as Finding

try:
    __version__ = version("varshift")
except PackageNotFoundError:  # a checkout on the path that was never installed
    __version__ = "0+unknown"

# Loaded on first use, so that `varshift --help`, `rules` and `explain` answer without importing torch.
_HOME = {
    "check": "varshift._check",
    "compare": "varshift._compare",
    "Comparison": "varshift.comparison",
    "Variant": "varshift.comparison",
    "fix": "varshift._fix",
    "fix_": "varshift._fix",
    "apply_plan": "varshift._fix",
    "Cured": "varshift.fixes",
    "Plan": "varshift.fixes",
    "watch": "varshift._watch",
    "Watch": "varshift.monitor",
    "mode": "varshift._mode",
    "Mode": "varshift._mode",
    "predict": "varshift.moments",
    "Prediction": "varshift.moments",
    "merge_statistics": "varshift.probe",
    "recalibrate": "varshift.probe",
    "Recalibration": "varshift.probe",
    "Report": "varshift.report",
    "Finding": "varshift.rules",
    "Cure": "varshift.rules",
    "SiteId": "varshift._sites",
    "VarshiftError": "varshift._errors",
    "VarshiftWarning": "varshift._errors",
    "DataError": "varshift._errors",
    "ModelError": "varshift._errors",
}

# Rooms that are reached as attributes of the package, as `torch.nn` is.
_ROOMS = ("data", "functional", "nn", "optim", "theory")

__all__ = [
    "Comparison",
    "Cure",
    "Cured",
    "DataError",
    "Finding",
    "Mode",
    "ModelError",
    "Plan",
    "Prediction",
    "Recalibration",
    "Report",
    "SiteId",
    "Variant",
    "VarshiftError",
    "VarshiftWarning",
    "Watch",
    "__version__",
    "apply_plan",
    "check",
    "compare",
    "data",
    "fix",
    "fix_",
    "functional",
    "merge_statistics",
    "mode",
    "nn",
    "optim",
    "predict",
    "recalibrate",
    "theory",
    "watch",
]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"varshift.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
