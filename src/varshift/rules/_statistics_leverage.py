"""One sample or batch that dominates the statistics (VS211)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from varshift.evidence import Evidence

from . import _thresholds as thresholds
from ._cost import Cost, cost_of, graded, price
from ._cures import cure
from ._finding import Finding, Severity
from ._places import norm_places
from ._reading import quoted, without_none
from ._registry import Rule, register

if TYPE_CHECKING:
    from varshift.probe import Leverage

_ALL = ("small-batch", "variance-shift", "statistics")
_MEND = cure(
    "mend-sample",
    "look at the sample: leave it out or prepare it like the others, then train again or recalibrate",
    "safe",
)
_FIND = cure(
    "mend-sample",
    "find it: varshift.recalibrate(model, loader) goes through all of the data and names a sample that "
    "dominates; leave it out, and recalibrate again",
    "safe",
)


@register
class DominatingSample(Rule):
    """One sample or batch dominates the statistics of a norm.

    ## What it does

    Looks for a batch that makes the pooled variance at a norm several times what all other batches make it,
    and within it for the sample that does. Of the stored statistics it sees an outlier that the batches at
    hand do not hold.

    ## Why it matters

    A variance is a mean of squares: one image that was never divided by 255, one row with a sensor's error
    code, one clip at full scale outweighs thousands of others. In training only its own batch suffers. The
    running statistics keep it for many batches, and in evaluation every sample is divided by a deviation
    that belongs to none of them: good in `train()`, chance in `eval()`. Re-estimating the statistics on the
    same data does not help, because the sample is still there.

    ## How it is measured

    With `T_b = M2_b + n_b (mean_b - m)^2`, the squared deviations of batch b about the median m of the batch
    means, a batch stands out when `T_b / n_b` is six times the median over batches (the median over a norm's
    channels) and far beyond what batches differ by among themselves. It dominates when the pooled variance
    with it is half as large again as without: `inflation`. Of its samples the one is named that holds half
    of the batch's sum of squares and is three times the usual size. With one or two batches, samples are
    compared only.

    In the stored statistics of the first norm an outlier shows by a variance of at least four times that of
    the batches, in most channels and by a different factor in each, while the mean has moved only as a single
    sample moves it: channel by channel its square is the excess of the variance times one small number. Then,
    and where the stored variance hints at one less clearly, the inputs of the other data are read (a list, or
    the data set of a DataLoader, for no longer than the check measured), and a sample six times as large as
    all others is named.

    The severity follows from what the steps "small-batch" to "statistics" cost. Without a loss an inflation
    of 1.5 is a warning, and one of 4 an error.

    ## Known limits

    A sample that acts from a later norm on is known by its batch only. Where more than a quarter of the
    batches stand out, the data are heavy-tailed or come from several sources, and nothing is reported. An
    outlier that lies in none of the batches drawn and left the running average long ago is not seen:
    `varshift.recalibrate` goes through all of the data.

    ## Example

    ```python
    images[7] = raw_images[7]  # 0 to 255, the others are standardised
    ```

    ## Cure

    Leave the sample out, or prepare it like the others, and train again or re-estimate the statistics:

    ```python
    varshift.recalibrate(model, loader_without_it)
    ```

    ## Cure safety

    Safe: the data change, and the weights keep their meaning.

    ## References

    - F. R. Hampel et al., "Robust Statistics", Wiley 1986, section 2.1, for the influence of one observation
      on a variance.
    """

    code = "VS211"
    name = "one-sample-dominates"
    needs = ("measurement",)
    uses = ("capture", "modules")

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields one finding for the sample or batch, which lists the norms that it dominates."""
        leverage = evidence.measurement.leverage if evidence.measurement else None
        if leverage is None:
            return
        stored = leverage.batch is None
        cost = cost_of(evidence, "statistics") if stored else _cost(evidence)
        severity = graded(cost, _by_ratio(leverage.inflation))
        if severity is None:
            return
        yield Finding(
            code=self.code,
            severity=severity,
            confidence="measured",
            sites=norm_places(evidence, leverage.norms),
            message=_message(leverage),
            evidence={
                "inflation": leverage.inflation,
                "share": leverage.share,
                "others": leverage.others,
                **without_none({"batch": leverage.batch, "sample": leverage.sample}),
            },
            cures=(_FIND if stored and leverage.sample is None else _MEND,),
            step=_dearest(evidence, cost),
            cost=price(cost),
        )


def _cost(evidence: Evidence) -> Cost | None:
    """What an outlier among the batches costs: the dearest of the steps that it may carry.

    Statistics estimated on these batches hold it, so it shows in "small-batch"; the stored ones may hold it
    as well, or hold more of it, which shows in "statistics".
    """
    costs = [cost_of(evidence, *steps) for steps in (("small-batch",), ("statistics",), _ALL)]
    return max((cost for cost in costs if cost is not None), key=lambda cost: cost.delta, default=None)


def _dearest(evidence: Evidence, cost: Cost | None) -> str | None:
    """The step that carries most of a cost."""
    steps = (
        {step: single.delta for step in cost.causes if (single := cost_of(evidence, step))} if cost else {}
    )
    return max(steps, key=lambda step: steps[step], default=None)


def _by_ratio(inflation: float) -> Severity:
    return "error" if inflation >= thresholds.LEVERAGE_ERROR else "warning"


def _message(leverage: Leverage) -> str:
    norm = quoted(leverage.norms[0])
    which = f"{leverage.words[0].upper()}{leverage.words[1:]}"
    if leverage.batch is None and leverage.sample is not None:
        return (
            f"{which} dominates the stored statistics of the norm {norm}: their variance is "
            f"{leverage.inflation:.3g} times that of the batches drawn, which do not hold it."
        )
    if leverage.batch is None:
        return (
            f"One sample seems to dominate the stored statistics of the norm {norm}: their variance is "
            f"{leverage.inflation:.3g} times that of these batches, while the mean has hardly moved. None of "
            "these batches holds it."
        )
    text = (
        f"{which} dominates the statistics: it makes the variance at "
        f"the norm {norm} {leverage.inflation:.3g} times that of the other batches"
    )
    if leverage.others:
        text += f", with {leverage.others} more batches like it"
    return f"{text}."
