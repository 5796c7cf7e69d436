"""The report: everything a check found, as plain data that prints and saves itself."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from varshift.rules import SEVERITIES, Finding, Severity, by_severity

if TYPE_CHECKING:
    from varshift.flow import CaptureMethod
    from varshift.flow import Path as PathClass
    from varshift.probe import Gap

SCHEMA = "varshift.report/1"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The network that was checked.

    Attributes:
        target: What it is called: its class, or the target given on the command line.
        parameters: Number of parameters.
        norms: Number of norms with running statistics.
        noises: Number of noise sites.
    """

    target: str
    parameters: int
    norms: int
    noises: int


@dataclass(frozen=True, slots=True)
class DataInfo:
    """The data it was measured with.

    Attributes:
        batches: Number of batches.
        samples: Number of samples in them.
    """

    batches: int
    samples: int


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One norm. Ratios read "deployed over learned": 1 is healthy, None was not measured.

    Attributes:
        name: Module path.
        cls: Class name.
        source: ``"file:line"`` or None.
        channels: Number of channels.
        reached: Whether the data arrived there; without data, whether the captured network runs it.
        moving_var: Channel mean of the running variance.
        real_var: Channel mean of the variance of its input in ``eval``.
        ratio: ``real_var / moving_var``.
        shift: ``max(ratio, 1 / ratio)``.
        channel_log_ratio_rms: Root mean square over channels of the log-ratio.
        mean_offset: Root mean square over channels of the offset of the mean, in sigmas.
        local_ratio: Variance in ``clean`` over variance in ``train``.
        control_ratio: The ratio after recalibrating without noise: what depth and small batches do alone.
        predicted_ratio: The `ratio` that weights and statistics let expect; None when not predicted.
        noise: Names of the noise sites that reach it.
    """

    name: str
    cls: str
    source: str | None
    channels: int
    reached: bool
    moving_var: float | None = None
    real_var: float | None = None
    ratio: float | None = None
    shift: float | None = None
    channel_log_ratio_rms: float | None = None
    mean_offset: float | None = None
    local_ratio: float | None = None
    control_ratio: float | None = None
    predicted_ratio: float | None = None
    noise: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NoiseRow:
    """One noise site.

    Attributes:
        name: Path of the owning module.
        kind: What noise it is, ``"dropout"``.
        rate: Its drop probability or strength, None when unknown.
        source: ``"file:line"`` or None.
        reaches: Names of all norms downstream.
        nearest: The first norm it reaches, or None.
        path: How it reaches that one: ``"direct"``, ``"weight"``, ``"join"`` or ``"none"``.
    """

    name: str
    kind: str
    rate: float | None
    source: str | None
    reaches: tuple[str, ...]
    nearest: str | None
    path: PathClass


@dataclass(frozen=True, slots=True, repr=False)
class Report:
    """What `varshift.check` found, ``varshift.report/1``.

    ``print(report)`` shows all of it, a notebook shows it in colour, `to_json` and `save` write it down.

    Attributes:
        varshift: Version of varshift.
        torch: Version of torch.
        capture: How the network was captured: ``"recorded"``, ``"exported"``,
            ``"decomposed"`` (a forward that needs gradients) or ``"hooks"``.
        model: The network.
        data: The data, None when only the network itself was looked at.
        layers: One row per norm, in order of execution.
        noises: One row per noise site, in order of execution.
        findings: The faults, worst first.
        gap: Why the loss in training and the loss as deployed differ, None without data.
        limits: What could not be seen or measured, in plain sentences.
    """

    varshift: str
    torch: str
    capture: CaptureMethod
    model: ModelInfo
    data: DataInfo | None = None
    layers: tuple[LayerRow, ...] = ()
    noises: tuple[NoiseRow, ...] = ()
    findings: tuple[Finding, ...] = ()
    gap: Gap | None = None
    limits: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True when nothing was found."""
        return not self.findings

    @property
    def worst(self) -> Severity | None:
        """The gravest severity among the findings, None when there are none."""
        found = {finding.severity for finding in self.findings}
        return next((severity for severity in SEVERITIES if severity in found), None)

    @property
    def findings_by_code(self) -> dict[str, tuple[Finding, ...]]:
        """The findings grouped by rule, the gravest rule first."""
        groups: dict[str, list[Finding]] = {}
        for finding in by_severity(self.findings):
            groups.setdefault(finding.code, []).append(finding)
        return {code: tuple(group) for code, group in groups.items()}

    def layer(self, name: str) -> LayerRow | None:
        """The row of one norm by its module path, or None."""
        return next((layer for layer in self.layers if layer.name == name), None)

    def to_dict(self) -> dict[str, Any]:
        """The report as `report_schema` describes it: strict-JSON values only, NaN and infinity as None."""
        from varshift.report._json import report_to_dict

        return report_to_dict(self)

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """The report as JSON text, written to `path` as well if one is given.

        Raises:
            VarshiftError: If the file cannot be written; what stood there before is then unharmed.
        """
        from varshift.report._files import write_text
        from varshift.report._json import render

        text = render(self)
        if path is not None:
            write_text(path, text)
        return text

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the report in the format that the file's ending names: see `varshift.report.FORMATS`.

        Returns:
            The path written to.

        Raises:
            VarshiftError: If the ending names no format, or the file cannot be written; what stood there
                before is then unharmed.
        """
        from varshift.report._files import write_text
        from varshift.report._formats import format_for

        return write_text(path, format_for(path).render(self))

    def __str__(self) -> str:
        from varshift.report._text import render

        return render(self).rstrip("\n")

    def __repr__(self) -> str:
        from varshift.report._text import brief

        return brief(self)

    def _repr_html_(self) -> str:
        from varshift.report._html import fragment

        return fragment(self)

    def __rich_console__(self, console: Any, options: Any) -> Any:
        from varshift.report._terminal import renderables

        yield from renderables(self, width=options.max_width, ascii_only=options.ascii_only)
