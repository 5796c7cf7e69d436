"""Batches: a batch of one (VS301), and batches too small for their statistics (VS302)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from varshift.evidence import Evidence

from . import _thresholds as thresholds
from ._cost import Cost, cost_of, graded, price
from ._cures import BATCH_FREE, cure
from ._finding import Confidence, Cure, Finding, Severity
from ._places import NETWORK, norm_places
from ._reading import known, learns, listed, norms_in_order, positive, quoted
from ._recalibration import measured_recalibration
from ._registry import Rule, register
from ._staleness import staleness_of

if TYPE_CHECKING:
    from varshift.evidence import LoaderFacts
    from varshift.flow import Flow, NormSite
    from varshift.probe import LayerMeasurement, Measurement, SingleRun


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
    BATCH_FREE,
)


@register
class BatchOfOne(Rule):
    """A batch of one sample is coming to norms that need several.

    ## What it does

    Reads batch size, number of samples and `drop_last` from the data loader, and finds out whether some
    batch of an epoch will hold a single sample. If so, it runs one, as training would.

    ## Why it matters

    A norm that gets one value per channel (a vector, or a map of 1 x 1) has no variance: torch raises
    "Expected more than 1 value per channel when training", at the end of the first epoch. On larger maps it
    passes silently, and the statistics of a single sample enter the running statistics with the same weight
    as those of a full batch.

    ## How it is measured

    Certain, from the loader: the samples modulo the batch size are 1 and the last batch is kept, the batch
    size is 1, or such a batch was drawn. One sample then goes through a copy of the network in training
    mode. An error where that raises, or leaves outputs, a loss or statistics that are not finite (a variance
    of one value is 0 / 0); otherwise a warning. Where it cannot be run, an error where a norm of the network,
    captured in training mode, sees one value per channel.

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
    improves_with = ("capture", "single")

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
        hits = [site.name for site in sites if flow and _one_value(flow, site)]
        single = evidence.single
        if single is not None:
            # What one sample does says more than the shapes: a norm may look after itself, or another breaks.
            hits = (hits or list(single.broken)) if single.fails else []
        fails = bool(hits) or (single is not None and single.fails)
        places = norm_places(evidence, hits or [site.name for site in sites])
        text = self._effect(single, hits, fails=fails)
        remedy = (
            cure("larger-batch", "use a larger batch size", "safe")
            if loader.batch_size == 1
            else cure("drop-last", "pass drop_last=True, or another batch size", "safe", drop_last=True)
        )
        yield Finding(
            code=self.code,
            severity="error" if fails else "warning",
            confidence="certain",
            sites=places or (NETWORK,),
            message=f"{reason}: {text}.",
            evidence={
                "samples": loader.samples,
                "batch_size": loader.batch_size,
                "drop_last": loader.drop_last,
                "last_batch": loader.last_batch,
                "one_value_per_channel": bool(hits),
                **(
                    {"raises": single.error or None, "finite": not single.fails} if single is not None else {}
                ),
            },
            cures=(remedy,),
        )

    def _effect(self, single: SingleRun | None, hits: Sequence[str], *, fails: bool) -> str:
        if not fails:
            return "the norms then take their statistics from a single sample"
        if single is not None and single.broken:
            return f"the statistics of {listed(single.broken)} are then no longer finite"
        if single is not None and not single.finite:
            return "the outputs or the loss of a single sample are not finite in training mode"
        where = f"the norm {quoted(hits[0])} then sees one value per channel, and " if hits else ""
        stops = f"{where}training stops with an error"
        return f"{stops} ({single.error})" if single is not None and single.error else stops

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
    make it small at any batch size. It counts below 16 values, and more below 8, if it is below by more than
    two of its standard errors. The number of values per channel that a typical batch brings is an upper
    bound, and certain where it is below these numbers.

    Severity follows the loss, whatever the loss is: the small-batch step from single batches to pooled
    statistics, without any noise. Where normalising with single batches makes training worse than
    evaluation, too few values are as grave as their number says. Without a loss the number decides.

    Large maps hide it: thousands of pixels of one image are still one image, and a loss may read the
    statistics themselves (the determinant of a flow). So where no norm stands out, the loss alone decides
    from a quarter of it on (three standard errors, four batches at least; a tenth of a nat for
    cross-entropy).

    ## Known limits

    Needs three batches to be measured. A small last batch is not counted (a last batch of one is VS301's).
    Under data parallelism without synchronisation each process has its own figure. Norms per sample are left
    to VS209, and where one norm serves several calls the loss alone is left to VS403.

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

    Unsafe: each of these needs training. For a network trained so, `varshift.recalibrate(model, loader)`
    removes the noise of the running averages, not the mismatch; it is offered where the loss falls.

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
        small: list[_Small] = []
        measured: list[tuple[float, LayerMeasurement]] = []
        for name in norms_in_order(evidence):
            layer = evidence.measured.get(name)
            if layer is None or not layer.reached or not learns(evidence, name):
                continue
            if self._per_sample(evidence, name):
                continue
            nominal = self._typical_values(layer, evidence.loader)
            upper = self._upper_bound(layer)
            measured.append((known(layer.effective_batch) or nominal, layer))
            if min(nominal, upper) < thresholds.EFFECTIVE_BATCH_WARNING:
                certain = nominal <= upper
                small.append(_Small(min(nominal, upper), "certain" if certain else "measured", layer))
        cost = cost_of(evidence, "small-batch")
        if small:
            yield self._finding(evidence, measurement, small, cost)
        elif measured and cost is not None and _costs(measurement, cost) and not _shared(evidence):
            whole = _with_averages(evidence, cost)
            severity = graded(whole or cost, None)
            if severity is not None:
                layer = min(measured, key=lambda item: item[0])[1]
                yield self._loss_finding(evidence, cost, whole, severity, layer)

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
        self,
        evidence: Evidence,
        cost: Cost,
        whole: Cost | None,
        severity: Severity,
        layer: LayerMeasurement,
    ) -> Finding:
        batch, pooled = _around(evidence)
        averages = ""
        if whole is not None:
            averages = (
                f" The running averages of such batches add {whole.delta - cost.delta:.3g} more, though none "
                "is further off than their noise."
            )
        return Finding(
            code=self.code,
            severity=severity,
            confidence="measured",
            sites=norm_places(evidence, [layer.name]),
            message=(
                f"The loss is {batch:.3g} when each batch is normalised with its own statistics and "
                f"{pooled:.3g} with those of all batches, without any noise: the network relies on the "
                f"statistics of single batches. The norm {quoted(layer.name)} depends most on the batch."
                f"{averages}"
            ),
            evidence={
                **_loss_figures(evidence, cost),
                "noisy_averages": whole is not None,
                "values_per_channel": layer.values_per_channel,
                "effective_batch": known(layer.effective_batch),
            },
            cures=_batch_cures(evidence),
            step="small-batch",
            cost=(whole or cost).delta,
        )

    def _finding(
        self, evidence: Evidence, measurement: Measurement, small: list[_Small], cost: Cost | None
    ) -> Finding:
        worst = min(small, key=lambda one: one.figure)
        errors = [one for one in small if one.figure < thresholds.EFFECTIVE_BATCH_ERROR]
        effective = known(worst.layer.effective_batch)
        text = f"brings {worst.figure:.3g} values per channel"
        if worst.confidence == "measured":
            text = f"is worth {effective:.3g} independent values per channel"
        others = [one.layer.name for one in small if one is not worst]
        also = f" Likewise {listed(others)}." if others else ""
        if cost is not None and cost.metric == "loss":
            batch, pooled = _around(evidence)
            also += (
                f" The loss is {batch:.3g} with statistics of single batches, {pooled:.3g} with pooled ones."
            )
        return Finding(
            code=self.code,
            severity=self._severity(worst, cost),
            confidence=worst.confidence,
            sites=norm_places(evidence, [worst.layer.name, *others]),
            message=(
                f"A batch {text} at the norm {quoted(worst.layer.name)}, too few for its statistics.{also}"
            ),
            evidence={
                "values_per_channel": worst.layer.values_per_channel,
                "effective_batch": effective,
                "effective_batch_error": known(worst.layer.effective_batch_error),
                "below_16": len(small),
                "below_8": len(errors),
                "norms": len(measurement.layers),
                **(_loss_figures(evidence, cost) if cost is not None and cost.metric == "loss" else {}),
            },
            cures=_batch_cures(evidence),
            step="small-batch",
            cost=price(cost),
        )

    def _severity(self, worst: _Small, cost: Cost | None) -> Severity:
        """By the loss; where training is the worse of the two, and for a mere count of few, by the number."""
        few = worst.figure < thresholds.EFFECTIVE_BATCH_ERROR
        by_number: Severity = "error" if few else "warning"
        if cost is None or not cost.decides:
            return by_number
        if cost.delta < 0 and cost.significant:
            return by_number
        severity = graded(cost, by_number) or "advice"
        if few and worst.confidence == "certain" and severity == "advice":
            return "warning"
        return severity


@dataclass(frozen=True, slots=True)
class _Small:
    """A norm whose batches are too small: by how much, and how that is known."""

    figure: float
    confidence: Confidence
    layer: LayerMeasurement


def _costs(measurement: Measurement, cost: Cost) -> bool:
    """Whether single batches make the loss so much lower that their statistics must be what helps."""
    if not cost.decides or cost.delta <= 0:
        return False
    nats = measurement.gap is not None and measurement.gap.accuracy is not None
    floor = max(thresholds.BATCH_LOSS_SHARE * cost.level, thresholds.BATCH_LOSS_NATS if nats else 0.0)
    return cost.delta > max(floor, thresholds.STANDARD_ERRORS * (cost.stderr or 0.0))


def _with_averages(evidence: Evidence, cost: Cost) -> Cost | None:
    """What small batches cost with the noise that they leave in the running averages; None without any.

    A moving average remembers few batches. Where no norm is beyond the noise of such an average and the
    statistics cost all the same, that noise is what they cost.
    """
    whole = cost_of(evidence, "small-batch", "variance-shift", "statistics")
    step = cost_of(evidence, "statistics")
    if (
        whole is None
        or step is None
        or step.delta <= 0
        or not step.significant
        or evidence.measurement is None
    ):
        return None
    for name, layer in evidence.measured.items():
        facts = evidence.norms.get(name)
        if facts is None or not layer.reached or not learns(evidence, name):
            continue
        staleness = staleness_of(facts, layer, evidence.measurement)
        if facts.never_moved or (staleness is not None and staleness.severity is not None):
            return None
    return whole if whole.delta > cost.delta else None


def _shared(evidence: Evidence) -> bool:
    """Whether some norm that learns is called several times in one pass: it may get several distributions."""
    for name, site in evidence.train_norms.items():
        layer = evidence.measured.get(name)
        # One that is called once has a figure for its batches.
        if len(site.calls) > 1 and learns(evidence, name) and layer and layer.effective_batch is None:
            return True
    return False


def _around(evidence: Evidence) -> tuple[float, float]:
    """The loss with statistics of single batches and with pooled ones."""
    states = evidence.measurement.gap.states if evidence.measurement and evidence.measurement.gap else {}
    return known(states.get("clean_eval")) or 0.0, known(states.get("recalibrated")) or 0.0


def _loss_figures(evidence: Evidence, cost: Cost) -> dict[str, float | None]:
    batch, pooled = _around(evidence)
    return {
        "loss_batch": batch,
        "loss_pooled": pooled,
        "loss_step": known(cost.delta),
        "loss_step_stderr": known(cost.stderr),
    }


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


def _batch_cures(evidence: Evidence) -> tuple[Cure, ...]:
    """Larger batches or other norms; other statistics too where the loss was measured to fall with them."""
    remedy = measured_recalibration(evidence)
    return (*_BATCH_CURES, *((remedy,) if remedy else ()))
