"""Placement of noise apart from norms: max-pooling (VS105)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from varshift import theory
from varshift.evidence import Evidence

from . import _thresholds as thresholds
from ._cost import cost_of, graded, price
from ._cures import cure
from ._finding import Confidence, Finding, Severity
from ._places import noise_place
from ._reading import capitalised, known, learns, noise_words, quoted, without_none
from ._registry import Rule, register

if TYPE_CHECKING:
    from varshift.flow import NoiseSite


@dataclass(frozen=True, slots=True)
class _Biased:
    """A noise site in front of a max-pool: the predicted ratio of means, and the pool."""

    site: NoiseSite
    ratio: float | None
    pool: tuple[str, Any, int]


def _absorbed(site: NoiseSite, normed: bool, offset: float | None) -> str:
    """Where the larger mean goes."""
    if not normed:
        return "No norm takes it up: all that follows gets smaller inputs in evaluation than it learned with."
    text = f"The norm {quoted(site.nearest or site.reaches[0])} takes it up in training"
    if offset is None:
        return f"{text}, and its mean is too large in evaluation."
    return f"{text}; in evaluation the mean there is off by {offset:.2g} standard deviations."


@register
class NoiseBeforeMaxPool(Rule):
    """Elementwise noise in front of a max-pool biases the mean of its output in training.

    ## What it does

    Finds elementwise dropout, alpha dropout, and uniform or Gaussian factors whose output a max-pool reads
    with no weight layer in between. Noise that drops whole channels commutes with pooling and is left
    alone.

    ## Why it matters

    Dropout scales what it keeps by 1/k, and relies on the dropped values to bring the mean back. A maximum
    ignores the dropped values: it is taken over the kept ones, all too large by 1/k. For a 2 x 2 window and
    a drop rate of 0.5 the mean in training is 1.43 times that in evaluation. Everything downstream learns
    with the larger mean, whether or not a norm is among it. As noise it is weak, too: an output is
    zero only if the whole window was dropped.

    ## How it is measured

    Predicted from the rate and the size of the window, for half-normal inputs (`predicted_mean_ratio`):

        E[max over the kept values] / k / E[max over all values]

    For uniform and Gaussian factors likewise, by their own distribution. Without a loss it is a warning
    above 1.02, advice below.

    A norm downstream takes the larger mean up in training: in evaluation its input is off by an offset,
    which is measured in standard deviations (`mean_offset`). What that costs is in the step
    "variance-shift" of the gap, without a norm in the step "noise", and with a loss that step grades it.

    ## Known limits

    Real maps are correlated between neighbours and have other distributions than the half-normal; for
    correlated values the bias is nearer to 1/k. Nothing is predicted for alpha dropout.

    ## Example

    ```python
    nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Dropout(0.5), nn.MaxPool2d(2))
    ```

    ## Cure

    Put the dropout after the pooling, or drop whole channels.

    ```python
    nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.5))
    nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Dropout2d(0.5), nn.MaxPool2d(2))
    ```

    ## Cure safety

    Unsafe: the noise after the pooling is stronger at the same rate, so the network has to be trained
    again and the rate chosen again.

    ## References

    - N. Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", JMLR 15
      (2014), for the scaling by 1/k. The ratio is derived in `varshift.theory.noisy_max_pool_mean_ratio`.
    """

    code = "VS105"
    name = "noise-before-max-pool"
    needs = ("capture.train",)
    improves_with = ("measurement",)

    _KINDS = ("dropout", "alpha_dropout", "uniform", "gaussian")

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields at most one finding through norms and one past all norms, each with its sites."""
        through: dict[bool, list[_Biased]] = {}
        for site in evidence.train.noises if evidence.train else ():
            if site.kind in self._KINDS and site.pools and site.rate != 0:
                pools = [(self._ratio(site, pool[2]), pool) for pool in site.pools if pool[2] > 1]
                if pools:
                    ratio, pool = max(pools, key=lambda item: item[0] or 0.0)
                    normed = any(learns(evidence, name) for name in site.reaches)
                    through.setdefault(normed, []).append(_Biased(site, ratio, pool))
        for normed, found in through.items():
            yield self._finding(evidence, normed, found)

    def _ratio(self, site: NoiseSite, window: int) -> float | None:
        if site.rate is None or site.additive or site.kind == "alpha_dropout":
            return None
        try:
            return theory.noisy_max_pool_mean_ratio(site.kind, site.rate, window)
        except ValueError:  # a rate that this kind cannot have, such as a drop probability of 1
            return None

    def _finding(self, evidence: Evidence, normed: bool, found: list[_Biased]) -> Finding:
        found = sorted(found, key=lambda one: one.ratio or 0.0, reverse=True)
        site, ratio, (module, source, window) = found[0].site, found[0].ratio, found[0].pool
        step = "variance-shift" if normed else "noise"
        cost = cost_of(evidence, step)
        by_ratio: Severity = "warning" if ratio is None or ratio >= thresholds.MAX_POOL_BIAS else "advice"
        confidence: Confidence = "suspected" if ratio is None else "predicted"
        start = f"{capitalised(noise_words(site))} is in front of a max-pool over {window} values"
        start += f" in {quoted(module)}" if module != site.name else ""
        text = (
            "its output has another mean in training than in evaluation"
            if ratio is None
            else f"the mean of its output in training is about {ratio:.3g} times that in evaluation"
        )
        layer = evidence.measured.get(site.nearest) if site.nearest else None
        offset = known(layer.mean_offset) if layer else None
        more = f" Likewise {len(found) - 1} more." if len(found) > 1 else ""
        return Finding(
            code=self.code,
            severity=graded(cost, by_ratio, confidence=confidence) or by_ratio,
            confidence=confidence,
            sites=tuple(noise_place(one.site) for one in found),
            message=f"{start}: {text}. {_absorbed(site, normed, offset)}{more}",
            evidence={
                "norm": site.nearest,
                "kind": site.kind,
                "rate": site.rate,
                "window": window,
                "predicted_mean_ratio": ratio,
                "pool": module,
                "pool_source": None if source is None else str(source),
                **without_none({"mean_offset": offset}),
            },
            step=step,
            cost=price(cost),
            cures=(
                cure(
                    "move-noise",
                    "put it after the pooling, and train again",
                    "unsafe",
                    site.id,
                    to="after-pooling",
                ),
                cure(
                    "swap-noise",
                    "drop whole channels instead (Dropout1d, 2d, 3d), and train again",
                    "unsafe",
                    site.id,
                    to="channel_dropout",
                ),
            ),
        )
