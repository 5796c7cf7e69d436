"""The cure that freezes the parameters of a norm together with its statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

from varshift._sites import SiteId
from varshift.fixes._edit import Change, Edit, edit
from varshift.fixes._norm_edit import NormEdit
from varshift.fixes._norm_places import norm_places
from varshift.fixes._patient import Patient
from varshift.fixes._remedy import NoOptions, Remedy, remedy
from varshift.fixes._surgery import Refused, Surgery
from varshift.rules import Finding


@edit("freeze-parameters")
@dataclass(frozen=True, slots=True)
class FreezeParameters(NormEdit):
    """Switches the gradients of a module's parameters off."""

    def apply(self, surgery: Surgery) -> tuple[Change, ...]:
        """Sets ``requires_grad`` of every parameter that trains."""
        module = surgery.module(self.path, self.cls)
        trained = [(name, one) for name, one in module.named_parameters() if one.requires_grad]
        if not trained:
            raise Refused(f"the parameters of module '{self.path}' ({self.cls}) are frozen already.")
        for _, parameter in trained:
            surgery.on_undo(partial(_thaw, parameter))
            parameter.requires_grad_(False)
        names = ", ".join(name for name, _ in trained)
        return (Change(self.site, f"{names}: trained", f"{names}: frozen", "attribute", self.source),)


def _thaw(parameter: nn.Parameter) -> None:
    parameter.requires_grad_(True)


@remedy
class FreezeParametersRemedy(Remedy):
    """Freezes the parameters of norms that run on stored statistics in training."""

    code = "freeze-parameters"
    answers = ("VS401",)
    safety = "safe"

    def plan(
        self, patient: Patient, sites: Sequence[SiteId], options: NoOptions, finding: Finding | None
    ) -> Sequence[Edit]:
        """One edit for each norm; without sites, for those in evaluation mode in a model in training mode."""
        edits = [
            FreezeParameters.of(place)
            for place in norm_places(patient, sites)
            if any(parameter.requires_grad for parameter in place.module.parameters())
            and (sites or (patient.network.training and not place.module.training))
        ]
        if not edits:
            raise Refused("no norm in evaluation mode has parameters that train.")
        return edits
