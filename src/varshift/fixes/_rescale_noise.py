"""The cure "rescale-noise": what noise lets pass is divided by the mean of its factor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from varshift._arguments import positive
from varshift._sites import SiteId
from varshift.fixes._edit import Edit
from varshift.fixes._noise_action import NoiseAction
from varshift.fixes._noise_method import plan_noise
from varshift.fixes._noise_targets import noise_targets
from varshift.fixes._patient import Patient
from varshift.fixes._remedy import Remedy, remedy
from varshift.flow import NoiseSite
from varshift.rules import Finding

_ROUNDING = 1e-4  # of a mean that is computed from the arithmetic of a mask


@dataclass(frozen=True, slots=True)
class RescaleOptions:
    """Options of "rescale-noise".

    Attributes:
        factor: What to divide by in training; by default what was seen at each place.
    """

    factor: float | None = None

    def __post_init__(self) -> None:
        if self.factor is not None:
            positive("factor", self.factor)


@remedy
class RescaleNoise(Remedy):
    """Divides the result of a noise by the mean of its factor in training, so that it keeps the mean."""

    code = "rescale-noise"
    answers = ("VS107",)
    safety = "unsafe"
    options = RescaleOptions
    restates = True

    def plan(
        self, patient: Patient, sites: Sequence[SiteId], options: RescaleOptions, finding: Finding | None
    ) -> Sequence[Edit]:
        """A division around the call; each place by its own mean where several are concerned."""
        targets = noise_targets(patient, sites, lambda site: _unfit(site, options))
        wishes = {}
        for site in targets:
            factor = site.mean_factor if site.mean_factor is not None else options.factor
            if options.factor is not None and len(targets) == 1:
                factor = options.factor
            wishes[site.id] = NoiseAction("rescale", factor)
        return plan_noise(patient, wishes, whole=bool(sites))


def _unfit(site: NoiseSite, options: RescaleOptions) -> str:
    mean = site.mean_factor
    if mean is None:
        return "" if options.factor else f"{site.id}: the mean of its factor is not known; pass factor=."
    if mean <= 0:
        return f"{site.id}: its factor has the mean {mean:.3g}, which no division makes 1."
    return f"{site.id} keeps the mean already." if abs(mean - 1) <= _ROUNDING else ""
