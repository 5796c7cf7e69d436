"""From evidence and findings to a report."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from varshift import __version__
from varshift._sites import as_source
from varshift.evidence import EvidenceRun
from varshift.report._codec import settled
from varshift.report._ranges import ranges
from varshift.report._report import DataInfo, Framework, ModelInfo, Report
from varshift.report._rows import LayerRow, MeasuredFigures, NoiseRow, PredictedFigures, StatisticsInfo
from varshift.rules import Evidence, Finding, RuleRun, by_severity, judge, noise_upstream, norm_place

if TYPE_CHECKING:
    from varshift.flow import Flow, NoiseSite

Row = TypeVar("Row")


def build_report(
    *,
    target: str,
    parameters: int,
    evidence: Evidence,
    capture_method: str,
    findings: Iterable[Finding],
    limits: Iterable[str] = (),
    rules: Iterable[RuleRun] = (),
    provided: Iterable[EvidenceRun] = (),
    repeat: str = "",
) -> Report:
    """Puts what is known about a network into a report.

    Args:
        target: What the network is called.
        parameters: Number of its parameters.
        evidence: The captured flows, the facts about its norms, and the measurement, if there is one.
        capture_method: How it was captured.
        findings: The findings of the rules; they are put in order of severity, otherwise as they come.
        limits: What could not be seen or measured.
        rules: What became of each rule.
        provided: What became of each kind of evidence.
        repeat: The call or command that repeats the check.

    Returns:
        The report, of plain values only: `Report.from_json` of its JSON is equal to it. Norms come in order
        of execution; those that the captured network does not run follow.
    """
    flow = evidence.train or evidence.eval
    layers = _layer_rows(evidence, flow)
    positions = {row.name: index for index, row in enumerate(layers)}
    noises = [_noise_row(site, layers, positions) for site in flow.noises] if flow else []
    measurement = evidence.measurement
    ordered = by_severity(tuple(findings))
    report = Report(
        varshift=__version__,
        framework=_framework(),
        capture=capture_method,
        model=ModelInfo(target=target, parameters=parameters, norms=len(layers), noises=len(noises)),
        repeat=repeat,
        verdict=judge(evidence, ordered),
        data=DataInfo(
            measurement.batches,
            measurement.samples,
            evidence.trials.repeats.apart if evidence.trials else None,
            evidence.trials.apart if evidence.trials else None,
        )
        if measurement
        else None,
        gap=measurement.gap if measurement else None,
        findings=ordered,
        layers=tuple(layers),
        noises=tuple(noises),
        rules=tuple(rules),
        evidence=tuple(provided),
        loader=evidence.loader,
        modes=replace(evidence.modes, trained=(), frozen=()) if evidence.modes else None,
        limits=tuple(dict.fromkeys(limits)),
        history=evidence.history,
    )
    return settled(report)


def _framework() -> Framework:
    torch = sys.modules.get("torch")  # evidence about a torch model cannot come without it
    return Framework("torch", str(torch.__version__)) if torch else Framework("none", "0")


def _layer_rows(evidence: Evidence, flow: Flow | None) -> list[LayerRow]:
    # A norm without running statistics behaves alike in every mode and has nothing to measure.
    sites = {site.name: site for site in flow.norms if site.tracked} if flow else {}
    measured = {layer.name: layer for layer in evidence.measurement.layers} if evidence.measurement else {}
    predicted = {layer.name: layer for layer in evidence.prediction.layers} if evidence.prediction else {}
    upstream = noise_upstream(flow)
    rows = []
    for name in dict.fromkeys([*sites, *measured, *evidence.norms]):
        site, facts, layer = sites.get(name), evidence.norms.get(name), measured.get(name)
        place = norm_place(evidence, name)
        noise = upstream.get(name, ())
        reached = layer is not None and layer.reached if evidence.measurement else site is not None
        rows.append(
            LayerRow(
                id=place.id,
                cls=place.cls,
                source=place.source,
                channels=facts.channels if facts else site.channels if site else 0,
                reached=reached,
                noise=noise[-1] if noise else None,
                noise_count=len(noise),
                statistics=_copied(StatisticsInfo, facts),
                measured=_copied(MeasuredFigures, layer),
                predicted=_copied(PredictedFigures, predicted.get(name)),
            )
        )
    return rows


def _copied(row: type[Row], source: Any) -> Row | None:
    """The fields of one dataclass with the values of another that has them all; None for None."""
    if source is None:
        return None
    return row(**{item.name: getattr(source, item.name) for item in fields(row)})  # type: ignore[arg-type]


def _noise_row(site: NoiseSite, layers: list[LayerRow], positions: Mapping[str, int]) -> NoiseRow:
    nearest = positions.get(site.nearest) if site.nearest is not None else None
    return NoiseRow(
        id=site.id,
        cls=site.cls,
        rate=site.rate,
        source=as_source(site.source),
        reaches=tuple(ranges(positions[norm] for norm in site.reaches if norm in positions)),
        nearest=None if nearest is None else layers[nearest].id,
        path=site.path,
        drops=site.drops,
        additive=site.additive,
    )
