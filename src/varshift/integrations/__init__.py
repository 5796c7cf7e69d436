"""Bridges to other libraries; each imports its host only when used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from varshift.integrations._companion import Options as Options
    from varshift.integrations._fastai import VarshiftLearnerCallback as VarshiftLearnerCallback
    from varshift.integrations._lightning import VarshiftCallback as VarshiftCallback
    from varshift.integrations._torchvision import (
        declare_torchvision_operators as declare_torchvision_operators,
    )
    from varshift.integrations._transformers import VarshiftTrainerCallback as VarshiftTrainerCallback

_HOME = {
    "Options": "_companion",
    "VarshiftCallback": "_lightning",
    "VarshiftTrainerCallback": "_transformers",
    "VarshiftLearnerCallback": "_fastai",
    "declare_torchvision_operators": "_torchvision",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOME))
