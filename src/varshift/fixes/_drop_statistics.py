"""The cure that lets an instance norm use the statistics of each sample in evaluation, too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.nn.modules.instancenorm import _InstanceNorm

from varshift._sites import SiteId
from varshift.fixes._edit import Change, Edit, edit
from varshift.fixes._norm_edit import NormEdit
from varshift.fixes._norm_places import norm_places
from varshift.fixes._patient import Patient
from varshift.fixes._remedy import NoOptions, Remedy, remedy
from varshift.fixes._surgery import Refused, Surgery
from varshift.rules import Finding


@edit("drop-statistics")
@dataclass(frozen=True, slots=True)
class DropStatistics(NormEdit):
    """Takes the running statistics from an instance norm."""

    def apply(self, surgery: Surgery) -> tuple[Change, ...]:
        """Drops them: the module is then what ``track_running_stats=False`` builds."""
        module = surgery.module(self.path, self.cls)
        if not isinstance(module, _InstanceNorm) or module.running_mean is None:
            raise Refused(f"module '{self.path}' ({self.cls}) is no instance norm with running statistics.")
        before = repr(module)
        surgery.set(module, "track_running_stats", False)
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            surgery.set(module, name, None)
        return (Change(self.site, before, repr(module), "attribute", self.source),)


@remedy
class DropStatisticsRemedy(Remedy):
    """Lets norms that train on the statistics of each sample evaluate with them."""

    code = "drop-statistics"
    answers = ("VS209",)
    safety = "safe"
    restates = True

    def plan(
        self, patient: Patient, sites: Sequence[SiteId], options: NoOptions, finding: Finding | None
    ) -> Sequence[Edit]:
        """One edit for each instance norm with running statistics."""
        edits, refused = [], []
        for place in norm_places(patient, sites):
            if isinstance(place.module, _InstanceNorm) and place.norm is not None:
                edits.append(DropStatistics.of(place))
            elif place.per_sample:
                refused.append(place.words)
        if refused:
            raise Refused(
                f"the norm {', '.join(refused)} is written by hand: in its forward, use the mean and the "
                "variance of each sample whether self.training is set or not, and leave the running ones out."
            )
        if not edits:
            raise Refused("no norm keeps running statistics of single samples.")
        return edits
