"""Placement of noise apart from norms: max-pooling (VS105), evaluation (VS106)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from varshift import theory
from varshift.evidence import Evidence

from . import _thresholds as thresholds
from ._cures import cure
from ._finding import Finding, Severity
from ._places import NETWORK, noise_place
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


@register
class NoiseInEvaluation(Rule):
    """Random noise is still alive in evaluation mode.

    ## What it does

    Finds every random operation that the network runs after `model.eval()`, and networks that give two
    answers to the same batch.

    ## Why it matters

    Predictions change from call to call, their error is larger than it needs to be, and no measurement of
    the network repeats. The usual cause is `F.dropout(x, p)`: its `training` argument is True by default,
    whatever the module's mode.

    ## How it is measured

    Certain: the network is captured in evaluation mode, and what is random there is found. With data the
    same batch runs twice; `repeat_difference` is the relative L2 distance of the two outputs. Where the
    network could not be captured in evaluation mode, a difference above 1e-6 is reported for the model as a
    whole; where it was captured and shows no noise, one above 1e-4, which is more than kernels that add in
    a random order make.

    ## Known limits

    Noise that is meant to stay on (Monte-Carlo dropout, a sampler in a generative model) is reported as
    well: ignore the rule for such networks. Random numbers drawn outside torch are seen only by the
    repeated run.

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

    Where a module stays in training mode after `model.eval()`, VS401 says which.

    ## Cure safety

    Safe: the weights were trained with this noise as a regulariser, and without it the network computes the
    mean that it was trained for. Norms behind the noise may then show a variance shift (VS101, VS102).

    ## References

    - PyTorch documentation, `torch.nn.functional.dropout`: "training: apply dropout if True. Default:
      True".
    """

    code = "VS106"
    name = "noise-in-evaluation"
    needs_one_of = ("capture.eval", "measurement")

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields one finding per noise site, or one for the whole model where only its answers show it."""
        difference = known(evidence.measurement.eval_repeat_difference) if evidence.measurement else None
        sites = evidence.eval.noises if evidence.eval else ()
        name = "switch it off in evaluation: pass training=self.training"
        for site in sites:
            yield Finding(
                code=self.code,
                severity="error",
                confidence="certain",
                sites=(noise_place(site),),
                message=f"{capitalised(noise_words(site))} is still active after eval()"
                + (
                    f"; two runs of one batch differ by {difference:.2g} in relative L2."
                    if difference
                    else "."
                ),
                evidence={
                    "norm": site.nearest,
                    "kind": site.kind,
                    "rate": site.rate,
                    **without_none({"repeat_difference": difference}),
                },
                cures=(cure("follow-mode", name, "safe", site.id),),
            )
        limit = thresholds.REPEAT_DIFFERENCE_UNSEEN if evidence.eval else thresholds.REPEAT_DIFFERENCE
        if not sites and difference is not None and difference > limit:
            yield Finding(
                code=self.code,
                severity="error",
                confidence="measured",
                sites=(NETWORK,),
                message=(
                    f"After eval(), two runs of the same batch differ by {difference:.2g} in relative L2: "
                    "something random is still active that could not be seen in the captured network."
                ),
                evidence={"repeat_difference": difference, "captured": evidence.eval is not None},
                cures=(cure("follow-mode", name, "safe"),),
            )
