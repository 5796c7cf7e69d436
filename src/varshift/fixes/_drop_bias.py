"""The cure that leaves out biases in front of batch norms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.conv import _ConvNd

from varshift._sites import SiteId, Source
from varshift.fixes._edit import Change, Edit, edit
from varshift.fixes._norm_places import NormPlace, norm_places
from varshift.fixes._patient import Patient
from varshift.fixes._remedy import NoOptions, Remedy, remedy
from varshift.fixes._surgery import Refused, Surgery
from varshift.flow import Flow
from varshift.model import find_norms
from varshift.rules import Finding, Ways

_LAYERS = (nn.Linear, _ConvNd)


@edit("drop-bias")
@dataclass(frozen=True, slots=True)
class DropBias(Edit):
    """Takes the bias from a weight layer in front of a batch norm.

    The norm subtracts the mean of what it gets, and the bias with it: its running mean becomes less by the
    bias, and evaluation computes what it did.

    Attributes:
        site: The weight layer.
        path: Its path.
        cls: Its class name.
        norm: Path of the norm that reads it.
        source: The line that calls it.
    """

    site: SiteId
    path: str
    cls: str
    norm: str
    source: Source | None = None

    def apply(self, surgery: Surgery) -> tuple[Change, ...]:
        """Moves the bias into the running mean."""
        layer, module = surgery.module(self.path, self.cls), surgery.module(self.norm)
        norm = next((one for one in find_norms(module) if one.module is module), None)
        bias = layer._parameters.get("bias")
        if bias is None:
            raise Refused(f"module '{self.path}' ({self.cls}) has no bias.")
        if norm is None or norm.mean_state is None or norm.mean.shape != bias.shape:
            raise Refused(f"'{self.norm}' is no batch norm with one running mean for each bias.")
        before, mean = repr(layer), norm.mean
        surgery.write(mean, mean.detach() - bias.detach().to(mean))
        surgery.replace_parameter(layer, "bias", None)
        return (Change(self.site, before, repr(layer), "module", self.source),)


@remedy
class DropBiasRemedy(Remedy):
    """Leaves out biases that the batch norm after them subtracts; evaluation computes the same."""

    code = "drop-bias"
    answers = ("VS501",)
    safety = "safe"

    def plan(
        self, patient: Patient, sites: Sequence[SiteId], options: NoOptions, finding: Finding | None
    ) -> Sequence[Edit]:
        """One edit for each layer; without sites, for all whose output only a batch norm reads."""
        flow = patient.capture.train if patient.capture is not None else None
        if flow is None or patient.capture is None or patient.capture.eval is None:
            raise Refused(
                "what reads a bias is seen in both modes of the network: pass a loader or example inputs."
            )
        places = {place.id: place for place in norm_places(patient) if place.norm is not None}
        idle = dict(_idle(patient.network, flow, places))
        deployed = dict(_idle(patient.network, patient.capture.eval, places))
        wanted = list(dict.fromkeys(site.module for site in sites)) if sites else list(idle)
        edits = []
        for path in wanted:
            place = idle.get(path)
            if place is None or path not in deployed or deployed[path].module is not place.module:
                raise Refused(
                    f"'{path}' has no bias that a batch norm alone reads in both modes: if it does nothing, "
                    "build it by hand with bias=False."
                )
            layer = patient.network.get_submodule(path)
            edits.append(DropBias(SiteId(path, "weight"), path, type(layer).__name__, place.path))
        if not edits:
            raise Refused("no bias is read by a batch norm alone.")
        return edits


def _idle(
    network: nn.Module, flow: Flow, places: Mapping[SiteId, NormPlace]
) -> Iterator[tuple[str, NormPlace]]:
    """Paths of the weight layers whose output nothing but one call of a batch norm reads, with that norm."""
    site_of = {call: site for site in flow.norms if len(site.calls) == 1 for call in site.calls}
    readers = Ways(flow).readers
    reads = Counter(flow.nodes[index].target for node in flow.nodes for index in node.inputs)
    owners = Counter(id(one) for _, one in network.named_parameters(remove_duplicate=False))
    modules = dict(network.named_modules())
    for node in flow.nodes:
        layer = modules.get(node.module)
        if node.kind != "weight" or not isinstance(layer, _LAYERS) or layer.bias is None:
            continue
        after = readers[node.index]
        if len(after) != 1 or after[0] not in site_of:
            continue
        place = places.get(site_of[after[0]].id)
        norm = place.norm if place is not None else None
        shared = reads[f"{node.module}.bias" if node.module else "bias"] != 1 or owners[id(layer.bias)] != 1
        if place is None or norm is None or norm.kind != "batch" or shared:
            continue
        if norm.mean.shape == layer.bias.shape:
            yield node.module, place
