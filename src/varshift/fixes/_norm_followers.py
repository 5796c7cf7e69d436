"""Norms whose module passes their output through its children: an activation, a dropout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

from torch import Tensor, nn

from varshift.fixes._class_draft import ClassDraft
from varshift.fixes._edit import Change, edit
from varshift.fixes._edited_class import ClassEdit, with_edit
from varshift.fixes._norm_places import NormPlace
from varshift.fixes._patient import Patient
from varshift.fixes._surgery import Surgery
from varshift.flow import Flow

_LEAVES = ("input", "parameter", "buffer", "attribute", "constant", "output")


@edit("follow-norm")
@dataclass(frozen=True, slots=True)
class FollowNorm(ClassEdit):
    """Has a layer pass its output through some of its children.

    Attributes:
        path: Path of the layer.
        children: Their names, in order.
    """

    path: str
    children: tuple[str, ...]

    def apply(self, surgery: Surgery) -> tuple[Change, ...]:
        """Changes the class of the layer; part of the edit that swaps a norm."""
        module = surgery.module(self.path)
        surgery.set_class(module, with_edit(module, self))
        return ()

    def build(self, draft: ClassDraft) -> None:
        """Puts the children after the forward."""

        def followed(forward: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(forward)
            def both(module: nn.Module, input: Tensor) -> Any:
                output = forward(module, input)
                for name in self.children:
                    output = module._modules[name](output)  # type: ignore[misc]
                return output

            return both

        draft.wrap_forward(followed)

    def without_place(self) -> FollowNorm:
        """The same for any layer of the class."""
        return FollowNorm("", self.children)


def with_followers(layer: nn.Module, norm: nn.Module, names: Sequence[str]) -> nn.Module:
    """A layer that also does what a norm's module does after it normalised.

    Args:
        layer: The layer that takes the norm's place, without children.
        norm: The norm, whose children are taken over under their names.
        names: Those that its output passes through.
    """
    if not names:
        return layer
    for name, child in norm._modules.items():
        layer.add_module(name, child)  # type: ignore[arg-type]
    layer.__class__ = with_edit(layer, FollowNorm("", tuple(names)))
    return layer


def followers(patient: Patient, place: NormPlace) -> tuple[str, ...] | None:
    """Names of the children that the output of a norm passes through in its module's forward, in order.

    None where the module does anything else: then no other layer can replace it.
    """
    chains = [_chain(flow, place) for flow in patient.flows]
    if not chains or any(chain is None for chain in chains):
        return None
    longest = max((chain for chain in chains if chain is not None), key=len)
    for chain in chains:  # a dropout runs in training only
        rest = iter(longest)
        if chain is None or not all(name in rest for name in chain):
            return None
    return longest


def _chain(flow: Flow, place: NormPlace) -> tuple[str, ...] | None:
    site = place.site_in(flow)
    if site is None or len(site.calls) != 1:
        return None
    prefix = f"{place.path}." if place.path else ""
    chain: list[str] = []
    signal = {site.calls[0]}
    for node in flow.nodes:
        if node.kind in _LEAVES or node.index in signal:
            continue
        if node.module == place.path:
            if any(flow.nodes[index].kind != "buffer" for index in node.inputs):
                return None  # more than the count of batches
            continue
        if not node.module.startswith(prefix):
            continue
        if not signal & set(node.inputs):
            return None
        child = node.module.removeprefix(prefix).partition(".")[0]
        if child in chain[:-1]:
            return None
        if chain[-1:] != [child]:
            chain.append(child)
        signal.add(node.index)
    return tuple(chain)
