"""JUnit's XML: a test case for each rule that ran, passed ones too."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree

from varshift._printable import printable
from varshift.report._summary import sentences
from varshift.report._words import cure_words, finding_words, place, rule_title
from varshift.rules import NOT_SELECTED, SEVERITIES

if TYPE_CHECKING:
    from varshift.report._report import Report
    from varshift.rules import Finding, RuleRun, Severity


def render(report: Report, *, fail_on: Severity = "warning") -> str:
    """One suite for the network. A rule that lacked its evidence is skipped, with the reason.

    Args:
        report: The report.
        fail_on: The mildest finding that is a failure; milder ones are in the output of a case that passes.
    """
    groups = report.findings_by_code
    runs = {rule.code: rule for rule in report.rules if rule.ran or rule.reason != NOT_SELECTED}
    name = f"varshift.{printable(report.model.target)}"
    suite = ElementTree.Element("testsuite", name=name)
    for code in sorted({*runs, *groups}):
        case = ElementTree.SubElement(suite, "testcase", classname=name, name=rule_title(code))
        _fill(case, groups.get(code, ()), runs.get(code), fail_on)
    lines = [*sentences(report), *report.limits]
    ElementTree.SubElement(suite, "system-out").text = "\n".join(map(printable, lines))
    numbers = {
        "tests": len(suite.findall("testcase")),
        "failures": len(suite.findall("testcase/failure")),
        "errors": 0,
        "skipped": len(suite.findall("testcase/skipped")),
    }
    root = ElementTree.Element("testsuites", name="varshift")
    for key, number in numbers.items():
        suite.set(key, str(number))
        root.set(key, str(number))
    root.append(suite)
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _fill(
    case: ElementTree.Element, findings: tuple[Finding, ...], run: RuleRun | None, fail_on: Severity
) -> None:
    limit = SEVERITIES.index(fail_on)
    failed = [finding for finding in findings if SEVERITIES.index(finding.severity) <= limit]
    mild = [finding for finding in findings if SEVERITIES.index(finding.severity) > limit]
    if failed:
        message = printable(finding_words(failed[0]))
        failure = ElementTree.SubElement(case, "failure", type=failed[0].severity, message=message)
        failure.text = "\n".join(map(_words, failed))
    elif run is not None and not run.ran and not mild:
        ElementTree.SubElement(case, "skipped", message=printable(run.reason))
    if mild:
        ElementTree.SubElement(case, "system-out").text = "\n".join(map(_words, mild))


def _words(finding: Finding) -> str:
    where = f"{place(finding.source)}: " if finding.source else ""
    first = f"{where}{finding.severity}: {finding_words(finding)}"
    return "\n".join(printable(text) for text in (first, *map(cure_words, finding.cures)))
