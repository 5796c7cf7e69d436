"""What an experiment is: trials with a seed, and the tables, figures and claims that are made of them."""

from __future__ import annotations

from ._recipe import SCALES as SCALES
from ._recipe import Recipe as Recipe
from ._recipe import Scale as Scale
from ._study import Claim as Claim
from ._study import Curve as Curve
from ._study import Figure as Figure
from ._study import Panel as Panel
from ._study import PaperFigure as PaperFigure
from ._study import Row as Row
from ._study import Series as Series
from ._study import Table as Table
from ._study import trials_of as trials_of
from ._study import with_seeds as with_seeds
