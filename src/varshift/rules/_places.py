"""The places that findings concern, from what the evidence says about them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from varshift._sites import SiteId, as_source
from varshift.evidence import Evidence

from ._finding import FindingSite

if TYPE_CHECKING:
    from varshift.flow import NoiseSite, Parting

NETWORK = FindingSite(SiteId("", "module"))


def noise_place(site: NoiseSite) -> FindingSite:
    """The place of a noise site."""
    return FindingSite(site.id, site.cls, as_source(site.source))


def parting_place(evidence: Evidence, parting: Parting | None) -> FindingSite:
    """The place where two runs part: the norm or noise of that module if it is one, else the operation."""
    if parting is None:
        return NETWORK
    norm = evidence.train_norms.get(parting.module) or evidence.eval_norms.get(parting.module)
    site = norm.id if norm is not None else SiteId(parting.module, parting.op)
    return FindingSite(site, parting.cls, parting.source)


def norm_place(evidence: Evidence, name: str) -> FindingSite:
    """The place of a norm: as it was captured, else by what its module says about itself."""
    facts = evidence.norms.get(name)
    site = evidence.train_norms.get(name) or evidence.eval_norms.get(name)
    cls = facts.cls if facts else site.cls if site else ""
    return FindingSite(site.id if site else SiteId(name, kind_of_norm(cls)), cls, evidence.sources.get(name))


def norm_places(evidence: Evidence, names: Iterable[str]) -> tuple[FindingSite, ...]:
    """The places of several norms."""
    return tuple(norm_place(evidence, name) for name in names)


def module_place(evidence: Evidence, name: str, cls: str) -> FindingSite:
    """The place of a module: that of the norm or of the first noise in it, else the module as such."""
    norm = evidence.train_norms.get(name) or evidence.eval_norms.get(name)
    if norm is not None or name in evidence.norms:
        return FindingSite(norm_place(evidence, name).id, cls, evidence.sources.get(name))
    for flow in (evidence.train, evidence.eval):
        for site in flow.noises if flow else ():
            if site.name == name:
                return FindingSite(site.id, cls, evidence.sources.get(name))
    return FindingSite(SiteId(name, "module"), cls)


def kind_of_norm(cls: str) -> str:
    """The kind of a norm that was not captured, as a capture would call it."""
    if "InstanceNorm" in cls:
        return "instance_norm"
    return "batch_norm" if "BatchNorm" in cls else "hand_written"
