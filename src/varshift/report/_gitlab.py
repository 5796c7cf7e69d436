"""The code quality report of GitLab."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from varshift._printable import printable
from varshift.report._anchors import anchor_of, aside
from varshift.report._identity import fingerprints
from varshift.report._words import finding_words, rule_title

if TYPE_CHECKING:
    from varshift.report._report import Report

_LEVELS = {"error": "critical", "warning": "major", "advice": "info"}


def render(report: Report) -> str:
    """A JSON list with one entry for each finding."""
    entries = []
    for finding, fingerprint in zip(report.findings, fingerprints(report), strict=True):
        anchor = anchor_of(report, finding)
        entries.append(
            {
                "check_name": rule_title(finding.code),
                "description": printable(f"{finding_words(finding)}{aside(finding, anchor)}"),
                "severity": _LEVELS[finding.severity],
                "fingerprint": fingerprint,
                "location": {"path": printable(anchor.path), "lines": {"begin": anchor.line}},
            }
        )
    return json.dumps(entries, indent=1, ensure_ascii=False) + "\n"
