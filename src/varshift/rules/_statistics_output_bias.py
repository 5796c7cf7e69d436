"""Noise that moves the mean of the outputs (VS208)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from varshift.evidence import Evidence

from . import _thresholds as thresholds
from ._cost import Cost, cost_of, graded, graver, milder
from ._cures import cure
from ._finding import Cure, Finding, Severity
from ._placement_factor import is_on_input, is_unscaled
from ._places import noise_place
from ._reading import known, noise_words, without_none
from ._registry import Rule, register

if TYPE_CHECKING:
    from varshift.flow import NoiseSite
    from varshift.probe import NoiseBias


@register
class BiasedOutputs(Rule):
    """Noise biases the output: its mean over the noise is not the output that is deployed.

    ## What it does

    Compares what the network predicts without noise with the mean of what it predicts with it. No norm is
    needed for the two to differ.

    ## Why it matters

    A network that is trained with noise learns that the mean over the noise fits its targets. Evaluation
    computes the output at the mean of the noise instead, which is another number wherever the function
    after the noise is curved: a norm, a square, an exponential, a maximum or a product of two noisy signals
    is larger on average than at the average. Predictions of a regression are then all too low, or all too
    high, in evaluation, and no statistic of any norm is to blame. Noise that is not rescaled (VS107) does
    the same.

    ## How it is measured

    At most 64 samples run with all norms on their running statistics: once without noise, and twice with
    it, 16 times where that shows something. Modules stay in train mode, so that nothing else differs.

    `bias` is the root mean square of the mean over the noise minus the output without, from two independent
    halves of the draws, so that the spread of the noise itself does not count. `residual` is that of the
    targets minus the mean over the noise, `loss_step` what the loss rises by from the outputs averaged over
    the noise to those without it.

    For targets that are numbers the squared bias is compared with the squared residual: it is the share that
    it adds to the mean squared error. A tenth is an error, a twentieth a warning, one and a half of its
    standard errors below, unless the loss falls. Scores of classes always have a small bias, and the mean
    over the noise is an ensemble that is often better: there both `loss_step` and the step "noise" of the
    gap decide, whichever is milder. Without a loss it is a warning where the bias is half of what outputs
    differ by from sample to sample, and so it is, whatever the loss, for noise that is not rescaled: scores
    that are all too large cost nothing on data that are learnt by heart.

    ## Known limits

    Where noise reaches a norm, VS101 and VS102 explain the bias. Noise that stays on in evaluation is
    VS106's. Outputs whose shape depends on the noise, and models that return their loss only, are not
    measured.

    ## Example

    ```python
    class Distance(nn.Module):
        def forward(self, x):  # E |W d(x)| is larger than |W x|
            return self.linear(F.dropout(self.body(x), 0.5, self.training)).norm(dim=1)
    ```

    ## Cure

    Put the noise where what follows it is linear in it, lower its rate, or average the outputs over the noise
    in evaluation, as in training:

    ```python
    with vs.mode(model, noise=True, norms="running"):
        prediction = torch.stack([model(x) for _ in range(32)]).mean(0)
    ```

    ## Cure safety

    Averaging is safe where it was measured to help: the weights keep their meaning, and a prediction costs as
    many passes as there are draws. Another place or rate is unsafe: train again.

    ## References

    - Y. Gal, Z. Ghahramani, "Dropout as a Bayesian Approximation", ICML 2016, arXiv 1506.02142: the mean over
      the noise as the prediction.
    - J. L. W. V. Jensen, "Sur les fonctions convexes et les inégalités entre les valeurs moyennes", Acta
      Mathematica 30 (1906).
    """

    code = "VS208"
    name = "biased-outputs"
    needs = ("capture.train",)
    uses = ("noise_bias", "measurement")

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields at most one finding, with all noise sites that act in training only."""
        found, flow = evidence.noise_bias, evidence.train
        if found is None or flow is None or (evidence.eval is not None and evidence.eval.noises):
            return
        sites = [site for site in flow.noises if site.rate != 0 and site.kind != "permutation"]
        unscaled = [site for site in sites if is_unscaled(site) and not is_on_input(flow, site)]
        severity = _severity(evidence, found, certain=bool(unscaled))
        if sites and severity is not None:
            yield self._finding(found, severity, [*unscaled, *(one for one in sites if one not in unscaled)])

    def _finding(self, found: NoiseBias, severity: Severity, sites: list[NoiseSite]) -> Finding:
        unit, name = _unit(found)
        direction = "lower" if found.offset < 0 else "higher"
        steady = found.offset_error is not None and abs(found.offset) > 2 * found.offset_error
        text = (
            f"its outputs are {abs(found.offset):.3g} {direction} on average and "
            if steady
            else "its outputs "
        )
        text += f"differ by {found.bias:.3g} ({found.bias / unit:.2g} of {name})"
        more = ", which is not rescaled (VS107)" if is_unscaled(sites[0]) else ""
        more += f", and {len(sites) - 1} more" if len(sites) > 1 else ""
        costs = found.loss_step is not None and found.loss_step > 0
        return Finding(
            code=self.code,
            severity=severity,
            confidence="measured",
            sites=tuple(map(noise_place, sites)),
            message=(
                f"Without noise the network does not compute its mean over the noise: {text}. "
                f"The noise is {noise_words(sites[0])}{more}."
            ),
            evidence=without_none(
                {
                    "bias": found.bias,
                    "bias_error": known(found.bias_error),
                    "offset": found.offset,
                    "offset_error": known(found.offset_error),
                    "residual": known(found.residual) if found.fits_numbers else None,
                    "spread": found.spread,
                    "loss_without_noise": known(found.loss),
                    "loss_step": known(found.loss_step),
                    "loss_step_error": known(found.loss_step_error),
                    "samples": found.samples,
                    "draws": found.draws,
                }
            ),
            cures=(
                *((_averaging(found),) if costs else ()),
                cure("lower-rate", "lower its rate, and train again", "unsafe", sites[0].id),
                cure(
                    "move-noise",
                    "put it where what follows is linear in it, and train again",
                    "unsafe",
                    sites[0].id,
                    to="linear",
                ),
            ),
            step="noise",
            cost=found.loss_step if costs else None,
        )


def _severity(evidence: Evidence, found: NoiseBias, *, certain: bool) -> Severity | None:
    """The severity; None where nothing is worth a word.

    Args:
        evidence: What else is known.
        found: The measurement.
        certain: Whether noise is not rescaled, so that outputs must move: scores then grow in evaluation,
            which costs nothing on data that are learnt by heart.
    """
    if found.bias_error is None or found.bias <= thresholds.STANDARD_ERRORS * found.bias_error:
        return None
    by_loss, by_spread = _by_loss(evidence, found), _by_spread(found)
    if not certain or by_spread is None:
        return by_loss
    return by_spread if by_loss is None else graver(by_loss, by_spread)


def _by_loss(evidence: Evidence, found: NoiseBias) -> Severity | None:
    step = _step_cost(found)
    if step is None:
        return _by_spread(found)
    if found.fits_numbers and found.residual:
        # The squared bias is known better than the loss of a few samples, which may only not contradict.
        if step.delta + (step.stderr or 0.0) <= 0:
            return None
        return _notable(graded(_squared(found), "advice"), found.bias / found.residual)
    if step.delta <= 0:
        return None
    noise = cost_of(evidence, "noise")
    grade, gap_grade = graded(step, "advice"), graded(noise, "advice") if noise is not None else "advice"
    if grade is None or gap_grade is None:
        return None
    return _notable(milder(grade, gap_grade), found.bias / found.spread if found.spread else 0.0)


def _notable(severity: Severity | None, relative: float) -> Severity | None:
    """Advice only for what is far from nothing."""
    if severity == "advice" and relative < thresholds.OUTPUT_BIAS_ADVICE:
        return None
    return severity


def _by_spread(found: NoiseBias) -> Severity | None:
    least = found.bias - thresholds.LOSS_STANDARD_ERRORS * (found.bias_error or 0.0)
    if least >= thresholds.OUTPUT_BIAS_WARNING * found.spread:
        return "warning"
    return "advice" if least >= thresholds.OUTPUT_BIAS_ADVICE * found.spread else None


def _step_cost(found: NoiseBias) -> Cost | None:
    """What the loss rises by from the mean over the noise to the output without."""
    if found.loss is None or found.loss_step is None:
        return None
    level = min(abs(found.loss), abs(found.loss - found.loss_step))
    scale = thresholds.LOSS_SHARE * level
    return Cost(("noise",), found.loss_step, found.loss_step_error, level, "loss", found.groups, scale)


def _squared(found: NoiseBias) -> Cost:
    """What the bias adds to the mean squared error of targets that are numbers."""
    level = (found.residual or 0.0) ** 2
    error = None if found.bias_error is None else 2 * found.bias * found.bias_error
    scale = thresholds.LOSS_SHARE * level
    return Cost(("noise",), found.bias**2, error, level, "loss", found.groups, scale)


def _unit(found: NoiseBias) -> tuple[float, str]:
    if found.fits_numbers and found.residual:
        return found.residual, "what targets differ from the mean by"
    return found.spread or 1.0, "what outputs differ by from sample to sample"


def _averaging(found: NoiseBias) -> Cure:
    before, step = found.loss or 0.0, found.loss_step or 0.0
    helps = step > thresholds.LOSS_STANDARD_ERRORS * (found.loss_step_error or float("inf"))
    name = "average the outputs over the noise in evaluation (Monte-Carlo dropout)"
    return replace(
        cure("average-noise", name, "safe" if helps else "unsafe"),
        measured={"metric": "loss", "before": before, "after": before - step},
    )
