"""States on other batches than those of the measurement: redrawn ones, single samples, mapped inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from varshift.flow import RecognisedNorms
from varshift.model import Call, Forward, Norm, Shadow, write
from varshift.probe._layers import effective_batch
from varshift.probe._loss import Loss, batch_loss
from varshift.probe._pass import run_pass
from varshift.probe._states import live_norms, measurable_norms, set_noise
from varshift.probe._tap import Policy, Statistics, Tap


@dataclass
class FewRun:
    """What a state brought back on a few batches.

    Attributes:
        tap: The tap that listened, with the moments of every norm's input.
        losses: Mean loss of each batch, None where there is nothing to compare with.
        outputs: What the network returned for each batch, where it was asked for.
    """

    tap: Tap
    losses: list[float | None] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)

    @property
    def loss(self) -> float | None:
        """Mean loss over the batches, None where one of them has none."""
        known = [value for value in self.losses if value is not None]
        return sum(known) / len(known) if known and len(known) == len(self.losses) else None

    def moments(self, norm: Norm) -> tuple[Tensor, Tensor] | None:
        """Pooled mean and variance of what arrived at a norm; None where it was less than two values."""
        for norms, slices, moments in self.tap.moments:
            if norm in norms:
                part = slices[norm.name]
                if float(moments.pool.count[part].max()) <= 1:
                    return None
                return moments.pool.mean[part].cpu(), moments.pool.var[part].cpu()
        return None

    @property
    def effective(self) -> dict[str, float]:
        """The number of independent values that a batch is worth at each norm (`LayerMeasurement`)."""
        found = {}
        for norms, slices, moments in self.tap.moments:
            for norm in norms:
                value, _ = effective_batch(moments, slices[norm.name])
                if value is not None and norm.name not in self.tap.shared and norm.rows == 1:
                    found[norm.name] = value
        return found


class FewRunner:
    """Runs a shadow in its states on a few batches; after every run the shadow is as it was.

    Args:
        shadow: Stands in for the network.
        recognised: The norms written by hand.
        call: Any batch, to find out which norms learn.
        forward: The user's function of model and batch, if any.
        loss: The user's function of outputs and targets, if any.
    """

    def __init__(
        self,
        shadow: Shadow,
        recognised: RecognisedNorms,
        call: Call,
        *,
        forward: Forward | None = None,
        loss: Loss | None = None,
    ) -> None:
        shadow.run_eagerly(forward, loss)
        self._shadow, self._forward, self._loss = shadow, forward, loss
        self.norms = measurable_norms(shadow.network, recognised)
        self.live, self._by_hand = live_norms(shadow, self.norms, forward, call)

    def run(
        self,
        calls: Sequence[Call],
        policy: Policy,
        *,
        statistics: Statistics | None = None,
        series: bool = False,
        keep: Callable[[Any], Any] | None = None,
        losses: bool = True,
    ) -> FewRun:
        """Runs batches without noise.

        Args:
            calls: The batches.
            policy: Which statistics the norms use, as a tap has it.
            statistics: Statistics to use in place of the norms' own.
            series: Whether the tap keeps what errors over batches need.
            keep: What to keep of the outputs of each batch, None for nothing.
            losses: Whether to take the loss.

        Raises:
            ModelError: If the network fails.
        """
        network = self._shadow.network
        hand_batch = self._by_hand if policy == "batch" else frozenset()
        set_noise(network, self.norms, False, hand_batch)
        with torch.no_grad():
            for norm in self.norms:
                if statistics is not None and norm.name in self._by_hand and norm.name in statistics:
                    for state, value in norm.changes(*statistics[norm.name]):
                        write(state.tensor, value)
        tap = Tap(self.norms, policy, live=self.live, substitutes=statistics, series=series)
        result = FewRun(tap)
        try:
            for call in calls:
                own = call.copy()
                outputs = run_pass(network, self._forward, own, tap)
                if losses:
                    result.losses.append(batch_loss(outputs, own, self._loss))
                if keep is not None:
                    result.outputs.append(keep(outputs))
        finally:
            self._shadow.fresh()
        return result
