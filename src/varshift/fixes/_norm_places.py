"""The norms that a cure of norms acts on: by what they do, with what a cure needs to know of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from varshift._sites import SiteId, Source
from varshift.fixes._patient import Patient
from varshift.fixes._surgery import Refused
from varshift.flow import Flow, NormSite, recognised_norms
from varshift.model import Norm, canonical_names, find_norms


@dataclass(frozen=True, eq=False)
class NormPlace:
    """One norm of a network under treatment.

    Attributes:
        path: Its module's path as the network registers it (the first one where it is shared).
        module: The module that normalises, or whose forward does.
        norm: What the census says about its running statistics; None for a norm without any.
        site: How the capture saw it; None without a capture, or where no input reached it.
        stored_shape: Shape of its input, from a plan, where there is no capture.
    """

    path: str
    module: nn.Module
    norm: Norm | None
    site: NormSite | None
    stored_shape: tuple[int, ...] | None = None

    @property
    def cls(self) -> str:
        """Class name of its module."""
        return type(self.module).__name__

    @property
    def id(self) -> SiteId:
        """Its name among the sites."""
        if self.site is not None:
            return self.site.id
        kind = "instance_norm" if "InstanceNorm" in self.cls else "batch_norm"
        return SiteId(self.path, kind if isinstance(self.module, _NormBase) else "hand_written")

    @property
    def source(self) -> Source | None:
        """The line that calls it."""
        return self.site.source if self.site is not None else None

    @property
    def channels(self) -> int:
        """Number of channels."""
        if self.norm is not None:
            return self.norm.channels
        return self.site.channels if self.site is not None else int(getattr(self.module, "num_features", 0))

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of its (first) input; None where it is not known."""
        return self.site.shapes[0] if self.site is not None and self.site.shapes else self.stored_shape

    @property
    def positions(self) -> int | None:
        """Number of values of one channel of one sample; None where it is not known."""
        return prod(self.shape[2:]) if self.shape else None

    @property
    def per_sample(self) -> bool:
        """Whether its statistics are those of single samples."""
        by_capture = self.site is not None and self.site.kind == "instance_norm"
        return by_capture or (self.norm is not None and self.norm.per_sample)

    def site_in(self, flow: Flow) -> NormSite | None:
        """How one mode of the network saw it; None where it did not run there."""
        return next((site for site in flow.norms if site.id == self.id), None)

    @property
    def words(self) -> str:
        """What a sentence calls it: class, path, and the line that calls it."""
        line = f", called at {self.source}" if self.source else ""
        return f"'{self.path or 'the model itself'}' ({self.cls}{line})"


def norm_places(patient: Patient, sites: Sequence[SiteId] = ()) -> list[NormPlace]:
    """The norms at some sites, in the order of the modules.

    Args:
        patient: The network, with what is known of it.
        sites: Their sites, or modules that hold them; all norms where there is none, or where one is the
            network as a whole.

    Raises:
        Refused: If a site is no norm and holds none.
    """
    places = _census(patient)
    if not sites or SiteId("", "module") in sites:
        if not places:
            raise Refused("the network has no norm.")
        return places
    chosen: list[NormPlace] = []
    names = canonical_names(patient.network)
    for site in sites:
        path = names.get(site.module, site.module)
        own = [place for place in places if place.path == path]
        inside = [place for place in places if not path or place.path.startswith(f"{path}.")]
        if not own and not inside:
            raise Refused(f"there is no norm at '{site.module or 'the model itself'}'.")
        chosen.extend(place for place in own or inside if place not in chosen)
    return chosen


def _census(patient: Patient) -> list[NormPlace]:
    network, capture = patient.network, patient.capture
    recognised = recognised_norms(network, capture) if capture is not None else None
    by_name = {site.name: site for site in patient.norms.values()}
    names = canonical_names(network)
    paths: dict[int, str] = {}
    for path, module in network.named_modules():
        paths.setdefault(id(module), path)
    tracked: dict[int, list[NormPlace]] = {}
    for norm in find_norms(network, recognised):
        place = NormPlace(paths[id(norm.module)], norm.module, norm, by_name.pop(norm.name, None))
        tracked.setdefault(id(norm.module), []).append(place)
    places: list[NormPlace] = []
    for path, module in network.named_modules():
        if id(module) in tracked:
            places += tracked[id(module)]
            continue
        site = by_name.get(names.get(path, path))
        untracked = isinstance(module, _NormBase) and module.running_mean is None
        if (site is not None and not site.tracked) or (
            untracked and "InstanceNorm" not in type(module).__name__
        ):
            places.append(NormPlace(path, module, None, site))
    return places
