"""The cure "remove-noise": what noise acted on passes as it is."""

from __future__ import annotations

from collections.abc import Sequence

from varshift._sites import SiteId
from varshift.fixes._edit import Edit
from varshift.fixes._noise_action import NoiseAction
from varshift.fixes._noise_method import plan_noise
from varshift.fixes._noise_targets import noise_targets
from varshift.fixes._patient import Patient
from varshift.fixes._remedy import NoOptions, Remedy, remedy
from varshift.flow import NoiseSite
from varshift.rules import Finding

_NO_REGULARISERS = {
    "sampling": "a random choice that depends on the signal",
    "permutation": "a random order",
    "other": "random numbers of a use that is not known",
    "rrelu": "an activation with a random slope",
}


@remedy
class RemoveNoise(Remedy):
    """Removes noise; the deployed function stays what it is."""

    code = "remove-noise"
    answers = ("VS101", "VS102", "VS104", "VS105", "VS106", "VS107", "VS208")
    safety = "safe"
    restates = True

    def plan(
        self, patient: Patient, sites: Sequence[SiteId], options: NoOptions, finding: Finding | None
    ) -> Sequence[Edit]:
        """Another module, a rate of zero, or a call without the noise; see `plan_noise`."""
        targets = noise_targets(patient, sites, lambda site: why_no_regulariser(site, "removed"))
        return plan_noise(patient, {site.id: NoiseAction("remove") for site in targets}, whole=bool(sites))


def why_no_regulariser(site: NoiseSite, done: str) -> str:
    """Why the noise of a site is no noise on a signal that it could do without; empty where it is."""
    if site.kind not in _NO_REGULARISERS:
        return "" if not (site.additive and site.rate is None) else _sampled(site, done, "the signal sets it")
    return _sampled(site, done, _NO_REGULARISERS[site.kind])


def _sampled(site: NoiseSite, done: str, what: str) -> str:
    return (
        f"{site.id} is not {done}: it is {what}, which the network may need. Where it is meant, declare it: "
        f"intended=[{str(site.id)!r}]."
    )
