"""A report as plain data that can be compared with that of another version."""

from __future__ import annotations

from typing import Any

FIGURES = (
    "moving_var",
    "real_var",
    "ratio",
    "channel_log_ratio_rms",
    "mean_offset",
    "local_ratio",
    "control_ratio",
    "predicted_ratio",
)


def plain(report: Any) -> dict[str, Any]:
    """A report as comparable data, whatever version wrote it: sites by module path, kind and rate.

    Sites had no names of their own once, findings one place each and reaches the norms' names: attributes
    are read as they are there.
    """
    norms = {_path(layer): layer for layer in report.layers}
    order = {name: index for index, name in enumerate(sorted(norms))}
    return {
        "method": str(report.capture),
        "noises": sorted(
            [
                _path(noise),
                str(noise.kind),
                "?" if noise.rate is None else f"{noise.rate:.4g}",
                _text(noise.nearest),
                str(noise.path),
                _ranges(sorted(order.get(name, -1) for name in _reached(report, noise))),
            ]
            for noise in report.noises
        ),
        "norms": {
            name: {
                "cls": layer.cls,
                "reached": layer.reached,
                **{figure: _figure(layer, figure) for figure in FIGURES},
            }
            for name, layer in norms.items()
        },
        "findings": sorted(
            [finding.code, *_places(finding)[:1], finding.severity, _places(finding)]
            for finding in report.findings
        ),
        "gap": _gap(report.gap),
        "limits": [str(limit) for limit in report.limits],
    }


def _reached(report: Any, noise: Any) -> list[str]:
    """Module paths of the norms downstream of a noise site, from names or from ranges of rows."""
    if hasattr(report, "reached_by"):
        return [_path(layer) for layer in report.reached_by(noise)]
    return [_text(name) for name in noise.reaches]


def _figure(layer: Any, figure: str) -> float | None:
    return getattr(layer, figure, getattr(getattr(layer, "measured", None), figure, None))


def _path(row: Any) -> str:
    """The module path of a norm, a noise site or a finding's site."""
    identity = getattr(row, "id", None) or getattr(row, "site", None) or row
    module = getattr(identity, "module", None)
    return module if isinstance(module, str) else _text(getattr(identity, "name", identity))


def _text(name: Any) -> str:
    """A module path out of a path, a name such as ``blocks.2:dropout#2``, or None."""
    if name is None:
        return ""
    text = name if isinstance(name, str) else getattr(name, "module", None) or str(name)
    return text.partition(":")[0]


def _places(finding: Any) -> list[str]:
    """Module paths of a finding's sites, the one that says most first."""
    sites = getattr(finding, "sites", None)
    return [_path(site) for site in sites] if sites else [_text(getattr(finding, "where", ""))]


def _gap(gap: Any) -> dict[str, Any] | None:
    if gap is None:
        return None
    steps = {str(step.cause): step.delta for step in gap.steps}
    return {"metric": gap.metric, "states": dict(gap.states), "steps": steps}


def _ranges(numbers: list[int]) -> str:
    """Sorted numbers as text: ``"0-12,14"``."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        elif not spans or number != spans[-1][1]:
            spans.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)
