"""The cure that re-estimates running statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from varshift._sites import SiteId
from varshift.fixes._edit import Change, Edit, edit
from varshift.fixes._patient import Patient
from varshift.fixes._remedy import Remedy, remedy
from varshift.fixes._surgery import Refused, Surgery
from varshift.rules import Finding


@edit("recalibrate")
@dataclass(frozen=True, slots=True)
class Recalibrate(Edit):
    """Re-estimates the running statistics; a repeated plan finds them in the weights, or does without.

    Attributes:
        noise: Whether the noise stays on.
        frozen: Whether frozen norms are re-estimated, too.
    """

    noise: bool = False
    frozen: bool = False

    def apply(self, surgery: Surgery) -> tuple[Change, ...]:
        """Nothing: the data are not part of a plan. The engine does it, after all other edits."""
        return ()


@dataclass(frozen=True, slots=True)
class RecalibrateOptions:
    """Options of the cure.

    Attributes:
        noise: Whether to keep the noise on: the statistics that training would have produced.
        frozen: Whether to re-estimate the statistics of frozen norms, too.
    """

    noise: bool = False
    frozen: bool = False


@remedy
class RecalibrateRemedy(Remedy):
    """Re-estimates running statistics, with data or without."""

    code = "recalibrate"
    answers = (
        "VS101",
        "VS102",
        "VS201",
        "VS202",
        "VS203",
        "VS205",
        "VS207",
        "VS211",
        "VS302",
        "VS305",
        "VS403",
    )
    safety = "safe"
    options = RecalibrateOptions

    def plan(
        self,
        patient: Patient,
        sites: Sequence[SiteId],
        options: RecalibrateOptions,
        finding: Finding | None,
    ) -> Sequence[Edit]:
        """One edit for the network as a whole."""
        if patient.loader is None and (options.noise or patient.example is None):
            raise Refused("recalibrate needs data: pass loader=, the batches that the network is trained on.")
        return (Recalibrate(options.noise, options.frozen),)


def statistics_changes(handle: Any) -> tuple[Change, ...]:
    """What a recalibration did, as changes: one for each norm."""
    return tuple(
        Change(
            SiteId(layer.name.partition("#")[0], "norm"),
            f"mean {layer.mean_before:.3g}, variance {layer.var_before:.3g}",
            f"mean {layer.mean_after:.3g}, variance {layer.var_after:.3g}",
            "statistics",
        )
        for layer in handle.layers
        if layer.updated
    )
