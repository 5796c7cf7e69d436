"""A recipe: the tables, figures and claims of one paper, at three scales."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from varshift.trials import Trial
from varshift_lab.studies._study import Claim, Figure, Table, trials_of

# smoke: minutes on two cores, to see that all of it works; laptop: the qualitative claims, in an hour or so;
# paper: the paper's networks, data and schedules, on a GPU or many.
Scale = Literal["smoke", "laptop", "paper"]
SCALES: tuple[Scale, ...] = get_args(Scale)


@dataclass(frozen=True, slots=True)
class Recipe:
    """The experiments of one paper.

    Attributes:
        name: Name on the command line, such as ``variance-shift``.
        title: Title of the paper.
        source: Authors, year and number.
        tables: By name, functions from a scale to the table.
        figures: By name, functions from a scale to the figure.
        claims: From a scale to the claims that are put to the test.
    """

    name: str
    title: str
    source: str
    tables: Mapping[str, Callable[[Scale], Table]] = field(default_factory=dict)
    figures: Mapping[str, Callable[[Scale], Figure]] = field(default_factory=dict)
    claims: Callable[[Scale], tuple[Claim, ...]] | None = None

    def trials(self, scale: Scale) -> list[Trial]:
        """All trials that its tables, figures and claims need at this scale, each once.

        Raises:
            ValueError: If there is no such scale.
        """
        if scale not in SCALES:
            raise ValueError(f"scale={scale!r} must be one of {', '.join(SCALES)}.")
        studies: list[Table | Figure | Claim] = [make(scale) for make in self.tables.values()]
        studies += [make(scale) for make in self.figures.values()]
        studies += self.claims(scale) if self.claims is not None else ()
        return trials_of(one for study in studies for one in study.series())
