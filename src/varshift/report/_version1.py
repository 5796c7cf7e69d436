"""From the content of a file of version 1 to that of version 2: what it does not say is null or empty."""

from __future__ import annotations

from collections import Counter
from typing import Any

from varshift._errors import VarshiftError
from varshift._sites import SiteId, Source
from varshift.report._ranges import ranges
from varshift.rules import kind_of_norm

_FIGURES = (
    "moving_var",
    "real_var",
    "ratio",
    "channel_log_ratio_rms",
    "mean_offset",
    "local_ratio",
    "control_ratio",
)

# Version 1 names cures in words only: how these begin, and the code that version 2 has for them.
_CURES = {
    "re-estimate": "recalibrate",
    "learn the statistics": "recalibrate",
    "move ": "move-noise",
    "put it behind": "move-noise",
    "apply it to the branch": "move-noise",
    "lower its rate": "lower-rate",
    "use weaker noise": "lower-rate",
    "drop whole channels": "swap-noise",
    "remove it": "remove-noise",
    "use its result": "use-result",
    "norms that do not look": "swap-norm",
    "set momentum": "set-momentum",
    "set a momentum": "set-momentum",
    "build it with track_running_stats": "track-statistics",
    "set track_running_stats": "track-statistics",
    "keep ": "keep-float32",
    "check with data": "reach-norm",
    "prune": "prune-channels",
    "find the NaN": "find-overflow",
    "freeze its parameters": "freeze-parameters",
    "larger or shuffled": "larger-batch",
    "use a larger batch": "larger-batch",
    "pass drop_last": "drop-last",
    "call model.": "set-mode",
    "switch it off": "follow-mode",
    "pass training": "follow-mode",
    "register the module": "register-module",
    "find what works": "separate-samples",
}


def upgraded(content: dict[str, Any]) -> dict[str, Any]:
    """The content of version 1 in the form of version 2.

    Raises:
        VarshiftError: If something that version 1 requires is missing.
    """
    try:
        return _upgraded(content)
    except (KeyError, TypeError, AttributeError) as error:
        raise VarshiftError(f"the report is incomplete: {type(error).__name__} {error}.") from error


def _upgraded(content: dict[str, Any]) -> dict[str, Any]:
    norms = {row["name"]: str(SiteId(row["name"], kind_of_norm(row["class"]))) for row in content["layers"]}
    noises = _noise_ids(content["noises"])
    positions = {name: index for index, name in enumerate(norms)}
    upstream: dict[str, list[str]] = {}
    for row, name in zip(content["noises"], noises, strict=True):
        for norm in row["reaches"]:
            upstream.setdefault(norm, []).append(name)
    return {
        "varshift": content["varshift"],
        "framework": {"name": "torch", "version": content["torch"]},
        "capture": content["capture"],
        "model": content["model"],
        "data": content["data"],
        "gap": content["gap"],
        "findings": [_finding(finding, norms, content["noises"], noises) for finding in content["findings"]],
        "layers": [
            _layer(row, norms[row["name"]], upstream.get(row["name"], []), content["data"] is not None)
            for row in content["layers"]
        ],
        "noises": [
            {
                "id": name,
                "class": "",
                "rate": row["rate"],
                "source": _source(row["source"]),
                "reaches": [list(pair) for pair in ranges(positions[norm] for norm in row["reaches"])],
                "nearest": norms.get(row["nearest"]),
                "path": row["path"],
            }
            for row, name in zip(content["noises"], noises, strict=True)
        ],
        "limits": content.get("limits", []),
    }


def _noise_ids(rows: list[dict[str, Any]]) -> list[str]:
    counts: Counter[tuple[str, str]] = Counter()
    names = []
    for row in rows:
        call = (row["name"], row["kind"])
        counts[call] += 1
        names.append(str(SiteId(*call, counts[call])))
    return names


def _layer(row: dict[str, Any], name: str, noise: list[str], measured: bool) -> dict[str, Any]:
    predicted = row.get("predicted_ratio")
    return {
        "id": name,
        "class": row["class"],
        "source": _source(row["source"]),
        "channels": row["channels"],
        "reached": row["reached"],
        "noise": noise[-1] if noise else None,
        "noise_count": len(noise),
        "measured": {key: row[key] for key in _FIGURES} if measured else None,
        "predicted": None if predicted is None else {"ratio": predicted},
    }


def _finding(
    finding: dict[str, Any], norms: dict[str, str], rows: list[dict[str, Any]], noises: list[str]
) -> dict[str, Any]:
    where = finding["where"]
    matches = [name for row, name in zip(rows, noises, strict=True) if row["name"] == where]
    exact = [
        name
        for row, name in zip(rows, noises, strict=True)
        if row["name"] == where and row["source"] == finding["source"]
    ]
    site = norms.get(where) or next(iter(exact or matches), str(SiteId(where, "module")))
    return {
        **{key: finding[key] for key in ("code", "severity", "confidence", "message", "evidence")},
        "sites": [{"id": site, "class": finding["class"], "source": _source(finding["source"])}],
        "cures": [
            {"code": _cure_code(cure["name"]), "name": cure["name"], "safety": cure["safety"]}
            for cure in finding["cures"]
        ],
    }


def _cure_code(name: str) -> str:
    return next((code for start, code in _CURES.items() if name.startswith(start)), "other")


def _source(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    source = Source.parse(text)
    return {"file": source.file, "line": source.line}
