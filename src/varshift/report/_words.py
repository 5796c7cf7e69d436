"""Figures, names and places in words, as short as the page needs them."""

from __future__ import annotations

import math
import os
import sysconfig
from collections.abc import Sequence
from functools import cache

from varshift._errors import VarshiftError
from varshift._sites import SiteId, Source
from varshift.rules import Cure, Finding, get_rule


def figure(value: float | None, digits: int = 3) -> str:
    """A number with a few significant digits; a dash for one that is not known."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
        return f"{value:.{decimals}f}"
    mantissa, exponent = f"{value:.{digits - 2}e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def ratio(value: float | None) -> str:
    """A ratio: two or three decimals near one, fewer digits far from it."""
    if value is None or not math.isfinite(value):
        return figure(value)
    return f"{value:.3f}" if 0.1 <= value < 10 else figure(value)


def signed(value: float | None) -> str:
    """A change, with its sign."""
    if value is None or not math.isfinite(value) or value == 0:
        return figure(value)
    return ("+" if value > 0 else "-") + figure(abs(value))


def uncertain(value: float | None, error: float | None) -> str:
    """A change and its standard error, both to the error's first digit that means something."""
    if value is None or error is None or not (math.isfinite(value) and math.isfinite(error)) or error <= 0:
        return signed(value)
    first = math.floor(math.log10(error))
    decimals = max(0, -first + (error / 10**first < 2))
    return (
        f"{value:+.{decimals}f} ± {error:.{decimals}f}"
        if decimals <= 6
        else f"{signed(value)} ± {figure(error)}"
    )


def percent(value: float | None) -> str:
    """A fraction as a percentage."""
    return "-" if value is None or not math.isfinite(value) else f"{100 * value:.1f} %"


def large(count: int) -> str:
    """A count, shortened from ten thousand on: ``11.7 M``."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= 10 * size or (size > 1000 and count >= size):
            return f"{count / size:.{1 if count < 100 * size else 0}f} {unit}"
    return str(count)


def counted(count: int, singular: str, plural: str | None = None) -> str:
    """``1 norm``, ``2 norms``."""
    return f"{count} {singular if count == 1 else plural or singular + 's'}"


def enumerated(items: Sequence[str]) -> str:
    """``a, b and c``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""


def module_name(path: str) -> str:
    """A module path; the root has none, and is called by what it is."""
    return path or "(the model itself)"


def site_name(site: SiteId) -> str:
    """The module path of a site, with its number where the module has several of its kind."""
    number = f"#{site.ordinal}" if site.ordinal > 1 else ""
    return f"{module_name(site.module)}{number}"


def rule_name(code: str) -> str:
    """The name of a rule, empty for a code that no rule here has."""
    try:
        return get_rule(code).name
    except VarshiftError:
        return ""


def rule_title(code: str) -> str:
    """Code and name of a rule: ``VS202 stale-statistics``."""
    return f"{code} {rule_name(code)}".rstrip()


def finding_name(finding: Finding) -> str:
    """The name of the first site of a finding."""
    return site_name(finding.sites[0].id) if finding.sites else module_name("")


def finding_words(finding: Finding) -> str:
    """A finding in one sentence, its first site in front: ``body.0.drop and 2 more: It feeds a norm``."""
    more = f" and {len(finding.sites) - 1} more" if len(finding.sites) > 1 else ""
    return f"{finding_name(finding)}{more}: {finding.message}"


def cure_words(cure: Cure) -> str:
    """What cures a finding, and whether the weights keep their meaning."""
    return f"Cure ({cure.safety}): {cure.name}"


def shortened(name: str, width: int) -> str:
    """A module path cut in its middle: the block it is in and its own name say most."""
    if len(name) <= width:
        return name
    tail = max(1, (2 * width) // 3)
    return f"{name[: width - tail - 1]}…{name[len(name) - tail :]}"


def place(source: Source | str | None) -> str:
    """``file:line`` as short as it stays findable: from the package, from here, or in full."""
    if source is None:
        return ""
    source = str(source)
    for folder in _package_folders():
        if source.startswith(folder):
            return source[len(folder) :]
    here = os.path.join(os.getcwd(), "")
    return source[len(here) :] if source.startswith(here) else source


@cache
def _package_folders() -> tuple[str, ...]:
    """Where installed packages lie, each with a separator at its end."""
    paths = sysconfig.get_paths()
    return tuple({os.path.join(paths[key], "") for key in ("purelib", "platlib")})
