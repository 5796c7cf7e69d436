"""What is known about a network: evidence of several kinds, each gathered only where a rule needs it.

Rules import this room, and are listed and explained without torch: what gathers is loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from varshift.evidence._history import History as History
from varshift.evidence._history import HistoryRow as HistoryRow
from varshift.evidence._history import NormHistory as NormHistory
from varshift.evidence._history import RankFacts as RankFacts
from varshift.evidence._history import RankNorm as RankNorm
from varshift.evidence._history import RateChange as RateChange
from varshift.evidence._order_facts import BatchOrder as BatchOrder
from varshift.evidence._order_facts import Purity as Purity
from varshift.evidence._order_facts import Redrawn as Redrawn
from varshift.evidence._types import KINDS as KINDS
from varshift.evidence._types import NEEDS as NEEDS
from varshift.evidence._types import NOT_NEEDED as NOT_NEEDED
from varshift.evidence._types import Evidence as Evidence
from varshift.evidence._types import EvidenceRun as EvidenceRun
from varshift.evidence._types import Kind as Kind
from varshift.evidence._types import LoaderFacts as LoaderFacts
from varshift.evidence._types import ModeFacts as ModeFacts
from varshift.evidence._types import Need as Need
from varshift.evidence._types import OptimizerFacts as OptimizerFacts
from varshift.evidence._types import kind_of as kind_of

if TYPE_CHECKING:
    from varshift.evidence._gather import PROVIDERS as PROVIDERS
    from varshift.evidence._gather import Gathering as Gathering
    from varshift.evidence._given import is_example as is_example
    from varshift.evidence._loader import loader_facts as loader_facts
    from varshift.evidence._modules import mode_facts as mode_facts
    from varshift.evidence._optimizer import optimizer_facts as optimizer_facts
    from varshift.evidence._provider import NotMade as NotMade
    from varshift.evidence._provider import Provider as Provider
    from varshift.evidence._subject import Subject as Subject

_HOME = {
    "Gathering": "_gather",
    "PROVIDERS": "_gather",
    "optimizer_facts": "_optimizer",
    "NotMade": "_provider",
    "Provider": "_provider",
    "Subject": "_subject",
    "is_example": "_given",
    "loader_facts": "_loader",
    "mode_facts": "_modules",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(f"varshift.evidence.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
