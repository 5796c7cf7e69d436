"""The cure that takes running statistics over from the networks that the weights come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from varshift._sites import SiteId
from varshift.fixes._edit import Change, Edit, edit
from varshift.fixes._patient import Patient
from varshift.fixes._remedy import NoOptions, Remedy, remedy
from varshift.fixes._surgery import Refused, Surgery
from varshift.model import Norm, State, counterpart_norm, counterparts, find_norms
from varshift.probe import LayerChange, Recalibration
from varshift.rules import Finding


@edit("rebind-statistics")
@dataclass(frozen=True, slots=True)
class RebindStatistics(Edit):
    """Takes statistics over; a repeated plan finds them in the weights, for values are no part of a plan."""

    def apply(self, surgery: Surgery) -> tuple[Change, ...]:
        """Nothing: the engine does it, after all other edits."""
        return ()


@remedy
class RebindStatisticsRemedy(Remedy):
    """Gives averaged, copied or merged weights the statistics of the networks that they come from.

    Of several networks the statistics are pooled: with means m_i and variances v_i of n networks the mean is
    the mean of the m_i, and the variance mean(v_i) + mean((m_i - m)^2), the spread of the means included.
    They are those of the networks that the weights come from, not those that these weights produce: where
    there are data, recalibration is better.
    """

    code = "rebind-statistics"
    answers = ("VS205",)
    safety = "unsafe"
    options = NoOptions

    def plan(
        self, patient: Patient, sites: Sequence[SiteId], options: Any, finding: Finding | None
    ) -> Sequence[Edit]:
        """One edit for the network as a whole."""
        if not references_of(patient):
            raise Refused("the networks that the weights come from are not known: pass reference=.")
        return (RebindStatistics(),)


def references_of(patient: Patient) -> tuple[nn.Module, ...]:
    """The networks that the weights come from."""
    given = patient.settings.get("reference")
    if given is None:
        return ()
    return tuple(given) if isinstance(given, (list, tuple)) else (given,)


def rebound(network: nn.Module, references: Sequence[nn.Module]) -> Recalibration:
    """A handle that gives a network the pooled statistics of others, not applied yet.

    Norms that some reference does not have, or has in another shape, keep theirs.
    """
    pairs = [counterparts(network, other) for other in references]
    layers: list[LayerChange] = []
    changes: list[tuple[State, Tensor]] = []
    for norm in find_norms(network):
        if norm.states.unsupported is not None:
            continue
        others = [counterpart_norm(norm, pair, other) for pair, other in zip(pairs, references, strict=True)]
        statistics = _pooled(norm, [other for other in others if other is not None], len(references))
        mean, var = statistics or (norm.mean, norm.var)
        layers.append(
            LayerChange(
                norm.name,
                type(norm.module).__name__,
                statistics is not None,
                None if statistics is not None else "no reference has a norm like it",
                *(float(value.detach().double().mean()) for value in (norm.mean, norm.var, mean, var)),
            )
        )
        changes += norm.changes(mean, var) if statistics is not None else []
    return Recalibration(tuple(layers), 0, 0, None, changes)


def _pooled(norm: Norm, others: list[Norm], count: int) -> tuple[Tensor, Tensor] | None:
    if not others or len(others) < count:
        return None
    means = [other.mean.detach().double() for other in others]
    variances = [other.var.detach().double() for other in others]
    if any(mean.shape != norm.mean.shape for mean in means):
        return None
    mean = torch.stack(means).mean(0)
    var = torch.stack(variances).mean(0) + torch.stack([(m - mean) ** 2 for m in means]).mean(0)
    kept = norm.mean
    return mean.to(kept.device, kept.dtype), var.to(norm.var.device, norm.var.dtype)
