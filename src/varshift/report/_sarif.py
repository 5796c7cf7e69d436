"""SARIF 2.1.0, with all that GitHub's code scanning asks for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from varshift._errors import VarshiftError
from varshift._printable import printable
from varshift.report._anchors import Anchor, anchor_of, located
from varshift.report._identity import fingerprints
from varshift.report._words import cure_words, finding_words, rule_name, site_name
from varshift.rules import Finding, get_rule

if TYPE_CHECKING:
    from varshift._sites import SiteId, Source
    from varshift.report._report import Report

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_LEVELS = {"error": "error", "warning": "warning", "advice": "note"}
_SEVERITIES = {"error": "error", "warning": "warning", "advice": "recommendation"}
_PRECISIONS = {"certain": "very-high", "measured": "high", "predicted": "medium", "suspected": "low"}
# What GitHub takes: characters of a description, related locations of a result, flows of a result.
_DESCRIPTION, _RELATED, _FLOWS = 1024, 100, 10
_PACKAGES = "PACKAGES"


def render(report: Report) -> str:
    """One run with a rule for each code that ran, and a result for each finding."""
    ran = {rule.code for rule in report.rules if rule.ran}
    codes = sorted(ran | {finding.code for finding in report.findings})
    results = [
        _result(report, finding, codes.index(finding.code), fingerprint)
        for finding, fingerprint in zip(report.findings, fingerprints(report), strict=True)
    ]
    driver = {
        "name": "varshift",
        "semanticVersion": report.varshift,
        "rules": [_rule(code, report.findings_by_code.get(code, ())) for code in codes],
    }
    run = {
        "tool": {"driver": driver},
        # What stands before the last slash keeps the reports of several networks apart.
        "automationDetails": {"id": f"varshift/{printable(report.model.target)}/"},
        "columnKind": "unicodeCodePoints",
        "originalUriBaseIds": {
            _PACKAGES: {"description": {"text": "The folder that packages are installed in."}}
        },
        "invocations": [{"executionSuccessful": True, "toolExecutionNotifications": _limits(report)}],
        "results": results,
    }
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(log, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _rule(code: str, findings: tuple[Finding, ...]) -> dict[str, Any]:
    try:
        rule = get_rule(code)
    except VarshiftError:  # of a later version, whose report was read back
        summary = why = page = code
        family = "unknown"
    else:
        summary, why, page, family = rule.summary, rule.section("Why it matters"), rule.page(), rule.family
    properties: dict[str, Any] = {"tags": [family]}
    if findings:
        properties["precision"] = _PRECISIONS[findings[0].confidence]
        properties["problem.severity"] = _SEVERITIES[findings[0].severity]
    return {
        "id": code,
        "name": rule_name(code) or code,
        "shortDescription": {"text": _cut(summary)},
        "fullDescription": {"text": _cut(why)},
        "help": {"text": page, "markdown": page},
        "defaultConfiguration": {"level": _LEVELS[findings[0].severity] if findings else "warning"},
        "properties": properties,
    }


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _DESCRIPTION else f"{text[: _DESCRIPTION - 1]}…"


def _limits(report: Report) -> list[dict[str, Any]]:
    return [{"level": "note", "message": {"text": printable(limit)}} for limit in report.limits]


def _result(report: Report, finding: Finding, index: int, fingerprint: str) -> dict[str, Any]:
    anchor = anchor_of(report, finding)
    text = "\n".join(printable(words) for words in (finding_words(finding), *map(cure_words, finding.cures)))
    where = _location(anchor)
    where["logicalLocations"] = [
        {"fullyQualifiedName": printable(site_name(site.id)), "kind": "module"} for site in finding.sites[:1]
    ]
    related = []
    for site in finding.sites:
        own = located(site.source)
        if own is not None and (own != anchor or site.id != finding.sites[0].id):
            related.append({"id": len(related) + 1, **_location(own, site_name(site.id))})
    result = {
        "ruleId": finding.code,
        "ruleIndex": index,
        "level": _LEVELS[finding.severity],
        "message": {"text": text},
        "locations": [where],
        "partialFingerprints": {"primaryLocationLineHash": fingerprint},
        "properties": {"confidence": finding.confidence},
    }
    if related:
        result["relatedLocations"] = related[:_RELATED]
    if flows := _flows(report, finding):
        result["codeFlows"] = flows
    return result


def _location(anchor: Anchor, message: str = "") -> dict[str, Any]:
    artifact = {"uri": anchor.uri}
    if anchor.within == "packages":
        artifact["uriBaseId"] = _PACKAGES
    region = {
        "startLine": anchor.line,
        "startColumn": 1,
        "endLine": anchor.line,
        "endColumn": max(2, anchor.columns + 1),
    }
    location: dict[str, Any] = {"physicalLocation": {"artifactLocation": artifact, "region": region}}
    if message:
        location["message"] = {"text": printable(message)}
    return location


def _flows(report: Report, finding: Finding) -> list[dict[str, Any]]:
    """From noise to norm, where a site of the finding is one of the two and both lines are known."""
    rows = {layer.id: layer for layer in report.layers}
    pairs: dict[tuple[SiteId, SiteId], tuple[Source | None, Source | None]] = {}
    sites = {site.id for site in finding.sites}
    for noise in report.noises:
        norm = rows.get(noise.nearest) if noise.nearest is not None else None
        if norm is not None and noise.id in sites:
            pairs[noise.id, norm.id] = noise.source, norm.source
    for layer in report.layers:
        if layer.id in sites:
            for noise in report.noises_before(layer)[-1:]:
                pairs.setdefault((noise.id, layer.id), (noise.source, layer.source))
    flows = []
    for names, sources in pairs.items():
        words = (f"noise: {site_name(names[0])}", f"norm: {site_name(names[1])}")
        steps = [_step(source, text) for source, text in zip(sources, words, strict=True)]
        if all(steps):
            flows.append({"threadFlows": [{"locations": steps}]})
    return flows[:_FLOWS]


def _step(source: Source | None, words: str) -> dict[str, Any] | None:
    anchor = located(source)
    return None if anchor is None else {"location": _location(anchor, words)}
