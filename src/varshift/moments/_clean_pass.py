"""The network without noise, on the scale that training found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F

from varshift.flow import Flow, Node

from ._interpreter import BATCH_NORMS, Anchors, Interpreter, Unknown
from ._operators import base_name, run
from ._signal import channel_mean, channel_variance


@dataclass(slots=True)
class Observed:
    """What a norm saw without noise: mean and variance per channel."""

    mean: Tensor
    variance: Tensor


class CleanPass(Interpreter):
    """The network in evaluation on the same inputs, put on the scale that the anchors found.

    Args:
        flow: The network in eval mode.
        tensors: Parameters and buffers by name.
        inputs: The inputs.
        anchors: What the training pass found.
        norms_use: ``"running"`` for the state `eval`, ``"batch"`` for the state `clean`.
    """

    def __init__(
        self,
        flow: Flow,
        tensors: Mapping[str, Tensor],
        inputs: Sequence[Tensor],
        anchors: Anchors,
        norms_use: Literal["running", "batch"],
    ) -> None:
        super().__init__(flow, tensors, inputs)
        self.anchors, self.norms_use = anchors, norms_use
        self.observed: dict[tuple[str, int], Observed] = {}

    def call(self, node: Node) -> Any:
        if node.index not in self.norm_at or base_name(node) not in BATCH_NORMS:
            args, kwargs = self.operands(node)
            return run(node, args, kwargs)
        site, call = self.norm_at[node.index]
        named = self.statistics(node)
        x, made = named["input"], self.anchors.get((site.name, call))
        if isinstance(x, Unknown) or (made is not None and made.stand_in is not None):
            if made is None or made.stand_in is None:
                raise ValueError("an operand is unknown")
            x = made.stand_in
        elif made is not None:
            x = made.fix(x)
            source = node.inputs[0]
            if isinstance(self.values.get(source), Tensor):
                self.values[source] = x
        seen = Observed(channel_mean(x), channel_variance(x))
        self.observed[site.name, call] = seen
        mean, variance = seen.mean, seen.variance
        if self.norms_use == "running" and made is not None and site.tracked:
            mean, variance = made.channels_mean, made.variance
        result = F.batch_norm(
            x, mean, variance, named["weight"], named["bias"], False, 0.0, float(named["eps"])
        )
        return result if base_name(node) == "batch_norm" else (result, None, None)
