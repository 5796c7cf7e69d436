"""The ReLU module that a norm alone feeds, from the captured network."""

from __future__ import annotations

from torch import nn

from varshift.fixes._norm_places import NormPlace
from varshift.fixes._patient import Patient
from varshift.flow import Flow


def rectifier_after(patient: Patient, place: NormPlace) -> str | None:
    """Path of the `nn.ReLU` after a norm, where that norm is all that it ever sees.

    A layer with a threshold of its own can then replace both. A ReLU that other signals pass as well, or a
    norm whose output something else reads, too, gives None: there the ReLU has to stay.
    """
    paths = {_rectifier_in(patient.network, flow, place) for flow in patient.flows}
    return paths.pop() if len(paths) == 1 else None


def _rectifier_in(network: nn.Module, flow: Flow, place: NormPlace) -> str | None:
    site = place.site_in(flow)
    if site is None:
        return None
    calls = set(site.calls)
    readers = [node for node in flow.nodes if not calls.isdisjoint(node.inputs)]
    paths = {node.module for node in readers}
    if len(paths) != 1 or not all(node.kind == "activation" and node.op == "relu" for node in readers):
        return None
    path = paths.pop()
    try:
        module = network.get_submodule(path)
    except AttributeError:
        return None
    # Called from anywhere else, it sees something else.
    others = [node for node in flow.nodes if node.module == path and node not in readers]
    return path if type(module) is nn.ReLU and not others and len(readers) == len(calls) else None
