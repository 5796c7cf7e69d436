"""The cure that lets a batch norm keep running statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from varshift._sites import SiteId
from varshift.fixes._edit import Change, Edit, edit
from varshift.fixes._norm_edit import NormEdit
from varshift.fixes._norm_places import norm_places
from varshift.fixes._patient import Patient
from varshift.fixes._remedy import NoOptions, Remedy, remedy
from varshift.fixes._surgery import Refused, Surgery, like
from varshift.rules import Finding


@edit("track-statistics")
@dataclass(frozen=True, slots=True)
class TrackStatistics(NormEdit):
    """Gives a batch norm running statistics, or lets it update those that it has.

    New ones are mean 0 and variance 1 until data have been seen: the network is recalibrated afterwards.
    """

    def apply(self, surgery: Surgery) -> tuple[Change, ...]:
        """Adds the buffers that are missing, and sets the flag."""
        module = surgery.module(self.path, self.cls)
        if not isinstance(module, _BatchNorm):
            raise Refused(f"module '{self.path}' ({self.cls}) is no batch norm of torch's.")
        before = repr(module)
        surgery.set(module, "track_running_stats", True)
        factory, size = like(module), module.num_features
        if module.running_mean is None or module.running_var is None:
            surgery.set(module, "running_mean", torch.zeros(size, **factory))
            surgery.set(module, "running_var", torch.ones(size, **factory))
        if module.num_batches_tracked is None:
            counter = torch.zeros((), dtype=torch.long, device=factory["device"])
            surgery.set(module, "num_batches_tracked", counter)
        return (Change(self.site, before, repr(module), "attribute", self.source),)


@remedy
class TrackStatisticsRemedy(Remedy):
    """Lets batch norms keep running statistics, so that a prediction does not depend on batch mates."""

    code = "track-statistics"
    answers = ("VS401",)
    safety = "unsafe"
    restates = True

    def plan(
        self, patient: Patient, sites: Sequence[SiteId], options: NoOptions, finding: Finding | None
    ) -> Sequence[Edit]:
        """One edit for each batch norm that keeps none, or does not update what it keeps."""
        edits, refused, empty = [], [], False
        for place in norm_places(patient, sites):
            module = place.module
            if isinstance(module, _BatchNorm):
                if module.running_mean is None or not module.track_running_stats:
                    edits.append(TrackStatistics.of(place))
                    empty = empty or module.running_mean is None
            elif place.norm is None:
                refused.append(place.words)
        if refused:
            raise Refused(
                f"{', '.join(refused)} calls F.batch_norm without statistics: register the buffers "
                "running_mean and running_var, and pass them and training=self.training."
            )
        if not edits:
            raise Refused("every batch norm keeps running statistics and updates them.")
        if empty and patient.loader is None:
            raise Refused("new running statistics have to be learnt from data: pass loader=.")
        return edits
