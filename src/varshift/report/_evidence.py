"""The numbers under a finding in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from varshift.report._words import figure

# What figures are called whose names say too little by themselves; all others are called by their names.
FIGURES: Final[Mapping[str, str]] = {
    "ratio": "deployed over learned variance",
    "control_ratio": "the same recalibrated without noise",
    "fresh_ratio": "the same recalibrated with noise",
    "local_ratio": "variance without noise over variance with it",
    "excess": "deployed over learned variance beyond its control",
    "mean_offset": "mean off by standard deviations",
    "stale_ratio": "variance in training over running variance",
    "stale_mean": "running mean off by standard deviations",
    "values_per_channel": "values per channel in a batch",
    "effective_batch": "independent values in a batch",
    "predicted_ratio": "predicted deployed over learned variance",
    "gap_step": "change of the loss",
    "loss_step": "change of the loss",
    "gap_share": "share of the gap",
    "count": "places",
    "noise_count": "noise sites upstream",
    "reaches": "norms downstream",
}
# What is not finite was written down as None; what is an error of another figure follows it.
_ERRORS = ("_stderr", "_error")


def evidence_words(evidence: Mapping[str, Any]) -> str:
    """The evidence of a finding: ``deployed over learned variance 0.520, rate 0.50``."""
    phrases = []
    for key, value in evidence.items():
        error = next((evidence[key + end] for end in _ERRORS if key + end in evidence), None)
        if value is None or any(key.endswith(end) and key.removesuffix(end) in evidence for end in _ERRORS):
            continue
        name = FIGURES.get(key, key.replace("_", " "))
        if isinstance(value, bool):
            phrases.append(name if value else f"not {name}")
        else:
            phrases.append(f"{name} {_value(value)}" + (f" ± {figure(error, 2)}" if error else ""))
    return ", ".join(phrases)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return figure(value)
    if isinstance(value, (list, tuple)):
        return f"({', '.join(_value(item) for item in value)})"
    if isinstance(value, Mapping):
        return f"({evidence_words(value)})"
    return "not known" if value is None else str(value)
