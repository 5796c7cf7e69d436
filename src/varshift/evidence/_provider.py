"""What makes evidence of one kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from varshift.evidence._subject import Subject
from varshift.evidence._types import Evidence, Kind


class NotMade(Exception):  # noqa: N818 - a provider's answer, not a fault
    """Evidence that could not be made; the message says why, in a few words."""


_NOT_GIVEN = {
    "loader": "no data were given",
    "deploy": "no deployment data were given",
    "step": "no training step was given",
    "optimizer": "no optimiser was given",
    "references": "no other network was given",
    "history": "no watched training was given",
}


class Provider(ABC):
    """Makes evidence of one kind. A new kind is a subclass in a file of its own, and a field of `Evidence`.

    Attributes:
        kind: Name of the evidence.
        makes: What it is, in a few words.
        inputs: What the user has to pass for it, in a few words.
        cost: What it costs, in passes of the network.
        needs: Evidence that it is made from.
        reads: What the user has to pass for it, as attributes of the subject (`_NOT_GIVEN`).
        unknown: What is not known where making it fails, as the start of a sentence: a check then goes on
            without it. Empty where a failure is the check's own.
        deploys: Whether it looks at the batches of deployment, where there are any.
    """

    kind: ClassVar[Kind]
    makes: ClassVar[str]
    inputs: ClassVar[str]
    cost: ClassVar[str]
    needs: ClassVar[tuple[Kind, ...]] = ()
    reads: ClassVar[tuple[str, ...]] = ()
    unknown: ClassVar[str] = ""
    deploys: ClassVar[bool] = False

    def require(self, subject: Subject) -> None:  # noqa: B027 - most have nothing to require
        """Raises an error for what is known to go wrong, before anything is drawn or run."""

    def obstacle(self, subject: Subject) -> str:
        """Why it cannot be made from what the user passed, in a few words; empty when it can.

        Where the user did not pass what it reads: ``"no ... was given"`` or ``"no ... were given"``, by which
        the report tells such rules from those that failed.
        """
        missing = (name for name in self.reads if getattr(subject, name) in (None, ()))
        return next((_NOT_GIVEN[name] for name in missing), "")

    def limit(self) -> str:
        """What the report says where it was wanted and the inputs for it are missing; empty for nothing."""
        return ""

    def batches(self, subject: Subject) -> int:
        """How many batches it needs from the loader."""
        return 0

    @abstractmethod
    def make(
        self, subject: Subject, evidence: Evidence, wanted: frozenset[Kind], limits: list[str]
    ) -> Mapping[str, Any]:
        """Makes it.

        Args:
            subject: The network and its inputs; the batches have been drawn.
            evidence: What was made before.
            wanted: The kinds of evidence that are made in this run.
            limits: Sentences for the report on what could not be seen, to be added to.

        Returns:
            The fields of `Evidence` that it fills.

        Raises:
            NotMade: If it cannot be made after all.
        """
