"""The cure "follow-mode": noise that acts in evaluation, too, acts in training only."""

from __future__ import annotations

from collections.abc import Sequence

from varshift._sites import SiteId
from varshift.evidence import Evidence
from varshift.fixes._edit import Edit
from varshift.fixes._noise_action import NoiseAction
from varshift.fixes._noise_method import plan_noise, require_capture
from varshift.fixes._noise_targets import noise_targets
from varshift.fixes._norm_mode import follow_mode, norms_in_batch_mode
from varshift.fixes._patient import Patient
from varshift.fixes._remedy import NoOptions, Remedy, remedy
from varshift.fixes._remove_noise import why_no_regulariser
from varshift.fixes._surgery import Refused
from varshift.flow import NoiseSite
from varshift.rules import Finding


@remedy
class FollowMode(Remedy):
    """Guards noise by the mode of its module, in evaluation its input passes as it is.

    A norm that a finding names and that uses the batch in evaluation, too, gets its mode likewise, and
    statistics that fit what it is fed. Noise that was declared as meant for evaluation is left alone.
    """

    code = "follow-mode"
    answers = ("VS106", "VS401")
    safety = "safe"
    guarded = False

    def plan(
        self, patient: Patient, sites: Sequence[SiteId], options: NoOptions, finding: Finding | None
    ) -> Sequence[Edit]:
        """A guard around the call."""
        require_capture(patient)
        norms = norms_in_batch_mode(patient, sites)
        if norms:
            return follow_mode(patient, norms)
        flow = patient.capture.eval if patient.capture else None
        acting = {site.id for site in flow.noises} if flow is not None else set()
        evidence = Evidence(intended=tuple(patient.settings.get("intended") or ()))

        def unfit(site: NoiseSite) -> str:
            if site.id not in acting:
                return f"{site.id} acts in training only, as it should."
            if evidence.is_intended(site.name, site.id):
                return f"{site.id} is declared as meant for evaluation."
            return why_no_regulariser(site, "switched off")

        named = [site for site in sites if site in acting or site not in patient.noises]
        if sites and not named:
            raise Refused(unfit(patient.noises[sites[0]]))
        targets = noise_targets(patient, named, unfit)
        return plan_noise(
            patient, {site.id: NoiseAction("follow-mode") for site in targets}, whole=bool(sites)
        )
