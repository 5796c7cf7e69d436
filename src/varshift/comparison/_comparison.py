"""The result of a comparison, as plain data."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from varshift._errors import VarshiftError
from varshift.report import content_of, decode, encode, write_text

SCHEMA = "varshift.comparison/1"
State = Literal["measured", "stopped", "failed", "unavailable"]
Outcome = Literal["differ", "not told apart", "same", "unknown"]


@dataclass(frozen=True, slots=True)
class VariantRow:
    """One variant over the seeds.

    Attributes:
        name: Its name.
        says: What it is.
        state: ``"measured"``; ``"stopped"`` where it could not win any more; ``"failed"`` where no seed came
            to a result; ``"unavailable"`` where it cannot be made for this network.
        seeds: The seeds with a result.
        values: The figure that is compared, one for each of these seeds.
        mean: Its mean; None without any.
        spread: Its standard deviation over seeds, with n - 1; None with fewer than two.
        loss: Mean loss in ``eval()``.
        accuracy: Mean accuracy in ``eval()``, where targets are classes.
        gap: Mean of the loss in ``eval()`` minus the loss in ``train()`` on the same training batches.
        seconds: Mean time of a training.
        note: Why it is not there, was stopped, or failed for some seeds; empty where nothing is to be said.
    """

    name: str
    says: str
    state: State
    seeds: tuple[int, ...] = ()
    values: tuple[float, ...] = ()
    mean: float | None = None
    spread: float | None = None
    loss: float | None = None
    accuracy: float | None = None
    gap: float | None = None
    seconds: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two variants, judged by the seeds that both have.

    Attributes:
        first: Name of one.
        second: Name of the other.
        count: Number of seeds that both have.
        difference: Mean of ``first - second``; None without a common seed.
        error: Its standard error; None with fewer than two.
        p: Chance of such a difference where there is none, corrected for the number of pairs.
        outcome: ``"differ"``, ``"not told apart"``, ``"same"`` where they agree in every seed, or
            ``"unknown"`` where seeds are missing or change nothing.
        better: Name of the better one where they differ, else empty.
        needed: Number of seeds with which a difference as large as the measured one would be told; None where
            that is not known.
        text: The verdict in words.
    """

    first: str
    second: str
    count: int
    difference: float | None
    error: float | None
    p: float
    outcome: Outcome
    better: str
    needed: int | None
    text: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Variants of a network over seeds, with a verdict for each pair. ``print(comparison)`` shows it.

    Attributes:
        target: The network.
        measure: Name of the figure that is compared.
        higher: Whether a higher figure is better.
        judged_on: What it was measured on: ``"validation data"`` or ``"training data"``.
        reference: Name of the variant that the table compares with.
        seeds: The seeds.
        level: The largest chance that any pair of equal variants is called different.
        power: Chance that `Pair.needed` seeds show a difference as large as the one measured.
        variants: The variants, the reference first.
        pairs: All pairs of those that have results.
        notes: What else is to be known.
    """

    target: str
    measure: str
    higher: bool
    judged_on: str
    reference: str
    seeds: tuple[int, ...]
    level: float
    power: float
    variants: tuple[VariantRow, ...]
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> VariantRow:
        """The row of a variant."""
        for row in self.variants:
            if row.name == name:
                return row
        raise KeyError(name)

    def between(self, first: str, second: str) -> Pair:
        """The verdict on two variants, in either order.

        Raises:
            KeyError: If there is none.
        """
        for pair in self.pairs:
            if {pair.first, pair.second} == {first, second}:
                return pair
        raise KeyError((first, second))

    def __str__(self) -> str:
        from varshift.comparison._table import text_of

        return text_of(self)

    def __repr__(self) -> str:
        names = ", ".join(row.name for row in self.variants)
        return f"<Comparison of {names} over {len(self.seeds)} seeds>"

    def to_dict(self) -> dict[str, Any]:
        """The comparison as strict-JSON values."""
        return {"schema": SCHEMA, **encode(self)}

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """The comparison as JSON text, written to `path` as well if one is given.

        Raises:
            VarshiftError: If the file cannot be written; what was there before is then unharmed.
        """
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
        if path is not None:
            write_text(path, text)
        return text

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the comparison as JSON, see `to_json`."""
        return write_text(path, self.to_json())

    @classmethod
    def from_json(cls, source: str | os.PathLike[str]) -> Comparison:
        """Reads a comparison from a file, or from its text.

        Raises:
            VarshiftError: If the file cannot be read, or is no comparison.
        """
        content = content_of(source, "comparison")
        if content.get("schema") != SCHEMA:
            raise VarshiftError(
                f"schema={content.get('schema')!r} is no comparison of this version: expected {SCHEMA!r}."
            )
        return decode(cls, {key: value for key, value in content.items() if key != "schema"}, "comparison")
