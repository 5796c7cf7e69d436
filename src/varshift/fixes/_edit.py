"""An edit: one operation on a module tree that can be written down and repeated on a fresh model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from varshift._errors import VarshiftError
from varshift._sites import SiteId, Source
from varshift.fixes._surgery import Surgery
from varshift.report import decode, encode

_Class = TypeVar("_Class", bound="type[Edit]")

EDITS: dict[str, type[Edit]] = {}
NEW = "noise"  # kind of a place to which noise was put: how many there are is only known once it runs


@dataclass(frozen=True, slots=True)
class Change:
    """One line of the list of changes.

    Attributes:
        site: The place that changed; for noise that is new, its module with the kind `NEW`.
        before: What was there, as its user would write it: ``"Dropout(p=0.5)"``.
        after: What is there now; empty where nothing is.
        method: How it was changed: ``"module"`` (another module on all paths), ``"attribute"``, ``"call"``
            (a call in a method, by another class of the same name), ``"statistics"``, ``"optimizer"``,
            ``"data"``.
        source: The line of the user's code.
        cure: Code of the cure.
        finding: Code of the rule that asked for it; empty where the user did.
        why: The reason, in a sentence.
    """

    site: SiteId
    before: str
    after: str
    method: str
    source: Source | None = None
    cure: str = ""
    finding: str = ""
    why: str = ""


class Edit(ABC):
    """One operation on a module tree: data only, found again by paths and texts, never by line numbers.

    Subclasses are frozen dataclasses of strict-JSON values, `SiteId` and `Source`, registered by `edit`.

    Attributes:
        op: Its name in a plan.
        acts_on: What it changes: the model, the loader or the optimiser.
    """

    op: ClassVar[str] = ""
    acts_on: ClassVar[Literal["model", "loader", "optimizer"]] = "model"

    @abstractmethod
    def apply(self, surgery: Surgery) -> tuple[Change, ...]:
        """Does it, through the surgery only, so that it can be undone.

        Returns:
            What changed; `cure`, `finding` and `why` are filled in by the caller.

        Raises:
            Refused: If the place is not there, or is not what it was when the edit was planned. Nothing of
                this edit may have been done then.
        """

    @property
    def linked(self) -> tuple[SiteId, ...]:
        """Norms that read one another's signals after it, and weight layers that they read."""
        return ()

    def to_json(self) -> dict[str, Any]:
        """The edit as strict-JSON values."""
        return {"op": self.op, **encode(self)}


def edit(op: str) -> Callable[[_Class], _Class]:
    """Registers a class of edits under a name."""

    def register(cls: _Class) -> _Class:
        if op in EDITS:
            raise VarshiftError(f"op={op!r} is taken by {EDITS[op].__name__}.")
        cls.op = op
        EDITS[op] = cls
        return cls

    return register


def read_edit(content: Mapping[str, Any]) -> Edit:
    """The edit that `Edit.to_json` wrote.

    Raises:
        VarshiftError: If its operation is not known.
    """
    values = dict(content)
    op = values.pop("op", None)
    if op not in EDITS:
        raise VarshiftError(f"op={op!r} is no edit of this version: it knows {', '.join(sorted(EDITS))}.")
    return decode(EDITS[op], values)
