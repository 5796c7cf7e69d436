"""From evidence and findings to a report."""

from __future__ import annotations

import math
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from varshift.report._report import DataInfo, LayerRow, ModelInfo, NoiseRow, Report
from varshift.rules import Evidence, Finding, by_severity

if TYPE_CHECKING:
    from varshift.flow import CaptureMethod, Flow, NormSite
    from varshift.model import NormFacts
    from varshift.probe import LayerMeasurement, Measurement


def build_report(
    *,
    target: str,
    parameters: int,
    evidence: Evidence,
    capture_method: CaptureMethod,
    findings: Iterable[Finding],
    limits: Iterable[str] = (),
) -> Report:
    """Puts what is known about a network into a report.

    Args:
        target: What the network is called.
        parameters: Number of its parameters.
        evidence: The captured flows, the facts about its norms, and the measurement, if there is one.
        capture_method: How it was captured.
        findings: What the rules found; they are put in order of severity, otherwise as given.
        limits: What could not be seen or measured.

    Returns:
        The report. Norms stand in order of execution; those that the captured network does not run follow.
    """
    import torch

    flow = evidence.train or evidence.eval
    noises = tuple(_noise_rows(flow)) if flow else ()
    layers = tuple(_layer_rows(evidence, flow, noises))
    measurement = evidence.measurement
    return Report(
        varshift=_own_version(),
        torch=str(torch.__version__),
        capture=capture_method,
        model=ModelInfo(target=target, parameters=parameters, norms=len(layers), noises=len(noises)),
        data=DataInfo(measurement.batches, measurement.samples) if measurement else None,
        layers=layers,
        noises=noises,
        findings=by_severity(list(findings)),
        gap=measurement.gap if measurement else None,
        limits=tuple(dict.fromkeys(limits)),
    )


def shift_of(ratio: float | None) -> float | None:
    """``max(ratio, 1 / ratio)``; None for a ratio that is unknown, infinite or not positive."""
    if ratio is None or not math.isfinite(ratio) or ratio <= 0:
        return None
    return max(ratio, 1 / ratio)


def _own_version() -> str:
    try:
        return version("varshift")
    except PackageNotFoundError:
        return "0+unknown"


def _noise_rows(flow: Flow) -> Iterable[NoiseRow]:
    for site in flow.noises:
        yield NoiseRow(
            name=site.name,
            kind=site.kind,
            rate=site.rate,
            source=None if site.source is None else str(site.source),
            reaches=tuple(site.reaches),
            nearest=site.nearest,
            path=site.path,
        )


def _layer_rows(evidence: Evidence, flow: Flow | None, noises: tuple[NoiseRow, ...]) -> Iterable[LayerRow]:
    # A norm without running statistics behaves alike in every mode and has nothing to measure.
    sites = {site.name: site for site in flow.norms if site.tracked} if flow else {}
    measured = {layer.name: layer for layer in evidence.measurement.layers} if evidence.measurement else {}
    predicted = (
        {layer.name: layer.ratio for layer in evidence.prediction.layers} if evidence.prediction else {}
    )
    for name in dict.fromkeys([*sites, *measured, *evidence.norms]):
        noise = tuple(dict.fromkeys(row.name for row in noises if name in row.reaches))
        yield _layer_row(
            name,
            sites.get(name),
            evidence.norms.get(name),
            evidence.measurement,
            measured.get(name),
            predicted.get(name),
            noise,
        )


def _layer_row(
    name: str,
    site: NormSite | None,
    facts: NormFacts | None,
    measurement: Measurement | None,
    layer: LayerMeasurement | None,
    predicted: float | None,
    noise: tuple[str, ...],
) -> LayerRow:
    reached = layer is not None and layer.reached if measurement else site is not None
    return LayerRow(
        name=name,
        cls=facts.cls if facts else site.cls if site else "",
        source=str(site.source) if site and site.source else None,
        channels=facts.channels if facts else site.channels if site else 0,
        reached=reached,
        moving_var=layer.moving_var if layer else None,
        real_var=layer.real_var if layer else None,
        ratio=layer.ratio if layer else None,
        shift=shift_of(layer.ratio) if layer else None,
        channel_log_ratio_rms=layer.channel_log_ratio_rms if layer else None,
        mean_offset=layer.mean_offset if layer else None,
        local_ratio=layer.local_ratio if layer else None,
        control_ratio=layer.control_ratio if layer else None,
        predicted_ratio=predicted,
        noise=noise,
    )
