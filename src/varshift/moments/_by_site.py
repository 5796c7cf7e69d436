"""Values of noise sites, found by the site's id, by its text, or by its module where that is enough."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from varshift._sites import SiteId

Value = TypeVar("Value")
SiteKey = SiteId | str


class BySite(dict[SiteId, Value]):
    """A dictionary of noise sites; a site may also be asked for by its text or its module.

    Example:
        >>> rates = BySite({SiteId("block.drop", "dropout"): 0.1, SiteId("block", "dropout", 2): 0.2})
        >>> rates["block.drop"], rates["block:dropout#2"], rates[SiteId("block.drop", "dropout")]
        (0.1, 0.2, 0.1)
    """

    def __missing__(self, key: Any) -> Value:
        if not isinstance(key, str):
            raise KeyError(key)
        try:
            return self[find_site(self, key)]
        except ValueError as error:
            raise KeyError(str(error)) from None


def find_site(sites: Iterable[SiteId], key: SiteKey) -> SiteId:
    """The site that a key names.

    Args:
        sites: The sites there are.
        key: A site, its text (``"blocks.2:dropout#2"``), or the path of a module with one site.

    Raises:
        ValueError: If there is no such site, or the module has several.
    """
    sites = list(sites)
    if isinstance(key, SiteId):
        matching = [site for site in sites if site == key]
    else:
        matching = [site for site in sites if str(site) == key] or [s for s in sites if s.module == key]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise ValueError(f"site={str(key)!r} names a module with several noise sites: {_listed(matching)}.")
    raise ValueError(
        f"no noise site is called {str(key)!r}: with a known rate there are {_listed(sites) or 'none'}."
    )


def by_site(sites: Iterable[SiteId], values: Mapping[SiteKey, Value]) -> BySite[Value]:
    """Values by their sites, whatever they were given by.

    Raises:
        ValueError: If a key names no site, or two keys name the same one.
    """
    sites = list(sites)
    resolved: BySite[Value] = BySite()
    for key, value in values.items():
        site = find_site(sites, key)
        if site in resolved:
            raise ValueError(f"the noise site {str(site)!r} is given twice, once as {str(key)!r}.")
        resolved[site] = value
    return resolved


def _listed(sites: Iterable[SiteId]) -> str:
    return ", ".join(repr(str(site)) for site in sites)
