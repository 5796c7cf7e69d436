"""What makes a finding the same one in two reports: rule and sites, never lines or figures."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING

from varshift.rules import SEVERITIES

if TYPE_CHECKING:
    from varshift.report._report import Report
    from varshift.rules import Finding


def fingerprints(report: Report) -> list[str]:
    """One fingerprint for each finding, in their order.

    It is a hash of the target, the rule and the first of the sites in the order of their names: the order in
    a finding follows figures, which change from run to run. Findings that share all of it are numbered.
    """
    seen: Counter[str] = Counter()
    result = []
    for finding in report.findings:
        site = min((str(site.id) for site in finding.sites), default="")
        name = "\0".join((report.model.target, finding.code, site))
        seen[name] += 1
        text = f"{name}\0{seen[name]}"
        result.append(hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32])
    return result


def new_findings(report: Report, baseline: Report) -> tuple[Finding, ...]:
    """The findings that an earlier report does not have.

    A finding is new where one of its sites was not named by its rule before, or only by a milder finding.
    """
    known: dict[tuple[str, str], int] = {}
    for finding in baseline.findings:
        for key in _keys(finding):
            grade = SEVERITIES.index(finding.severity)
            known[key] = min(grade, known.get(key, grade))
    return tuple(
        finding
        for finding in report.findings
        if any(known.get(key, len(SEVERITIES)) > SEVERITIES.index(finding.severity) for key in _keys(finding))
    )


def _keys(finding: Finding) -> list[tuple[str, str]]:
    return [(finding.code, str(site.id)) for site in finding.sites] or [(finding.code, "")]
