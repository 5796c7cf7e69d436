"""Runs rules on evidence gathered for them: first what they need, then what improves their findings."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from varshift.evidence import Evidence, Kind, Need, kind_of

from ._finding import Finding
from ._ignored import without_ignored
from ._registry import Rule, all_rules, get_rule, run_rules

if TYPE_CHECKING:
    from varshift.evidence import Gathering


NOT_SELECTED = "not selected"


@dataclass(frozen=True, slots=True)
class RuleRun:
    """Whether a rule ran.

    Attributes:
        code: Code of the rule.
        ran: Whether it was asked for and had the evidence that it needs.
        reason: Why it did not run, in a few words; empty when it did.
    """

    code: str
    ran: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """The kinds of evidence that a set of rules wants.

    Attributes:
        first: What is gathered before any of them runs.
        later: What may be gathered once they have found something.
    """

    first: frozenset[Kind]
    later: frozenset[Kind]


def plan(rules: Collection[Rule]) -> Plan:
    """What has to be gathered for some rules."""
    first = [(*rule.needs, *rule.needs_one_of, *rule.uses) for rule in rules]
    later = [rule.improves_with for rule in rules]
    return Plan(_kinds(first), _kinds(later))


def _kinds(needs: Iterable[Iterable[Need]]) -> frozenset[Kind]:
    return frozenset(kind_of(need) for several in needs for need in several)


def examine(gathering: Gathering, codes: Sequence[str]) -> tuple[tuple[Finding, ...], tuple[RuleRun, ...]]:
    """Gathers what the rules need, runs them, and gathers what improves the findings of those that found any.

    Args:
        gathering: Where the evidence comes from.
        codes: Codes of the rules that were asked for.

    Returns:
        The findings by severity, and of every registered rule whether it ran.
    """
    wanted = plan([get_rule(code) for code in codes])
    gathering.gather(wanted.first, wanted.later)
    findings = _run(gathering.evidence, codes)
    firing = {finding.code for finding in findings}
    improving = plan([get_rule(code) for code in sorted(firing)]).later
    if improving:
        gathering.gather(improving)
        findings = _run(gathering.evidence, codes)
    findings, sentence = without_ignored(findings)
    if sentence:
        gathering.limits.append(sentence)
    return findings, _runs(gathering.evidence, codes, {run.name: run.reason for run in gathering.runs()})


def _run(evidence: Evidence, codes: Sequence[str]) -> tuple[Finding, ...]:
    return run_rules(evidence, [code for code in codes if not _missing(get_rule(code), evidence)])


def _missing(rule: Rule, evidence: Evidence) -> tuple[Need, ...]:
    """The needs of a rule that are not met."""
    missing: tuple[Need, ...] = tuple(need for need in rule.needs if not evidence.has(need))
    if missing or any(evidence.has(need) for need in rule.needs_one_of):
        return missing
    return rule.needs_one_of


def _runs(evidence: Evidence, codes: Sequence[str], reasons: Mapping[str, str]) -> tuple[RuleRun, ...]:
    runs = []
    for rule in all_rules():
        missing = _missing(rule, evidence)
        if rule.code not in codes:
            runs.append(RuleRun(rule.code, False, NOT_SELECTED))
        elif missing:
            runs.append(RuleRun(rule.code, False, _why(missing, reasons)))
        else:
            runs.append(RuleRun(rule.code, True))
    return tuple(runs)


def _why(missing: Sequence[Need], reasons: Mapping[str, str]) -> str:
    """Why a rule did not run: what it needs and why that is not there.

    A watched training would do for some rules, too; who checks a trained network has none to hand over.
    """
    whole = []
    for need in [need for need in missing if need != "history"] or missing:
        kind, _, mode = need.partition(".")
        reason = reasons[kind] or f"the network could not be captured in {mode} mode"
        whole.append(f"{kind} ({reason})")
    return f"needs {' or '.join(whole)}"
