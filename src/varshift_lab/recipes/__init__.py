"""The papers' experiments, one file each, found by name."""

from __future__ import annotations

import difflib
import importlib
from importlib.metadata import EntryPoint, entry_points

from varshift import VarshiftError
from varshift_lab.studies import Recipe

# Other packages offer their recipes under names of this group.
GROUP = "varshift.recipes"

# Read on first use: a recipe imports torch, a list of names does not.
_HOME = {
    "variance-shift": "_variance_shift",
    "dropout-variance-init": "_dropout_variance_init",
    "residual-position": "_residual_position",
    "independent-component": "_independent_component",
    "filter-response-norm": "_filter_response_norm",
    "batch-kalman-norm": "_batch_kalman_norm",
    "batch-norm-preconditioning": "_batch_norm_preconditioning",
    "shuffling": "_shuffling",
    "weight-rescaling": "_weight_rescaling",
    "bn-free-binary": "_bn_free_binary",
    "active-bias": "_active_bias",
}


def recipe_names() -> tuple[str, ...]:
    """Names of all recipes, those of other packages behind our own."""
    return (*_HOME, *sorted(set(_others()) - set(_HOME)))


def recipe(name: str) -> Recipe:
    """The recipe of that name.

    Args:
        name: One of `recipe_names`.

    Raises:
        VarshiftError: If there is none, or another package's cannot be loaded.

    Example:
        >>> from varshift_lab.recipes import recipe
        >>> sorted(recipe("variance-shift").tables)[:2]
        ['first-norm', 'table1']
    """
    if name in _HOME:
        return importlib.import_module(f"{__name__}.{_HOME[name]}").RECIPE
    point = _others().get(name)
    if point is None:
        near = difflib.get_close_matches(name, recipe_names(), 3, 0.5) or recipe_names()
        raise VarshiftError(f"there is no recipe {name!r}: use {' or '.join(near)}.")
    try:
        found = point.load()
    except Exception as error:
        raise VarshiftError(
            f"recipe {name!r} cannot be loaded from {point.value} ({type(error).__name__}: {error}): mend or "
            "remove the package that offers it."
        ) from error
    if not isinstance(found, Recipe):
        raise VarshiftError(f"recipe {name!r} from {point.value} is a {type(found).__name__}, not a Recipe.")
    return found


def _others() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}
