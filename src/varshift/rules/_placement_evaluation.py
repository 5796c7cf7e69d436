"""Noise that evaluation mode does not switch off (VS106)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from varshift._sites import Source, as_source
from varshift.evidence import Evidence

from . import _thresholds as thresholds
from ._cures import cure
from ._finding import Finding, Severity
from ._places import noise_place, parting_place
from ._reading import capitalised, known, listed, noise_words, quoted, without_none
from ._registry import Rule, register

if TYPE_CHECKING:
    from varshift.flow import NoiseSite
    from varshift.probe import Repeats

# Noise that nobody draws to get a prediction: left on, it was forgotten. Samplers may be meant.
_REGULARISERS = frozenset(
    {
        "dropout",
        "channel_dropout",
        "alpha_dropout",
        "feature_alpha_dropout",
        "attention_dropout",
        "recurrent_dropout",
        "weight_dropout",
        "drop_path",
        "drop_block",
        "rrelu",
    }
)


@register
class NoiseInEvaluation(Rule):
    """Something random acts in evaluation mode: dropout, attention dropout, sampling.

    ## What it does

    Finds every random operation that the network runs after `model.eval()`, and networks that give two
    answers to the same batch. State that an evaluation writes is told apart from randomness: that is VS406.

    ## Why it matters

    Predictions change from call to call, their error is larger than it needs to be, and no measurement of
    the network repeats. The usual cause is `F.dropout(x, p)`: its `training` argument is True by default,
    whatever the module's mode.

    ## How it is measured

    The network is captured in evaluation mode, and what is random there is found: that is certain. With data
    a few samples run twice from the same state, with other random numbers: `repeat_difference` is the
    relative L2 distance of the outputs, and shows noise that a capture cannot see (NumPy, a generator of the
    model's own), with the first operation that gives something else. Where the outputs differ, up to four
    batches run four times each:

        cost = mean loss of single runs - loss of their mean output    (times 4 / 3: the mean of four runs
                                                                       holds a quarter of the noise)

    The cost decides the severity: an error from 10 % of the loss, a warning from 5 %, else advice; dropout
    and its kin, which nobody draws to get a prediction, are a warning wherever outputs differ by .01. Without
    a loss the outputs decide: an error from .1, a warning from .01. Without data dropout and its kin are an
    error, other randomness, which may be meant, a warning. Sampling, and noise whose size the signal sets (a
    variational autoencoder), is meant: advice, and a warning from a quarter of the loss.

    ## Known limits

    The mean output of a classifier is the mean of its logits. Four runs show the cost of strong noise only
    roughly. Whether randomness is meant cannot be measured; see Cure.

    ## Example

    ```python
    def forward(self, x):
        return self.classifier(F.dropout(x, 0.5))  # drops in eval() too
    ```

    ## Cure

    ```python
    def forward(self, x):
        return self.classifier(F.dropout(x, 0.5, training=self.training))
    ```

    Where a module stays in training mode after `model.eval()`, VS401 says which. For Monte-Carlo dropout
    leave the model as it is, and switch its noise on around the prediction:
    `with varshift.mode(model, noise=True, norms="running"): ...`. Sampling that is meant is declared, by
    `varshift.check(..., intended=["decoder.sample"])`, by `intended` in `[tool.varshift]`, or at its line:

    ```python
    z = mean + std * torch.randn_like(std)  # varshift: ignore[VS106]
    ```

    ## Cure safety

    Safe: the weights were trained with this noise as a regulariser, and without it the network computes the
    mean that it was trained for. Norms after the noise may then show a variance shift (VS101, VS102).

    ## References

    - PyTorch documentation, `torch.nn.functional.dropout`: "training: apply dropout if True. Default:
      True".
    """

    code = "VS106"
    name = "noise-in-evaluation"
    needs_one_of = ("capture.eval", "trials")

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields one finding for the noise of each line, or one where only two runs show it."""
        repeats = evidence.trials.repeats if evidence.trials else None
        lines: dict[tuple[Source | str, str], list[NoiseSite]] = {}
        for site in evidence.eval.noises if evidence.eval else ():
            if not evidence.is_intended(site.name, site.id):
                key = as_source(site.source) or site.name
                lines.setdefault((key, site.kind), []).append(site)
        for sites in lines.values():
            yield self._seen(sites, repeats)
        noisy = evidence.eval is not None and bool(evidence.eval.noises)
        if not noisy and repeats is not None and known(repeats.random):
            yield from self._unseen(evidence, repeats)

    def _seen(self, sites: Sequence[NoiseSite], repeats: Repeats | None) -> Finding:
        first = sites[0]
        subject = capitalised(noise_words(first))
        if len(sites) > 1:
            subject += f" (and in {listed(site.name for site in sites[1:])})"
        sampler = first.kind == "sampling" or (first.rate is None and first.additive)
        unknown: Severity = "advice" if sampler else "error" if first.kind in _REGULARISERS else "warning"
        severity = _severity(repeats, unknown, forgotten=first.kind in _REGULARISERS)
        if sampler:
            severity = _of_sampler(repeats)
        verb = "acts in evaluation too"
        return Finding(
            code=self.code,
            severity=severity,
            confidence="certain" if repeats is None or not repeats.differs else "measured",
            sites=tuple(noise_place(site) for site in sites),
            message=f"{subject} {verb}{_effect(repeats)}.",
            evidence={"norm": first.nearest, "kind": first.kind, "rate": first.rate, **_figures(repeats)},
            cures=(
                cure(
                    "follow-mode",
                    "switch it off in evaluation (pass training=self.training); "
                    'where it is meant, declare it, or use varshift.mode(model, noise=True, norms="running")',
                    "safe",
                    first.id,
                ),
            ),
            step="noise",
            cost=_cost(repeats),
        )

    def _unseen(self, evidence: Evidence, repeats: Repeats) -> Iterator[Finding]:
        limit = thresholds.REPEAT_DIFFERENCE_UNSEEN if evidence.eval else thresholds.REPEAT_DIFFERENCE
        place = parting_place(evidence, repeats.random_at)
        if (repeats.random or 0.0) <= limit or evidence.is_intended(place.id.module, place.id):
            return
        at = repeats.random_at
        where = ""
        if at is not None:
            line = f" ({at.source})" if at.source is not None else ""
            where = f"; the first to differ is {at.op} in {quoted(at.module)}{line}"
        yield Finding(
            code=self.code,
            severity=_severity(repeats, "error", forgotten=False),
            confidence="measured",
            sites=(place,),
            message=(
                "Something random that the captured network does not show acts in evaluation"
                f"{_effect(repeats)}{where}."
            ),
            evidence={**_figures(repeats), "captured": evidence.eval is not None},
            cures=(
                cure("follow-mode", "switch it off in evaluation, or declare it where it is meant", "safe"),
            ),
            step="noise",
            cost=_cost(repeats),
        )


def _severity(repeats: Repeats | None, unknown: Severity, *, forgotten: bool) -> Severity:
    """By what the randomness costs, else by what it does to the outputs, else as it is without data.

    Args:
        repeats: What the repeated runs showed.
        unknown: The severity without them.
        forgotten: Whether it is noise that nobody means in evaluation: seen in the outputs it is a warning.
    """
    if repeats is None or repeats.random is None:
        return unknown
    spread = repeats.spread
    if spread is not None and spread.batches >= thresholds.FEW_BATCHES and spread.loss > 0:
        least = spread.cost - thresholds.COST_STANDARD_ERRORS * (spread.stderr or 0.0)
        share = least / spread.loss
        if share >= thresholds.COST_ERROR:
            return "error"
        seen = forgotten and repeats.random >= thresholds.NOISE_OUTPUT_WARNING
        return "warning" if seen or share >= thresholds.COST_WARNING else "advice"
    if repeats.random >= thresholds.NOISE_OUTPUT_ERROR:
        return "error"
    return "warning" if repeats.random >= thresholds.NOISE_OUTPUT_WARNING else "advice"


def _of_sampler(repeats: Repeats | None) -> Severity:
    """Noise whose size the signal sets, as in a variational autoencoder, is meant: advice, unless dear."""
    spread = repeats.spread if repeats is not None else None
    if spread is None or spread.batches < thresholds.FEW_BATCHES or spread.loss <= 0:
        return "advice"
    least = spread.cost - thresholds.COST_STANDARD_ERRORS * (spread.stderr or 0.0)
    return "warning" if least >= thresholds.SAMPLER_COST * spread.loss else "advice"


def _cost(repeats: Repeats | None) -> float | None:
    """What it costs in the loss, where that is known."""
    return known(repeats.spread.cost) if repeats is not None and repeats.spread is not None else None


def _effect(repeats: Repeats | None) -> str:
    """What it does, as the end of a sentence."""
    if repeats is None or not known(repeats.random):
        return ""
    text = f": two runs of one batch differ by {repeats.random:.2g} in relative L2"
    spread = repeats.spread
    if spread is not None and spread.loss > 0:
        text += f", which costs {spread.cost / spread.loss:.1%} of the loss"
    return text


def _figures(repeats: Repeats | None) -> dict[str, float | None]:
    if repeats is None:
        return {}
    spread = repeats.spread
    figures: dict[str, float | None] = {"repeat_difference": known(repeats.random)}
    if spread is not None:
        figures |= {"cost": spread.cost, "cost_error": known(spread.stderr), "loss": spread.loss}
    return without_none(figures)
