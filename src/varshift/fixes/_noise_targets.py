"""Which noise sites a cure is for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from varshift._sites import SiteId
from varshift.fixes._noise_method import require_capture
from varshift.fixes._patient import Patient
from varshift.fixes._surgery import Refused
from varshift.flow import NoiseSite


def noise_targets(
    patient: Patient, sites: Sequence[SiteId], unfit: Callable[[NoiseSite], str]
) -> list[NoiseSite]:
    """The noise sites that a cure is to change.

    A site may name a noise, a norm (meant is the noise that reaches it) or a module (the noise in it).

    Args:
        patient: The network, with a capture.
        sites: What the cure is for; empty for all noise that it can act on, layers that are skipped by
            chance apart.
        unfit: Why a site is nothing for the cure, empty where it is.

    Raises:
        Refused: If no noise is named, or one is nothing for the cure.
    """
    require_capture(patient)
    noises = patient.noises
    if not sites:
        fit = [site for site in noises.values() if not unfit(site)]
        if not fit:
            first = next(iter(noises.values()), None)
            raise Refused("no noise acts in this network." if first is None else unfit(first))
        return fit
    targets: dict[SiteId, NoiseSite] = {}
    for site in sites:
        named = _named(patient, site)
        if not named:
            raise Refused(f"{site}: no noise acts there.")
        targets.update((noise.id, noise) for noise in named)
    for noise in targets.values():
        if reason := unfit(noise):
            raise Refused(reason)
    return list(targets.values())


def _named(patient: Patient, site: SiteId) -> list[NoiseSite]:
    noises = patient.noises
    for sites in (noises, patient.layer_drops):
        if site in sites:
            return [sites[site]]
    if site in patient.norms:
        name = patient.norms[site].name
        return [noise for noise in noises.values() if name in noise.reaches]
    if site.kind == "module":
        return [
            noise
            for noise in noises.values()
            if not site.module or noise.name == site.module or noise.name.startswith(f"{site.module}.")
        ]
    return []
