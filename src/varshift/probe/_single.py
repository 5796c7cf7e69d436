"""One training step's forward with a single sample: does it run, and are its values finite?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from varshift._errors import ModelError
from varshift.flow import RecognisedNorms
from varshift.model import Call, Forward, Shadow, find_norms, primary_output, short_message_of
from varshift.probe._loss import Loss, batch_loss


@dataclass(frozen=True, slots=True)
class SingleRun:
    """What a batch of one sample did in training mode.

    Attributes:
        error: What it raised, in one line; empty where it ran.
        finite: Whether outputs and loss are finite; True where it raised.
        broken: Names of the norms whose statistics are no longer finite.
    """

    error: str = ""
    finite: bool = True
    broken: tuple[str, ...] = ()

    @property
    def fails(self) -> bool:
        """Whether it raised, or made values that are not finite."""
        return bool(self.error) or not self.finite or bool(self.broken)


def run_single(
    shadow: Shadow,
    call: Call,
    recognised: RecognisedNorms,
    *,
    forward: Forward | None = None,
    loss: Loss | None = None,
) -> SingleRun | None:
    """Runs the first sample of a batch alone in training mode; None where it cannot be cut off.

    Nothing intervenes between the network and its norms: what torch raises in training, it raises here.
    """
    few = call.take(1)
    if few is None:
        return None
    shadow.run_eagerly(forward, loss)
    network = shadow.fresh()
    try:
        network.train(True)
        own = few.copy()
        try:
            with torch.no_grad():
                outputs = own.outputs(network, forward)
        except ModelError as error:
            return SingleRun(short_message_of(error.__cause__ or error))
        output = primary_output(outputs)
        finite = output is None or bool(torch.isfinite(output).all())
        value = batch_loss(outputs, own, loss)
        if value is not None:
            finite = finite and math.isfinite(value)
        broken = tuple(
            norm.name
            for norm in find_norms(network, recognised)
            if not all(bool(torch.isfinite(state.tensor).all()) for state in norm.own_states)
        )
        return SingleRun("", finite, broken)
    finally:
        shadow.fresh()
