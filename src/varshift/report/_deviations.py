"""What is off at a norm, in words, each by how much it is worth a warning."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from varshift.report._levels import excess
from varshift.report._words import counted, figure, ratio
from varshift.rules import shift_of, thresholds

if TYPE_CHECKING:
    from varshift.report._rows import LayerRow, MeasuredFigures


class Deviation(NamedTuple):
    """Something that is off at a norm; from a size of 1 it is worth a word."""

    size: float
    text: str


def deviations(row: LayerRow) -> list[Deviation]:
    """What is off at a norm, each in units of what is worth a warning."""
    found = _broken(row)
    measured = row.measured
    if measured is None:
        return found + _predicted(row)
    if not row.reached:
        return [*found, Deviation(math.inf, "no data reached it, so that nothing was measured")]
    found += _means(measured)
    found += _variances(row, measured)
    values = measured.effective_batch
    if values is not None and values > 0:
        text = f"one batch brings it only {figure(values, 2)} independent values per channel"
        found.append(Deviation(thresholds.EFFECTIVE_BATCH_WARNING / values, text))
    return found


def _broken(row: LayerRow) -> list[Deviation]:
    """Statistics that cannot be right whatever the data are."""
    facts = row.statistics
    if facts is None:
        return []
    found = []
    for count, text in (
        (facts.nonfinite, "statistics that are not finite"),
        (facts.negative, "a variance below 0"),
    ):
        if count:
            channels = counted(row.channels, "channel")
            found.append(
                Deviation(math.inf, f"{count} of its {channels} {'has' if count == 1 else 'have'} {text}")
            )
    if facts.never_moved:
        found.append(Deviation(math.inf, "its statistics are those of a new norm: mean 0 and variance 1"))
    return found


def _means(measured: MeasuredFigures) -> list[Deviation]:
    found = []
    deployed, trained = measured.mean_offset, measured.stale_mean
    if deployed is not None and math.isfinite(deployed):
        as_well = trained is not None and abs(trained - deployed) < thresholds.OFFSET_WARNING / 2
        found.append(_mean(deployed, "in evaluation, as in training," if as_well else "in evaluation"))
        if as_well:
            return found
    if trained is not None and math.isfinite(trained):
        found.append(_mean(trained, "in training"))
    return found


def _mean(offset: float, when: str) -> Deviation:
    text = f"{when} the mean of its input is {figure(offset, 2)} standard deviations off"
    return Deviation(offset / thresholds.OFFSET_WARNING, text)


def _variances(row: LayerRow, measured: MeasuredFigures) -> list[Deviation]:
    found = []
    beyond, stale = excess(row), shift_of(measured.stale_ratio)
    as_well = False
    if beyond is not None and measured.ratio is not None:
        as_well = measured.stale_ratio is not None and (
            _folded(shift_of(measured.stale_ratio / measured.ratio)) < 1
        )
        when = "in evaluation, as in training," if as_well else "in evaluation"
        text = f"{when} it sees {ratio(measured.ratio)} times the variance that it holds"
        if measured.control_ratio is not None and abs(measured.control_ratio - 1) >= 0.005:
            text += f" ({ratio(measured.control_ratio)} with statistics that fit)"
        found.append(Deviation(_folded(beyond), text))
    if stale is not None and not as_well:
        text = f"in training it sees {ratio(measured.stale_ratio)} times the variance that it holds"
        found.append(Deviation(_folded(stale), text))
    spread = measured.channel_log_ratio_rms
    if spread is not None and math.isfinite(spread):
        # Single channels scatter: what they are off by counts from where it is an error for a whole norm.
        text = f"the variances of single channels are off by a factor of {ratio(math.exp(spread))}"
        found.append(Deviation(spread / math.log(thresholds.SHIFT_ERROR), text))
    return found


def _predicted(row: LayerRow) -> list[Deviation]:
    predicted = row.predicted
    if predicted is None:
        return []
    found = []
    shift = shift_of(predicted.ratio)
    if shift is not None:
        text = f"in evaluation it will see {ratio(predicted.ratio)} times the variance that it holds"
        found.append(Deviation(_folded(shift), f"{text}, as predicted without data"))
    if predicted.mean_offset is not None:
        size = predicted.mean_offset / thresholds.OFFSET_WARNING
        offset = figure(predicted.mean_offset, 2)
        text = f"in evaluation the mean of its input will be {offset} standard deviations off"
        found.append(Deviation(size, f"{text}, as predicted without data"))
    return found


def _folded(shift: float | None) -> float:
    """A folded ratio in units of the smallest that is worth a warning; infinite where it is not known."""
    return math.inf if shift is None else math.log(shift) / math.log(thresholds.SHIFT_WARNING)
