"""Which cures are tried for which findings, in which order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from varshift._errors import VarshiftError
from varshift.fixes._edit import Change, Edit
from varshift.fixes._remedy import REMEDIES, options_of
from varshift.rules import Cure, Finding


@dataclass(eq=False)
class Course:
    """The treatment of one finding, or of a wish of the user's.

    Attributes:
        finding: The finding; None for a wish.
        cures: The cures to try, the best first; the first is being tried.
        edits: The edits of that cure.
        changes: What they changed.
        reasons: Why the cures before it would not do, by code.
        relief: What the cure did for a finding whose cause is still there; empty where it cured it.
    """

    finding: Finding | None
    cures: list[Cure]
    edits: tuple[Edit, ...] = ()
    changes: tuple[Change, ...] = ()
    reasons: dict[str, str] = field(default_factory=dict)
    relief: str = ""

    @property
    def cure(self) -> Cure | None:
        """The cure that is tried now; None once all of them have failed."""
        return self.cures[0] if self.cures else None

    def give_up(self, reason: str) -> None:
        """Goes on to the next cure."""
        self.reasons[self.cures.pop(0).code] = reason
        self.edits, self.changes, self.relief = (), (), ""


# What statistics that are re-estimated without noise may take away, whatever the cause is.
RELIEF = Cure("recalibrate", "re-estimate the running statistics with the noise off", "safe")
# Findings by which the stored statistics are the right ones, or the batches are not those to take any from.
_KEPT = {
    "VS210": "the weights were trained on the stored statistics",
    "VS306": "the batches are prepared otherwise than those of training, and statistics would fit them",
}


def courses_of(
    findings: Sequence[Finding], *, unsafe: bool, advice: bool, relief: bool = False
) -> list[Course]:
    """What is tried for the findings of a check.

    Safe cures are tried in their order; re-estimated statistics may relieve what they do not cure. With
    `unsafe`, cures that take another training come first, for they remove the cause: where one of them
    applies, statistics are re-estimated after it anyway.

    Args:
        findings: The findings, worst first.
        unsafe: Whether cures that need another training are allowed.
        advice: Whether findings that are mere advice are treated, too.
        relief: Whether re-estimated statistics are tried last for every finding. They have to be measured.
    """
    courses = []
    for finding in findings:
        if finding.severity == "advice" and not advice:
            continue
        safe = [cure for cure in finding.cures if cure.safety == "safe"]
        rest = [cure for cure in finding.cures if cure.safety == "unsafe" and cure.code != "recalibrate"]
        if relief and all(cure.code != "recalibrate" for cure in safe):
            safe.append(RELIEF)
        courses.append(Course(finding, [*rest, *safe] if unsafe else safe))
    return courses


def why_kept(findings: Sequence[Finding]) -> str:
    """Why statistics must stay as they are, whatever else was found; empty where nothing says so.

    The loss on the batches at hand cannot tell: it falls where statistics come to fit the wrong inputs.
    """
    for finding in findings:
        if finding.code in _KEPT and finding.severity != "advice":
            return f"{_KEPT[finding.code]} ({finding.code})"
    return ""


def wishes_of(cures: Sequence[str | Cure] | Mapping[str, Mapping[str, Any]]) -> list[Course]:
    """What is tried where the user asks for cures himself.

    Args:
        cures: Codes of cures, cures, or a mapping of codes to their options.

    Raises:
        VarshiftError: If a code or an option is unknown.
    """
    wishes: list[Cure] = []
    if isinstance(cures, Mapping):
        wishes = [_wish(code, dict(options)) for code, options in cures.items()]
    elif isinstance(cures, (str, Cure)):
        raise VarshiftError(f"cures={cures!r} must be a list, as in cures=['remove-noise'].")
    else:
        wishes = [_wish(one, {}) if isinstance(one, str) else one for one in cures]
    for wish in wishes:
        if not isinstance(wish, Cure):
            raise VarshiftError(f"cures holds {wish!r}: expected codes of cures, or varshift.Cure.")
        options_of(_remedy(wish.code), wish.options)
    return [Course(None, [wish]) for wish in wishes]


def _wish(code: str, options: dict[str, Any]) -> Cure:
    found = _remedy(code)
    safety = found.safety_of(options_of(found, options))
    return Cure(code, code.replace("-", " "), safety, None, options)


def _remedy(code: str) -> Any:
    if code not in REMEDIES:
        known = ", ".join(sorted(REMEDIES))
        raise VarshiftError(f"cures: {code!r} is no cure that can be carried out: the cures are {known}.")
    return REMEDIES[code]
