"""Placement of noise apart from norms: max-pooling (VS105)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from varshift import theory
from varshift.evidence import Evidence

from . import _thresholds as thresholds
from ._cures import cure
from ._finding import Finding, Severity
from ._places import noise_place
from ._reading import capitalised, known, noise_words, quoted, without_none
from ._registry import Rule, register

if TYPE_CHECKING:
    from varshift.flow import NoiseSite


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
    a drop rate of 0.5 the mean in training is 1.43 times that in evaluation. Everything behind learns with
    the larger mean, whether or not a norm is among it. As noise it is weak, too: an output is zero only if
    the whole window was dropped.

    ## How it is measured

    Predicted from the rate and the size of the window, for half-normal inputs (`predicted_mean_ratio`):

        E[max over the kept values] / k / E[max over all values]

    For uniform and Gaussian factors likewise, by their own distribution. Above 1.02 it is a warning, below
    it advice. With data, the offset of the mean at the next norm (in standard deviations) is added.

    ## Known limits

    Real maps are correlated between neighbours and have other distributions than the half-normal; for
    correlated values the bias is nearer to 1/k. Nothing is predicted for alpha dropout.

    ## Example

    ```python
    nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Dropout(0.5), nn.MaxPool2d(2))
    ```

    ## Cure

    Put the dropout behind the pooling, or drop whole channels.

    ```python
    nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.5))
    nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Dropout2d(0.5), nn.MaxPool2d(2))
    ```

    ## Cure safety

    Unsafe: the noise behind the pooling is stronger at the same rate, so the network has to be trained
    again and the rate chosen anew.

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
        """Yields one finding per noise site."""
        for site in evidence.train.noises if evidence.train else ():
            if site.kind in self._KINDS and site.pools and site.rate != 0:
                pools = [(self._ratio(site, pool[2]), pool) for pool in site.pools if pool[2] > 1]
                if pools:
                    yield self._finding(evidence, site, *max(pools, key=lambda item: item[0] or 0.0))

    def _ratio(self, site: NoiseSite, window: int) -> float | None:
        if site.rate is None or site.additive or site.kind == "alpha_dropout":
            return None
        try:
            return theory.noisy_max_pool_mean_ratio(site.kind, site.rate, window)
        except ValueError:  # a rate that this kind cannot have, such as a drop probability of 1
            return None

    def _finding(
        self, evidence: Evidence, site: NoiseSite, ratio: float | None, pool: tuple[str, Any, int]
    ) -> Finding:
        module, source, window = pool
        severity: Severity = "warning" if ratio is None or ratio >= thresholds.MAX_POOL_BIAS else "advice"
        start = f"{capitalised(noise_words(site))} stands in front of a max-pool over {window} values"
        start += f" in {quoted(module)}" if module != site.name else ""
        text = (
            "its output has another mean in training than in evaluation"
            if ratio is None
            else f"the mean of its output in training is about {ratio:.3g} times that in evaluation"
        )
        layer = evidence.measured.get(site.nearest) if site.nearest else None
        return Finding(
            code=self.code,
            severity=severity,
            confidence="suspected" if ratio is None else "predicted",
            sites=(noise_place(site),),
            message=f"{start}: {text}.",
            evidence={
                "norm": site.nearest,
                "kind": site.kind,
                "rate": site.rate,
                "window": window,
                "predicted_mean_ratio": ratio,
                "pool": module,
                "pool_source": None if source is None else str(source),
                **without_none({"mean_offset": known(layer.mean_offset) if layer else None}),
            },
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
