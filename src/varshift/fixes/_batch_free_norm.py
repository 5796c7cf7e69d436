"""The cure that puts one norm per block that does not look at the batch where the shift is largest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from varshift._errors import VarshiftError
from varshift._sites import SiteId
from varshift.fixes._edit import Edit
from varshift.fixes._norm_layers import LAYERS, LayerSettings
from varshift.fixes._norm_places import NormPlace, norm_places
from varshift.fixes._patient import Patient
from varshift.fixes._remedy import Remedy, remedy
from varshift.fixes._surgery import Refused, refused
from varshift.fixes._swap_norm import SwapNormOptions, plan_swap
from varshift.rules import Finding

BatchFree = Literal["group_norm", "layer_norm", "instance_norm", "filter_response_norm"]

_ALIKE = 0.01  # differences of the logarithm of a shift that no prediction can tell


@dataclass(frozen=True, slots=True)
class BatchFreeNormOptions:
    """Options of the cure.

    Attributes:
        to: The kind of layer: one without running statistics.
        groups: For ``"group_norm"``: the most groups, as in ``swap-norm``.

    Raises:
        VarshiftError: If a value is out of range.
    """

    to: BatchFree = "group_norm"
    groups: int = 32

    def __post_init__(self) -> None:
        kinds = [name for name, kind in LAYERS.items() if not kind.statistics]
        if self.to not in kinds:
            raise VarshiftError(f"to={self.to!r} must look at single samples only: {', '.join(kinds)}.")
        SwapNormOptions(self.to, self.groups)  # checks the groups


@remedy
class BatchFreeNormRemedy(Remedy):
    """Breaks the way of a shift from norm to norm: in every block one norm looks at single samples only.

    What the statistics of one norm get wrong arrives at the next, whose own are then wrong as well. A norm
    without running statistics cannot be wrong in that way, and gives the next a signal of the right size.
    Within a block the norm is chosen at which the predicted shift is largest (the measured one, where it
    cannot be predicted; the middle norm, where all are alike).

    The idea is that of L. Huang et al., "Delving into the Estimation Shift of Batch Normalization in a
    Network", CVPR 2022, arXiv 2203.10778, known here through its abstract and code: there the norm is the one
    after the middle convolution of a bottleneck. Choosing by prediction is this package's own.
    """

    code = "batch-free-norm"
    answers = ("VS207", "VS302")
    safety = "unsafe"
    options = BatchFreeNormOptions
    restates = True

    def plan(
        self,
        patient: Patient,
        sites: Sequence[SiteId],
        options: BatchFreeNormOptions,
        finding: Finding | None,
    ) -> Sequence[Edit]:
        """One edit for each block; with sites, for the blocks that hold them."""
        everywhere = [
            place for place in norm_places(patient) if place.norm is not None and not place.per_sample
        ]
        wanted = norm_places(patient, sites)
        shifts = _shifts(patient)
        settings = LayerSettings(options.groups, tlu=True)
        edits: list[Edit] = []
        reasons: list[Refused] = []
        for block in norm_blocks(patient, everywhere):
            if not any(place.path == one.path for place in block for one in wanted):
                continue
            chosen = most_shifted(block, shifts)
            try:
                edits.append(plan_swap(patient, chosen, options.to, settings))
            except Refused as error:
                reasons.append(error)
        if not edits:
            raise refused(reasons or ["no block has a norm with running statistics."])
        patient.notes.extend(map(str, reasons))
        return edits


def norm_blocks(patient: Patient, places: Sequence[NormPlace]) -> list[list[NormPlace]]:
    """Norms by the block that they belong to, in the order in which they run.

    A block is the innermost module around a norm whose forward adds up signals, as residual blocks do; in a
    module that does so several times it is what lies between two sums. Elsewhere it is the innermost module
    that holds more than one norm.

    Args:
        patient: The network, with its capture.
        places: The norms.
    """
    capture = patient.capture
    flow = (capture.train or capture.eval) if capture is not None else None
    sums = [node for node in flow.nodes if node.kind == "join"] if flow is not None else []
    adding = {node.module for node in sums}
    order = {place.path: place.site.calls[0] if place.site and place.site.calls else 0 for place in places}
    modules = patient.network.named_modules()
    lists = {path for path, module in modules if path and type(module).forward is nn.Module.forward}
    blocks: dict[tuple[str, int], list[NormPlace]] = {}
    for place in sorted(places, key=lambda one: order[one.path]):
        around = [path for path in _ancestors(place.path) if path not in lists]
        module = next((path for path in around if path in adding and path), None)
        if module is None:
            several = [path for path in around if sum(_inside(one.path, path) for one in places) > 1]
            module = several[0] if several else (around[0] if around else "")
        # The root of a network without modules of its own adds up block after block.
        before = sum(1 for node in sums if node.module == module and node.index < order[place.path])
        blocks.setdefault((module, before), []).append(place)
    return list(blocks.values())


def most_shifted(block: Sequence[NormPlace], shifts: dict[str, float]) -> NormPlace:
    """The norm of a block at which the shift is largest; the middle one where all are alike."""
    sizes = [shifts.get(place.norm.name, 0.0) if place.norm is not None else 0.0 for place in block]
    if max(sizes) - min(sizes) <= _ALIKE:
        return block[(len(block) - 1) // 2]
    return block[sizes.index(max(sizes))]


def _shifts(patient: Patient) -> dict[str, float]:
    """The logarithm of every norm's shift: predicted, else measured."""
    prediction = patient.prediction
    layers = prediction.layers if prediction is not None else ()
    shifts = {layer.name: layer.shift for layer in layers if layer.shift is not None}
    if not shifts and patient.report is not None:
        ratios = {layer.name: layer.ratio for layer in patient.report.layers if layer.ratio}
        shifts = {name: max(ratio, 1 / ratio) for name, ratio in ratios.items() if ratio > 0}
    return {name: math.log(shift) for name, shift in shifts.items() if 0 < shift < math.inf}


def _ancestors(path: str) -> list[str]:
    """The modules around a module, the innermost first, the root last."""
    around = []
    while path:
        path = path.rpartition(".")[0]
        around.append(path)
    return around


def _inside(path: str, module: str) -> bool:
    return not module or path.startswith(f"{module}.")
