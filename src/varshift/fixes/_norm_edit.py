"""Edits of one norm: where it is, and what its module was when the edit was planned."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from varshift._sites import SiteId, Source
from varshift.fixes._edit import Edit
from varshift.fixes._edited_class import ClassEdit
from varshift.fixes._norm_places import NormPlace


@dataclass(frozen=True, slots=True)
class NormEdit(Edit):
    """An edit that acts on the module of one norm.

    Attributes:
        site: The norm.
        path: Path of its module.
        cls: Class name of its module.
        source: The line that calls it.
    """

    site: SiteId
    path: str
    cls: str
    source: Source | None = None

    @classmethod
    def of(cls, place: NormPlace) -> Self:
        """The edit of a norm."""
        return cls(place.id, place.path, place.cls, place.source)


@dataclass(frozen=True, slots=True)
class NormClassEdit(NormEdit, ClassEdit):
    """An edit of a norm's class that is the same for all norms of the class."""

    def without_place(self) -> ClassEdit:
        """The same for any module of the class."""
        return replace(self, site=SiteId("", self.site.kind), path="", source=None)
