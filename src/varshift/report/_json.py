"""The report as strict JSON, ``varshift.report/1``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from varshift.probe import Gap
    from varshift.report._report import LayerRow, NoiseRow, Report
    from varshift.rules import Finding

name = "json"
suffix = ".json"


def render(report: Report) -> str:
    """The report as JSON text that ends in a newline."""
    return json.dumps(report_to_dict(report), indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def report_to_dict(report: Report) -> dict[str, Any]:
    """The report as nested dicts and lists of strict-JSON values."""
    from varshift.report._report import SCHEMA

    return plain(
        {
            "schema": SCHEMA,
            "varshift": report.varshift,
            "torch": report.torch,
            "capture": report.capture,
            "model": {
                "target": report.model.target,
                "parameters": report.model.parameters,
                "norms": report.model.norms,
                "noises": report.model.noises,
            },
            "data": {"batches": report.data.batches, "samples": report.data.samples} if report.data else None,
            "layers": [_layer(row) for row in report.layers],
            "noises": [_noise(row) for row in report.noises],
            "findings": [_finding(finding) for finding in report.findings],
            "gap": _gap(report.gap) if report.gap else None,
            "limits": report.limits,
        }
    )


def _layer(row: LayerRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "class": row.cls,
        "source": row.source,
        "channels": row.channels,
        "reached": row.reached,
        "moving_var": row.moving_var,
        "real_var": row.real_var,
        "ratio": row.ratio,
        "shift": row.shift,
        "channel_log_ratio_rms": row.channel_log_ratio_rms,
        "mean_offset": row.mean_offset,
        "local_ratio": row.local_ratio,
        "control_ratio": row.control_ratio,
        "predicted_ratio": row.predicted_ratio,
        "noise": row.noise,
    }


def _noise(row: NoiseRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "kind": row.kind,
        "rate": row.rate,
        "source": row.source,
        "reaches": row.reaches,
        "nearest": row.nearest,
        "path": row.path,
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "code": finding.code,
        "severity": finding.severity,
        "confidence": finding.confidence,
        "where": finding.where,
        "class": finding.cls,
        "source": None if finding.source is None else str(finding.source),
        "message": finding.message,
        "evidence": finding.evidence,
        "cures": [{"name": cure.name, "safety": cure.safety} for cure in finding.cures],
    }


def _gap(gap: Gap) -> dict[str, Any]:
    content: dict[str, Any] = {
        "metric": gap.metric,
        "states": gap.states,
        "steps": [{"cause": step.cause, "delta": step.delta, "stderr": step.stderr} for step in gap.steps],
    }
    if gap.accuracy is not None:
        content["accuracy"] = gap.accuracy
    if gap.kl is not None:
        content["kl"] = gap.kl
    return content


def plain(value: Any) -> Any:
    """A value made of strict-JSON values only.

    Numbers of other libraries (anything with ``item`` or ``tolist``) become Python's, NaN and infinity become
    None, mappings get string keys, other collections become lists, and whatever else there is, its text.
    """
    if value is None or isinstance(value, (bool, str)):
        return str(value) if type(value) not in (bool, str, type(None)) else value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Set):
        return sorted((plain(item) for item in value), key=str)
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [plain(item) for item in value]
    convert = getattr(value, "tolist", None)  # numpy arrays and scalars, tensors
    if callable(convert):
        return plain(convert())
    return str(value)
