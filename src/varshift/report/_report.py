"""The report: everything a check found, as plain data that prints, saves and reads itself."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from varshift._sites import SiteId
from varshift.evidence import EvidenceRun, History, LoaderFacts, ModeFacts
from varshift.report._codec import decode, encode
from varshift.report._files import write_text
from varshift.report._formats import FORMATS, format_for
from varshift.report._read import SCHEMA, content_of, current
from varshift.report._rows import LayerRow, NoiseRow
from varshift.rules import SEVERITIES, Finding, RuleRun, Severity, Verdict, by_severity

if TYPE_CHECKING:
    from varshift.probe import Gap


@dataclass(frozen=True, slots=True)
class Framework:
    """The library that the network is built with.

    Attributes:
        name: Its name.
        version: Its version.
    """

    name: str
    version: str


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
        repeat_difference: Relative L2 distance between two runs of the same batch in state eval.
        batch_mate_difference: Relative L2 distance between a sample's output among its batch mates and among
            others or alone, in state eval; null when it was not compared.
    """

    batches: int
    samples: int
    repeat_difference: float | None = None
    batch_mate_difference: float | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Report:
    """What `varshift.check` found, ``varshift.report/2``.

    ``print(report)`` shows all of it, a notebook shows it in colour, `to_json` and `save` write it down, and
    `from_json` reads it back.

    Attributes:
        varshift: Version of varshift.
        framework: The library that the network is built with.
        capture: How the network was captured; "hooks" where only its modules were looked at.
        model: The network.
        repeat: The call or command that repeats the check; empty in files of version 1.
        verdict: Whether evaluation is worse than training, by how much and why; null in files of version 1.
        data: The data, null when nothing was measured.
        gap: Why the loss in training and the loss as deployed differ, null when it was not measured.
        findings: The faults, worst first.
        layers: One row per norm, in order of execution.
        noises: One row per noise site, in order of execution.
        rules: What became of each rule; empty in files of version 1.
        evidence: What became of each kind of evidence; empty in files of version 1.
        loader: What the data loader says about its batches, null without one.
        modes: Training flags of the modules, null when they were not looked at.
        limits: What could not be seen or measured, in plain sentences.
        history: What was seen of a training while it ran, null when none was watched.
        left_out: Number of findings that are left out because a baseline has them too.
    """

    varshift: str
    framework: Framework
    capture: str
    model: ModelInfo
    repeat: str = ""
    verdict: Verdict | None = None
    data: DataInfo | None = None
    gap: Gap | None = None
    findings: tuple[Finding, ...] = ()
    layers: tuple[LayerRow, ...] = ()
    noises: tuple[NoiseRow, ...] = ()
    rules: tuple[RuleRun, ...] = ()
    evidence: tuple[EvidenceRun, ...] = ()
    loader: LoaderFacts | None = None
    modes: ModeFacts | None = None
    limits: tuple[str, ...] = ()
    history: History | None = field(default=None, metadata={"sparse": True})
    left_out: int = field(default=0, metadata={"sparse": True})

    @property
    def ok(self) -> bool:
        """True when nothing was found."""
        return not self.findings

    @property
    def worst(self) -> Severity | None:
        """The gravest severity among the findings, None when there are none."""
        severities = {finding.severity for finding in self.findings}
        return next((severity for severity in SEVERITIES if severity in severities), None)

    @property
    def findings_by_code(self) -> dict[str, tuple[Finding, ...]]:
        """The findings grouped by rule, the gravest rule first."""
        groups: dict[str, list[Finding]] = {}
        for finding in by_severity(self.findings):
            groups.setdefault(finding.code, []).append(finding)
        return {code: tuple(group) for code, group in groups.items()}

    def layer(self, site: SiteId | str) -> LayerRow | None:
        """The row of one norm by its `SiteId`, by its text, or by its module path; None without one."""
        text = str(site)
        return next((layer for layer in self.layers if text in (str(layer.id), layer.name)), None)

    def why(self, layer: SiteId | str | None = None) -> str:
        """Why a norm is off, as text: the number that is wrong first, then findings and noise upstream.

        It has the findings that name the norm, what their cures were measured to give, and what was predicted
        against what was measured. Of noise it speaks only where some reaches the norm.

        Args:
            layer: The norm: its `SiteId`, the text of it, or its module path; by default the one that is most
                off.

        Raises:
            VarshiftError: If the report has no such norm; it names the nearest.

        Example:
            >>> from torch import nn
            >>> import varshift
            >>> report = varshift.check(nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4)), shape=(2,))
            >>> print(report.why("1").splitlines()[1])
              Its statistics are those of a new norm: mean 0 and variance 1.
        """
        return FORMATS["why"].render(self, layer)

    def reached_by(self, noise: NoiseRow) -> tuple[LayerRow, ...]:
        """The rows of all norms downstream of a noise site."""
        return tuple(row for start, stop in noise.reaches for row in self.layers[start:stop])

    def noises_before(self, layer: LayerRow) -> tuple[NoiseRow, ...]:
        """The rows of all noise sites upstream of a norm."""
        position = self.layers.index(layer)
        return tuple(
            row for row in self.noises if any(start <= position < stop for start, stop in row.reaches)
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as `report_schema` describes it: strict-JSON values only, NaN and infinity as None."""
        return {"schema": SCHEMA, **encode(self)}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Report:
        """The report that `to_dict` made, or the content of an older file.

        Raises:
            VarshiftError: If it is no report, or one of a version that is not known.
        """
        return decode(cls, current(content))

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """The report as JSON text, written to `path` as well if one is given.

        Raises:
            VarshiftError: If the file cannot be written; what was there before is then unharmed.
        """
        text = FORMATS["json"].render(self)
        if path is not None:
            write_text(path, text)
        return text

    @classmethod
    def from_json(cls, source: str | os.PathLike[str]) -> Report:
        """Reads a report of version 2 or 1.

        Figures that version 1 does not have are None.

        Args:
            source: The JSON text, or the path of a file.

        Raises:
            VarshiftError: If the file cannot be read, is no report, or one of a version that is not known.

        Example:
            >>> from varshift.report import Framework, ModelInfo
            >>> report = Report("0.1", Framework("torch", "2.13"), "hooks", ModelInfo("Net", 10, 0, 0))
            >>> Report.from_json(report.to_json()) == report
            True
        """
        return cls.from_dict(content_of(source))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the report in the format that the file's ending names: see `varshift.report.FORMATS`.

        Returns:
            The path written to.

        Raises:
            VarshiftError: If the ending names no format, or the file cannot be written; what was there
                before is then unharmed.
        """
        return write_text(path, format_for(path).render(self))

    def __str__(self) -> str:
        return FORMATS["text"].render(self).rstrip("\n")

    def __repr__(self) -> str:
        return FORMATS["brief"].render(self)

    def _repr_html_(self) -> str:
        return FORMATS["notebook"].render(self)

    def __rich_console__(self, console: Any, options: Any) -> Any:
        yield from FORMATS["rich"].render(self, width=options.max_width, ascii_only=options.ascii_only)
