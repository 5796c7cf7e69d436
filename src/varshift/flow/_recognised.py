"""The norms of a network, from its capture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from varshift._errors import VarshiftError
from varshift.flow._capture import capture_in_place
from varshift.flow._slots import slots
from varshift.flow._types import Capture, Flow
from varshift.model import Forward, NormStates, canonical_names, declared_states

_NOISY = "its module adds noise too, and neither can be switched off without the other"

RecognisedNorms = Mapping[str, NormStates | None]


def recognised_norms(network: nn.Module, captured: Capture) -> dict[str, NormStates | None]:
    """Where the norms that a capture saw keep their statistics, by name: for `varshift.model.find_norms`.

    None marks a module that keeps statistics as torch's norms do and normalises with none of them.

    Args:
        network: The network that was captured.
        captured: Its capture.
    """
    flows = [flow for flow in (captured.train, captured.eval) if flow is not None]
    norms: dict[str, NormStates | None] = dict.fromkeys(_dismissed(network, flows))
    noisy = {site.name for site in (captured.train.noises if captured.train is not None else ())}
    for flow in flows:
        for site in flow.norms:
            if not site.tracked or site.states is None:
                continue
            states, known = site.states, norms.get(site.name)
            if known is not None:
                states = replace(known, eval_places=states.eval_places)
            if site.kind == "hand_written" and states.unsupported is None and site.id.module in noisy:
                states = replace(states, unsupported=_NOISY)
            norms[site.name] = states
    return norms


def recognise_norms(network: nn.Module, batch: Any, forward: Forward | None) -> dict[str, NormStates | None]:
    """The norms of a network that are known by what they do only, from a capture where one is needed.

    Nothing is captured where the network holds no tensor that could be a statistic, apart from those of
    torch's own norms and those that an optimiser trains.

    Args:
        network: The network, which is run itself: its modes are switched and its state is updated.
        batch: A batch, of which two samples are used.
        forward: How the network is called with a batch.
    """
    if not may_hold_statistics(network):
        return {}
    try:
        return recognised_norms(network, capture_in_place(network, batch, forward=forward))
    except VarshiftError:  # it does not run; the passes over the data will say so in their own words
        return {}


def may_hold_statistics(network: nn.Module) -> bool:
    """Whether a network holds tensors that could be statistics, besides those of torch's own norms.

    What an optimiser trains is none.
    """
    names, modules = canonical_names(network), dict(network.named_modules())
    known = {
        target
        for name, states in declared_states(network, names).items()
        if isinstance(modules[name], nn.modules.batchnorm._NormBase)
        for target in (states.mean, states.spread)
    }
    return any(
        name not in known
        and slot.tensor.is_floating_point()
        and not (slot.role == "parameter" and slot.tensor.requires_grad)
        for name, slot in slots(network, names).items()
    )


def _dismissed(network: nn.Module, flows: list[Flow]) -> Iterator[str]:
    """Modules with the buffers of a norm that ran and were none."""
    modules = dict(network.named_modules())
    norms = {site.name for flow in flows for site in flow.norms}
    ran = {node.module for flow in flows for node in flow.nodes}
    for name in declared_states(network, canonical_names(network)):
        by_class = isinstance(modules[name], nn.modules.batchnorm._NormBase)
        if not by_class and name in ran and name not in norms and len(flows) == 2:
            yield name
