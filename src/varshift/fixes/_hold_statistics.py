"""The cure that holds the statistics of frozen norms, whatever `train()` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

from torch import nn

from varshift._sites import SiteId
from varshift.fixes._class_draft import ClassDraft
from varshift.fixes._edit import Change, Edit, edit
from varshift.fixes._edited_class import base_and_edits, with_edit
from varshift.fixes._norm_edit import NormClassEdit
from varshift.fixes._norm_forms import read_norm
from varshift.fixes._norm_layers import LayerSettings
from varshift.fixes._norm_places import norm_places
from varshift.fixes._patient import Patient
from varshift.fixes._remedy import NoOptions, Remedy, remedy
from varshift.fixes._surgery import Refused, Surgery
from varshift.fixes._swap_norm import already, plan_swap
from varshift.rules import Finding


@edit("hold-statistics")
@dataclass(frozen=True, slots=True)
class HoldStatistics(NormClassEdit):
    """Gives a module a `train()` that leaves it in evaluation mode."""

    def apply(self, surgery: Surgery) -> tuple[Change, ...]:
        """Changes the class, and the mode of the module and all inside it."""
        module = surgery.module(self.path, self.cls)
        if is_held(module):
            raise Refused(f"module '{self.path}' ({self.cls}) is held in evaluation mode already.")
        for part in module.modules():
            surgery.set(part, "training", False)
        surgery.set_class(module, with_edit(module, self))
        after = f"{self.cls} held in evaluation mode"
        return (Change(self.site, f"{self.cls} in the mode of train()", after, "call", self.source),)

    def build(self, draft: ClassDraft) -> None:
        """Has `train` pass False on, whatever it is called with."""
        draft.wrap("train", _held)


def is_held(module: nn.Module) -> bool:
    """Whether the class of a module holds it in evaluation mode."""
    return any(isinstance(edit, HoldStatistics) for edit in base_and_edits(type(module))[1])


def _held(train: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(train)
    def held(self: nn.Module, mode: bool = True) -> Any:
        return train(self, False)

    return held


@remedy
class HoldStatisticsRemedy(Remedy):
    """Holds norms at their statistics, also where the model's `train()` is called later.

    A plain batch norm becomes a `varshift.nn.FrozenBatchNorm` with the same parameters and statistics; a norm
    that does more keeps its forward, and its `train()` leaves it in evaluation mode.
    """

    code = "hold-statistics"
    answers = ("VS402",)
    safety = "safe"

    def plan(
        self, patient: Patient, sites: Sequence[SiteId], options: NoOptions, finding: Finding | None
    ) -> Sequence[Edit]:
        """One edit for each norm; without sites, for each whose parameters are all frozen."""
        edits: list[Edit] = []
        for place in norm_places(patient, sites):
            parameters = list(place.module.parameters())
            frozen = bool(parameters) and not any(one.requires_grad for one in parameters)
            if (not sites and not frozen) or already(place, "frozen") or is_held(place.module):
                continue
            if place.norm is None:
                raise Refused(f"{place.words} has no running statistics to hold.")
            form = None if place.per_sample or not place.path else read_norm(place)
            if form is not None:
                edits.append(plan_swap(patient, place, "frozen", LayerSettings(trainable=True)))
            elif place.path:
                edits.append(HoldStatistics.of(place))
            else:
                raise Refused("the norm is the model itself: override its train() so that it calls eval().")
        if not edits:
            raise Refused("no norm has frozen parameters and statistics that train() would move.")
        return edits
