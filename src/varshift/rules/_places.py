"""The places that findings concern, from what the evidence says about them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from varshift._sites import SiteId, Source, as_source

from ._evidence import Evidence
from ._finding import FindingSite
from ._reading import site_of

if TYPE_CHECKING:
    from varshift.flow import NoiseSite

NETWORK = FindingSite(SiteId("", "module"))


def noise_place(site: NoiseSite) -> FindingSite:
    """The place of a noise site."""
    return FindingSite(site.id, site.cls, as_source(site.source))


def norm_place(evidence: Evidence, name: str) -> FindingSite:
    """The place of a norm: as it was captured, else by what its module says about itself."""
    facts = evidence.norms.get(name)
    site = site_of(evidence.train, name) or site_of(evidence.eval, name)
    cls = facts.cls if facts else site.cls if site else ""
    return FindingSite(site.id if site else SiteId(name, _kind(cls)), cls, source_at(evidence, name))


def norm_places(evidence: Evidence, names: Iterable[str]) -> tuple[FindingSite, ...]:
    """The places of several norms."""
    return tuple(norm_place(evidence, name) for name in names)


def module_place(evidence: Evidence, name: str, cls: str) -> FindingSite:
    """The place of a module: that of the norm or of the first noise in it, else the module as such."""
    norm = site_of(evidence.train, name) or site_of(evidence.eval, name)
    if norm is not None or name in evidence.norms:
        return FindingSite(norm_place(evidence, name).id, cls, source_at(evidence, name))
    for flow in (evidence.train, evidence.eval):
        for site in flow.noises if flow else ():
            if site.name == name:
                return FindingSite(site.id, cls, source_at(evidence, name))
    return FindingSite(SiteId(name, "module"), cls)


def source_at(evidence: Evidence, name: str) -> Source | None:
    """Where a norm or noise module is called, None when no flow shows it."""
    for flow in (evidence.train, evidence.eval):
        for site in (*flow.norms, *flow.noises) if flow else ():
            if site.name == name and site.source:
                return as_source(site.source)
    return None


def _kind(cls: str) -> str:
    """The kind of a norm that was not captured, as a capture would call it."""
    if "InstanceNorm" in cls:
        return "instance_norm"
    return "batch_norm" if "BatchNorm" in cls else "hand_written"
