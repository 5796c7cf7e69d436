"""The cure that takes batch statistics over all processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist

from varshift._sites import SiteId
from varshift.fixes._edit import Edit
from varshift.fixes._patient import Patient
from varshift.fixes._remedy import REMEDIES, NoOptions, Remedy, remedy
from varshift.fixes._surgery import Refused
from varshift.fixes._swap_norm import SwapNormOptions
from varshift.rules import Finding


@remedy
class SyncNormRemedy(Remedy):
    """Puts synchronised batch norms in the place of batch norms; evaluation stays as it is."""

    code = "sync-norm"
    answers = ("VS302", "VS404")
    safety = "safe"

    def plan(
        self, patient: Patient, sites: Sequence[SiteId], options: NoOptions, finding: Finding | None
    ) -> Sequence[Edit]:
        """The same as ``swap-norm`` with ``to="sync"``, where there is more than one process."""
        processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if finding is not None and processes < 2:
            raise Refused("there is one process only: synchronised norms would see the same batches.")
        return REMEDIES["swap-norm"].plan(patient, sites, SwapNormOptions(to="sync"), finding)
