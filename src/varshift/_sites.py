"""The name of a place in a network, and the line of code that it belongs to."""

from __future__ import annotations

from dataclasses import dataclass

from varshift._errors import VarshiftError


@dataclass(frozen=True, slots=True, order=True)
class SiteId:
    """Names one place of a network: the module, the kind of operation, and which of its calls of that kind.

    The name is the same in train and in eval mode, for any batch size, and capture after capture. Calls are
    counted whether they act or not, so that a rate of zero moves no name.

    Attributes:
        module: Path of the module whose forward makes the call, ``""`` for the root.
        kind: Kind of the operation, ``"dropout"`` or ``"batch_norm"``.
        ordinal: Number of the call among those of the same kind in one forward of that module, from 1.

    Example:
        >>> site = SiteId("blocks.2", "dropout", 2)
        >>> str(site)
        'blocks.2:dropout#2'
        >>> SiteId.parse("blocks.2:dropout") == SiteId("blocks.2", "dropout")
        True
    """

    module: str
    kind: str
    ordinal: int = 1

    def __str__(self) -> str:
        suffix = f"#{self.ordinal}" if self.ordinal != 1 else ""
        return f"{self.module}:{self.kind}{suffix}"

    @classmethod
    def parse(cls, text: str) -> SiteId:
        """The site that a text of the form ``"module:kind"`` or ``"module:kind#ordinal"`` names.

        Raises:
            VarshiftError: If the text has another form.
        """
        module, colon, call = text.rpartition(":")
        kind, mark, ordinal = call.partition("#")
        if not colon or not kind or (mark and not (ordinal.isdecimal() and int(ordinal) > 0)):
            raise VarshiftError(
                f"site={text!r} is no name of a site: expected 'module:kind' or 'module:kind#number', "
                "for example 'blocks.2:dropout#2'."
            )
        return cls(module, kind, int(ordinal) if mark else 1)


@dataclass(frozen=True, slots=True, order=True)
class Source:
    """A line of the user's code.

    Attributes:
        file: Path of the file.
        line: Number of the line, from 1.
    """

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

    @classmethod
    def parse(cls, text: str) -> Source:
        """The line that a text of the form ``"file:line"`` names; a drive letter is part of the file.

        Raises:
            VarshiftError: If the text has another form.
        """
        file, _, line = text.rpartition(":")
        if not file or not line.isdecimal():
            raise VarshiftError(f"source={text!r} names no line: expected 'file:line'.")
        return cls(file, int(line))


def as_source(value: Source | str | None) -> Source | None:
    """A line of code, from a `Source`, from the text ``"file:line"``, or None."""
    return Source.parse(value) if isinstance(value, str) else value
