"""One cause, one finding: what one finding explains is not said again by another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from . import _thresholds as thresholds
from ._finding import SEVERITIES, Finding
from ._reading import shift_of


@dataclass(frozen=True, slots=True)
class Explains:
    """One code explains others.

    Attributes:
        code: The code that explains.
        others: The codes that are left out where it fires.
        reason: Why what they measure follows from it.
        same_sites: Whether only the sites that it names too are left out.
        where: Further condition on the explaining finding, None for none.
        overrules: Whether it explains findings that are graver than itself, too.
        unless: Condition on a finding under which it is kept all the same, None for none.
    """

    code: str
    others: tuple[str, ...]
    reason: str
    same_sites: bool = False
    where: Callable[[Finding], bool] | None = None
    overrules: bool = False
    unless: Callable[[Finding], bool] | None = None


def _everywhere(finding: Finding) -> bool:
    return bool(finding.evidence.get("everywhere"))


def _stale_in_training(finding: Finding) -> bool:
    """Whether training itself contradicts the statistics, which no other function in evaluation explains."""
    ratio, offset = shift_of(finding.evidence.get("stale_ratio")), finding.evidence.get("stale_mean")
    shifted = ratio is not None and ratio >= thresholds.SHIFT_WARNING
    return shifted or (offset is not None and offset >= thresholds.OFFSET_WARNING)


# Owners of a rule add what it explains here. Advice explains nothing that is graver than itself, unless it
# says that the data are not those to judge by.
EXPLAINS: tuple[Explains, ...] = (
    Explains(
        "VS304",
        ("VS302", "VS303", "VS202", "VS207", "VS210"),
        "batches of one kind have statistics of that kind, and the running ones are those of the last kinds",
        where=lambda finding: "purity" in finding.evidence and finding.severity != "advice",
        overrules=True,
    ),
    Explains(
        "VS304",
        ("VS302", "VS303", "VS202", "VS207", "VS210"),
        "batches of one kind that the network was not trained on say nothing about its statistics",
        where=lambda finding: not finding.cures,
        overrules=True,
    ),
    Explains(
        "VS306",
        ("VS202", "VS207", "VS210"),
        "the statistics are those of other inputs, and re-estimating them on these would ruin the network",
    ),
    Explains("VS303", ("VS302",), "batches learned together with their statistics are not too small"),
    Explains(
        "VS106",
        ("VS405",),
        "noise that evaluation does not switch off is a part of what changes between the modes",
    ),
    Explains(
        "VS403",
        ("VS405",),
        "a network that draws its configuration in training computes one of them in evaluation",
        where=lambda finding: finding.evidence["way"] == "configurations",
    ),
    Explains(
        "VS405",
        ("VS202", "VS207", "VS302", "VS306"),
        "statistics are those of the function that was trained, and evaluation computes another",
        where=lambda finding: not finding.evidence["noisy"],
        unless=_stale_in_training,
    ),
    Explains(
        "VS302",
        ("VS202",),
        "running averages of batches so small are noisy, and no statistics are off by more than that",
        where=lambda finding: bool(finding.evidence.get("noisy_averages")),
    ),
    Explains(
        "VS402",
        ("VS202", "VS205", "VS306"),
        "statistics that follow the data of a frozen network are those of other data than its weights",
    ),
    Explains(
        "VS403",
        ("VS202", "VS207", "VS210", "VS302", "VS306"),
        "an average over several signals is not what any of them was trained with",
    ),
    Explains(
        "VS211", ("VS302",), "pooled statistics that one sample dominates are what single batches differ from"
    ),
    Explains(
        "VS209",
        ("VS201", "VS202", "VS207", "VS211"),
        "no running average is what a norm per sample was trained with, whatever it holds",
        same_sites=True,
    ),
    Explains(
        "VS209",
        ("VS202", "VS207", "VS210", "VS302", "VS303", "VS304", "VS306"),
        "the steps from the statistics of each sample to running ones are what this costs",
        where=lambda finding: bool(finding.evidence.get("all_norms")),
    ),
    Explains(
        "VS107",
        ("VS101", "VS102"),
        "the variance that training adds is that of whole samples, which the wrong tensor loses",
        same_sites=True,
        where=lambda finding: "drops" in finding.evidence,
    ),
    Explains(
        "VS107",
        ("VS207",),
        "the variance that training adds is that of whole samples, which the wrong tensor loses",
        where=lambda finding: "drops" in finding.evidence,
    ),
    Explains(
        "VS107",
        ("VS208",),
        "samples that lose their signal as a whole have other outputs, and those are part of the mean",
        where=lambda finding: "drops" in finding.evidence,
    ),
    Explains(
        "VS405",
        ("VS208",),
        "outputs that are computed otherwise in evaluation differ from their mean over the noise, too",
    ),
    *(
        Explains(
            code,
            ("VS103",),
            "where noise in front of a norm costs something, its place in the branch is what the cure says",
            same_sites=True,
            where=lambda finding: finding.severity != "advice",
        )
        for code in ("VS101", "VS102")
    ),
    *(
        Explains(
            code,
            ("VS208",),
            "noise that shifts the variance at a norm moves the outputs through that norm",
        )
        for code in ("VS101", "VS102")
    ),
    Explains(
        "VS211",
        ("VS101", "VS102", "VS201", "VS202", "VS207", "VS208", "VS210", "VS302", "VS303", "VS304", "VS306"),
        "statistics that hold an outlier fit no other sample, whatever they are compared with",
    ),
    Explains(
        "VS205",
        ("VS201",),
        "statistics at their defaults were not copied with the weights",
        same_sites=True,
    ),
    Explains(
        "VS305",
        ("VS202",),
        "statistics that remember too few samples, or other weights, are off because of that",
    ),
    Explains(
        "VS305",
        ("VS302",),
        "batches are small because the step cuts them",
        where=lambda finding: finding.evidence.get("form") == "pieces",
    ),
    Explains("VS205", ("VS202",), "statistics that came with other weights are not those of these"),
    Explains(
        "VS205",
        ("VS306",),
        "statistics of other weights may look like those of other inputs",
        where=lambda finding: finding.confidence == "certain",
    ),
    Explains(
        "VS210", ("VS205",), "weights that were trained on statistics belong to them, whosever they were"
    ),
    Explains(
        "VS201",
        ("VS101", "VS102", "VS103", "VS104", "VS105", "VS107", "VS202", "VS204", "VS207", "VS208", "VS302"),
        "a network without trained weights has no statistics or losses to speak of",
        where=lambda finding: bool(finding.evidence.get("untrained")) and finding.severity != "advice",
    ),
    Explains(
        "VS210",
        ("VS101", "VS102", "VS103", "VS105", "VS107", "VS201", "VS202", "VS204", "VS207", "VS208", "VS302"),
        "weights that fit the stored statistics are not fitted to those of training mode",
    ),
    Explains("VS201", ("VS202",), "statistics that never moved are not those of the data", where=_everywhere),
    Explains("VS206", ("VS203", "VS202"), "statistics overflow or stall in half precision", same_sites=True),
    Explains(
        "VS204",
        ("VS201", "VS202"),
        "such a momentum leaves statistics of one batch, or none",
        same_sites=True,
    ),
    *(
        Explains(code, ("VS207",), "the shift at the norms is that of the noise")
        for code in ("VS101", "VS102", "VS103")
    ),
)


def settle(findings: Sequence[Finding], table: Sequence[Explains] = EXPLAINS) -> tuple[Finding, ...]:
    """The findings without those, and without the sites of those, that others explain.

    Args:
        findings: What the rules found.
        table: Which codes explain which.
    """
    kept = list(findings)
    for line in table:
        causes = [one for one in kept if one.code == line.code and (line.where is None or line.where(one))]
        for cause in causes:
            kept = [left for one in kept if (left := _without(one, cause, line)) is not None]
    return tuple(kept)


def _without(finding: Finding, cause: Finding, line: Explains) -> Finding | None:
    """A finding without what its cause explains; None where nothing is left."""
    if finding.code not in line.others or finding is cause or (line.unless and line.unless(finding)):
        return finding
    if SEVERITIES.index(finding.severity) < SEVERITIES.index(cause.severity) and not line.overrules:
        return finding
    if not line.same_sites:
        return None
    named = {site.id for site in cause.sites}
    left = tuple(site for site in finding.sites if site.id not in named)
    return replace(finding, sites=left) if left else None
