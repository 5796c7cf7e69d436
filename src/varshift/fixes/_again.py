"""What a second check says of the findings of the first."""

from __future__ import annotations

from collections.abc import Sequence

from varshift.evidence import NOT_NEEDED
from varshift.report import Report
from varshift.rules import Finding, get_rule


def still_there(finding: Finding, findings: Sequence[Finding]) -> bool:
    """Whether a later check has a finding again: of the same rule, at one of its places, and no milder.

    What is left as advice of a warning or an error counts as gone.
    """
    places = {(site.id.module, site.id.kind) for site in finding.sites}
    for later in findings:
        if later.code != finding.code:
            continue
        if later.severity == "advice" and finding.severity != "advice":
            continue
        others = {(site.id.module, site.id.kind) for site in later.sites}
        if not places or not others or places & others:
            return True
    return False


def not_looked_for(finding: Finding, before: Report, after: Report) -> tuple[str, ...]:
    """The evidence that a finding was made from and that the later check did not have.

    Without it the rule may have been silent for want of evidence: that it is gone cannot be said.
    """
    rule = get_rule(finding.code)
    had = {run.name for run in before.evidence if run.ran}
    lost = {run.name for run in after.evidence if not run.ran and run.reason != NOT_NEEDED}
    wanted = {
        str(need).partition(".")[0]
        for need in (*rule.needs, *rule.needs_one_of, *rule.uses, *rule.improves_with)
    }
    return tuple(sorted(wanted & had & lost))


def gone(before: Report | None, after: Report | None) -> tuple[Finding, ...]:
    """The findings of one check that a later one looked for and does not have."""
    if before is None or after is None:
        return ()
    return tuple(
        finding
        for finding in before.findings
        if not still_there(finding, after.findings) and not not_looked_for(finding, before, after)
    )
