"""The registry of rules: registration, look-up by code or name, and running them over the evidence."""

from __future__ import annotations

import difflib
import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

from varshift._errors import VarshiftError
from varshift.evidence import NEEDS, Evidence, Need

from ._causes import settle
from ._finding import Finding, by_severity

FAMILIES: dict[str, str] = {
    "VS1": "placement",
    "VS2": "statistics",
    "VS3": "batches and data order",
    "VS4": "modes and freezing",
    "VS5": "optimisation",
}

PAGE_HEADINGS: tuple[str, ...] = (
    "What it does",
    "Why it matters",
    "How it is measured",
    "Known limits",
    "Example",
    "Cure",
    "Cure safety",
    "References",
)

_CODE = re.compile(r"VS[1-9]\d\d")
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class Rule(ABC):
    """A rule: a code that never changes its meaning, a name, and a page.

    The docstring of a subclass is its page in Markdown: a first line that says in one sentence when the rule
    fires, then the eight headings of `PAGE_HEADINGS`, each as ``## Heading``.

    Evidence is gathered only where a rule that was asked for names it (`varshift.evidence.NEEDS`).

    Attributes:
        code: ``"VS"`` and three digits; the first digit is the family.
        name: Kebab-case name.
        needs: Evidence without which the rule is skipped.
        needs_one_of: Evidence of which one kind is enough, and any that can be had is gathered.
        uses: Evidence that may make it find more or something else, gathered where it can be had.
        improves_with: Evidence that confirms, grades, locates or drops what it has found without it: gathered
            once it has found something.
    """

    code: ClassVar[str]
    name: ClassVar[str]
    needs: ClassVar[tuple[Need, ...]] = ()
    needs_one_of: ClassVar[tuple[Need, ...]] = ()
    uses: ClassVar[tuple[Need, ...]] = ()
    improves_with: ClassVar[tuple[Need, ...]] = ()

    @abstractmethod
    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields the findings of this rule, in the order of the network."""

    @property
    def family(self) -> str:
        """What the rules of this code's hundred are about, ``"placement"``."""
        return FAMILIES[self.code[:3]]

    @property
    def summary(self) -> str:
        """First line of the page."""
        return self._text().splitlines()[0]

    def page(self) -> str:
        """The page in Markdown, with code and name as its title."""
        return f"# {self.code}: {self.name}\n\n{self._text()}\n"

    def section(self, heading: str) -> str:
        """The text under one of `PAGE_HEADINGS`, without the heading.

        Raises:
            VarshiftError: If the page has no such heading.
        """
        parts = re.split(r"^## (.+)$", self._text(), flags=re.MULTILINE)
        for title, text in zip(parts[1::2], parts[2::2], strict=True):
            if title.strip() == heading:
                return text.strip()
        raise VarshiftError(
            f"heading={heading!r} is not on the page of {self.code}: pages have {', '.join(PAGE_HEADINGS)}."
        )

    @classmethod
    def _text(cls) -> str:
        # Only the class's own docstring is a page: getdoc would fall back to the base's.
        return inspect.cleandoc(cls.__doc__ or "")


_RULES: dict[str, Rule] = {}


def register(rule: type[Rule]) -> type[Rule]:
    """Class decorator that adds a rule to the registry.

    Raises:
        VarshiftError: If the code or the name is malformed or already taken.
    """
    code, name = rule.code, rule.name
    if not _CODE.fullmatch(code) or code[:3] not in FAMILIES:
        raise VarshiftError(
            f"code={code!r} of {rule.__name__} must be a family ({_families()}) and two digits."
        )
    if not _NAME.fullmatch(name):
        raise VarshiftError(f"name={name!r} of {code} must be kebab-case.")
    for need in (*rule.needs, *rule.needs_one_of, *rule.uses, *rule.improves_with):
        if need not in NEEDS:
            raise VarshiftError(f"{code} needs {need!r}: evidence is one of {', '.join(NEEDS)}.")
    for known in _RULES.values():
        if known.code == code or known.name == name:
            raise VarshiftError(f"{code} ({name}) is already taken by {type(known).__name__}.")
    _RULES[code] = rule()
    return rule


def all_rules() -> tuple[Rule, ...]:
    """All rules in the order of their codes."""
    return tuple(_RULES[code] for code in sorted(_RULES))


def get_rule(code: str) -> Rule:
    """The rule with this code or name, in any case.

    Raises:
        VarshiftError: If there is none; the message suggests the nearest ones.
    """
    wanted = code.strip()
    for rule in all_rules():
        if wanted.upper() == rule.code or wanted.lower() == rule.name:
            return rule
    known = [*_RULES, *(rule.name for rule in all_rules())]
    raise VarshiftError(
        f"unknown rule {code!r}{_suggestion(wanted, known)} `varshift rules` lists all of them."
    )


def split_selectors(selectors: Sequence[str] | str) -> tuple[str, ...]:
    """Selectors as a flat tuple in upper case; a string may hold several, separated by commas."""
    items = [selectors] if isinstance(selectors, str) else list(selectors)
    parts = [part.strip().upper() for item in items for part in item.split(",")]
    return tuple(part for part in parts if part)


def matching_rules(selector: str, *, argument: str = "select") -> tuple[str, ...]:
    """Codes that a selector stands for: a code, a prefix of codes (``"VS"``, ``"VS1"``), or ``"ALL"``.

    Raises:
        VarshiftError: If it stands for none; the message names `argument` and suggests the nearest codes.
    """
    if selector == "ALL":
        return tuple(sorted(_RULES))
    codes = (
        tuple(sorted(code for code in _RULES if code.startswith(selector))) if selector[:2] == "VS" else ()
    )
    if codes:
        return codes
    prefixes = {code[:3] for code in _RULES}
    raise VarshiftError(
        f"{argument}: {selector!r} is not a rule code or a prefix of one"
        f"{_suggestion(selector, [*_RULES, *sorted(prefixes), 'ALL'])} `varshift rules` lists all codes."
    )


def resolve_selection(
    select: Sequence[str] | str | None = None,
    ignore: Sequence[str] | str | None = None,
    *,
    extend_select: Sequence[str] | str = (),
    extend_ignore: Sequence[str] | str = (),
) -> tuple[str, ...]:
    """The codes that are switched on, in order.

    As in ruff, the more specific selector wins wherever it stands, and at equal length `ignore` wins:
    ``select=["VS101"], ignore=["VS1"]`` leaves VS101 on; ``select=["VS1"], ignore=["VS101"]`` does not.

    Args:
        select: Codes, prefixes or ``"ALL"``; None for all rules.
        ignore: Likewise, to be switched off.
        extend_select: Added to `select`.
        extend_ignore: Added to `ignore`.

    Raises:
        VarshiftError: If a selector stands for no rule.
    """
    chosen = ("ALL",) if select is None else split_selectors(select)
    wanted = [(one, matching_rules(one, argument="select")) for one in chosen]
    wanted += [(one, matching_rules(one, argument="extend-select")) for one in split_selectors(extend_select)]
    unwanted = [(one, matching_rules(one, argument="ignore")) for one in split_selectors(ignore or ())]
    unwanted += [
        (one, matching_rules(one, argument="extend-ignore")) for one in split_selectors(extend_ignore)
    ]

    def specificity(selector: str) -> int:
        return 0 if selector == "ALL" else len(selector)

    enabled: set[str] = set()
    for level in sorted({specificity(one) for one, _ in (*wanted, *unwanted)}):
        for one, codes in wanted:
            if specificity(one) == level:
                enabled.update(codes)
        for one, codes in unwanted:
            if specificity(one) == level:
                enabled.difference_update(codes)
    return tuple(sorted(enabled))


def run_rules(
    evidence: Evidence,
    select: Sequence[str] | str | None = None,
    ignore: Sequence[str] | str | None = None,
) -> tuple[Finding, ...]:
    """Runs the selected rules; findings come by severity, then cost, then code.

    What one finding explains is not said again by another.

    Raises:
        VarshiftError: If a selector stands for no rule.
    """
    codes = resolve_selection(select, ignore)
    findings = [finding for code in codes for finding in _RULES[code].applies(evidence)]
    return by_severity(settle(findings))  # codes come in order, and within one the order of the network


def _families() -> str:
    return ", ".join(FAMILIES)


def _suggestion(wanted: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(wanted.upper(), known, n=3, cutoff=0.6)
    near = near or difflib.get_close_matches(wanted.lower(), known, n=3, cutoff=0.6)
    near.sort(key=lambda one: one[:3] != wanted.upper()[:3])  # the same family first
    return f": did you mean {' or '.join(near)}?" if near else "."
