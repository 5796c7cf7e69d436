"""The network without noise, on the scale that training found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from varshift.flow import Flow, Node, execute

from ._interpreter import Anchors, Interpreter, UnknownOperand
from ._signal import TINY, Unknown, affine, channel_mean, channel_variance


@dataclass(slots=True)
class Observed:
    """What a norm saw without noise: mean and variance per channel."""

    mean: Tensor
    variance: Tensor

    def close_to(self, other: Observed) -> bool:
        """Whether the two are the same but for rounding."""
        apart = (self.mean - other.mean).square() <= 1e-10 * other.variance
        return bool((apart & ((self.variance - other.variance).abs() <= 1e-5 * other.variance)).all())


class CleanPass(Interpreter):
    """The network in evaluation on the same inputs, put on the scale that the anchors found.

    Args:
        flow: The network in eval mode.
        tensors: Parameters and buffers by name.
        inputs: The inputs.
        anchors: What the training pass found.
        norms_use: ``"running"`` for the state `eval`, ``"batch"`` for the state `clean`.
        clean: Names of norms whose running statistics were re-estimated without noise.

    Attributes:
        gains: Without anchors: what the deviations at those norms have to be multiplied with to have these
            statistics, by norm and call.
    """

    def __init__(
        self,
        flow: Flow,
        tensors: Mapping[str, Tensor],
        inputs: Sequence[Tensor],
        anchors: Anchors,
        norms_use: Literal["running", "batch"],
        clean: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(flow, tensors, inputs)
        self.anchors = anchors
        self.norms_use: Literal["running", "batch"] = norms_use
        self.clean = clean
        self.gains: dict[tuple[str, int], Tensor] = {}
        self.observed: dict[tuple[str, int], Observed] = {}
        self._parted: CleanPass | None = None

    def other(self, norms_use: Literal["running", "batch"]) -> CleanPass:
        """The pass for the other state, to be run on from the first norm that noise reaches."""
        found = self._parted
        if found is None:  # they are the same throughout
            found = self._twin(len(self.flow.nodes))
        found.norms_use = norms_use
        return found

    def _twin(self, start: int) -> CleanPass:
        twin = CleanPass(self.flow, self.tensors, self.inputs, self.anchors, self.norms_use, self.clean)
        twin.start, twin.values, twin.observed = start, dict(self.values), dict(self.observed)
        twin.failed = dict(self.failed)
        return twin

    def call(self, node: Node) -> Any:
        if node.index not in self.norm_at or not node.has("batch_norm"):
            args, kwargs = self.operands(node)
            return execute(node, args, kwargs)
        site, call = self.norm_at[node.index]
        named = self.statistics(node)
        x, made = named["input"], self.anchors.get((site.name, call))
        if made is not None and made.stand_in is not None:
            x = made.stand_in
        if isinstance(x, Unknown):
            raise UnknownOperand
        mean = channel_mean(x)
        variance = channel_variance(x, mean)
        gain, term = torch.ones_like(mean), torch.zeros_like(mean)
        if made is not None and made.stand_in is None:
            # What the anchor makes of values is linear, and so is the norm: its statistics follow.
            gain, term = made.line()
        elif made is None and site.name in self.clean:
            gain = (named["running_var"] / variance.clamp_min(TINY)).sqrt()
            term = named["running_mean"] - mean * gain
            self.gains[site.name, call] = gain
        seen = Observed(gain * mean + term, gain.square() * variance)
        held = (
            made is not None and site.tracked and not made.clean
        )  # else it holds what it sees without noise
        learned = Observed(made.channels_mean, made.variance) if made is not None and held else seen
        if self._parted is None and not seen.close_to(learned):
            self._parted = self._twin(node.index)
        source = node.inputs[0]
        if x is self.values.get(source) and self.read_after(node, source):
            self.values[source] = affine(x, gain, term)
        self.observed[site.name, call] = seen
        used = learned if self.norms_use == "running" else seen
        scale = (used.variance + float(named["eps"])).rsqrt()
        scale = scale if named["weight"] is None else scale * named["weight"]
        shift = (term - used.mean) * scale
        shift = shift if named["bias"] is None else shift + named["bias"]
        result = affine(x, gain * scale, shift)
        return result if node.op == "batch_norm" else (result, None, None)
