"""Runs of a shadow in eval mode, as its user would run it, from a known state and known random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from varshift._errors import VarshiftError
from varshift.flow import Parting, first_difference
from varshift.model import Call, Forward, Shadow, find_norms, primary_output, seed_all, seed_held
from varshift.probe._loss import Loss, batch_loss
from varshift.probe._states import set_noise

Distance = Callable[[Tensor, Tensor], "float | None"]


class EvalRuns:
    """Runs a network in eval mode: nothing is exchanged, its own flags decide.

    Args:
        shadow: Stands in for the network.
        forward: The user's function of model and batch, if any.
        loss: The user's function of outputs and targets, if any.
        seed: Seed of what is random.
    """

    def __init__(self, shadow: Shadow, forward: Forward | None, loss: Loss | None, seed: int) -> None:
        self._shadow, self._forward, self._loss, self._seed = shadow, forward, loss, seed
        self._norms = find_norms(shadow.network)

    def start(self, *, fresh: bool = True, seed: int = 0) -> None:
        """Sets state, mode and random numbers.

        Args:
            fresh: Whether everything that earlier runs wrote is undone.
            seed: Another number gives other random numbers.
        """
        if fresh:
            self._shadow.fresh()
        set_noise(self._shadow.network, self._norms, False)
        seed_all(self._seed + seed)
        if fresh or seed == 0:
            seed_held(self._shadow.network, self._seed + seed)

    @property
    def network(self) -> nn.Module:
        """The network that runs."""
        return self._shadow.network

    def wrote(self, tensor: Tensor) -> bool:
        """Whether a tensor of the network has other values than at the beginning, or is a new one."""
        return self._shadow.wrote(tensor)

    def begin(self) -> nn.Module:
        """Sets all to the beginning, and returns the network."""
        self.start()
        return self.network

    def outputs(self, call: Call, *, fresh: bool = True, seed: int = 0) -> Any:
        """What the network returns.

        Raises:
            ModelError: If it fails.
        """
        self.start(fresh=fresh, seed=seed)
        with torch.no_grad():
            return call.copy().outputs(self._shadow.network, self._forward)

    def output(self, call: Call, *, fresh: bool = True, seed: int = 0) -> Tensor | None:
        """Its main output, None where that is no tensor of real numbers.

        Raises:
            ModelError: If it fails.
        """
        return self.main(self.outputs(call, fresh=fresh, seed=seed))

    def main(self, outputs: Any) -> Tensor | None:
        """The main tensor of some outputs, None where it does not hold real numbers."""
        if isinstance(outputs, (tuple, list)) and outputs and isinstance(outputs[0], PackedSequence):
            outputs = outputs[0]
        if isinstance(outputs, PackedSequence):  # its rows lie step by step: how many there are says nothing
            outputs = pad_packed_sequence(outputs, batch_first=True)[0]
        output = primary_output(outputs)
        return output if output is not None and output.is_floating_point() else None

    def loss(self, outputs: Any, call: Call) -> float | None:
        """The loss of some outputs; None without one, or where a few samples do not have one."""
        try:
            return batch_loss(outputs, call, self._loss)
        except VarshiftError:
            return None

    def parting(
        self,
        first: Call,
        second: Call,
        distance: Distance,
        limit: float,
        *,
        seeds: tuple[int, int] = (0, 0),
        fresh: tuple[bool, bool] = (True, True),
    ) -> Parting | None:
        """The first operation at which the runs on two calls part; see `varshift.flow.first_difference`."""
        return first_difference(
            self._shadow.network,
            first,
            second,
            lambda number: self.start(seed=seeds[number], fresh=fresh[number]),
            distance,
            limit,
            forward=self._forward,
        )
