"""The cure "swap-noise": noise of another kind in the place of this one, as strong as it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from varshift._errors import VarshiftError
from varshift._sites import SiteId
from varshift.fixes._edit import Edit
from varshift.fixes._noise_action import OTHER_NOISE, NoiseAction, of_equal_variance
from varshift.fixes._noise_method import plan_noise
from varshift.fixes._noise_targets import noise_targets
from varshift.fixes._patient import Patient
from varshift.fixes._remedy import Remedy, remedy
from varshift.fixes._remove_noise import why_no_regulariser
from varshift.fixes._surgery import Refused
from varshift.flow import NoiseSite
from varshift.rules import Finding
from varshift.theory import noise_variance

_CHANNELS = 3  # dimensions of a signal that has channels of several values


@dataclass(frozen=True, slots=True)
class SwapOptions:
    """Options of "swap-noise".

    Attributes:
        to: Kind of the new noise.
        rate: Its drop probability, for ``"dropout"`` and ``"channel_dropout"``; by default that of equal
            variance, as for the next two.
        beta: Its half-width, for ``"uniform"``.
        sigma: Its standard deviation, for ``"gaussian"``.
    """

    to: Literal["uniform", "gaussian", "channel_dropout", "dropout"] = "uniform"
    rate: float | None = None
    beta: float | None = None
    sigma: float | None = None

    def __post_init__(self) -> None:
        if self.to not in OTHER_NOISE:
            raise VarshiftError(f"to={self.to!r} is no kind of noise: expected {', '.join(OTHER_NOISE)}.")
        name = self.names[self.to]
        for other in ("rate", "beta", "sigma"):
            if other != name and getattr(self, other) is not None:
                raise VarshiftError(
                    f"{other}={getattr(self, other)!r} is nothing for {self.to!r} noise: pass {name}=."
                )
        if self.value is not None:
            NoiseAction(self.to, self.value)

    @property
    def names(self) -> dict[str, str]:
        """The option that holds the strength of each kind."""
        return {"uniform": "beta", "gaussian": "sigma", "channel_dropout": "rate", "dropout": "rate"}

    @property
    def value(self) -> float | None:
        """The strength of the new noise; None where it is to be that of the old one."""
        return getattr(self, self.names[self.to])


@remedy
class SwapNoise(Remedy):
    """Puts other noise in the place of noise: its factor has the same variance unless options say otherwise.

    Dropout with a drop probability p has a factor of variance ``p / (1 - p)``, uniform noise ``beta^2 / 3``,
    Gaussian noise ``sigma^2``.
    """

    code = "swap-noise"
    answers = ("VS101", "VS102", "VS105")
    safety = "unsafe"
    options = SwapOptions
    restates = True

    def plan(
        self, patient: Patient, sites: Sequence[SiteId], options: SwapOptions, finding: Finding | None
    ) -> Sequence[Edit]:
        """Another module in its place, or another call in the method; see `plan_noise`."""
        ranks = _ranks(patient)
        targets = noise_targets(patient, sites, lambda site: _unfit(site, options, ranks.get(site.id)))
        return plan_noise(patient, {site.id: _action(site, options) for site in targets}, whole=bool(sites))


def _unfit(site: NoiseSite, options: SwapOptions, rank: int | None) -> str:
    """Why a site cannot get this noise; empty where it can."""
    if reason := why_no_regulariser(site, "swapped"):
        return reason
    if site.kind == options.to and options.value is None:
        return f"{site.id} is {options.to} noise already."
    if options.to == "channel_dropout" and rank is not None and rank < _CHANNELS:
        return f"{site.id}: its signal has {rank} dimensions, and no channels of several values to drop."
    if options.value is None and variance_of(site) is None:
        name = options.names[options.to]
        return f"{site.id}: the variance of its factor is not known; pass {name}= for the new noise."
    return ""


def variance_of(site: NoiseSite) -> float | None:
    """Variance of the factor of a noise; None where it is no factor of mean one, or its rate is not known."""
    kinds = {"attention_dropout": "dropout", "recurrent_dropout": "dropout", "weight_dropout": "dropout"}
    if site.rate is None or site.additive:
        return None
    try:
        return noise_variance(kinds.get(site.kind, site.kind), site.rate)
    except ValueError:
        return None


def _action(site: NoiseSite, options: SwapOptions) -> NoiseAction:
    if options.value is not None:
        return NoiseAction(options.to, options.value)
    variance = variance_of(site)
    if variance is None:
        raise Refused(f"{site.id}: the variance of its factor is not known.")
    return of_equal_variance(options.to, variance)


def _ranks(patient: Patient) -> dict[SiteId, int]:
    """Number of dimensions of the signal at every noise site."""
    return {
        site.id: len(flow.nodes[site.node].shape or ())
        for flow in reversed(patient.flows)
        for site in flow.noises
    }
