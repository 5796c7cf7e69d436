"""The cure that sets the momentum of norms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from varshift._errors import VarshiftError
from varshift._sites import SiteId
from varshift.fixes._edit import Edit
from varshift.fixes._noise_edits import SetAttribute
from varshift.fixes._norm_places import NormPlace, norm_places
from varshift.fixes._patient import Patient
from varshift.fixes._remedy import Remedy, remedy
from varshift.fixes._surgery import Refused
from varshift.rules import Finding


@dataclass(frozen=True, slots=True)
class SetMomentumOptions:
    """Options of the cure.

    Attributes:
        momentum: Weight of a batch in the running statistics, as torch counts it: above 0, at most 1.

    Raises:
        VarshiftError: If it is out of range.
    """

    momentum: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.momentum <= 1:
            raise VarshiftError(
                f"momentum={self.momentum!r} must be above 0 and at most 1: it is the weight of a new batch."
            )


@remedy
class SetMomentumRemedy(Remedy):
    """Sets the weight that a batch has in running statistics."""

    code = "set-momentum"
    answers = ("VS204", "VS305")
    safety = "safe"
    options = SetMomentumOptions
    restates = True

    def plan(
        self,
        patient: Patient,
        sites: Sequence[SiteId],
        options: SetMomentumOptions,
        finding: Finding | None,
    ) -> Sequence[Edit]:
        """One edit for each norm."""
        edits = []
        for place in norm_places(patient, sites):
            if place.norm is None:
                continue
            name, before, complement = _attribute(place)
            after = 1 - options.momentum if complement else options.momentum
            if before is None or not math.isclose(before, after):
                edits.append(SetAttribute(place.path, name, before, after, (place.id,), place.source))
        if not edits:
            raise Refused(f"every norm has a momentum of {options.momentum:g} already.")
        return edits


def _attribute(place: NormPlace) -> tuple[str, float | None, bool]:
    """Where a norm keeps its momentum: the attribute, its value, and whether it weighs the past instead."""
    values = {
        name: value
        for name, value in vars(place.module).items()
        if isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool))
    }
    norm = place.norm
    if norm is not None and norm.kind != "custom":
        return "momentum", values.get("momentum"), False
    weight = norm.momentum if norm is not None else None
    if weight is not None:
        for complement, wanted in ((False, weight), (True, 1 - weight)):
            names = [name for name, value in values.items() if math.isclose(value, wanted, rel_tol=1e-4)]
            if len(names) == 1:
                return names[0], values[names[0]], complement
    raise Refused(
        f"{place.words} is written by hand, and no attribute of it is seen to be its momentum: set the "
        "weight of a batch where its forward updates the statistics."
    )
