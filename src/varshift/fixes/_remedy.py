"""Remedies: for each kind of cure, what makes edits of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

from varshift._errors import VarshiftError
from varshift._sites import SiteId
from varshift.fixes._edit import Edit
from varshift.fixes._patient import Patient
from varshift.fixes._surgery import Refused
from varshift.rules import CURES, Cure, Finding, Safety

_Remedy = TypeVar("_Remedy", bound="Remedy")

REMEDIES: dict[str, Remedy] = {}


@dataclass(frozen=True, slots=True)
class NoOptions:
    """The options of a remedy that has none."""


class Remedy(ABC):
    """Plans one kind of cure.

    Attributes:
        code: Code of the cure, one of `varshift.rules.CURES`.
        answers: Codes of the rules that it can answer.
        safety: ``"safe"`` where the deployed network computes what it did, in expectation, or only its
            statistics change; ``"unsafe"`` where it has to be trained again.
        options: Class of its options, a frozen dataclass whose fields all have defaults.
        guarded: Whether it is taken back where the loss of the check's batches rises in evaluation. Not where
            that loss is the fault: a network that looks at batch mates is good on batches like those of
            training, and on no others.
        restates: Whether what arrives at norms changes, so that their statistics are re-estimated
            afterwards where there are data.
    """

    code: ClassVar[str]
    answers: ClassVar[tuple[str, ...]]
    safety: ClassVar[Safety]
    options: ClassVar[type] = NoOptions
    guarded: ClassVar[bool] = True
    restates: ClassVar[bool] = False

    def safety_of(self, options: Any) -> Safety:
        """The safety with some options, where they decide it."""
        return self.safety

    def restates_with(self, options: Any) -> bool:
        """Whether what arrives at norms changes with some options."""
        return self.restates

    @abstractmethod
    def plan(
        self, patient: Patient, sites: Sequence[SiteId], options: Any, finding: Finding | None
    ) -> Sequence[Edit]:
        """What is to be done to the network; nothing of it is changed yet.

        Args:
            patient: The network, with what is known of it.
            sites: The places that need it: the target of the cure, else the sites of the finding. Empty
                where the user asked for it without naming any: then all places that it can act on.
            options: An instance of `options`.
            finding: The finding, None where the user asked for the cure.

        Raises:
            Refused: If it cannot be done here; the text says why, and what edit to make by hand: file, line,
                before and after.
        """


def remedy(cls: type[_Remedy]) -> type[_Remedy]:
    """Registers a remedy."""
    if cls.code not in CURES:
        raise VarshiftError(f"code={cls.code!r} is no kind of cure: the kinds are {', '.join(CURES)}.")
    if cls.code in REMEDIES:
        raise VarshiftError(f"code={cls.code!r} is taken by {type(REMEDIES[cls.code]).__name__}.")
    REMEDIES[cls.code] = cls()
    return cls


def plan_cure(patient: Patient, cure: Cure, finding: Finding | None) -> Sequence[Edit]:
    """The edits of one cure.

    Raises:
        Refused: If no remedy can carry it out here.
        VarshiftError: If an option is unknown.
    """
    found = REMEDIES.get(cure.code)
    if found is None:
        raise Refused(f"'{cure.code}' is done outside the model: {cure.name}.")
    sites: tuple[SiteId, ...] = ()
    if cure.target is not None:
        sites = (cure.target,)
    if finding is not None and (cure.target is None or cure.target in [site.id for site in finding.sites]):
        sites = tuple(site.id for site in finding.sites)  # one cure for all places of one fault
    return found.plan(patient, sites, options_of(found, cure.options), finding)


def options_of(found: Remedy, given: Mapping[str, Any]) -> Any:
    """The options of a remedy from a mapping.

    Raises:
        VarshiftError: If one of them is unknown.
    """
    known = [item.name for item in fields(found.options)]
    unknown = [name for name in given if name not in known]
    if unknown:
        expected = f"expected {', '.join(known)}" if known else "it has none"
        raise VarshiftError(f"{unknown[0]!r} is no option of the cure '{found.code}': {expected}.")
    return found.options(**given)
