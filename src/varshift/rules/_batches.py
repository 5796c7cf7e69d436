"""Batches: a batch of one (VS301), and batches too small for their statistics (VS302)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from typing import TYPE_CHECKING

from varshift.evidence import Evidence

from . import _thresholds as thresholds
from ._cures import cure
from ._finding import Confidence, Finding, Severity
from ._places import NETWORK, norm_places
from ._reading import known, learns, listed, norms_in_order, positive, quoted
from ._registry import Rule, register

if TYPE_CHECKING:
    from varshift.evidence import LoaderFacts
    from varshift.flow import Flow, NormSite
    from varshift.probe import GapStep, LayerMeasurement, Measurement


_BATCH_CURES = (
    cure("larger-batch", "larger batches, and train again", "unsafe"),
    cure("reshuffle", "shuffled batches, and train again", "unsafe"),
    cure("sync-norm", "synchronised norms, and train again", "unsafe"),
    cure(
        "swap-norm",
        "norms that do not look at the batch (GroupNorm), and train again",
        "unsafe",
        to="group_norm",
    ),
    cure(
        "recalibrate",
        "re-estimate the running statistics from many batches (varshift.recalibrate)",
        "safe",
        noise=False,
    ),
)


@register
class BatchOfOne(Rule):
    """A batch of one sample is coming to norms that need several.

    ## What it does

    Reads batch size, number of samples and `drop_last` from the data loader, and finds out whether some
    batch of an epoch will hold a single sample.

    ## Why it matters

    A norm that gets one value per channel (a vector, or a map of 1 x 1) has no variance: torch raises
    "Expected more than 1 value per channel when training", at the end of the first epoch. On larger maps it
    passes silently, and the statistics of a single sample enter the running statistics with the same weight
    as those of a full batch.

    ## How it is measured

    Certain, from the loader: the samples modulo the batch size are 1 and the last batch is kept, the batch
    size is 1, or such a batch was drawn. An error where a norm of the network, captured in training mode,
    then sees one value per channel, otherwise a warning.

    ## Known limits

    The loader is taken to be the one of training. Of a loader that does not know its length only the
    batches that were drawn are known. Under data parallelism the samples are those of this process.

    ## Example

    ```python
    DataLoader(dataset, batch_size=32)  # len(dataset) == 1025
    ```

    ## Cure

    ```python
    DataLoader(dataset, batch_size=32, shuffle=True, drop_last=True)
    ```

    ## Cure safety

    Safe: with shuffling, another sample is left out in each epoch.

    ## References

    - PyTorch documentation, `torch.utils.data.DataLoader`, argument `drop_last`.
    """

    code = "VS301"
    name = "batch-of-one"
    needs = ("modules", "loader")
    improves_with = ("capture",)

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields at most one finding."""
        loader = evidence.loader
        reason = self._reason(loader) if loader else None
        if loader is None or reason is None:
            return
        flow = evidence.train
        sites = [
            site
            for site in (flow.norms if flow else ())
            if site.batch_statistics and site.kind != "instance_norm" and learns(evidence, site.name)
        ]
        if flow is not None and not sites:  # nothing in the network looks at batch mates
            return
        if flow is None and not any(facts.live for facts in evidence.norms.values()):
            return
        hits = [site for site in sites if flow and _one_value(flow, site)]
        hit = hits[0] if hits else None
        places = norm_places(evidence, [site.name for site in hits or sites])
        text = (
            f"the norm {quoted(hit.name)} then sees one value per channel, and training stops with an error"
            if hit
            else "the norms then take their statistics from a single sample"
        )
        remedy = (
            cure("larger-batch", "use a larger batch size", "safe")
            if loader.batch_size == 1
            else cure("drop-last", "pass drop_last=True, or another batch size", "safe", drop_last=True)
        )
        yield Finding(
            code=self.code,
            severity="error" if hit else "warning",
            confidence="certain",
            sites=places or (NETWORK,),
            message=f"{reason}: {text}.",
            evidence={
                "samples": loader.samples,
                "batch_size": loader.batch_size,
                "drop_last": loader.drop_last,
                "last_batch": loader.last_batch,
                "one_value_per_channel": hit is not None,
            },
            cures=(remedy,),
        )

    def _reason(self, loader: LoaderFacts) -> str | None:
        if loader.batch_size == 1:
            return "The batch size is 1"
        if loader.last_batch == 1:
            count = f"{loader.samples} samples in batches of {loader.batch_size}"
            if loader.samples is None or loader.batch_size is None:
                count = "The last batch of an epoch is kept"
            return f"{count} leave a last batch of one sample"
        return "A batch of one sample was drawn" if 1 in loader.sizes else None


@register
class SmallEffectiveBatch(Rule):
    """The effective normalisation batch is below 16 values per channel, or below 8.

    ## What it does

    Measures how many independent values each norm's batch statistics rest on, and reports the network when
    a norm has too few.

    ## Why it matters

    With m values the batch mean is off by 1 / sqrt(m) standard deviations and the batch variance by sqrt(2
    / (m - 1)) of itself, and the standard deviation is too small on average: by 5 % at 16, 10 % at 8, 20 %
    at 4, 44 % at 2. The network learns with this noise and bias, and evaluation has neither. What counts is
    what one norm sees in one forward pass on one device, not the nominal batch: gradient accumulation does
    not help, and the values of one image are not independent.

    ## How it is measured

    `effective_batch` is the mean variance within batches over the variance of the batch means, in training
    mode with the noise off. For independent values it is the number of values; sorted or grouped batches
    make it small at any batch size. Below 16 a warning, below 8 an error, if it is below by more than two
    of its standard errors. The number of values per channel that a typical batch brings is an upper bound,
    and a fault on its own where it is below these numbers.

    Large maps hide it: thousands of pixels of one class are still one class. So where no norm stands out,
    the loss decides: if normalising with single batches instead of pooled statistics changes the
    cross-entropy, in either direction and without any noise, by a quarter of a nat and a quarter of itself,
    it is a warning, from one nat an error (three standard errors, four batches at least).

    ## Known limits

    Needs three batches to be measured. A small last batch is not counted (a last batch of one is VS301's).
    Under data parallelism without synchronisation each process has its own figure.

    ## Example

    ```python
    DataLoader(dataset, batch_size=4)  # a classifier with BatchNorm1d
    ```

    ## Cure

    A larger batch per device, shuffled data, synchronised norms over several devices
    (`nn.SyncBatchNorm.convert_sync_batchnorm(model)`), or norms that do not look at the batch:

    ```python
    nn.GroupNorm(32, channels)
    ```

    ## Cure safety

    Unsafe: each of these needs training. For a network trained so, `varshift.recalibrate(model, loader)` is
    safe and removes the noise of the statistics, not the mismatch.

    ## References

    - Y. Wu, K. He, "Group Normalization", ECCV 2018, arXiv 1803.08494: 10.6 points of error at 2 images per
      device.
    - Y. Wu, J. Johnson, "Rethinking 'Batch' in BatchNorm", arXiv 2105.07576, section 4.
    """

    code = "VS302"
    name = "small-effective-batch"
    needs = ("modules", "measurement")
    uses = ("capture", "loader")

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields at most one finding, at the norm with the smallest figure."""
        measurement = evidence.measurement
        if measurement is None:
            return
        small: list[tuple[float, Confidence, LayerMeasurement]] = []
        measured: list[tuple[float, LayerMeasurement]] = []
        for name in norms_in_order(evidence):
            layer = evidence.measured.get(name)
            if (
                layer is None
                or not layer.reached
                or not learns(evidence, name)
                or self._per_sample(evidence, name)
            ):
                continue
            nominal = self._typical_values(layer, evidence.loader)
            upper = self._upper_bound(layer)
            figure = min(nominal, upper)
            measured.append((known(layer.effective_batch) or nominal, layer))
            if figure < thresholds.EFFECTIVE_BATCH_WARNING:
                small.append((figure, "certain" if nominal <= upper else "measured", layer))
        if not small:
            step = _batch_step(measurement)
            if step is not None and measured:
                yield self._loss_finding(
                    evidence, measurement, step, min(measured, key=lambda item: item[0])[1]
                )
            return
        figure, confidence, layer = min(small, key=lambda item: item[0])
        yield self._finding(evidence, measurement, small, figure, confidence, layer)

    def _per_sample(self, evidence: Evidence, name: str) -> bool:
        site = evidence.train_norms.get(name)
        return site is not None and site.kind == "instance_norm"

    def _typical_values(self, layer: LayerMeasurement, loader: LoaderFacts | None) -> float:
        """Values per channel of a typical batch: `values_per_channel` is that of the smallest one."""
        if layer.values_per_channel is None:
            return math.inf
        sizes = loader.sizes if loader else ()
        scale = statistics.median(sizes) / min(sizes) if sizes and min(sizes) > 0 else 1.0
        return layer.values_per_channel * scale

    def _upper_bound(self, layer: LayerMeasurement) -> float:
        """The effective batch and two of its standard errors; infinite where it was not measured."""
        effective, error = positive(layer.effective_batch), known(layer.effective_batch_error)
        if effective is None or error is None:
            return math.inf
        return effective * (1 + thresholds.EFFECTIVE_BATCH_STANDARD_ERRORS * error)

    def _loss_finding(
        self, evidence: Evidence, measurement: Measurement, step: GapStep, layer: LayerMeasurement
    ) -> Finding:
        states = measurement.gap.states if measurement.gap else {}
        batch, pooled = known(states.get("clean")) or 0.0, known(states.get("recalibrated")) or 0.0
        return Finding(
            code=self.code,
            severity="error" if abs(step.delta or 0.0) >= thresholds.BATCH_LOSS_ERROR else "warning",
            confidence="measured",
            sites=norm_places(evidence, [layer.name]),
            message=(
                f"The loss is {batch:.3g} when each batch is normalised with its own statistics and "
                f"{pooled:.3g} with those of all batches, without any noise: batches are too small, or too "
                "much alike inside (sorted, grouped). "
                f"The norm {quoted(layer.name)} depends most on the batch."
            ),
            evidence={
                "loss_batch": batch,
                "loss_pooled": pooled,
                "loss_step": known(step.delta),
                "loss_step_stderr": known(step.stderr),
                "values_per_channel": layer.values_per_channel,
                "effective_batch": known(layer.effective_batch),
            },
            cures=_BATCH_CURES,
        )

    def _finding(
        self,
        evidence: Evidence,
        measurement: Measurement,
        small: list[tuple[float, Confidence, LayerMeasurement]],
        figure: float,
        confidence: Confidence,
        layer: LayerMeasurement,
    ) -> Finding:
        errors = [item for item in small if item[0] < thresholds.EFFECTIVE_BATCH_ERROR]
        severity: Severity = "error" if errors else "warning"
        effective = known(layer.effective_batch)
        text = f"brings {figure:.3g} values per channel"
        if confidence == "measured":
            text = f"is worth {effective:.3g} independent values per channel"
        others = [item[2].name for item in small if item[2] is not layer]
        also = f" Likewise {listed(others)}." if others else ""
        return Finding(
            code=self.code,
            severity=severity,
            confidence=confidence,
            sites=norm_places(evidence, [layer.name, *others]),
            message=f"A batch {text} at the norm {quoted(layer.name)}, too few for its statistics.{also}",
            evidence={
                "values_per_channel": layer.values_per_channel,
                "effective_batch": effective,
                "effective_batch_error": known(layer.effective_batch_error),
                "below_16": len(small),
                "below_8": len(errors),
                "norms": len(measurement.layers),
            },
            cures=_BATCH_CURES,
        )


def _batch_step(measurement: Measurement) -> GapStep | None:
    """The step of the loss from batch to pooled statistics, None where within its error or too small."""
    gap = measurement.gap
    step = next((one for one in gap.steps if one.cause == "small-batch"), None) if gap else None
    if gap is None or step is None or gap.metric != "loss" or gap.accuracy is None:
        return None
    delta, error = known(step.delta), known(step.stderr)
    losses = [known(gap.states.get(name)) for name in ("clean", "recalibrated")]
    if delta is None or error is None or measurement.batches < thresholds.FEW_BATCHES:
        return None
    large = max(abs(loss) for loss in losses if loss is not None)
    floor = max(thresholds.BATCH_LOSS_WARNING, thresholds.BATCH_LOSS_SHARE * large)
    return step if abs(delta) > max(floor, thresholds.STANDARD_ERRORS * error) else None


def _one_value(flow: Flow, site: NormSite) -> bool:
    """Whether a norm gets one value per channel from a batch of one sample."""
    return any(_values_per_sample(flow, shape) == 1 for shape in site.shapes)


def _values_per_sample(flow: Flow, shape: tuple[int, ...]) -> int:
    """Values per channel that one sample brings; samples may be folded into the norm's first dimension."""
    batch = next((node.shape[0] for node in flow.nodes if node.kind == "input" and node.shape), None)
    inner = math.prod(shape[2:])
    if len(shape) > 1 and batch and shape[0] % batch == 0:
        return shape[0] // batch * inner
    return inner
