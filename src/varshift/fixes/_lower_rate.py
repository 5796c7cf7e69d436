"""The cure "lower-rate": noise so weak that norms do not feel it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from varshift._arguments import between, non_negative
from varshift._errors import VarshiftError
from varshift._sites import SiteId
from varshift.fixes._edit import Edit
from varshift.fixes._noise_action import NoiseAction, of_equal_variance
from varshift.fixes._noise_method import plan_noise
from varshift.fixes._noise_targets import noise_targets
from varshift.fixes._patient import Patient
from varshift.fixes._remedy import Remedy, remedy
from varshift.fixes._remove_noise import why_no_regulariser
from varshift.fixes._surgery import Refused
from varshift.fixes._swap_noise import variance_of
from varshift.flow import NoiseSite
from varshift.moments import Prediction
from varshift.rules import Finding, thresholds
from varshift.theory import fold, relu_moments

_STEPS = 12  # of the search for the largest scale
_MARGIN = 0.8  # of the excess that a rule allows: predictions and measurements have errors


@dataclass(frozen=True, slots=True)
class LowerOptions:
    """Options of "lower-rate".

    Attributes:
        rate: The new rate of every place.
        factor: What the rates are multiplied with, instead.
        shift: Without both: the largest shift that a norm may have.
    """

    rate: float | None = None
    factor: float | None = None
    shift: float = thresholds.SHIFT_WARNING

    def __post_init__(self) -> None:
        if self.rate is not None and self.factor is not None:
            raise VarshiftError(f"rate={self.rate!r} and factor={self.factor!r}: pass one of them.")
        if self.rate is not None:
            non_negative("rate", self.rate)
        if self.factor is not None:
            between("factor", self.factor, 0, 1)
        if not self.shift > 1:
            raise VarshiftError(f"shift={self.shift!r} must be above 1: without any shift all rates are 0.")


@remedy
class LowerRate(Remedy):
    """Lowers rates to what is asked for, or to the largest ones that keep norms under a shift.

    What a rate does to the norms is predicted where that is possible, and taken from the measured shift where
    there is one: to first order the excess of a shift over 1 grows with the variance of the noise. Where
    neither is there, the rate is the largest one that a norm directly after rectified noise forgives.
    """

    code = "lower-rate"
    answers = ("VS101", "VS102", "VS207", "VS208")
    safety = "unsafe"
    options = LowerOptions
    restates = True

    def plan(
        self, patient: Patient, sites: Sequence[SiteId], options: LowerOptions, finding: Finding | None
    ) -> Sequence[Edit]:
        """Another value of the attribute that sets the rate, or another argument of the call."""
        targets = noise_targets(patient, sites, _unfit)
        if options.rate is not None:
            rates = {site.id: options.rate for site in targets}
        else:
            scale = options.factor
            tidy = _tidy if scale is None else float
            if scale is None:
                scale = _scale(patient, targets, options.shift, finding)
            rates = {site.id: tidy(scale * (site.rate or 0.0)) for site in targets}
        lower = {
            site.id: NoiseAction("rate", rates[site.id])
            for site in targets
            if rates[site.id] < (site.rate or 0.0)
        }
        if not lower:
            raise Refused(
                "the rates are as low already: "
                + ", ".join(f"{site.id} has {site.rate:.3g}" for site in targets if site.rate is not None)
            )
        return plan_noise(patient, lower, whole=bool(sites))


def _unfit(site: NoiseSite) -> str:
    if site.rate is None:
        return f"{site.id} has no rate that could be lowered."
    return why_no_regulariser(site, "weakened")


def _scale(patient: Patient, targets: Sequence[NoiseSite], shift: float, finding: Finding | None) -> float:
    """The largest common scale of some rates that keeps the norms under a shift."""
    allowed = 1 + _MARGIN * (shift - 1)
    scales = [_predicted(patient.prediction, targets, allowed), _measured(finding, targets, allowed)]
    fits = [scale for scale in scales if scale is not None]
    scale = min(fits) if fits else 1.0
    return scale if scale < 1 else _certain(targets, allowed)


def _predicted(prediction: Prediction | None, targets: Sequence[NoiseSite], allowed: float) -> float | None:
    """By asking the prediction, halving the distance; None where it says nothing of these norms."""
    if prediction is None:
        return None
    known: Mapping[SiteId, float] = prediction.rates
    rates = {site.id: known[site.id] for site in targets if site.id in known}
    if len(rates) < len(targets):
        return None

    def worst(scale: float) -> float:
        answer = prediction.what_if({site: scale * rate for site, rate in rates.items()})
        shifts = [
            layer.shift
            for layer in answer.layers
            if layer.shift is not None and any(site in layer.noise for site in rates)
        ]
        return max(shifts, default=1.0)

    try:
        least, most = worst(0.0), worst(1.0)
    except (VarshiftError, ValueError):
        return None
    if most <= allowed:
        return 1.0
    if least > allowed:
        return None  # other noise is what shifts them
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if worst(middle) <= allowed else (low, middle)
    return low


def _measured(finding: Finding | None, targets: Sequence[NoiseSite], allowed: float) -> float | None:
    """By the shift that was measured: its excess grows with the variance of the noise, to first order."""
    if finding is None:
        return None
    figures = (finding.evidence.get(name) for name in ("fresh_ratio", "excess", "predicted_ratio"))
    ratio = next((value for value in figures if isinstance(value, (int, float)) and value > 0), None)
    if ratio is None:
        return None
    excess = fold(float(ratio)) - 1
    return _of_variance(targets, (allowed - 1) / excess) if excess > allowed - 1 else 1.0


def _certain(targets: Sequence[NoiseSite], allowed: float) -> float:
    """What a norm right after the noise forgives, for rectified signals: those feel it most.

    Noise of relative variance v raises the variance of a signal by ``v E[x^2]``, hence the shift is ``1 + v
    E[x^2] / Var[x]``.
    """
    moments = relu_moments(0.0, 1.0)
    variance = (allowed - 1) * moments.variance / (moments.variance + moments.mean**2)
    largest = max((variance_of(site) or 0.0 for site in targets), default=0.0)
    return _of_variance(targets, variance / largest) if largest > variance else 0.5


def _of_variance(targets: Sequence[NoiseSite], share: float) -> float:
    """The scale of rates that multiplies every variance by at most a share."""
    scales = []
    for site in targets:
        variance = variance_of(site)
        if variance is None or not site.rate:
            scales.append(math.sqrt(share) if share < 1 else 1.0)
        else:
            kind = site.kind if site.kind in ("uniform", "gaussian") else "dropout"
            scales.append((of_equal_variance(kind, share * variance).value or 0.0) / site.rate)
    return min([*scales, 1.0])


def _tidy(rate: float) -> float:
    """Rounds down to three digits, for a rate that people read."""
    if rate <= 0:
        return 0.0
    digits = 10 ** (2 - math.floor(math.log10(rate)))
    return math.floor(rate * digits + 1e-9) / digits
