"""Why one norm is off: what `Report.why` prints, the number that is wrong first."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from varshift._errors import VarshiftError
from varshift._sites import SiteId
from varshift.report._deviations import deviations
from varshift.report._findings import effect_words
from varshift.report._page import line, paragraph, text_of
from varshift.report._words import (
    counted,
    enumerated,
    figure,
    module_name,
    place,
    ratio,
    rule_title,
    site_name,
)

if TYPE_CHECKING:
    from varshift.report._report import Report
    from varshift.report._rows import LayerRow, NoiseRow
    from varshift.rules import Finding

NOISES = 3
WIDTH = 100


class Why(str):
    """A text that a prompt shows as it prints."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def why(report: Report, layer: SiteId | str | None = None) -> Why:
    """The text about one norm; see `Report.why`."""
    if layer is None and not report.layers:
        return Why("The network has no norm with running statistics.")
    row = _worst(report.layers) if layer is None else report.layer(layer)
    if row is None:
        raise VarshiftError(f"layer={str(layer)!r} is no norm of this report{_near(report, str(layer))}")
    kind = " ".join(filter(None, (row.cls, place(row.source))))
    ranked = sorted(deviations(row), key=lambda one: one.size, reverse=True)
    off = [one.text for one in ranked if one.size >= 1]
    sentences = [f"{_capital(off[0] if off else _nothing(row))}."]
    sentences += [f"Also: {text}." for text in off[1:]]
    sentences += [*_findings(report, row), *_noise(report, row), *_prediction(row)]
    lines = [line(f"{module_name(row.name)} ({kind})" if kind else module_name(row.name))]
    lines += [piece for text in sentences for piece in paragraph(text, WIDTH, hang=2)]
    return Why("\n".join(map(text_of, lines)))


def _worst(rows: Sequence[LayerRow]) -> LayerRow:
    return max(rows, key=lambda row: max((one.size for one in deviations(row)), default=0.0))


def _near(report: Report, name: str) -> str:
    """What the caller may have meant, as the end of a sentence."""
    module = name.partition(":")[0]
    if any(module == noise.name for noise in report.noises):
        return ": it is a noise site, which report.noises tells about."
    known = [row.name for row in report.layers]
    if not known:
        return ": it has none."
    near = difflib.get_close_matches(module, known, n=3, cutoff=0.5)
    near = near or [path for path in known if module and module in path][:3] or known[:3]
    return f": did you mean {' or '.join(map(repr, near))}?"


def _nothing(row: LayerRow) -> str:
    measured = row.measured
    if measured is None:
        return (
            "nothing was measured here" if row.predicted_ratio is None else "nothing is predicted to be off"
        )
    if measured.ratio is None:
        return "nothing could be measured here"
    text = f"nothing is off: in evaluation it sees {ratio(measured.ratio)} times the variance that it holds"
    if measured.mean_offset is None:
        return text
    return f"{text}, and a mean {figure(measured.mean_offset, 2)} standard deviations off"


def _findings(report: Report, row: LayerRow) -> list[str]:
    """The findings that name the norm, with what their cures were measured to give."""
    naming = [finding for finding in report.findings if _names(finding, row)]
    if not naming:
        return ["No finding names it."]
    lines = []
    for finding in naming:
        lines.append(f"{finding.severity} {rule_title(finding.code)}: {finding.message}")
    effects = {
        f"{_capital(cure.name)}: {effect}."
        for finding in naming
        for cure in finding.cures
        if (effect := effect_words(cure.measured))
    }
    return lines + sorted(effects)


def _names(finding: Finding, row: LayerRow) -> bool:
    if any(site.id.module == row.name and site.id.kind == row.id.kind for site in finding.sites):
        return True
    return row.name in (finding.evidence.get("norm"), finding.evidence.get("worst_norm"))


def _noise(report: Report, row: LayerRow) -> list[str]:
    """The noise that reaches the norm, and what it does there; nothing where there is none."""
    noises = report.noises_before(row)
    if not noises:
        return []
    last = [_noise_words(noise) for noise in noises[-NOISES:]]
    more = (
        f", and from {counted(len(noises) - NOISES, 'site')} further upstream" if len(noises) > NOISES else ""
    )
    lines = [f"Noise reaches it from {enumerated(last)}{more}."]
    measured = row.measured
    if measured and measured.fresh_ratio is not None and measured.control_ratio is not None:
        lines.append(
            f"With fresh statistics it would see {ratio(measured.fresh_ratio)} times the variance that they "
            f"hold if they are learned with the noise, {ratio(measured.control_ratio)} times without."
        )
    return lines


def _noise_words(noise: NoiseRow) -> str:
    rate = "" if noise.rate is None else f" {figure(noise.rate, 2)}"
    details = ", ".join(filter(None, (f"{noise.kind.replace('_', ' ')}{rate}", place(noise.source))))
    return f"{site_name(noise.id)} ({details})"


def _prediction(row: LayerRow) -> list[str]:
    predicted = row.predicted
    if predicted is None or predicted.ratio is None or row.ratio is None:
        return []
    sure = f" (confidence {predicted.confidence})" if predicted.confidence else ""
    ratios = f"{ratio(predicted.ratio)}{sure}, measured {ratio(row.ratio)}"
    return [f"Variance ratio predicted from the weights alone {ratios}."]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
